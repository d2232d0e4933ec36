"""The server optimiser: from one model and a round's sum to the next model (SPEC.md section 9.3).

Every role computes it for itself, so it is elementwise IEEE 754 arithmetic in a stated order and gives the same bytes anywhere.
"""

from __future__ import annotations

import numpy as np

from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.update import decode_sum
from blindsum.protocol.view import TaskView

__all__ = ["advance"]


def advance(base: TaskView, model: bytes, total: bytes, rotation: bytes) -> bytes:
    """FedAvg (McMahan et al. 2017): model + rate * mean update, in float64, stored as little-endian float32. `model` and the
    result are flat float32 vectors. Raises BlindsumError("sum-malformed") for a sum no honest cohort gives."""
    aggregate = decode_sum(base, total, rotation)
    parameters = np.frombuffer(model, dtype="<f4").astype(np.float64)
    if parameters.shape != aggregate.mean.shape:
        raise BlindsumError("sum-malformed", "model and sum have different lengths")
    parameters += base.task.algorithm.rate_micros / 1e6 * aggregate.mean.astype(np.float64)
    return parameters.astype("<f4").tobytes()
