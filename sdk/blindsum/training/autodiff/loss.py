"""How losses are written into graphs, with their gradients and the metrics that are reported beside them.

`rule_of` finds the rule of a loss. Here are the frame and the losses of numbers (regression); classification and
similarity have modules of their own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from onnx import TensorProto

from blindsum.protocol.errors import BlindsumError

from ..losses import CustomLoss, Huber, Loss
from ..manifest import Targets
from .graph import Graph, Shape

Mean = tuple[str, str]
"""A mean and the weight that it stands for: both float32 scalars."""


@dataclass(frozen=True, slots=True)
class LossRule(ABC):
    """A loss for predictions of one shape."""

    loss: Any  # the value from `losses` that this rule is for
    shape: Shape  # of the prediction, batch first

    @property
    def cuts(self) -> frozenset[str]:
        """Final activations that the loss holds."""
        return frozenset()

    @property
    def separable(self) -> bool:
        """True where each row of the batch adds its own part, whatever the others are."""
        return True

    @property
    def axis(self) -> int:
        """Along which the activation that the loss holds must run."""
        return len(self.shape) - 1

    @abstractmethod
    def targets(self) -> Targets:
        """What the caller has to pass. Raises "training-model-invalid" where the shape does not fit the loss."""

    @abstractmethod
    def mean(self, graph: Graph, prediction: str, targets: str) -> Mean:
        """Write the loss."""

    @abstractmethod
    def origin(self, graph: Graph, prediction: str, targets: str, scale: str) -> tuple[str, str]:
        """Where differentiation begins: a value, and the gradient of `scale` times the loss for it.

        `scale` is the name of a scalar, or '' for one. To be written after the loss itself.
        """

    def metrics(self) -> dict[str, Callable[[Graph, str, str], Mean]]:
        return {}

    def sizes(self) -> tuple[int, ...]:
        """Shape of the prediction for one example."""
        if not self.shape or isinstance(self.shape[0], int):
            raise self.unfit("(batch, fixed sizes)")
        sizes = tuple(size for size in self.shape[1:] if isinstance(size, int))
        if len(sizes) != len(self.shape) - 1:
            raise self.unfit("(batch, fixed sizes)")
        return sizes

    def unfit(self, wanted: str) -> BlindsumError:
        detail = f"loss {self.loss.name} needs an output of shape {wanted}, not {self.shape}"
        return BlindsumError("training-model-invalid", detail)


class NumbersRule(LossRule):
    """A mean over all numbers of the prediction, with float32 targets of its shape."""

    __slots__ = ()

    def targets(self) -> Targets:
        return Targets(dtype="float32", shape=self.sizes())

    def mean(self, graph: Graph, prediction: str, targets: str) -> Mean:
        terms = self.terms(graph, prediction, targets)
        return graph.op("ReduceMean", terms, keepdims=0), count(graph, prediction)

    def origin(self, graph: Graph, prediction: str, targets: str, scale: str) -> tuple[str, str]:
        slope = self.slope(graph, prediction, targets)
        return prediction, graph.op("Mul", slope, share(graph, count(graph, prediction), scale))

    @abstractmethod
    def terms(self, graph: Graph, prediction: str, targets: str) -> str: ...

    @abstractmethod
    def slope(self, graph: Graph, prediction: str, targets: str) -> str:
        """Derivative of each term."""

    def metrics(self) -> dict[str, Callable[[Graph, str, str], Mean]]:
        return {"mae": _absolute_error}


class SquaredErrorRule(NumbersRule):
    __slots__ = ()

    def terms(self, graph: Graph, prediction: str, targets: str) -> str:
        error = graph.op("Sub", prediction, targets)
        return graph.op("Mul", error, error)

    def origin(self, graph: Graph, prediction: str, targets: str, scale: str) -> tuple[str, str]:
        twice = graph.op("Mul", graph.scalar(2.0), share(graph, count(graph, prediction), scale))
        return prediction, graph.op("Mul", graph.op("Sub", prediction, targets), twice)

    def slope(self, graph: Graph, prediction: str, targets: str) -> str:
        return graph.op("Mul", graph.scalar(2.0), graph.op("Sub", prediction, targets))


class AbsoluteErrorRule(NumbersRule):
    __slots__ = ()

    def terms(self, graph: Graph, prediction: str, targets: str) -> str:
        return graph.op("Abs", graph.op("Sub", prediction, targets))

    def slope(self, graph: Graph, prediction: str, targets: str) -> str:
        return graph.op("Sign", graph.op("Sub", prediction, targets))

    def metrics(self) -> dict[str, Callable[[Graph, str, str], Mean]]:
        return {"mse": _squared_error}


class HuberRule(NumbersRule):
    """With c the error clipped to [-delta, delta], the term is c (error - c / 2) and its slope c."""

    __slots__ = ()

    def terms(self, graph: Graph, prediction: str, targets: str) -> str:
        clipped = self.slope(graph, prediction, targets)
        half = graph.op("Mul", clipped, graph.scalar(0.5))
        return graph.op("Mul", clipped, graph.op("Sub", graph.op("Sub", prediction, targets), half))

    def slope(self, graph: Graph, prediction: str, targets: str) -> str:
        assert isinstance(self.loss, Huber)
        low, high = graph.scalar(-self.loss.delta), graph.scalar(self.loss.delta)
        return graph.op("Clip", graph.op("Sub", prediction, targets), low, high)


def rule_of(loss: Loss, shape: Shape, opset: int) -> LossRule:
    """The rule that writes `loss` for predictions of `shape` into graphs of an operator set."""
    from .classification import BinaryRule, ClassesRule
    from .custom import custom_rule
    from .similarity import ContrastiveRule, CosineRule

    if isinstance(loss, CustomLoss):
        return custom_rule(loss, shape, opset)
    rules: dict[str, type[LossRule]] = {
        "cross-entropy": ClassesRule,
        "negative-log-likelihood": ClassesRule,
        "binary-cross-entropy": BinaryRule,
        "mse": SquaredErrorRule,
        "mae": AbsoluteErrorRule,
        "huber": HuberRule,
        "cosine": CosineRule,
        "contrastive": ContrastiveRule,
    }
    return rules[loss.name](loss, shape)


def count(graph: Graph, value: str) -> str:
    """Number of elements, as float32."""
    return graph.op("Cast", graph.op("Size", value), to=TensorProto.FLOAT)


def share(graph: Graph, weight: str, scale: str) -> str:
    """`scale` divided by the weight of the mean."""
    return graph.op("Div", scale or graph.scalar(1.0), weight)


def positive(graph: Graph, weight: str) -> str:
    """A divisor: `weight`, or one where that is zero."""
    zero = graph.op("Equal", weight, graph.scalar(0.0))
    return graph.op("Add", weight, graph.op("Cast", zero, to=TensorProto.FLOAT))


def total(graph: Graph, value: str) -> str:
    """Sum of all elements."""
    return graph.op("ReduceSum", value, keepdims=0)


def _absolute_error(graph: Graph, prediction: str, targets: str) -> Mean:
    error = graph.op("Abs", graph.op("Sub", prediction, targets))
    return graph.op("ReduceMean", error, keepdims=0), count(graph, prediction)


def _squared_error(graph: Graph, prediction: str, targets: str) -> Mean:
    error = graph.op("Sub", prediction, targets)
    return graph.op("ReduceMean", graph.op("Mul", error, error), keepdims=0), count(graph, prediction)
