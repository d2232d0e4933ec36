"""The training loop: epochs over batches, with schedule, validation, early stop, abort and resumption."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from blindsum.protocol.errors import BlindsumError

from .bank import Floats
from .batch import Features, Feeder, Feeds, by_name, pieces, rows_of
from .engine import Engine
from .manifest import Manifest
from .optimisers import in_range
from .schedules import Schedule

BATCH_SIZE = 32
EPOCHS_MAX = 1_000_000

Batches = Iterable[tuple[Features, ArrayLike]] | Callable[[int], Iterable[tuple[Features, ArrayLike]]]
"""Pairs of features and targets; a function makes those of an epoch (0 is the first)."""
Count = Annotated[int, msgspec.Meta(ge=0)]
Stopped = Literal["completed", "no-improvement", "aborted"]


class Epoch(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One pass over the data: mean training loss, and the validation metrics after it (empty without validation)."""

    steps: Count
    examples: Count
    loss: float
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What `fit` did. An epoch that was not finished is in none of `epochs`; its steps count in `steps`."""

    epochs: tuple[Epoch, ...]
    steps: int
    stopped: Stopped
    reason: str  # what `should_abort` gave, where it is a text


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of `fit`: numbers of the epoch and of the step from 0, and the learning rate that it took."""

    epoch: int
    step: int
    loss: float
    examples: int
    rate: float


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What must be the same for a fit to go on where it was."""

    epochs: int
    batch_size: int  # 0: as the batches come
    shuffle_seed: int | None
    accumulate: int
    examples: int | None  # None where the data come as batches
    patience: int | None


class Progress(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Where a fit is."""

    plan: Plan
    rate: float | None  # of the optimiser, without the schedule
    epochs: list[Epoch] = []
    batch: Count = 0  # how many of the current epoch are behind
    steps: Count = 0
    examples: Count = 0  # of the current epoch
    loss: float = 0.0  # of the current epoch, summed by weight
    weight: float = 0.0
    best: float | None = None  # lowest validation loss
    waited: Count = 0  # epochs since


