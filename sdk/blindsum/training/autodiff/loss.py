"""Losses with their gradients, and the metrics that are reported beside them.

Every loss is a mean, so batches can be weighed by size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from .graph import Graph


@dataclass(frozen=True, slots=True, kw_only=True)
class LossRule:
    """How a loss is written into a graph.

    `value(graph, prediction, targets)` and each metric give a scalar; `seed(graph, prediction, targets, scale)` gives
    `scale` times the gradient of the loss for the prediction (`scale` is the name of a scalar, or ''). `cuts` are final
    activations that the loss holds.
    """

    value: Callable[[Graph, str, str], str]
    seed: Callable[[Graph, str, str, str], str]
    metrics: dict[str, Callable[[Graph, str, str], str]]
    cuts: frozenset[str]
    targets: str  # dtype; class numbers where int64, else the shape of the prediction


def _cross_entropy(graph: Graph, logits: str, targets: str) -> str:
    column = graph.op("Unsqueeze", targets, graph.integers([1]))
    chosen = graph.op("GatherElements", graph.op("LogSoftmax", logits, axis=1), column, axis=1)
    return graph.op("Neg", graph.op("ReduceMean", chosen, keepdims=0))


def _cross_entropy_seed(graph: Graph, logits: str, targets: str, scale: str) -> str:
    classes = graph.shape(logits)[1]
    assert isinstance(classes, int)
    depth, off_on = graph.constant(np.array(classes)), graph.constant(np.array([0.0, 1.0], np.float32))
    probability = graph.op("Exp", graph.op("LogSoftmax", logits, axis=1))  # shares LogSoftmax with the value
    excess = graph.op("Sub", probability, graph.op("OneHot", targets, depth, off_on, axis=1))
    return graph.op("Mul", excess, _share(graph, targets, scale))


def _accuracy(graph: Graph, logits: str, targets: str) -> str:
    return _hits(graph, graph.op("Equal", graph.op("ArgMax", logits, axis=1, keepdims=0), targets))


def _binary_cross_entropy(graph: Graph, logits: str, targets: str) -> str:
    """Mean of softplus(z) - z t: the cross-entropy of sigmoid(z) without its overflow."""
    excess = graph.op("Sub", graph.op("Softplus", logits), graph.op("Mul", logits, targets))
    return graph.op("ReduceMean", excess, keepdims=0)


def _binary_cross_entropy_seed(graph: Graph, logits: str, targets: str, scale: str) -> str:
    excess = graph.op("Sub", graph.op("Sigmoid", logits), targets)
    return graph.op("Mul", excess, _share(graph, targets, scale))


def _binary_accuracy(graph: Graph, logits: str, targets: str) -> str:
    said = graph.op("Greater", logits, graph.scalar(0.0))
    return _hits(graph, graph.op("Equal", said, graph.op("Greater", targets, graph.scalar(0.5))))


def _mse(graph: Graph, prediction: str, targets: str) -> str:
    error = graph.op("Sub", prediction, targets)
    return graph.op("ReduceMean", graph.op("Mul", error, error), keepdims=0)


def _mse_seed(graph: Graph, prediction: str, targets: str, scale: str) -> str:
    share = graph.op("Mul", graph.scalar(2.0), _share(graph, targets, scale))
    return graph.op("Mul", graph.op("Sub", prediction, targets), share)


def _mae(graph: Graph, prediction: str, targets: str) -> str:
    return graph.op("ReduceMean", graph.op("Abs", graph.op("Sub", prediction, targets)), keepdims=0)


LOSSES = {
    "cross-entropy": LossRule(
        value=_cross_entropy,
        seed=_cross_entropy_seed,
        metrics={"accuracy": _accuracy},
        cuts=frozenset({"Softmax", "LogSoftmax"}),
        targets="int64",
    ),
    "binary-cross-entropy": LossRule(
        value=_binary_cross_entropy,
        seed=_binary_cross_entropy_seed,
        metrics={"accuracy": _binary_accuracy},
        cuts=frozenset({"Sigmoid"}),
        targets="float32",
    ),
    "mse": LossRule(value=_mse, seed=_mse_seed, metrics={"mae": _mae}, cuts=frozenset(), targets="float32"),
}


def _hits(graph: Graph, correct: str) -> str:
    return graph.op("ReduceMean", graph.op("Cast", correct, to=TensorProto.FLOAT), keepdims=0)


def _share(graph: Graph, targets: str, scale: str) -> str:
    """`scale` divided by the number of terms in the mean."""
    count = graph.op("Cast", graph.op("Size", targets), to=TensorProto.FLOAT)
    return graph.op("Div", scale or graph.scalar(1.0), count)
