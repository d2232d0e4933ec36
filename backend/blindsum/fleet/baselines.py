"""What the secure fleet is compared with: all data in one place, one owner alone, and FedAvg without any protection."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from blindsum.protocol.ring import Lane, Segment, pack, zeros
from blindsum.training import TrainingSession

from .data import Dataset

__all__ = ["alone", "centralised", "evaluate", "plain_fedavg_step", "plain_ring_sum"]

Floats = NDArray[np.float32]


def evaluate(artifact: bytes, parameters: Floats, data: Dataset) -> dict[str, float]:
    """The artifact's metrics of `parameters` on `data`: "loss" and, for cross-entropy, "accuracy" in 0..1."""
    session = TrainingSession(artifact)
    session.parameters = parameters
    return session.evaluate(data.features, data.targets)


def centralised(artifact: bytes, train: Dataset, *, epochs: int, batch_size: int, rate: float, seed: int) -> Floats:
    """The parameters after training on all of `train` in one place, from the artifact's initial ones.

    To be fair to the fleet, `epochs` is its number of rounds times its local epochs. Each epoch takes the examples in a new
    order that follows from `seed`. Raises what `TrainingSession` raises.
    """
    return _trained(artifact, train, epochs=epochs, batch_size=batch_size, rate=rate, seed=seed)


def alone(artifact: bytes, owned: Dataset, *, epochs: int, batch_size: int, rate: float, seed: int) -> Floats:
    """The parameters one owner gets from `owned` only, as `centralised` trains: what it can do without the fleet."""
    return _trained(artifact, owned, epochs=epochs, batch_size=batch_size, rate=rate, seed=seed)


def plain_fedavg_step(parameters: Floats, updates: Sequence[tuple[Floats, int]]) -> Floats:
    """The next parameters as a server without secure aggregation computes them: parameters + sum(w u) / sum(w), in
    float64 (McMahan et al., arXiv 1602.05629). `updates`: (update, weight >= 1) of each survivor, neither clipped nor
    quantised; at least one."""
    assert updates, "a round without survivors has no step"
    total = np.zeros(parameters.shape, np.float64)
    for update, weight in updates:
        assert update.shape == parameters.shape and weight >= 1
        total += weight * update.astype(np.float64)
    mean = total / sum(weight for _, weight in updates)
    return (parameters.astype(np.float64) + mean).astype(np.float32)


def plain_ring_sum(segments: Sequence[Segment], uploads: Sequence[Sequence[Lane]]) -> bytes:
    """The packed sum of unmasked ring vectors, one a survivor, as a server that sees them all would add them. The secure
    sum of the same devices must be these very bytes."""
    total = zeros(segments)
    for lanes in uploads:
        for whole, lane in zip(total, lanes, strict=True):
            assert whole.shape == lane.shape
            whole += lane
    return pack(segments, total)


def _trained(artifact: bytes, data: Dataset, *, epochs: int, batch_size: int, rate: float, seed: int) -> Floats:
    session = TrainingSession(artifact)
    session.hyperparameters = {"lr": rate}
    for epoch in range(epochs):
        shuffled = data.shuffled(seed, epoch)
        for start in range(0, len(data), batch_size):
            rows = slice(start, start + batch_size)
            session.step(shuffled.features[rows], shuffled.targets[rows])
    return session.parameters
