"""One training job: a task's plan, the model of the round and the app's examples in, an update out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.messages import Task, Training

if TYPE_CHECKING:
    from blindsum.training import TrainingSession

__all__ = ["STATISTICS", "Aborted", "Batch", "Job", "Trained", "contribute", "evaluate", "train"]

STATISTICS = ("examples", "loss_micros")
"""What a device adds to the exact segment of a sum after its weight: number of examples, and their summed training loss of the last
epoch in 10^-6."""

Batch = tuple[ArrayLike | Mapping[str, ArrayLike] | tuple[ArrayLike, ...], ArrayLike]
"""Features and targets; a model of several inputs takes its features by name, or as a tuple in their order."""

LOSS_MAX = 1e6
"""A loss above this is reported as this and one below zero as zero, so that no device's loss can wrap the sum."""


class Aborted(Exception):
    """Training stopped early, and why: a condition of the policy no longer holds, the round is over, or the app stopped."""


@dataclass(frozen=True, slots=True)
class Trained:
    """`update` is new minus old shared parameters (float32), with SCAFFOLD followed by the change of the device's control variate;
    of an evaluation it is empty. `personal`: the new parameters that stay here. `loss`: the mean over the examples. `metrics`: the
    evaluation's, in the plan's order, loss first."""

    update: NDArray[np.float32] = field(repr=False)
    examples: int
    loss: float
    personal: NDArray[np.float32] = field(repr=False)
    metrics: tuple[float, ...] = ()

    @property
    def statistics(self) -> list[int]:
        """What goes into the exact segment after the weight: the number of examples, and the loss (or all metrics) times it in
        10^-6."""
        return [self.examples, *(round(value * self.examples * 1e6) for value in self.metrics or (self.loss,))]


@dataclass(frozen=True, slots=True)
class Job:
    """What one training job works on. `plan`: the training artifact; `model`: the round's parameters, flat float32, little-endian;
    `batches(epoch)`: the app's examples. `obstacle()` is asked before every epoch and every step: where it names one, `Aborted` is
    raised with it. `session`: one of this plan to use again. `personal`: this device's own layers so far, where the plan has such;
    None: as the plan has them. `control`: its own control variate, where the task is SCAFFOLD's (SPEC.md section 9.4); None:
    zero."""

    plan: bytes = field(repr=False)
    model: bytes = field(repr=False)
    batches: Callable[[int], Iterable[Batch]]
    obstacle: Callable[[], str] = str
    session: TrainingSession | None = None
    personal: NDArray[np.float32] | None = field(default=None, repr=False)
    control: NDArray[np.float32] | None = field(default=None, repr=False)

    def opened(self) -> TrainingSession:
        """A session of the plan."""
        from blindsum.training import TrainingSession

        return self.session or TrainingSession(self.plan)


def contribute(task: Task, job: Job) -> Trained:
    """What a device adds to a round of `task`: by `evaluate` or `train`, with their errors."""
    return evaluate(job) if task.algorithm.name == "evaluate" else train(job, task.training)


def train(job: Job, settings: Training) -> Trained:
    """Train `settings.epochs` epochs. Raises BlindsumError "no-examples", "training-batch-invalid", or what the training session
    raises (a loss that is not finite never becomes an update), or `Aborted`."""
    from blindsum.training.personal import split

    # what Dropout drops differs from round to round, and is the same where a round is trained again after a crash
    session = job.opened()
    session.seed = int.from_bytes(hashlib.sha256(job.model).digest()[:8]) >> 1
    values = np.frombuffer(job.model, dtype="<f4").astype(np.float32)
    length = split(session.manifest, session.parameters)[0].size
    start, server = values[:length], values[length:]
    _place(session, job, start)
    known = session.hyperparameters
    rate, scale, proximal = (n / 1e6 for n in (settings.rate_micros, settings.control_micros, settings.proximal_micros))
    session.hyperparameters = {n: v for n, v in {"lr": rate, "proximal": proximal}.items() if n in known}
    if proximal and "proximal" not in known:
        raise BlindsumError("training-request-invalid", "the task asks for FedProx, the artifact was built without it")
    if scale:
        server = server if server.size else np.zeros_like(start)  # of a model without its control, as a rehearsal's
        own = np.zeros_like(server) if job.control is None else job.control
        session.control = (server - own) / np.float32(scale)
    report = session.fit(job.batches, epochs=settings.epochs, batch_size=settings.batch_size, should_abort=job.obstacle)
    if report.stopped == "aborted":
        raise Aborted(report.reason)
    last = report.epochs[-1]
    shared, kept = split(session.manifest, session.parameters)
    update = shared - start
    if scale:
        change = -server - np.float32(scale / (report.steps * rate)) * update
        update = np.concatenate([update, change])
    return Trained(update, last.examples, _bounded(last.loss), kept)


def evaluate(job: Job) -> Trained:
    """Evaluate on `batches(0)` and train nothing. A metric is its mean over the batches, by examples. Raises as `train`."""
    session = job.opened()
    _place(session, job, np.frombuffer(job.model, dtype="<f4").astype(np.float32))
    examples, totals = 0, np.zeros(len(session.manifest.metrics))
    for features, targets in job.batches(0):
        if reason := job.obstacle():
            raise Aborted(reason)
        rows = len(np.asarray(targets))
        if rows:
            measured = session.evaluate(features, targets)
            totals += rows * np.asarray([measured[name] for name in session.manifest.metrics])
            examples += rows
    if not examples:
        raise BlindsumError("no-examples")
    if not np.isfinite(totals).all():
        raise BlindsumError("training-diverged", "a metric is not finite")
    metrics = tuple(_bounded(value) for value in (totals / examples).tolist())
    nothing = np.zeros(0, np.float32)
    return Trained(nothing, examples, metrics[0], nothing, metrics)


def _place(session: TrainingSession, job: Job, shared: NDArray[np.float32]) -> None:
    """Set a session's parameters: the shared ones, and this device's own layers where the plan has such."""
    from blindsum.training import decode
    from blindsum.training.personal import join, split

    manifest = session.manifest
    if manifest.personal:
        own = split(manifest, decode(job.plan).parameters)[1] if job.personal is None else job.personal
        session.parameters = join(manifest, shared, own)
    else:
        session.parameters = shared


def _bounded(value: float) -> float:
    return min(max(value, 0.0), LOSS_MAX)
