"""From one model and a round's sum to the next model, and what an algorithm keeps beside it (SPEC.md section 9.3).

Every role computes it for itself, so it is elementwise IEEE 754 arithmetic (+ - * / sqrt) in a stated order and gives the same
bytes anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blindsum.protocol.algorithm import STATE_VECTORS, state_size
from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.messages import Algorithm
from blindsum.protocol.update import decode_sum
from blindsum.protocol.view import TaskView

__all__ = ["advance"]

Doubles = NDArray[np.float64]


def advance(base: TaskView, model: bytes, state: bytes, total: bytes, rotation: bytes) -> tuple[bytes, bytes]:
    """(the next model, the next state) from the packed sum `total`. Models are flat little-endian float32, states as many vectors
    of that kind as `STATE_VECTORS` says (b"" before the first round). Raises BlindsumError("sum-malformed") for a sum that no
    honest cohort gives, and where a number would not be finite."""
    aggregate = decode_sum(base, total, rotation)
    algorithm, size = base.task.algorithm, base.task.model.size
    if len(model) != size or len(state) not in (0, state_size(base.task)):
        raise BlindsumError("sum-malformed", "model or state is not of the task's length")
    if algorithm.name == "evaluate":
        return model, state
    parameters, mean = _wide(model), aggregate.mean.astype(np.float64)
    kept: Sequence[Doubles] = np.split(_wide(state), STATE_VECTORS[algorithm.name]) if state else ()
    with np.errstate(over="ignore", invalid="ignore"):
        step, kept = _step(algorithm, mean, aggregate.weight, kept)
        narrow = [values.astype("<f4") for values in (parameters + step, *kept)]
    if not all(np.isfinite(values).all() for values in narrow):
        raise BlindsumError("sum-malformed", "the next model or its algorithm's state is not finite")
    return narrow[0].tobytes(), b"".join(values.tobytes() for values in narrow[1:])


def _step(
    algorithm: Algorithm, mean: Doubles, weight: int, kept: Sequence[Doubles]
) -> tuple[Doubles, Sequence[Doubles]]:
    """What is added to the model, and the next state."""
    rate = algorithm.rate_micros / 1e6
    if algorithm.name == "fedavg":  # McMahan et al. 2017
        return rate * mean, ()
    if algorithm.name == "scaffold":  # Karimireddy et al. 2020, algorithm 1: parameters, then controls
        half, share = mean.size // 2, min(weight, algorithm.population) / algorithm.population
        return np.concatenate([rate * mean[:half], share * mean[half:]]), ()
    beta1 = algorithm.beta1_micros / 1e6
    first = kept[0] if kept else np.zeros_like(mean)
    if algorithm.name == "fedavgm":  # Hsu et al. 2019
        first = beta1 * first + mean
        return rate * first, (first,)
    # Reddi et al. 2021, algorithm 2; its second moment begins at tau^2
    tau, fresh = algorithm.tau_micros / 1e6, (1_000_000 - algorithm.beta2_micros) / 1e6
    second = kept[1] if kept else np.full_like(mean, tau * tau)
    first = beta1 * first + (1_000_000 - algorithm.beta1_micros) / 1e6 * mean
    square = mean * mean
    if algorithm.name == "fedadam":
        second = algorithm.beta2_micros / 1e6 * second + fresh * square
    else:
        second = second - fresh * square * np.sign(second - square)
    return rate * (first / (np.sqrt(second) + tau)), (first, second)


def _wide(data: bytes) -> NDArray[Any]:
    return np.frombuffer(data, dtype="<f4").astype(np.float64)
