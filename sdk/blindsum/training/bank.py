"""float32 tensors side by side in one buffer, each aligned for vector instructions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .manifest import Weight

ALIGNMENT = 64  # bytes

Floats = NDArray[np.float32]


class Bank:
    """The tensors by name, as views of one buffer."""

    def __init__(self, weights: Sequence[Weight]) -> None:
        sizes = [math.prod(weight.shape) for weight in weights]
        step = ALIGNMENT // 4
        starts = np.cumsum([0] + [-(-size // step) * step for size in sizes])
        raw = np.zeros(4 * int(starts[-1]) + ALIGNMENT, np.uint8)
        skip = -raw.ctypes.data % ALIGNMENT
        self.buffer: Floats = raw[skip : skip + 4 * int(starts[-1])].view(np.float32)
        self.arrays: dict[str, Floats] = {
            weight.name: self.buffer[start : start + size].reshape(weight.shape)
            for weight, start, size in zip(weights, starts, sizes, strict=False)
        }

    def flat(self, count: int) -> Floats:
        """The first `count` tensors as one new vector."""
        parts = [array.ravel() for array in list(self.arrays.values())[:count]]
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def fill(self, vector: Floats) -> None:
        """Set the first tensors from `vector` and those after its end to zero."""
        self.buffer.fill(0.0)
        self.overwrite(vector)

    def overwrite(self, vector: Floats) -> None:
        """Set the first tensors from `vector` and leave the others."""
        at = 0
        for array in self.arrays.values():
            if at == vector.size:
                break
            array[...] = vector[at : at + array.size].reshape(array.shape)
            at += array.size