@dataclass(slots=True, kw_only=True)
class Fit:
    """One call of `TrainingSession.fit`. `best` holds the parameters of the best epoch, where there is patience."""

    engine: Engine
    source: Callable[[int], Iterator[Feeds]]
    validation: Feeds | None
    schedule: Schedule
    memory_cap: int | None
    should_abort: Callable[[], bool | str]
    on_step: Callable[[Step], object]
    progress: Progress
    best: Floats | None = field(default=None, repr=False)

    def run(self) -> Report:
        progress = self.progress
        last: Feeds | None = None
        try:
            while len(progress.epochs) < progress.plan.epochs:
                if reason := self.should_abort():
                    return self._report("aborted", reason)
                for last in self._rest():
                    if reason := self.should_abort():
                        return self._report("aborted", reason)
                    self._step(last)
                if not progress.examples:
                    raise BlindsumError("no-examples")
                if self._finish_epoch():
                    return self._report("no-improvement")
            return self._report("completed")
        finally:
            if progress.rate is not None:
                self.engine.numbers["lr"][...] = progress.rate
            if last is not None:
                self.engine.shrink(last)

    def _rest(self) -> Iterator[Feeds]:
        """The batches of the current epoch that have not been trained on."""
        batches = self.source(len(self.progress.epochs))
        for _ in range(self.progress.batch):
            next(batches, None)
        return batches

    def _step(self, feeds: Feeds) -> None:
        progress, rate = self.progress, 0.0
        if progress.rate is not None:
            rate = progress.rate * self.schedule(progress.steps)
            if not in_range("lr", rate):
                raise BlindsumError("training-request-invalid", f"fit: the schedule gives a rate of {rate}")
            self.engine.numbers["lr"][...] = rate
        rows = rows_of(feeds)
        rows_max = -(-rows // progress.plan.accumulate)
        if self.memory_cap is not None:
            rows_max = min(rows_max, self.engine.rows_within(rows, self.memory_cap))
        loss, weight = self.engine.step(feeds, rows_max)
        progress.batch += 1
        progress.steps += 1
        progress.examples += rows
        progress.loss += loss * weight
        progress.weight += weight
        number = progress.steps - 1
        self.on_step(Step(epoch=len(progress.epochs), step=number, loss=loss, examples=rows, rate=rate))

    def _finish_epoch(self) -> bool:
        """True where validation has not improved for long enough."""
        progress, metrics = self.progress, {}
        self.engine.undo_if_infinite()
        if self.validation is not None:
            values = self.engine.evaluate(self.validation)
            metrics = dict(zip(self.engine.manifest.metrics, values, strict=True))
        mean = progress.loss / (progress.weight or 1.0)
        progress.epochs.append(Epoch(steps=progress.batch, examples=progress.examples, loss=mean, metrics=metrics))
        progress.batch = progress.examples = 0
        progress.loss = progress.weight = 0.0
        if progress.plan.patience is None:
            return False
        if progress.best is None or metrics["loss"] < progress.best:
            progress.best, progress.waited, self.best = metrics["loss"], 0, self.engine.parameters()
            return False
        progress.waited += 1
        return progress.waited >= progress.plan.patience

    def _report(self, stopped: Stopped, reason: bool | str = "") -> Report:
        self.engine.undo_if_infinite()
        if stopped != "aborted" and self.best is not None:
            self.engine.replace(self.best)
        text = reason if isinstance(reason, str) else ""
        return Report(epochs=tuple(self.progress.epochs), steps=self.progress.steps, stopped=stopped, reason=text)


def source_of_arrays(
    manifest: Manifest, features: Features, targets: ArrayLike, plan: Plan
) -> Callable[[int], Iterator[Feeds]]:
    """Batches from arrays, each epoch in an order of its own where the plan has a seed. Only a batch is ever copied."""
    columns = {name: _rows(name, array) for name, array in by_name(manifest, features).items()}
    labels, count = _rows("targets", targets), count_of(manifest, features, targets)
    only, feeder = next(iter(columns.values())) if len(columns) == 1 else None, Feeder(manifest)

    def batches(epoch: int) -> Iterator[Feeds]:
        order = None
        if plan.shuffle_seed is not None:
            order = np.random.default_rng([plan.shuffle_seed, epoch]).permutation(count)
        for start in range(0, count, plan.batch_size):
            stop = min(start + plan.batch_size, count)
            rows: Any = slice(start, stop) if order is None else order[start:stop]
            parts = {name: array[rows] for name, array in columns.items()} if only is None else only[rows]
            yield feeder(parts, labels[rows])

    return batches


def count_of(manifest: Manifest, features: Features, targets: ArrayLike) -> int:
    """Number of examples in the arrays; raises "training-batch-invalid" where they do not agree."""
    sizes = {name: len(_rows(name, array)) for name, array in by_name(manifest, features).items()}
    count = len(_rows("targets", targets))
    if set(sizes.values()) != {count}:
        raise BlindsumError("training-batch-invalid", f"{sizes} features but {count} targets")
    return count


def source_of_batches(manifest: Manifest, batches: Batches, plan: Plan) -> Callable[[int], Iterator[Feeds]]:
    """Batches that the caller makes, cut to the plan's size; read one by one, never kept."""
    if not callable(batches) and isinstance(batches, Iterator) and plan.epochs > 1:
        raise BlindsumError(
            "training-request-invalid", "the batches can be read only once; for more epochs pass a list or a function"
        )

    feeder = Feeder(manifest)

    def read(epoch: int) -> Iterator[Feeds]:
        for batch in batches(epoch) if callable(batches) else batches:
            feeds = _pair(manifest, feeder, batch)
            if feeds:
                yield from pieces(feeds, plan.batch_size or rows_of(feeds))

    return read


def _pair(manifest: Manifest, feeder: Feeder, batch: tuple[Features, ArrayLike]) -> Feeds:
    """One batch that the caller made; {} for one without examples."""
    try:
        features, targets = batch
    except (TypeError, ValueError) as error:
        detail = f"batches are pairs of arrays (features, targets): {error}"
        raise BlindsumError("training-batch-invalid", detail) from None
    if len(_rows("targets", targets)) == 0 and count_of(manifest, features, targets) == 0:
        return {}
    return feeder(features, targets)


def _rows(title: str, values: ArrayLike) -> NDArray[Any]:
    try:
        array = np.asarray(values)
    except ValueError as error:  # rows of different lengths
        raise BlindsumError("training-batch-invalid", f"{title}: {error}") from None
    if array.ndim == 0:
        raise BlindsumError(
            "training-batch-invalid", f"{title} is one number, not an array with a row for each example"
        )
    return array
