"""Bring an author's ONNX model into the form that differentiation works on.

Standard domain, operator set 18 or later, weights and `Constant` nodes as named arrays, inputs of features whose first
dimension is the symbol "batch" and whose others are fixed, one output (batch first as well), shapes inferred, constants
folded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx

from blindsum.protocol.errors import BlindsumError

from ..manifest import Weight, feature, noise
from ..protobuf import DTYPES, Tensor
from .expand import placed
from .graph import Graph
from .propagate import Propagation
from .sizes import BATCH
from .source import Source, invalid


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """The model's nodes, constants, shapes and types."""

    graph: Graph
    features: tuple[Tensor, ...]  # as the model names them, shapes of one example
    output: str
    noise: tuple[Weight, ...]  # by the value that drops by it, shapes of one example


def prepare(
    source: Source,
    kept: Iterable[str],
    dimensions: Mapping[str, int],
    *,
    drops: bool = False,
    beside: Graph | None = None,
) -> Prepared:
    """`kept`: the constants to train, from which nothing is computed ahead. `dimensions`: sizes of symbolic dimensions
    other than the batch. `drops`: Dropout is active. `beside`: a graph with which constants will be shared.

    Raises `BlindsumError` "training-request-invalid", "training-model-invalid" or "training-operator-forbidden".
    """
    graph = Graph(nodes=source.nodes, constants=source.constants, shapes={}, opset=source.opset, beside=beside)
    declared, places = _declared(source.inputs, dimensions)
    inputs = {}
    for item, place in zip(declared, places, strict=True):
        graph.nodes.insert(0, placed(feature(item.name), item.name, len(item.shape), place))
        inputs[feature(item.name)] = (item.dtype, (BATCH, *item.shape[1:]))
    batch = max(size if isinstance(size := item.shape[0], int) else 0 for item in declared)
    propagation = Propagation(graph, inputs, batch, kept, drops=drops)
    output = propagation.run(source.output)
    shape = graph.shapes.get(output, ())
    if BATCH in shape[1:]:
        place = shape.index(BATCH)
        graph.shapes["@output"] = (BATCH, *shape[:place], *shape[place + 1 :])
        graph.dtypes["@output"] = graph.dtypes[output]
        perm = [place, *(axis for axis in range(len(shape)) if axis != place)]
        output = graph.op("Transpose", output, perm=perm, output="@output")
    graph.prune([output])
    if graph.dtypes.get(output) != "float32":
        raise invalid(f"its output is not float32 but {graph.dtypes.get(output)}")
    features = tuple(Tensor(item.name, item.dtype, item.shape[1:]) for item in declared)
    read = {name for node in graph.nodes for name in node.input}
    wanted = tuple(item for item in propagation.noise if noise(item.name) in read)
    return Prepared(graph=graph, features=features, output=output, noise=wanted)


def _declared(given: Sequence[onnx.ValueInfoProto], dimensions: Mapping[str, int]) -> tuple[list[Tensor], list[int]]:
    """The inputs with the batch first, '' where it is symbolic, and all other dimensions fixed; where the model wants it.

    The batch is the first dimension, or another one of the name that the first one has in another input.
    """
    if not given:
        raise invalid("the output depends on no input")
    inputs, places, open_, known = [], [], [], set()
    heads = [tensor.shape.dim[0] for item in given if (tensor := item.type.tensor_type).shape.dim]
    batches = set(map(_dimension, heads)) - {"", *dimensions}
    for item in given:
        tensor = item.type.tensor_type
        dtype = DTYPES.get(tensor.elem_type)
        if dtype is None or not tensor.shape.dim:
            raise invalid(
                f"input {item.name!r} must be a batch of numbers, its first dimension the batch, "
                f"or a constant (fixed={{{item.name!r}: ...}})"
            )
        named = [axis for axis, dim in enumerate(tensor.shape.dim) if dim.dim_param in batches]
        place = named[0] if named and isinstance(_dimension(tensor.shape.dim[0]), int) else 0
        places.append(place)
        sizes: list[int | str] = [_dimension(tensor.shape.dim[place])]
        if place:
            sizes[0] = ""
        for axis, dim in enumerate(tensor.shape.dim):
            if axis == place:
                continue
            name = _dimension(dim) or f"{item.name}.{axis}"
            if isinstance(name, str):
                known.add(name)
                if name not in dimensions:
                    open_.append(name)
            sizes.append(dimensions.get(name, 0) if isinstance(name, str) else name)
        inputs.append(Tensor(item.name, dtype, tuple(sizes)))
    if stray := sorted(set(dimensions) - known):
        detail = f"dimensions {', '.join(stray)}; the symbolic ones are {', '.join(sorted(known)) or 'none'}"
        raise BlindsumError("training-request-invalid", detail)
    if open_:
        wanted = ", ".join(f'"{name}": ...' for name in dict.fromkeys(open_))
        raise BlindsumError(
            "training-request-invalid", f"fix the sizes of symbolic dimensions: dimensions={{{wanted}}}"
        )
    if len({item.shape[0] for item in inputs if isinstance(item.shape[0], int)} - {1}) > 1:
        listed = ", ".join(f"{item.name} {item.shape[0]}" for item in inputs)
        raise invalid(f"the first dimensions of its inputs are not one batch: {listed}")
    return inputs, places


def _dimension(dim: onnx.TensorShapeProto.Dimension) -> int | str:
    """'' for one without size or name. (Some exporters write -1, or ? for each.)"""
    if dim.HasField("dim_value"):
        return dim.dim_value if dim.dim_value > 0 else ""
    return "" if dim.dim_param == "?" else str(dim.dim_param)
