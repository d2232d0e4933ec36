"""Losses that `build_artifact` can write into a graph.

Every loss is a weighted mean over its terms (examples, positions or numbers), and a step states the weight beside the
loss, so that the losses of batches of any size add up. Where nothing has weight (every target is ignored), the loss and
its gradient are zero.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from blindsum.protocol.errors import BlindsumError

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossEntropy:
    """Cross-entropy of softmax(prediction), which is (batch, classes, ...) with int64 class numbers (batch, ...).

    As torch.nn.CrossEntropyLoss computes it. `class_weights`: one for each class. `ignore_index`: a target that counts
    for nothing. `label_smoothing` in [0, 1). `axis`: where the classes are, e.g. -1 for (batch, time, classes). A final
    Softmax or LogSoftmax of the model is cut for training, as the loss holds it.
    """

    name: ClassVar[str] = "cross-entropy"
    class_weights: Sequence[float] | None = None
    ignore_index: int | None = None
    label_smoothing: float = 0.0
    axis: int = 1

    def __post_init__(self) -> None:
        _require(0.0 <= self.label_smoothing < 1.0, f"label_smoothing={self.label_smoothing} is not in [0, 1)")
        _require_weights("class_weights", self.class_weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class NegativeLogLikelihood:
    """Mean of -prediction[target], where the model's output holds log-probabilities (torch.nn.NLLLoss)."""

    name: ClassVar[str] = "negative-log-likelihood"
    class_weights: Sequence[float] | None = None
    ignore_index: int | None = None
    axis: int = 1

    def __post_init__(self) -> None:
        _require_weights("class_weights", self.class_weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class BinaryCrossEntropy:
    """Cross-entropy of sigmoid(prediction) with float32 targets in [0, 1] of its shape (torch.nn.BCEWithLogitsLoss).

    `pos_weight` multiplies the part of the positive targets: one number, or one for each entry of the last axis. A
    final Sigmoid of the model is cut for training, as the loss holds it.
    """

    name: ClassVar[str] = "binary-cross-entropy"
    pos_weight: float | Sequence[float] = 1.0

    def __post_init__(self) -> None:
        _require_weights(
            "pos_weight", [self.pos_weight] if isinstance(self.pos_weight, int | float) else self.pos_weight
        )


@dataclass(frozen=True, slots=True)
class MeanSquaredError:
    """Mean of (prediction - target)^2, with float32 targets of the prediction's shape."""

    name: ClassVar[str] = "mse"


@dataclass(frozen=True, slots=True)
class MeanAbsoluteError:
    """Mean of |prediction - target|, with float32 targets of the prediction's shape; its slope at zero is zero."""

    name: ClassVar[str] = "mae"


@dataclass(frozen=True, slots=True, kw_only=True)
class Huber:
    """Mean of e^2 / 2 where the error e is at most `delta`, and delta (|e| - delta / 2) beyond (torch.nn.HuberLoss)."""

    name: ClassVar[str] = "huber"
    delta: float = 1.0

    def __post_init__(self) -> None:
        _require(0.0 < self.delta < math.inf, f"delta={self.delta} is not above zero and finite")


@dataclass(frozen=True, slots=True)
class Cosine:
    """Mean of 1 - cos(prediction, target) over the vectors of the last axis; float32 targets of the prediction's shape.

    As torch.nn.CosineEmbeddingLoss computes it for pairs that belong together.
    """

    name: ClassVar[str] = "cosine"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrastive:
    """Supervised contrastive loss over the pairs of a batch (Khosla et al., arXiv 2004.11362, equation 2).

    The model's output (batch, size) is an embedding, which the loss brings to length one; targets are int64 labels
    (batch,). Examples of one label attract each other, all others repel, at `temperature`. The mean is over the
    examples that have a partner in the batch. The loss depends on which examples share a batch, so micro-batches are
    not one large batch here.
    """

    name: ClassVar[str] = "contrastive"
    temperature: float = 0.1

    def __post_init__(self) -> None:
        _require(0.0 < self.temperature < math.inf, f"temperature={self.temperature} is not above zero and finite")


@dataclass(frozen=True, slots=True)
class CustomLoss:
    """A loss given as an ONNX model: the inputs prediction and targets (in this order), one float32 scalar as output.

    It must be a mean over the examples of a batch, because batches are weighed by size. Its operators must be standard
    ones that can be differentiated; a ModelProto, its bytes or a path.
    """

    name: ClassVar[str] = "custom"
    model: onnx.ModelProto | bytes | str | os.PathLike[str]


Loss = (
    CrossEntropy
    | NegativeLogLikelihood
    | BinaryCrossEntropy
    | MeanSquaredError
    | MeanAbsoluteError
    | Huber
    | Cosine
    | Contrastive
    | CustomLoss
)

LOSSES: dict[str, type[Loss]] = {
    kind.name: kind
    for kind in (
        CrossEntropy,
        BinaryCrossEntropy,
        MeanSquaredError,
        MeanAbsoluteError,
        Huber,
        NegativeLogLikelihood,
        Cosine,
        Contrastive,
    )
}


def as_loss(loss: str | Loss) -> Loss:
    """`loss` itself, or the one of that name with its default numbers."""
    if isinstance(loss, Loss):
        return loss
    if loss not in LOSSES:
        raise BlindsumError("training-request-invalid", f"loss {loss!r} is none of {', '.join(LOSSES)}")
    return LOSSES[loss]()  # type: ignore[call-arg]


def _require(holds: bool, detail: str) -> None:
    if not holds:
        raise BlindsumError("training-request-invalid", detail)


def _require_weights(name: str, weights: Sequence[float] | None) -> None:
    right = weights is None or (len(weights) > 0 and all(0.0 <= weight < math.inf for weight in weights))
    _require(right, f"{name}={weights} are not numbers of at least zero")
