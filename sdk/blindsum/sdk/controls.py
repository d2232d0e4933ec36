"""A device's own control variates (SCAFFOLD), one a task: kept in its database, advanced by what has left it, never sent."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from blindsum.protocol.codec import decode, encode
from blindsum.protocol.machines.step import Write
from blindsum.runtime.ports import DurableStore

__all__ = ["Controls"]

Floats = NDArray[np.float32]
KIND: Final = "<f4"


class Controls:
    """`stage` what a round would make of one; it counts from when the coordinator has said that it holds the upload."""

    def __init__(self, store: DurableStore) -> None:
        self._store = store

    def own(self, task: str, length: int) -> Floats:
        """The device's control variate; zeros before its first upload."""
        data = self._store.get(f"control/{task}/own")
        if data is None or len(data) != 4 * length:
            return np.zeros(length, np.float32)
        return np.frombuffer(data, KIND).astype(np.float32)

    def stage(self, task: str, number: int, control: Floats) -> None:
        self._store.commit([Write(f"control/{task}/next", encode([number, control.astype(KIND).tobytes()]))])

    def uploaded(self, task: str, number: int) -> None:
        """Round `number` holds this device's upload."""
        data = self._store.get(f"control/{task}/next")
        staged, control = decode(data) if data is not None else (0, b"")
        if staged == number:
            self._store.commit([Write(f"control/{task}/own", control), Write(f"control/{task}/next", None)])
