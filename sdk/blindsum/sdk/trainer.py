"""One training job: a task's plan, the model of the round and the app's examples in, an update out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from blindsum.protocol.messages import Training

if TYPE_CHECKING:
    from blindsum.training import TrainingSession

__all__ = ["STATISTICS", "Aborted", "Trained", "train"]

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
    """`update` is new minus old shared parameters (float32), `personal` the new ones that stay here."""

    update: NDArray[np.float32] = field(repr=False)
    examples: int
    loss: float
    personal: NDArray[np.float32] = field(repr=False)


def train(
    plan: bytes,
    model: bytes,
    settings: Training,
    batches: Callable[[int], Iterable[Batch]],
    *,
    obstacle: Callable[[], str],
    session: TrainingSession | None = None,
    personal: NDArray[np.float32] | None = None,
) -> Trained:
    """Train `settings.epochs` epochs over `batches(epoch)`. `obstacle()` is asked before every epoch and every step: where it names
    one, `Aborted` is raised with it. `session`: one of this plan to use again. `personal`: this device's own layers so
    far, where the plan has such; None: as the plan has them. Raises BlindsumError "no-examples",
    "training-batch-invalid", or what the training session raises (a loss that is not finite never becomes an update)."""
    from blindsum.training import TrainingSession, decode
    from blindsum.training.personal import join, split

    # what Dropout drops differs from round to round, and is the same where a round is trained again after a crash
    session = session or TrainingSession(plan)
    manifest = session.manifest
    session.seed = int.from_bytes(hashlib.sha256(model).digest()[:8]) >> 1
    start = np.frombuffer(model, dtype="<f4").astype(np.float32)
    if manifest.personal:
        own = split(manifest, decode(plan).parameters)[1] if personal is None else personal
        session.parameters = join(manifest, start, own)
    else:
        session.parameters = start
    if "lr" in session.hyperparameters:
        session.hyperparameters = {"lr": settings.rate_micros / 1e6}
    report = session.fit(batches, epochs=settings.epochs, batch_size=settings.batch_size, should_abort=obstacle)
    if report.stopped == "aborted":
        raise Aborted(report.reason)
    last = report.epochs[-1]
    shared, own = split(manifest, session.parameters)
    return Trained(shared - start, last.examples, min(max(last.loss, 0.0), LOSS_MAX), own)
