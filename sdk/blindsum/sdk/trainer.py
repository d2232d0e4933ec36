"""One training job: a task's plan, the model of the round and the app's examples in, an update out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.messages import Training

__all__ = ["STATISTICS", "Aborted", "Trained", "train"]

STATISTICS = ("examples", "loss_micros")
"""What a device adds to the exact segment of a sum after its weight: number of examples, and their summed training loss of the last
epoch in 10^-6."""

Batch = tuple[ArrayLike | Mapping[str, ArrayLike] | tuple[ArrayLike, ...], ArrayLike]
"""Features and targets; a model of several inputs takes its features by name, or as a tuple in their order."""

LOSS_MAX = 1e6
"""A loss above this is reported as this, so that no device's loss can wrap the sum."""


class Aborted(Exception):
    """Training stopped early, and why: a condition of the policy no longer holds, the round is over, or the app stopped."""


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
    batches: Callable[[int], Iterable[Batch]],
    *,
    obstacle: Callable[[], str],
) -> Trained:
    """Train `settings.epochs` epochs over `batches(epoch)`. `obstacle()` is asked before every epoch and every step: where it names
    one, `Aborted` is raised with it. Raises BlindsumError "no-examples", "training-batch-invalid", or what the training session
    raises (a loss that is not finite never becomes an update)."""
    from blindsum.training import TrainingSession

    session = TrainingSession(plan)
    start = np.frombuffer(model, dtype="<f4").astype(np.float32)
    session.parameters = start
    names = [item.name for item in session.manifest.features]
    if "lr" in session.hyperparameters:
        session.hyperparameters = {"lr": settings.rate_micros / 1e6}
    count, loss = 0, 0.0
    for epoch in range(settings.epochs):
        _go_on(obstacle)
        count, loss = 0, 0.0
        for batch in batches(epoch):
            x, y = _arrays(batch, names)
            for at in range(0, len(y), settings.batch_size):
                _go_on(obstacle)
                part = slice(at, at + settings.batch_size)
                value = session.step({name: array[part] for name, array in x.items()}, y[part])
                assert isinstance(value, float)
                count += len(y[part])
                loss += value * len(y[part])
    if count == 0:
        raise BlindsumError("no-examples")
    return Trained(session.parameters - start, count, min(loss / count, LOSS_MAX))


def _go_on(obstacle: Callable[[], str]) -> None:
    if reason := obstacle():
        raise Aborted(reason)


def _arrays(batch: Batch, names: list[str]) -> tuple[dict[str, NDArray[np.generic]], NDArray[np.generic]]:
    """What the app yielded, as arrays of the same length: one for each of the model's inputs `names`, and the targets."""
    try:
        features, targets = batch
        if not isinstance(features, Mapping):
            given = features if isinstance(features, tuple) and len(names) > 1 else (features,)
            features = dict(zip(names, given, strict=True))
        x, y = {name: np.asarray(array) for name, array in features.items()}, np.asarray(targets)
        rows = [len(array) for array in (*x.values(), y)]
    except (TypeError, ValueError) as error:
        raise BlindsumError("training-batch-invalid", f"examples are pairs of arrays (features, targets): {error}") from None
    if len(set(rows)) != 1:
        raise BlindsumError("training-batch-invalid", f"{', '.join(map(str, rows[:-1]))} features but {rows[-1]} targets")
    return x, y
