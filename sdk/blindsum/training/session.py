"""Train on a device: runs an artifact with stock onnxruntime (this module needs numpy and onnxruntime, not onnx)."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import ArrayLike, NDArray

from blindsum.protocol.errors import BlindsumError

from .artifact import decode
from .manifest import LOSS, PREDICTION, TARGETS, WEIGHT, Batch, Manifest, Targets, Weight, feature, gradient, updated
from .optimisers import RANGES, in_range
from .protobuf import with_initialisers

THREADS_MAX = 64
EVALUATE_ROWS_MAX = 1024  # evaluate and predict take longer inputs in pieces of this many, which bounds their memory

Floats = NDArray[np.float32]
Features = ArrayLike | Mapping[str, ArrayLike] | tuple[ArrayLike, ...]
"""An array where the model has one input, else one for each: by name, or as a tuple in the manifest's order."""
Feeds = dict[str, NDArray[np.generic]]


class TrainingSession:
    """Trains one model on one device. Not thread-safe.

    The parameters live in two sets of buffers: a step reads one and writes the other, then they change places.
    (onnxruntime may write an output before the last read of an input, so one buffer bound as both gives silently wrong
    results.) Where the step hands out the gradient, the second set receives it and they never change places.
    """

    def __init__(self, artifact: bytes, threads: int = 1) -> None:
        """Verify `artifact` and load it for `threads` CPU threads.

        Raises what `artifact.decode` raises, or "training-runtime-failed" where onnxruntime cannot load the graphs.
        """
        if not 1 <= threads <= THREADS_MAX:
            raise BlindsumError("training-request-invalid", f"threads={threads} is not in 1..{THREADS_MAX}")
        self._artifact = decode(artifact)
        self._threads = threads
        manifest = self.manifest
        self._train = self._session(self._artifact.train, self._artifact.constants)
        self._evaluate: ort.InferenceSession | None = None
        self._predict: ort.InferenceSession | None = None
        self._loss, self._weight = np.zeros((), np.float32), np.zeros((), np.float32)
        self._hyperparameters = {name: np.array(value, np.float32) for name, value in manifest.hyperparameters.items()}
        self._updates = manifest.optimiser != "gradient"
        self._banks = [_Bank((*manifest.parameters, *manifest.states)) for _ in range(2)]
        self._anchors, self._controls = _Bank(manifest.anchors), _Bank(manifest.controls)
        self._bindings = [self._bind(at) for at in range(2)]
        self._at = 0  # the bank that holds the current parameters
        self.parameters = self._artifact.parameters

    @property
    def manifest(self) -> Manifest:
        """What the artifact trains and how."""
        return self._artifact.manifest

    @property
    def layout(self) -> list[tuple[str, tuple[int, ...]]]:
        """Name and shape of each parameter, in the order of the flat vector."""
        return [(weight.name, weight.shape) for weight in self.manifest.parameters]

    @property
    def hyperparameters(self) -> dict[str, float]:
        """The optimiser's numbers. Assign a mapping of some of them to change those, e.g. for a schedule."""
        return {name: float(value) for name, value in self._hyperparameters.items()}

    @hyperparameters.setter
    def hyperparameters(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            if name not in self._hyperparameters or not in_range(name, value):
                known = ", ".join(f"{name} in {list(RANGES[name])}" for name in self._hyperparameters) or "none"
                raise BlindsumError("training-request-invalid", f"{name}={value}; the hyperparameters are {known}")
        for name, value in values.items():
            self._hyperparameters[name][...] = value

    @property
    def parameters(self) -> Floats:
        """All trained parameters as one float32 vector, a copy.

        Assigning sets them, starts the optimiser afresh, and is where a proximal term measures from.
        """
        return self._banks[self._at].flat(len(self.manifest.parameters))

    @parameters.setter
    def parameters(self, vector: ArrayLike) -> None:
        flat = self._vector(vector)
        self._banks[self._at].fill(flat)
        self._anchors.fill(flat)
        self._forget()

    @property
    def control(self) -> Floats:
        """The control variate that every step adds to the gradient, one float32 vector as `parameters`; first zero.

        SCAFFOLD sets it to its server's variate less the device's own. Raises "training-request-invalid" where the
        artifact's optimiser was built without `control`.
        """
        self._require_control()
        return self._controls.flat(len(self.manifest.controls))

    @control.setter
    def control(self, vector: ArrayLike) -> None:
        self._require_control()
        self._controls.fill(self._vector(vector))

    def _require_control(self) -> None:
        if not self.manifest.control:
            raise BlindsumError("training-request-invalid", "control: the optimiser was built without control=True")

    def _vector(self, vector: ArrayLike) -> Floats:
        flat = np.asarray(vector)
        if flat.dtype.kind != "f" or flat.shape != (self.manifest.size,):
            detail = f"{flat.dtype} of shape {flat.shape}, not float32 of shape ({self.manifest.size},)"
            raise BlindsumError("training-parameters-invalid", detail)
        with np.errstate(over="ignore"):
            flat = flat.astype(np.float32, copy=False)
        if not np.isfinite(flat).all():
            raise BlindsumError("training-parameters-invalid", "NaN or infinity (as float32)")
        return flat

    def step(self, features: Features, targets: ArrayLike) -> float | tuple[float, Floats]:
        """Train on one batch; its size may differ from step to step.

        `features`: (batch, ...) as `manifest.features` states. `targets`: (batch,) class numbers for cross-entropy,
        else numbers of the prediction's shape. Returns the mean loss before the update; for an artifact with
        optimizer="gradient", which updates nothing, the loss and the gradient as one float32 vector.

        Raises "training-batch-invalid", "training-runtime-failed" or, where the loss is NaN or infinite,
        "training-diverged"; the parameters then stay as they were.
        """
        binding = self._bindings[self._at]
        for name, array in self._batch(features, targets).items():
            binding.bind_cpu_input(name, array)
        with _runtime():
            self._train.run_with_iobinding(binding)
        loss = float(self._loss)
        _require_finite(loss)
        if not self._updates:
            return loss, self._banks[1].flat(len(self.manifest.parameters))
        self._at = 1 - self._at
        self._forget()
        return loss

    def evaluate(self, features: Features, targets: ArrayLike) -> dict[str, float]:
        """Loss and metrics over all the examples, with the current parameters.

        Each is a mean over what it counts: ignored targets count for nothing, classes as much as they weigh.
        """
        feeds = self._batch(features, targets)
        self._evaluate = self._evaluate or self._session(self._artifact.evaluate, self._weights())
        totals = np.zeros((len(self.manifest.metrics), 2))
        for piece in _pieces(feeds):
            with _runtime():
                values = self._evaluate.run(None, piece)
            means, weights = np.array(values, np.float64).T
            totals += np.stack([means * weights, weights], axis=1)
        means = totals[:, 0] / np.where(totals[:, 1] == 0.0, 1.0, totals[:, 1])
        metrics: dict[str, float] = dict(zip(self.manifest.metrics, means.tolist(), strict=True))
        _require_finite(metrics["loss"])
        return metrics

    def predict(self, features: Features) -> Floats:
        """The model's output for `features` with the current parameters, final Softmax or Sigmoid included."""
        feeds = self._features(features)
        self._predict = self._predict or self._session(self._artifact.predict, self._weights())
        with _runtime():
            return np.concatenate([self._predict.run([PREDICTION], piece)[0] for piece in _pieces(feeds)])

    def _features(self, features: Features) -> Feeds:
        """The arrays of one batch by graph input."""
        wanted = self.manifest.features
        names = [item.name for item in wanted]
        if not isinstance(features, Mapping):
            given = features if isinstance(features, tuple) and len(wanted) > 1 else (features,)
            if len(given) != len(names):
                raise BlindsumError("training-batch-invalid", f"{len(given)} arrays for the inputs {', '.join(names)}")
            features = dict(zip(names, given, strict=True))
        if set(features) != set(names):
            raise BlindsumError(
                "training-batch-invalid", f"features {', '.join(map(str, features))}, not {', '.join(names)}"
            )
        title = "features" if len(wanted) == 1 else "features {}"
        feeds = {feature(i.name): _array(title.format(i.name), features[i.name], i) for i in wanted}
        if len({len(array) for array in feeds.values()}) > 1:
            raise BlindsumError("training-batch-invalid", f"features of {[len(x) for x in feeds.values()]} rows")
        return feeds

    def _batch(self, features: Features, targets: ArrayLike) -> Feeds:
        feeds, t = self._features(features), _array("targets", targets, self.manifest.targets)
        rows = len(next(iter(feeds.values())))
        if rows != len(t):
            raise BlindsumError("training-batch-invalid", f"{rows} features but {len(t)} targets")
        _require_range(t, self.manifest.targets)
        return {**feeds, TARGETS: t}

    def _session(self, graph: bytes, constants: Mapping[str, NDArray[np.generic]]) -> ort.InferenceSession:
        """Weights go in as constants, so that onnxruntime folds and prepacks them."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # errors come back as exceptions
        options.enable_mem_pattern = False  # planning memory ahead leaves the first step's unused beside it: twice the peak
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # waiting threads sleep: battery
        with _runtime():
            return ort.InferenceSession(
                with_initialisers(graph, constants), options, providers=["CPUExecutionProvider"]
            )

    def _weights(self) -> dict[str, NDArray[np.generic]]:
        bank = self._banks[self._at]
        trained = {weight.name: bank.arrays[weight.name] for weight in self.manifest.parameters}
        return {**self._artifact.constants, **trained}

    def _bind(self, at: int) -> ort.IOBinding:
        binding = self._train.io_binding()
        for name, value in self._hyperparameters.items():
            binding.bind_cpu_input(f"@{name}", value)
        weights = {**self._banks[at].arrays, **self._anchors.arrays, **self._controls.arrays}
        for name, value in weights.items():
            binding.bind_cpu_input(name, value)
        _bind_output(binding, LOSS, self._loss)
        _bind_output(binding, WEIGHT, self._weight)
        result = updated if self._updates else gradient
        for name, value in self._banks[1 - at].arrays.items():
            _bind_output(binding, result(name), value)
        return binding

    def _forget(self) -> None:
        """Drop the sessions that hold older parameters as constants."""
        self._evaluate = self._predict = None


class _Bank:
    """float32 tensors side by side in one buffer, each aligned for vector instructions."""

    _ALIGNMENT = 64

    def __init__(self, weights: Sequence[Weight]) -> None:
        sizes = [math.prod(weight.shape) for weight in weights]
        step = self._ALIGNMENT // 4
        starts = np.cumsum([0] + [-(-size // step) * step for size in sizes])
        raw = np.zeros(4 * int(starts[-1]) + self._ALIGNMENT, np.uint8)
        skip = -raw.ctypes.data % self._ALIGNMENT
        self._buffer = raw[skip : skip + 4 * int(starts[-1])].view(np.float32)
        self.arrays = {
            weight.name: self._buffer[start : start + size].reshape(weight.shape)
            for weight, start, size in zip(weights, starts, sizes, strict=False)
        }

    def flat(self, count: int) -> Floats:
        """The first `count` tensors as one new vector."""
        return np.concatenate([array.ravel() for array in list(self.arrays.values())[:count]])

    def fill(self, vector: Floats) -> None:
        """Set the first tensors from `vector` and those after its end to zero."""
        at = 0
        self._buffer.fill(0.0)
        for array in self.arrays.values():
            if at == vector.size:
                break
            array[...] = vector[at : at + array.size].reshape(array.shape)
            at += array.size


@contextlib.contextmanager
def _runtime() -> Iterator[None]:
    """onnxruntime has a dozen exception types of its own; ours names the cause and the remedy."""
    try:
        yield
    except Exception as error:
        raise BlindsumError("training-runtime-failed", str(error)) from error


def _require_finite(loss: float) -> None:
    if not math.isfinite(loss):
        raise BlindsumError("training-diverged", f"loss {loss}")


def _bind_output(binding: ort.IOBinding, name: str, array: Floats) -> None:
    binding.bind_output(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)


def _array(title: str, values: ArrayLike, wanted: Batch) -> NDArray[np.generic]:
    """`values` as a contiguous array of the wanted type, where that loses nothing but float precision."""
    array = np.asarray(values)
    dtype = np.dtype(wanted.dtype)
    if not (np.can_cast(array.dtype, dtype, "same_kind") or (dtype.kind == "f" and array.dtype.kind in "iub")):
        raise BlindsumError("training-batch-invalid", f"{title} of type {array.dtype}, not {dtype}")
    if array.ndim == 0 or not len(array) or array.shape[1:] not in (wanted.shape, _without_last_one(wanted.shape)):
        raise BlindsumError(
            "training-batch-invalid",
            f"{title} of shape {array.shape}, not (batch, {', '.join(map(str, wanted.shape))})",
        )
    with np.errstate(over="ignore"):  # an infinity shows in the loss
        return np.ascontiguousarray(array.reshape(len(array), *wanted.shape), dtype=dtype)


def _without_last_one(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(batch,) stands for (batch, 1): one number for each example."""
    return shape[:-1] if shape and shape[-1] == 1 else shape


def _require_range(targets: NDArray[Any], wanted: Targets) -> None:
    if wanted.low is None or wanted.high is None:
        return
    low, high = targets.min(), targets.max()  # NaN fails too
    if low >= wanted.low and high <= wanted.high:
        return
    right = (targets >= wanted.low) & (targets <= wanted.high)
    if wanted.ignored is None or not np.all(right | (targets == wanted.ignored)):
        raise BlindsumError(
            "training-batch-invalid", f"targets from {low} to {high}, not in {wanted.low:g}..{wanted.high:g}"
        )


def _pieces(feeds: Feeds) -> Iterator[Feeds]:
    """The batch in pieces of bounded size."""
    rows = len(next(iter(feeds.values())))
    for start in range(0, rows, EVALUATE_ROWS_MAX):
        yield {name: array[start : start + EVALUATE_ROWS_MAX] for name, array in feeds.items()}
