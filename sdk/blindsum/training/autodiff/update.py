"""Optimisers as graphs: from gradients to updated parameters and states (`@new/...`)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx
from onnx import TensorProto

from ..manifest import STEP, Weight, anchor, control, gradient, updated
from ..optimisers import SGD, Adagrad, Adam, AdamW, Gradient, Optimiser, RMSprop
from .graph import Graph, Uses, attribute

VELOCITY, FIRST, SECOND, SQUARES = "@velocity/", "@first/", "@second/", "@squares/"
COPIED_MAX = 1 << 16  # elements of a dense layer's weight: more weigh more than what its gradient is made of
CLIP_EPSILON = 1e-6  # torch.nn.utils.clip_grad_norm_ adds it to the norm


def folded_rate(optimiser: Optimiser | Gradient) -> str:
    """The factor that the gradients carry: plain SGD takes its rate at the loss and saves a pass over the weights."""
    plain = isinstance(optimiser, SGD) and not (optimiser.momentum or optimiser.clip_norm or _has_terms(optimiser))
    return "@lr" if plain else ""


def states(optimiser: Optimiser | Gradient, parameters: Mapping[str, tuple[int, ...]]) -> list[Weight]:
    """What the optimiser keeps between steps for parameters of these shapes."""
    prefixes = []
    if isinstance(optimiser, Adam):
        prefixes = [FIRST, SECOND]
    if isinstance(optimiser, Adagrad | RMSprop):
        prefixes.append(SQUARES)
    if isinstance(optimiser, SGD | RMSprop) and optimiser.momentum:
        prefixes.append(VELOCITY)
    kept = [Weight(name=prefix + name, shape=shape) for name, shape in parameters.items() for prefix in prefixes]
    return [*kept, Weight(name=STEP, shape=())] if isinstance(optimiser, Adam) else kept


def append(graph: Graph, optimiser: Optimiser | Gradient, gradients: Mapping[str, str], folded: str = "") -> list[str]:
    """Append the update of every parameter; returns the outputs that this makes.

    `gradients`: parameter -> its gradient times `folded`, which is `folded_rate` or ''. Without an update the outputs
    are the gradients.
    """
    made = {name: at for at, node in enumerate(graph.nodes) for name in node.output}
    slopes: dict[str, str] = {}  # gradient -> parameter
    for name, slope in sorted(gradients.items(), key=lambda item: -made.get(item[1], 0)):
        slopes[graph.op("Identity", slope, output=graph.fresh("Identity")) if slope in slopes else slope] = name
    by_name = {name: slope for slope, name in slopes.items()}
    if isinstance(optimiser, Gradient):
        return _gradients(graph, by_name)
    by_name = _with_terms(graph, optimiser, by_name)
    if isinstance(optimiser, SGD):
        return _sgd(graph, optimiser, by_name, folded)
    if isinstance(optimiser, Adam):
        return _adam(graph, optimiser, by_name)
    if isinstance(optimiser, RMSprop):
        return _rmsprop(graph, optimiser, by_name)
    assert isinstance(optimiser, Adagrad)
    return _adagrad(graph, by_name)


def _gradients(graph: Graph, slopes: Mapping[str, str]) -> list[str]:
    """The gradients as they are, but made in the order of the backward pass.

    onnxruntime runs first what the last output needs. Were that the first layer's gradient itself, it would run the whole
    backward pass for it and make those of the other layers then, from values that had to wait.
    """
    makers = Uses(graph).maker
    in_place = {
        name: slope
        for name, slope in slopes.items()
        if makers[slope].op_type == "Gemm"
        and math.prod(s for s in graph.shape(name) if isinstance(s, int)) > COPIED_MAX
    }
    graph.rename_all({slope: gradient(name) for name, slope in in_place.items()})
    for name, slope in slopes.items():
        if name not in in_place:
            graph.op("Sum", slope, output=gradient(name))
    return [gradient(name) for name in slopes]


def _has_terms(optimiser: Optimiser) -> bool:
    return bool(optimiser.control or optimiser.proximal)


def _with_terms(graph: Graph, optimiser: Optimiser, slopes: dict[str, str]) -> dict[str, str]:
    """The gradients with control variate, proximal term, clipping and weight decay, in this order."""
    if optimiser.control:
        slopes = {name: graph.op("Add", slope, control(name)) for name, slope in slopes.items()}
    if optimiser.proximal:
        moved = {name: graph.op("Mul", graph.op("Sub", name, anchor(name)), "@proximal") for name in slopes}
        slopes = {name: graph.op("Add", slope, moved[name]) for name, slope in slopes.items()}
    if optimiser.clip_norm:
        squares = [graph.op("ReduceSumSquare", slope, keepdims=0) for slope in slopes.values()]
        norm = graph.op("Sqrt", graph.op("Sum", *squares))
        factor = graph.op("Div", "@clip_norm", graph.op("Add", norm, graph.scalar(CLIP_EPSILON)))
        factor = graph.op("Min", factor, graph.scalar(1.0))
        slopes = {name: graph.op("Mul", slope, factor) for name, slope in slopes.items()}
    if optimiser.weight_decay and not isinstance(optimiser, SGD | AdamW):
        decay = {name: graph.op("Mul", name, "@weight_decay") for name in slopes}
        slopes = {name: graph.op("Add", slope, decay[name]) for name, slope in slopes.items()}
    return slopes


def _sgd(graph: Graph, optimiser: SGD, slopes: Mapping[str, str], folded: str) -> list[str]:
    """With neither momentum nor terms, p <- (1 - lr w) p - lr g: one pass, in the Gemm that makes g where there is one."""
    outputs, uses = [], Uses(graph)
    keep = _kept_share(graph) if optimiser.weight_decay and not optimiser.momentum else ""
    for name, slope in slopes.items():
        if not optimiser.momentum:
            base = graph.op("Mul", name, keep) if keep else name
            slope = slope if folded else graph.op("Mul", slope, "@lr")
            outputs.append(_accumulate(graph, uses, base, slope, -1.0, updated(name)))
            continue
        if optimiser.weight_decay:
            slope = _accumulate(graph, uses, graph.op("Mul", name, "@weight_decay"), slope, 1.0)
        decayed = graph.op("Mul", VELOCITY + name, "@momentum")
        if optimiser.nesterov:
            velocity = graph.op("Add", decayed, slope, output=updated(VELOCITY + name))
            direction = graph.op("Add", slope, graph.op("Mul", velocity, "@momentum"))
        else:
            velocity = direction = _accumulate(graph, uses, decayed, slope, 1.0, updated(VELOCITY + name))
        outputs += [velocity, graph.op("Sub", name, graph.op("Mul", direction, "@lr"), output=updated(name))]
    return outputs


def _accumulate(graph: Graph, uses: Uses, base: str, slope: str, sign: float, output: str | None = None) -> str:
    """`base` + `sign` x `slope`.

    Where a Gemm makes the gradient for nobody else, it does the sum as well: one pass less. So does a ScatterND, which
    makes that of an embedding table: two passes over the table less.
    """
    producer, read = uses.maker.get(slope), slope in uses.readers
    if producer is not None and producer.op_type == "ScatterND" and not read and _adds(producer):
        empty, indices, rows = producer.input
        if empty in uses.maker and uses.maker[empty].op_type == "ConstantOfShape":
            graph.nodes = [node for node in graph.nodes if node is not producer]
            rows = rows if sign > 0 else graph.op("Neg", rows)
            return graph.op("ScatterND", base, indices, rows, output=output, reduction="add")
    if producer is not None and producer.op_type == "Gemm" and len(producer.input) == 2 and not read:
        output = output or graph.fresh("Gemm")
        graph.nodes = [node for node in graph.nodes if node is not producer]
        fused = onnx.helper.make_node("Gemm", [*producer.input, base], [output])
        fused.attribute.extend(item for item in producer.attribute if item.name != "alpha")
        alpha = attribute(producer, "alpha", 1.0)
        assert isinstance(alpha, float)
        fused.attribute.append(onnx.helper.make_attribute("alpha", sign * alpha))
        graph.nodes.append(fused)
        uses.maker[output] = fused
        return output
    return graph.op("Add" if sign > 0 else "Sub", base, slope, output=output)


def _adds(node: onnx.NodeProto) -> bool:
    return attribute(node, "reduction", b"none") == b"add"


def _kept_share(graph: Graph) -> str:
    """1 - lr weight_decay."""
    return graph.op("Sub", graph.scalar(1.0), graph.op("Mul", "@lr", "@weight_decay"))


def _adam(graph: Graph, optimiser: Adam, slopes: Mapping[str, str]) -> list[str]:
    """The scalars of a step are in float64 because 1 - beta2 loses four digits in float32.

    The states hold plain decayed sums, m <- beta1 m + g and v <- beta2 v + g^2: Adam's averages without their factors
    (1 - beta), which saves three passes over the weights. With

        a = (1 - beta1) / (1 - beta1^t)    b = sqrt((1 - beta2) / (1 - beta2^t))

    Adam's step lr a m / (b sqrt(v) + epsilon) is (lr a / b) m / (sqrt(v) + epsilon / b).
    """
    step = graph.op("Add", STEP, graph.scalar(1.0), output=updated(STEP))
    one, exponent = _double(graph, graph.scalar(1.0)), _double(graph, step)
    corrections = []
    for beta in (_double(graph, "@beta1"), _double(graph, "@beta2")):
        whole = graph.op("Sub", one, graph.op("Pow", beta, exponent))
        corrections.append(graph.op("Div", graph.op("Sub", one, beta), whole))
    root = graph.op("Sqrt", corrections[1])
    rate = _single(graph, graph.op("Div", graph.op("Mul", _double(graph, "@lr"), corrections[0]), root))
    epsilon = _single(graph, graph.op("Div", _double(graph, "@epsilon"), root))
    keep = _kept_share(graph) if isinstance(optimiser, AdamW) and optimiser.weight_decay else ""
    outputs = [updated(STEP)]
    for name, slope in slopes.items():
        first = graph.op("Add", graph.op("Mul", FIRST + name, "@beta1"), slope, output=updated(FIRST + name))
        squared = graph.op("Mul", slope, slope)
        second = graph.op("Add", graph.op("Mul", SECOND + name, "@beta2"), squared, output=updated(SECOND + name))
        direction = graph.op("Div", first, graph.op("Add", graph.op("Sqrt", second), epsilon))
        base = graph.op("Mul", name, keep) if keep else name
        outputs += [first, second, graph.op("Sub", base, graph.op("Mul", direction, rate), output=updated(name))]
    return outputs


def _adagrad(graph: Graph, slopes: Mapping[str, str]) -> list[str]:
    outputs = []
    for name, slope in slopes.items():
        squares = graph.op("Add", SQUARES + name, graph.op("Mul", slope, slope), output=updated(SQUARES + name))
        direction = graph.op("Div", slope, graph.op("Add", graph.op("Sqrt", squares), "@epsilon"))
        outputs += [squares, graph.op("Sub", name, graph.op("Mul", direction, "@lr"), output=updated(name))]
    return outputs


def _rmsprop(graph: Graph, optimiser: RMSprop, slopes: Mapping[str, str]) -> list[str]:
    """As for Adam, the state is the decayed sum s <- alpha s + g^2 without its factor 1 - alpha.

    With r the root of that factor, g / (r sqrt(s) + epsilon) is (g / r) / (sqrt(s) + epsilon / r).
    """
    one = _double(graph, graph.scalar(1.0))
    root = graph.op("Sqrt", graph.op("Sub", one, _double(graph, "@alpha")))
    epsilon = _single(graph, graph.op("Div", _double(graph, "@epsilon"), root))
    rate = graph.op("Div", "@lr", _single(graph, root))
    outputs = []
    for name, slope in slopes.items():
        squared = graph.op("Mul", slope, slope)
        squares = graph.op("Add", graph.op("Mul", SQUARES + name, "@alpha"), squared, output=updated(SQUARES + name))
        direction = graph.op("Div", slope, graph.op("Add", graph.op("Sqrt", squares), epsilon))
        outputs.append(squares)
        if optimiser.momentum:
            decayed = graph.op("Mul", VELOCITY + name, "@momentum")
            direction = graph.op("Add", decayed, direction, output=updated(VELOCITY + name))
            outputs.append(direction)
        outputs.append(graph.op("Sub", name, graph.op("Mul", direction, rate), output=updated(name)))
    return outputs


def _double(graph: Graph, value: str) -> str:
    return graph.op("Cast", value, to=TensorProto.DOUBLE)


def _single(graph: Graph, value: str) -> str:
    return graph.op("Cast", value, to=TensorProto.FLOAT)
