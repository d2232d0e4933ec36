"""Train on a device: runs an artifact with stock onnxruntime (this module needs numpy and onnxruntime, not onnx)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike

from blindsum.protocol.errors import BlindsumError

from . import checkpoint
from .artifact import DIGEST_SIZE, MAGIC, decode
from .bank import Floats
from .batch import Features, Feeder, features_of, feeds_of
from .budget import MEMORY_MAX, WORK_MAX, Budget, Cost
from .engine import Engine
from .fit import (
    BATCH_SIZE,
    EPOCHS_MAX,
    Batches,
    Fit,
    Plan,
    Progress,
    Report,
    Step,
    count_of,
    source_of_arrays,
    source_of_batches,
)
from .manifest import Manifest
from .optimisers import RANGES, in_range
from .schedules import Constant, Schedule

THREADS_MAX = 64
SEED_MAX = (1 << 63) - 1


class TrainingSession:
    """Trains one model on one device. Not thread-safe."""

    def __init__(
        self,
        artifact: bytes,
        threads: int = 1,
        *,
        seed: int = 0,
        memory_max: int = MEMORY_MAX,
        work_max: int = WORK_MAX,
    ) -> None:
        """Verify `artifact` and load it for `threads` CPU threads. `seed`: of what Dropout drops.

        `memory_max`, `work_max`: the most bytes and multiplications that one run may take (see `cost`).

        Raises what `artifact.decode` raises, "training-limit-exceeded" where one example takes more than that, or
        "training-runtime-failed" where onnxruntime cannot load the graphs.
        """
        if not 1 <= threads <= THREADS_MAX:
            raise BlindsumError("training-request-invalid", f"threads={threads} is not in 1..{THREADS_MAX}")
        decoded = decode(artifact)
        self._engine = Engine(decoded, threads, 0, Budget(decoded, memory_max, work_max))
        self._feeder = Feeder(decoded.manifest)
        self.seed = seed
        self._digest = artifact[len(MAGIC) : len(MAGIC) + DIGEST_SIZE].hex()
        self._fit: Fit | None = None
        self._progress: Progress | None = None  # of a fit that has not ended
        self._best: Floats | None = None

    @property
    def manifest(self) -> Manifest:
        """What the artifact trains and how."""
        return self._engine.manifest

    @property
    def seed(self) -> int:
        """Of what Dropout drops. Assigning begins its sequence afresh."""
        return self._engine.noise[0]

    @seed.setter
    def seed(self, seed: int) -> None:
        if not 0 <= seed <= SEED_MAX:
            raise BlindsumError("training-request-invalid", f"seed={seed} is not in 0..{SEED_MAX}")
        self._engine.noise = (seed, 0)

    @property
    def layout(self) -> list[tuple[str, tuple[int, ...]]]:
        """Name and shape of each parameter, in the order of the flat vector."""
        return [(weight.name, weight.shape) for weight in self.manifest.parameters]

    @property
    def hyperparameters(self) -> dict[str, float]:
        """The optimiser's numbers. Assign a mapping of some of them to change those."""
        return {name: float(value) for name, value in self._engine.numbers.items()}

    @hyperparameters.setter
    def hyperparameters(self, values: Mapping[str, float]) -> None:
        numbers = self._engine.numbers
        for name, value in values.items():
            if name not in numbers or not in_range(name, value):
                known = ", ".join(f"{name} in {list(RANGES[name])}" for name in numbers) or "none"
                raise BlindsumError("training-request-invalid", f"{name}={value}; the hyperparameters are {known}")
        for name, value in values.items():
            numbers[name][...] = value

    @property
    def parameters(self) -> Floats:
        """All trained parameters as one float32 vector, a copy.

        Assigning sets them, starts the optimiser afresh, and is where a proximal term measures from.
        """
        return self._engine.parameters()

    @parameters.setter
    def parameters(self, vector: ArrayLike) -> None:
        self._engine.place(self._vector(vector))

    @property
    def control(self) -> Floats:
        """The control variate that every step adds to the gradient, one float32 vector as `parameters`; first zero.

        SCAFFOLD sets it to its server's variate less the device's own. Raises "training-request-invalid" where the
        artifact's optimiser was built without `control`.
        """
        self._require_control()
        return self._engine.controls.flat(len(self.manifest.controls))

    @control.setter
    def control(self, vector: ArrayLike) -> None:
        self._require_control()
        self._engine.controls.fill(self._vector(vector))

    def step(self, features: Features, targets: ArrayLike) -> float | tuple[float, Floats]:
        """Train on one batch; its size may differ from step to step.

        `features`: (batch, ...) as `manifest.features` states, one array or one for each input. `targets`: one row for
        each example, as `manifest.targets` states. Returns the mean loss before the update; for an artifact with
        optimizer="gradient", which updates nothing, the loss and the gradient as one float32 vector.

        Raises "training-batch-invalid", "training-limit-exceeded", "training-runtime-failed" or, where the loss is NaN
        or infinite, "training-diverged"; the parameters then stay as they were.
        """
        loss, _ = self._engine.step(self._feeder(features, targets))
        return loss if self._engine.updates else (loss, self._engine.gradient())

    def fit(
        self,
        data: Features | Batches,
        targets: ArrayLike | None = None,
        *,
        epochs: int = 1,
        batch_size: int | None = None,
        shuffle_seed: int | None = None,
        schedule: Schedule | None = None,
        validation: tuple[Features, ArrayLike] | None = None,
        patience: int | None = None,
        should_abort: Callable[[], bool | str] | None = None,
        on_step: Callable[[Step], object] | None = None,
        accumulate: int = 1,
        memory_cap: int | None = None,
        resume: bool = False,
    ) -> Report:
        """Train for `epochs` passes over the data.

        `data` with `targets`: arrays, cut into batches of `batch_size` (32 where None), in another order each epoch
        where there is a `shuffle_seed`. `data` alone: an iterable of batches (features, targets), or a function from the
        number of the epoch to one; a batch above `batch_size` is cut, and nothing is read ahead or kept.
        `schedule`: factor on the learning rate by the number of the step (see `schedules`).
        `validation`: examples to evaluate after each epoch. `patience`: stop after so many epochs without a lower
        validation loss; the parameters of the best epoch are put back at the end.
        `should_abort`: asked before each epoch and each step; True or a reason ends training there.
        `on_step`: called after each step; it may take a `checkpoint`.
        `accumulate`: take each batch in so many pieces. Their gradients add up to that of the whole batch, with less
        memory (normalisation by batch statistics and "contrastive" see the pieces instead).
        `memory_cap`: bytes; batches are taken in more pieces than `accumulate` where they would take more (see `cost`).
        `resume`: go on with the fit that was interrupted, in this session or in that of the restored checkpoint; the
        arguments must be the same, and the result is bit for bit that of an uninterrupted fit.

        Raises "training-request-invalid", "training-batch-invalid", "training-limit-exceeded", "no-examples",
        "training-runtime-failed" or "training-diverged"; the parameters are then those after the last good step.
        """
        manifest = self.manifest
        if not self._engine.updates:
            raise BlindsumError("training-request-invalid", 'fit: optimizer="gradient" updates nothing')
        _require_counts(epochs=epochs, accumulate=accumulate, patience=patience, batch_size=batch_size)
        if patience is not None and validation is None:
            raise BlindsumError("training-request-invalid", "fit: patience needs validation")
        if targets is None and shuffle_seed is not None:
            raise BlindsumError("training-request-invalid", "fit: shuffle_seed needs arrays, not batches")
        if shuffle_seed is not None and not 0 <= shuffle_seed <= SEED_MAX:
            raise BlindsumError("training-request-invalid", f"fit: shuffle_seed={shuffle_seed} is not in 0..{SEED_MAX}")
        plan = Plan(
            epochs=epochs,
            batch_size=batch_size or (0 if targets is None else BATCH_SIZE),
            shuffle_seed=shuffle_seed,
            accumulate=accumulate,
            examples=None if targets is None else count_of(manifest, data, targets),  # type: ignore[arg-type]
            patience=patience,
        )
        progress = self._begin(plan, resume)
        fit = Fit(
            engine=self._engine,
            source=source_of_batches(manifest, data, plan)  # type: ignore[arg-type]
            if targets is None
            else source_of_arrays(manifest, data, targets, plan),  # type: ignore[arg-type]
            validation=None if validation is None else feeds_of(manifest, *validation),
            schedule=schedule or Constant(),
            memory_cap=memory_cap,
            should_abort=should_abort or (lambda: False),
            on_step=on_step or (lambda _: None),
            progress=progress,
            best=self._best if resume else None,
        )
        self._fit = fit
        try:
            report = fit.run()
        finally:
            self._fit, self._best = None, fit.best
        if report.stopped != "aborted":
            self._progress = self._best = None
        return report

    def evaluate(self, features: Features, targets: ArrayLike) -> dict[str, float]:
        """Loss and metrics over all the examples, with the current parameters.

        Each is a mean over what it counts: ignored targets count for nothing, classes as much as they weigh.
        """
        values = self._engine.evaluate(feeds_of(self.manifest, features, targets))
        return dict(zip(self.manifest.metrics, values, strict=True))

    def predict(self, features: Features) -> Floats:
        """The model's output for `features` with the current parameters, final Softmax or Sigmoid included."""
        return self._engine.predict(features_of(self.manifest, features))

    def cost(self, rows: int) -> Cost:
        """What a step over `rows` examples takes, as worked out from the graph."""
        if rows < 1:
            raise BlindsumError("training-request-invalid", f"cost of {rows} rows")
        return self._engine.budget.cost("train", rows)

    def checkpoint(self) -> bytes:
        """The whole state: parameters, optimiser, hyperparameters, and where a fit is that has not ended."""
        best = self._fit.best if self._fit is not None else self._best
        header = checkpoint.Header(
            artifact=self._digest,
            hyperparameters=self.hyperparameters,
            progress=self._progress,
            noise=self._engine.noise,
            sizes=(self._engine.everything().size, 0 if best is None else best.size),
        )
        return checkpoint.encode(header, self._engine.everything(), np.zeros(0, np.float32) if best is None else best)

    def restore(self, data: bytes) -> None:
        """Become what the session was whose `checkpoint` this is; `fit(..., resume=True)` then goes on with its fit.

        Raises "training-checkpoint-damaged" or "training-checkpoint-foreign", and changes nothing then.
        """
        sizes = (self._engine.everything().size, self.manifest.size)
        header, everything, best = checkpoint.decode(data, artifact=self._digest, sizes=sizes)
        if header.hyperparameters.keys() != self._engine.numbers.keys():
            raise BlindsumError("training-checkpoint-damaged", "other hyperparameters than the artifact's")
        self.hyperparameters = header.hyperparameters
        self._engine.restore(everything)
        self._engine.noise = header.noise
        self._progress, self._best = header.progress, best if best.size else None

    def _begin(self, plan: Plan, resume: bool) -> Progress:
        """Where to begin: anew, or where an interrupted fit of the same plan is."""
        rate = self.hyperparameters.get("lr")
        if resume and self._progress is not None:
            if self._progress.plan != plan:
                raise BlindsumError(
                    "training-request-invalid", f"fit: resume with {plan}, begun with {self._progress.plan}"
                )
        else:
            self._progress, self._best = Progress(plan=plan, rate=rate), None
        return self._progress

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


def _require_counts(**counts: int | None) -> None:
    for name, count in counts.items():
        if count is not None and not 1 <= count <= EPOCHS_MAX:
            raise BlindsumError("training-request-invalid", f"fit: {name}={count} is not in 1..{EPOCHS_MAX}")
