"""A broker that cannot be relied on: it delivers late, twice, out of order, damaged or never, as one seed decides."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from blindsum.testing.faults import QUIET_MS, Faults

__all__ = ["Delivery", "Network", "Tap"]

PARTITION_MS = (100, 10_000)
"""How long a role is cut off."""

Tap = Callable[[str, str, bytes], bytes | None]
"""tap(source, target, body) -> what is delivered instead, or None for nothing: a broker with a will of its own."""


@dataclass(frozen=True, slots=True, order=True)
class Delivery:
    """`body` reaches `target` at `at` ms."""

    at: int
    sequence: int
    target: str = field(compare=False)
    body: bytes = field(compare=False, repr=False)


class Network:
    """Messages on their way, in a heap by time of arrival, and the chunks that the broker retains, by blob and index."""

    def __init__(self, faults: Faults, dice: random.Random, *, ends_at: int) -> None:
        self.retained: dict[bytes, dict[int, bytes]] = {}
        self.tap: Tap | None = None
        self._faults = faults
        self._dice = dice
        self.ends_at = ends_at
        self._heap: list[Delivery] = []
        self._sequence = 0
        self._cut_until: dict[str, int] = {}

    @property
    def next_at(self) -> int | None:
        """When the next message arrives, in ms."""
        return self._heap[0].at if self._heap else None

    def pop(self) -> Delivery:
        return heapq.heappop(self._heap)

    def send(self, source: str, target: str, body: bytes, now: int) -> None:
        """Take a message to deliver, with whatever happens to it on the way."""
        tapped = body if self.tap is None else self.tap(source, target, body)
        if tapped is None:
            return
        body = tapped
        faults, dice = self._faults, self._dice
        delay_ms = QUIET_MS
        if now < self.ends_at:
            delay_ms = faults.delay_ms
            if faults.partition and self._cut_off(source, target, now):
                return
            if dice.random() < faults.loss:
                return
            if body and dice.random() < faults.flip:
                at = dice.randrange(len(body))
                body = body[:at] + bytes([body[at] ^ (1 << dice.randrange(8))]) + body[at + 1 :]
            if dice.random() < faults.duplicate:
                self.push(target, body, now + dice.randint(*delay_ms))
        self.push(target, body, now + dice.randint(*delay_ms))

    def push(self, target: str, body: bytes, at: int) -> None:
        """Deliver exactly this, then."""
        self._sequence += 1
        heapq.heappush(self._heap, Delivery(at, self._sequence, target, body))

    def _cut_off(self, source: str, target: str, now: int) -> bool:
        for role in (source, target):
            if self._dice.random() < self._faults.partition:
                self._cut_until[role] = now + self._dice.randint(*PARTITION_MS)
        return now < max(self._cut_until.get(source, 0), self._cut_until.get(target, 0))
