"""What an artifact trains and how, and the names and shapes through which its graphs are driven."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import msgspec

from .operators import OPSET_MAX, OPSET_MIN
from .protobuf import NAME_SIZE_MAX, RANK_MAX, Tensor

ELEMENTS_MAX = 1 << 28  # in one tensor
TENSORS_MAX = 100_000
METRICS_MAX = 16
HYPERPARAMETERS_MAX = 16
INPUTS_MAX = 64

# Names of our own begin with @; those of the model never do.
TARGETS, LOSS, WEIGHT, PREDICTION, STEP = "@targets", "@loss", "@weight", "@prediction", "@step"

Size = Annotated[int, msgspec.Meta(ge=0, le=ELEMENTS_MAX)]
Shape = Annotated[tuple[Size, ...], msgspec.Meta(max_length=RANK_MAX)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_SIZE_MAX)]
Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
DType = Literal[
    "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool"
]
Loss = Literal[
    "cross-entropy",
    "negative-log-likelihood",
    "binary-cross-entropy",
    "mse",
    "mae",
    "huber",
    "cosine",
    "contrastive",
    "custom",
]


class Batch(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An array with one row for each example. `shape` is that of one example."""

    dtype: DType
    shape: Shape


class Input(Batch, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An input of the model, by the name that the model gives it."""

    name: Name


class Targets(Batch, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What each example should give: numbers from `low` to `high` where those are stated, or the number `ignored`."""

    low: float | None = None
    high: float | None = None
    ignored: int | None = None


class Weight(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A tensor that belongs to the model or to the optimiser."""

    name: Name
    shape: Shape
    dtype: DType = "float32"


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an artifact trains and how. The flat parameter vector is `parameters` in this order, each row by row."""

    loss: Loss
    metrics: Annotated[tuple[Name, ...], msgspec.Meta(max_length=METRICS_MAX)]
    optimiser: Literal["sgd", "adam", "gradient"]
    hyperparameters: Annotated[dict[Name, float], msgspec.Meta(max_length=HYPERPARAMETERS_MAX)]
    features: Annotated[tuple[Input, ...], msgspec.Meta(min_length=1, max_length=INPUTS_MAX)]
    targets: Targets
    prediction: Batch
    parameters: Annotated[tuple[Weight, ...], msgspec.Meta(min_length=1, max_length=TENSORS_MAX)]
    states: Annotated[tuple[Weight, ...], msgspec.Meta(max_length=TENSORS_MAX)]  # float32, zero before the first step
    opset: Annotated[int, msgspec.Meta(ge=OPSET_MIN, le=OPSET_MAX)]
    source: Digest  # SHA-256 of the ONNX model from which the artifact was built
    operators: dict[Name, int]  # histogram of the train graph

    @property
    def size(self) -> int:
        """Length of the flat parameter vector."""
        return sum(math.prod(weight.shape) for weight in self.parameters)

    def train_inputs(self) -> list[Tensor]:
        """Features, targets, hyperparameters, parameters, states."""
        hyperparameters = [Tensor(f"@{name}", "float32", ()) for name in self.hyperparameters]
        weights = [_weight(weight.name, weight) for weight in (*self.parameters, *self.states)]
        return [*self.evaluate_inputs(), *hyperparameters, *weights]

    def train_outputs(self) -> list[Tensor]:
        """The loss, its weight, then the gradient of each parameter, or each parameter and state after the update."""
        weights, result = (*self.parameters, *self.states), updated
        if self.optimiser == "gradient":
            weights, result = self.parameters, gradient
        scalars = [Tensor(name, "float32", ()) for name in (LOSS, WEIGHT)]
        return [*scalars, *(_weight(result(weight.name), weight) for weight in weights)]

    def evaluate_inputs(self) -> list[Tensor]:
        return [*self.predict_inputs(), _batch(TARGETS, self.targets)]

    def evaluate_outputs(self) -> list[Tensor]:
        """Each metric: its mean over the batch, and the weight of that."""
        return [Tensor(f"@{name}", "float32", (2,)) for name in self.metrics]

    def predict_inputs(self) -> list[Tensor]:
        return [_batch(feature(item.name), item) for item in self.features]

    def predict_outputs(self) -> list[Tensor]:
        return [_batch(PREDICTION, self.prediction)]


def feature(name: str) -> str:
    """The graphs' input for the model's input `name`."""
    return f"@features/{name}"


def updated(name: str) -> str:
    """The train graph's output that replaces the parameter or state `name`."""
    return f"@new/{name}"


def gradient(name: str) -> str:
    """The train graph's output that holds the gradient of the parameter `name`."""
    return f"@gradient/{name}"


def _batch(name: str, batch: Batch) -> Tensor:
    return Tensor(name, batch.dtype, ("batch", *batch.shape))


def _weight(name: str, weight: Weight) -> Tensor:
    return Tensor(name, weight.dtype, weight.shape)
