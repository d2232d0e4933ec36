"""BatchNormalization while training: frozen statistics, or those of the batch with running ones beside them.

A running statistic r is a parameter whose gradient is (1 - momentum) (r - s), s the statistic of the batch, and whose
update is r - gradient = momentum r + (1 - momentum) s (ONNX; s is over the batch alone, so a variance has no n / (n - 1)
as in PyTorch). Micro-batches average it as they average gradients, and federated averaging averages the outcome.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx

from blindsum.protocol.errors import BlindsumError

from ..manifest import gradient, updated
from .graph import Graph, attribute
from .source import Source, title

MODES = ("frozen", "train")


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistic:
    name: str
    variance: bool


def statistics(source: Source, mode: str) -> tuple[Statistic, ...]:
    """The running statistics that training moves: none where they are frozen.

    Raises "training-request-invalid" where the model has none, or keeps them otherwise than as constants of their own.
    """
    if mode not in MODES:
        raise BlindsumError("training-request-invalid", f"batch_norm {mode!r} is none of {', '.join(MODES)}")
    if mode == "frozen":
        return ()
    found: list[Statistic] = []
    for node in source.nodes:
        if node.op_type == "BatchNormalization":
            for at in (3, 4):
                if node.input[at] not in source.constants or node.input[at] in {item.name for item in found}:
                    raise BlindsumError(
                        "training-request-invalid", f"{title(node)} has no running statistics of its own to train"
                    )
                found.append(Statistic(name=node.input[at], variance=at == 4))
    if not found:
        detail = "the model has no BatchNormalization; PyTorch's exporters fold it unless they export training mode"
        raise BlindsumError("training-request-invalid", detail)
    return tuple(found)


def freeze(node: onnx.NodeProto) -> None:
    """Let the node normalise with its running statistics, however it was exported."""
    del node.output[1:]
    kept = [item for item in node.attribute if item.name != "training_mode"]
    del node.attribute[:]
    node.attribute.extend(kept)


def train(graph: Graph) -> dict[str, str]:
    """Let all BatchNormalization nodes normalise by the batch; returns the gradient of each running statistic."""
    slopes = {}
    for node in list(graph.nodes):
        if node.op_type != "BatchNormalization":
            continue
        momentum = attribute(node, "momentum", 0.9)
        assert isinstance(momentum, float)
        kept = [item for item in node.attribute if item.name not in ("momentum", "training_mode")]
        del node.attribute[:]
        node.attribute.extend(kept)
        node.attribute.append(onnx.helper.make_attribute("momentum", 0.0))  # so that it gives those of the batch
        node.attribute.append(onnx.helper.make_attribute("training_mode", 1))
        node.output.extend([graph.fresh("mean"), graph.fresh("variance")])
        share = graph.scalar(1.0 - momentum)
        for at, batch in enumerate(node.output[1:], start=3):
            running = node.input[at]
            slopes[running] = graph.op("Mul", graph.op("Sub", running, batch), share, output=graph.fresh("statistic"))
            node.input[at] = _own(graph, node, running)
    return slopes


def _own(graph: Graph, node: onnx.NodeProto, running: str) -> str:
    """A buffer of zeros for the operator to write in.

    onnxruntime writes the new running statistics over the old ones, be they a graph input, a constant or somebody
    else's. The zeros therefore come from a product that only a run of the graph can compute.
    """
    names = [graph.fresh(stem) for stem in ("size", "number", "zero", "own")]
    operands = [[node.input[0]], [names[0]], [names[1], graph.scalar(0.0)], [running, names[2]]]
    at = graph.nodes.index(node)
    for operator, inputs, output in zip(("Size", "Cast", "Mul", "Mul"), operands, names, strict=True):
        made = onnx.helper.make_node(operator, inputs, [output])
        if operator == "Cast":
            made.attribute.append(onnx.helper.make_attribute("to", onnx.TensorProto.FLOAT))
        graph.nodes.insert(at, made)
        at += 1
    return names[-1]


def give(graph: Graph, slopes: Mapping[str, str]) -> list[str]:
    """Append the gradients of the running statistics as outputs."""
    return [graph.op("Identity", slope, output=gradient(name)) for name, slope in slopes.items()]


def move(graph: Graph, items: Iterable[Statistic], slopes: Mapping[str, str]) -> list[str]:
    """Append the running statistics after the step as outputs; a variance stays at least 0."""
    outputs = []
    for item in items:
        output = updated(item.name)
        if item.variance:
            graph.op("Relu", graph.op("Sub", item.name, slopes[item.name]), output=output)
        else:
            graph.op("Sub", item.name, slopes[item.name], output=output)
        outputs.append(output)
    return outputs


def guard(graph: Graph, items: Iterable[Statistic]) -> None:
    """Read a variance below zero, which an average with noise may give, as zero."""
    safe: dict[str, str] = {}
    for item in items:
        if item.variance and item.name in graph.constants:
            safe[item.name] = graph.fresh("variance")
    for node in graph.nodes:
        if node.op_type == "BatchNormalization":
            node.input[4] = safe.get(node.input[4], node.input[4])
    graph.nodes[:0] = [onnx.helper.make_node("Relu", [name], [output]) for name, output in safe.items()]
