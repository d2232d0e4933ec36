"""How large a packet a broker takes: what it announces (MQTT 5), and what its disconnects teach (3.1.1 announces nothing)."""

from __future__ import annotations

import time
from typing import Final

from blindsum.runtime.paho_client import PACKET_SIZE_MAX

__all__ = ["PacketLimit"]

SUSPECT_SIZE_MIN: Final = 64 << 10
"""Smaller packets are never blamed for a lost connection."""
SUSPECT_LOSSES: Final = 3
SUSPECT_S: Final = 600.0


class PacketLimit:
    """Blames the largest packet in flight when the connection ends three times in a row and none so large ever passed.

    A verdict lasts ten minutes, because a bad network can look the same.
    """

    def __init__(self) -> None:
        self.announced = PACKET_SIZE_MAX
        self._proven = 0
        self._losses = 0
        self._suspected: tuple[int, float] | None = None  # limit, when it ends

    @property
    def size(self) -> int:
        """Bytes that a packet may have."""
        suspected = self._suspected
        if suspected is None or time.monotonic() > suspected[1]:
            return self.announced
        return min(self.announced, suspected[0])

    def passed(self, size: int) -> None:
        """A packet of `size` bytes was acknowledged."""
        if size > self._proven:
            self._proven, self._losses = size, 0

    def lost(self, largest: int, *, certain: bool) -> None:
        """The connection ended with `largest` bytes in flight; `certain` where the broker said that this was the reason."""
        if largest <= max(SUSPECT_SIZE_MIN, self._proven) and not (certain and largest):
            return
        self._losses += 1
        if certain or self._losses >= SUSPECT_LOSSES:
            self._suspected, self._losses = (largest - 1, time.monotonic() + SUSPECT_S), 0
