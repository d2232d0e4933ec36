"""One training job: a task's plan, the model of the round and the app's examples in, an update out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.messages import Training

__all__ = ["STATISTICS", "Aborted", "Trained", "train"]

STATISTICS = ("examples", "loss_micros")
"""What a device adds to the exact segment of a sum after its weight: number of examples, and their summed training loss of the last
epoch in 10^-6."""

LOSS_MAX = 1e6
"""A loss above this is reported as this, so that no device's loss can wrap the sum."""


class Aborted(Exception):
    """Training stopped because a condition of the policy no longer holds, or the app stopped."""


@dataclass(frozen=True, slots=True)
class Trained:
    """`update` is new minus old parameters (float32)."""

    update: NDArray[np.float32] = field(repr=False)
    examples: int
    loss: float


def train(
    plan: bytes,
    model: bytes,
    settings: Training,
    batches: Callable[[int], Iterable[tuple[ArrayLike, ArrayLike]]],
    *,
    should_abort: Callable[[], bool],
) -> Trained:
    """Train `settings.epochs` epochs over `batches(epoch)`. Raises `Aborted`; BlindsumError "no-examples", or what the training
    session raises (a loss that is not finite never becomes an update)."""
    from blindsum.training import TrainingSession

    session = TrainingSession(plan)
    start = np.frombuffer(model, dtype="<f4").astype(np.float32)
    session.parameters = start
    if "lr" in session.hyperparameters:
        session.hyperparameters = {"lr": settings.rate_micros / 1e6}
    count, loss = 0, 0.0
    for epoch in range(settings.epochs):
        count, loss = 0, 0.0
        for features, targets in batches(epoch):
            x, y = np.asarray(features), np.asarray(targets)
            for at in range(0, len(x), settings.batch_size):
                if should_abort():
                    raise Aborted
                part = slice(at, at + settings.batch_size)
                value = session.step(x[part], y[part])
                assert isinstance(value, float)
                count += len(x[part])
                loss += value * len(x[part])
    if count == 0:
        raise BlindsumError("no-examples")
    return Trained(session.parameters - start, count, min(loss / count, LOSS_MAX))
