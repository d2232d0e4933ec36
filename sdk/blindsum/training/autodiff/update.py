"""Optimisers as graphs: from gradients to updated parameters and states (`@new/...`)."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import TensorProto

from ..manifest import STEP, Weight, gradient, updated
from ..optimisers import SGD, Adam, Gradient, Optimiser
from .graph import Graph, attribute

VELOCITY, FIRST, SECOND = "@velocity/", "@first/", "@second/"


def folded_rate(optimiser: Optimiser) -> str:
    """The factor that the gradients carry: plain SGD takes its rate at the loss and saves a pass over the weights."""
    return "@lr" if isinstance(optimiser, SGD) and not _has_velocity(optimiser) else ""


def states(optimiser: Optimiser, parameters: Mapping[str, tuple[int, ...]]) -> list[Weight]:
    """What the optimiser keeps between steps for parameters of these shapes."""
    prefixes = [FIRST, SECOND] if isinstance(optimiser, Adam) else [VELOCITY] if _has_velocity(optimiser) else []
    kept = [Weight(name=prefix + name, shape=shape) for name, shape in parameters.items() for prefix in prefixes]
    return [*kept, Weight(name=STEP, shape=())] if isinstance(optimiser, Adam) else kept


def append(graph: Graph, optimiser: Optimiser, gradients: Mapping[str, str]) -> list[str]:
    """Append the update of every parameter; returns the outputs that this makes.

    `gradients`: parameter -> its gradient times `folded_rate`. Without an update the outputs are the gradients.
    """
    slopes: dict[str, str] = {}  # gradient -> parameter
    for name, slope in gradients.items():
        slopes[graph.op("Identity", slope, output=graph.fresh("Identity")) if slope in slopes else slope] = name
    outputs = []
    if isinstance(optimiser, Gradient):
        for slope, name in slopes.items():
            graph.rename(slope, gradient(name))
            outputs.append(gradient(name))
    elif isinstance(optimiser, Adam):
        coefficients = _adam_coefficients(graph)
        outputs.append(updated(STEP))
        for slope, name in slopes.items():
            outputs += _adam(graph, name, slope, coefficients)
    elif _has_velocity(optimiser):
        for slope, name in slopes.items():
            decayed = graph.op("Mul", VELOCITY + name, "@momentum")
            velocity = _accumulate(graph, decayed, slope, 1.0, updated(VELOCITY + name))
            outputs += [velocity, graph.op("Sub", name, graph.op("Mul", velocity, "@lr"), output=updated(name))]
    else:
        outputs += [_accumulate(graph, name, slope, -1.0, updated(name)) for slope, name in slopes.items()]
    return outputs


def _has_velocity(optimiser: Optimiser) -> bool:
    return isinstance(optimiser, SGD) and optimiser.momentum > 0.0


def _accumulate(graph: Graph, base: str, slope: str, sign: float, output: str) -> str:
    """`base` + `sign` x `slope`.

    Where a Gemm makes the gradient for nobody else, it does the sum as well: one pass less.
    """
    producer = next(node for node in graph.nodes if slope in node.output)
    readers = sum(list(node.input).count(slope) for node in graph.nodes)
    if producer.op_type == "Gemm" and len(producer.input) == 2 and readers == 0:
        graph.nodes.remove(producer)
        fused = onnx.helper.make_node("Gemm", [*producer.input, base], [output])
        fused.attribute.extend(item for item in producer.attribute if item.name != "alpha")
        alpha = attribute(producer, "alpha", 1.0)
        assert isinstance(alpha, float)
        fused.attribute.append(onnx.helper.make_attribute("alpha", sign * alpha))
        graph.nodes.append(fused)
        return output
    return graph.op("Add" if sign > 0 else "Sub", base, slope, output=output)


def _adam_coefficients(graph: Graph) -> tuple[str, str]:
    """Scalars of this step, in float64 because 1 - beta2 loses four digits in float32.

    The states hold plain decayed sums, m <- beta1 m + g and v <- beta2 v + g^2: Adam's averages without their factors
    (1 - beta), which saves three passes over the weights. With

        a = (1 - beta1) / (1 - beta1^t)    b = sqrt((1 - beta2) / (1 - beta2^t))

    Adam's step lr a m / (b sqrt(v) + epsilon) is (lr a / b) m / (sqrt(v) + epsilon / b).
    Returns lr a / b and epsilon / b.
    """
    step = graph.op("Add", STEP, graph.scalar(1.0), output=updated(STEP))
    one, exponent = _double(graph, graph.scalar(1.0)), _double(graph, step)
    corrections = []
    for beta in (_double(graph, "@beta1"), _double(graph, "@beta2")):
        whole = graph.op("Sub", one, graph.op("Pow", beta, exponent))
        corrections.append(graph.op("Div", graph.op("Sub", one, beta), whole))
    root = graph.op("Sqrt", corrections[1])
    rate = graph.op("Div", graph.op("Mul", _double(graph, "@lr"), corrections[0]), root)
    epsilon = graph.op("Div", _double(graph, "@epsilon"), root)
    return graph.op("Cast", rate, to=TensorProto.FLOAT), graph.op("Cast", epsilon, to=TensorProto.FLOAT)


def _adam(graph: Graph, name: str, slope: str, coefficients: tuple[str, str]) -> list[str]:
    rate, epsilon = coefficients
    first = graph.op("Add", graph.op("Mul", FIRST + name, "@beta1"), slope, output=updated(FIRST + name))
    squared = graph.op("Mul", slope, slope)
    second = graph.op("Add", graph.op("Mul", SECOND + name, "@beta2"), squared, output=updated(SECOND + name))
    direction = graph.op("Div", first, graph.op("Add", graph.op("Sqrt", second), epsilon))
    return [first, second, graph.op("Sub", name, graph.op("Mul", direction, rate), output=updated(name))]


def _double(graph: Graph, value: str) -> str:
    return graph.op("Cast", value, to=TensorProto.DOUBLE)
