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
AGAIN = "again"  # @again/1, @again/2 ...: forward results that a step computes a second time
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


class Adapter(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Two trained tensors beside the frozen matrix `name`, which add `scale` times their product to it.

    `flipped`: the matrix is (outputs, inputs), the product (inputs, outputs).
    """

    name: Name
    scale: float
    flipped: bool


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an artifact trains and how. The flat parameter vector is `parameters` in this order, each row by row."""

    loss: Loss
    metrics: Annotated[tuple[Name, ...], msgspec.Meta(max_length=METRICS_MAX)]
    optimiser: Literal["sgd", "adam", "adamw", "adagrad", "rmsprop", "gradient"]
    control: bool  # the step adds a control variate to the gradient
    hyperparameters: Annotated[dict[Name, float], msgspec.Meta(max_length=HYPERPARAMETERS_MAX)]
    features: Annotated[tuple[Input, ...], msgspec.Meta(min_length=1, max_length=INPUTS_MAX)]
    targets: Targets
    prediction: Batch
    parameters: Annotated[tuple[Weight, ...], msgspec.Meta(min_length=1, max_length=TENSORS_MAX)]
    states: Annotated[tuple[Weight, ...], msgspec.Meta(max_length=TENSORS_MAX)]  # float32, zero before the first step
    opset: Annotated[int, msgspec.Meta(ge=OPSET_MIN, le=OPSET_MAX)]
    source: Digest  # SHA-256 of the ONNX model from which the artifact was built
    adapters: Annotated[tuple[Adapter, ...], msgspec.Meta(max_length=TENSORS_MAX)] = ()
    noise: Annotated[tuple[Weight, ...], msgspec.Meta(max_length=TENSORS_MAX)] = ()  # shapes of one example
    personal: Annotated[
        tuple[Name, ...], msgspec.Meta(max_length=TENSORS_MAX)
    ] = ()  # parameters that stay on the device
    operators: dict[Name, int]  # histogram of the train graph
    separable: bool  # loss and gradient are means over the rows of a batch, each of which counts for itself

    @property
    def size(self) -> int:
        """Length of the flat parameter vector."""
        return sum(math.prod(weight.shape) for weight in self.parameters)

    @property
    def anchors(self) -> tuple[Weight, ...]:
        """The parameters at the start of the round, from which the proximal term measures."""
        if "proximal" not in self.hyperparameters:
            return ()
        return tuple(Weight(name=anchor(weight.name), shape=weight.shape) for weight in self.parameters)

    @property
    def controls(self) -> tuple[Weight, ...]:
        """The control variate."""
        if not self.control:
            return ()
        return tuple(Weight(name=control(weight.name), shape=weight.shape) for weight in self.parameters)

    def interfaces(self) -> dict[str, tuple[list[Tensor], list[Tensor]]]:
        """Inputs and outputs of each graph that the artifact holds."""
        interfaces = {
            "train": (self.train_inputs(), self.train_outputs()),
            "evaluate": (self.evaluate_inputs(), self.evaluate_outputs()),
            "predict": (self.predict_inputs(), self.predict_outputs()),
        }
        if self.optimiser != "gradient":
            interfaces["gradient"] = (self.gradient_inputs(), self.gradient_outputs())
            interfaces["update"] = (self.update_inputs(), self.update_outputs())
        return interfaces

    def train_inputs(self) -> list[Tensor]:
        """Features, targets, noise for Dropout, then what the update takes beside the gradients."""
        return [*self.evaluate_inputs(), *self._noise(), *self._update_inputs()]

    def train_outputs(self) -> list[Tensor]:
        """The loss, its weight, then the gradient of each parameter, or each parameter and state after the update."""
        scalars = [Tensor(name, "float32", ()) for name in (LOSS, WEIGHT)]
        return [*scalars, *(self._gradients() if self.optimiser == "gradient" else self.update_outputs())]

    def gradient_inputs(self) -> list[Tensor]:
        weights = (_weight(weight.name, weight) for weight in self.parameters)
        return [*self.evaluate_inputs(), *self._noise(), *weights]

    def gradient_outputs(self) -> list[Tensor]:
        """As the train graph of an artifact with optimizer="gradient"."""
        return [*(Tensor(name, "float32", ()) for name in (LOSS, WEIGHT)), *self._gradients()]

    def update_inputs(self) -> list[Tensor]:
        return [*self._gradients(), *self._update_inputs()]

    def update_outputs(self) -> list[Tensor]:
        return [_weight(updated(weight.name), weight) for weight in (*self.parameters, *self.states)]

    def evaluate_inputs(self) -> list[Tensor]:
        return [*self.predict_inputs(), _batch(TARGETS, self.targets)]

    def evaluate_outputs(self) -> list[Tensor]:
        """Each metric: its mean over the batch, and the weight of that."""
        return [Tensor(f"@{name}", "float32", (2,)) for name in self.metrics]

    def predict_inputs(self) -> list[Tensor]:
        return [_batch(feature(item.name), item) for item in self.features]

    def predict_outputs(self) -> list[Tensor]:
        return [_batch(PREDICTION, self.prediction)]

    def _noise(self) -> list[Tensor]:
        return [Tensor(noise(item.name), item.dtype, ("batch", *item.shape)) for item in self.noise]

    def _gradients(self) -> list[Tensor]:
        return [_weight(gradient(weight.name), weight) for weight in self.parameters]

    def _update_inputs(self) -> list[Tensor]:
        """Hyperparameters, parameters, states, and per parameter its anchor and its control variate, where used."""
        hyperparameters = [Tensor(f"@{name}", "float32", ()) for name in sorted(self.hyperparameters)]
        weights = [_weight(weight.name, weight) for weight in (*self.parameters, *self.states)]
        return [
            *hyperparameters,
            *weights,
            *(_weight(weight.name, weight) for weight in (*self.anchors, *self.controls)),
        ]


def feature(name: str) -> str:
    """The graphs' input for the model's input `name`."""
    return f"@features/{name}"


def noise(name: str) -> str:
    """The train graph's input of uniform random numbers in [0, 1) by which the value `name` is dropped."""
    return f"@noise/{name}"


def updated(name: str) -> str:
    """The train graph's output that replaces the parameter or state `name`."""
    return f"@new/{name}"


def gradient(name: str) -> str:
    """The train graph's output that holds the gradient of the parameter `name`."""
    return f"@gradient/{name}"


def anchor(name: str) -> str:
    """The graphs' input for the parameter `name` at the start of the round."""
    return f"@anchor/{name}"


def control(name: str) -> str:
    """The graphs' input for the control variate of the parameter `name`."""
    return f"@control/{name}"


def _batch(name: str, batch: Batch) -> Tensor:
    return Tensor(name, batch.dtype, ("batch", *batch.shape))


def _weight(name: str, weight: Weight) -> Tensor:
    return Tensor(name, weight.dtype, weight.shape)
