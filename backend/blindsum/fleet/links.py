"""The links of a fleet's devices: how long what they send and hear is on its way."""

from __future__ import annotations

from array import array
from typing import Final

from blindsum.fleet.conditions import Population

__all__ = ["HOP_MS", "Links"]

HOP_MS: Final = 20
"""The least time of a message between islands, in virtual ms."""
JITTER: Final = 0.5
"""A message takes up to so much longer than its link's latency."""
SHORT_MS: Final = 1000
"""What is on a link for less is off it before anybody asks for it again."""


class Links:
    """Those of all devices of `population`, by number. Sizes in bytes; `luck` in [0, 1)."""

    def __init__(self, population: Population) -> None:
        # quicker, one by one, than NumPy's
        self._up, self._down = array("d", population.up), array("d", population.down)
        self._latency_ms = array("d", population.latency_ms)
        self._slowest = float(population.latency_ms.max()), float(population.down.min())
        self._sent_at: dict[int, float] = {}
        self._leaving: dict[tuple[int, bytes, int], float] = {}
        self._told_at: dict[int, float] = {}

    def begin(self) -> None:
        """Nothing is on its way any more."""
        self._sent_at.clear()
        self._leaving.clear()
        self._told_at.clear()

    def up_ms(self, device: int, size: int, luck: float, now: int) -> float:
        """What a device sends now follows on whatever it has sent before."""
        sent_at = self._sent_at[device] = max(self._sent_at.get(device, 0.0), now) + size / self._up[device]
        return HOP_MS + self._latency_ms[device] * (1 + JITTER * luck) + sent_at - now

    def tell_ms(self, device: int, size: int, luck: float, now: int) -> float:
        """What is sent to one device follows on whatever was sent to it alone."""
        told_at = self._told_at[device] = max(self._told_at.get(device, 0.0), now) + size / self._down[device]
        return HOP_MS + self._latency_ms[device] * (1 + JITTER * luck) + told_at - now

    def down_ms(self, device: int, size: int, luck: float) -> float:
        """What is sent to everybody; `size`: with whatever goes the same way before it."""
        return HOP_MS + self._latency_ms[device] * (1 + JITTER * luck) + size / self._down[device]

    def longest_down_ms(self, size: int) -> int:
        """The longest way of a broadcast, and more."""
        latency_ms, rate = self._slowest
        return 2 + int(latency_ms * (1 + JITTER) + size / rate)

    def waiting(self, device: int, blob: bytes, index: int, now: int) -> bool:
        """Whether a chunk that a device has sent is still with it: its outbox takes it once."""
        return self._leaving.get((device, blob, index), 0.0) > now

    def sent(self, device: int, blob: bytes, index: int, now: int) -> None:
        """A chunk follows on what was sent."""
        if self._sent_at[device] - now > SHORT_MS:
            self._leaving[device, blob, index] = self._sent_at[device]
