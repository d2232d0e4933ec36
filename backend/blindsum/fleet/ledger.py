"""What one island of a simulated fleet notes of a round: bytes and seconds by device, and the sum that the masks hide."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

from blindsum.fleet.conditions import FATES
from blindsum.fleet.shelf import Kept, Shelf
from blindsum.protocol.ring import Lane, Segment, zeros

__all__ = ["Ledger", "Notes"]


@dataclass(slots=True)
class Notes:
    """One round of all devices that an island plays, as arrays by device number; zero for the devices of others.

    `up`, `down`: bytes. `seconds`: virtual time from the beginning of the round to the receipt of the whole upload, 0 where there
    was none. `mask_ms`: processor time of masking and sealing, all key agreements included. `fates`: how many devices met which of
    `FATES`; `late`: those that the round overtook in training or upload; `stale`: survivors whose update is of an earlier model,
    by τ. `failed`: trainings that failed, by code. `plain`: the lanes of the plain ring sum (24-bit ones unreduced).
    """

    up: NDArray[np.int64] = field(repr=False)
    down: NDArray[np.int64] = field(repr=False)
    seconds: NDArray[np.float64] = field(repr=False)
    mask_ms: NDArray[np.float64] = field(repr=False)
    fates: Counter[str]
    late: int
    stale: Counter[int]
    failed: Counter[str]
    refusals: Counter[str]
    plain: list[Lane] = field(repr=False)

    def add(self, other: Self) -> None:
        """Take in what another island noted of the same round."""
        for name in ("up", "down", "seconds", "mask_ms"):
            getattr(self, name).__iadd__(getattr(other, name))
        for mine, theirs in zip(self.plain, other.plain, strict=True):
            np.add(mine, theirs, out=mine)
        self.fates += other.fates
        self.failed += other.failed
        self.refusals += other.refusals
        self.late += other.late
        self.stale += other.stale


class Ledger:
    """Notes being taken. `keeps` all plain vectors to the round's end: where parties or devices may have uploads left out."""

    def __init__(
        self, devices: Collection[int], size: int, segments: Sequence[Segment], shelf: Shelf, *, keeps: bool
    ) -> None:
        self._mine = np.asarray(sorted(devices), np.int64)
        self._size, self._segments, self._shelf, self._keeps = size, segments, shelf, keeps
        self._began = 0
        self._plain: dict[int, Kept] = {}
        self.begin(0, np.zeros(size, np.uint8))

    def begin(self, now: int, fates: NDArray[np.uint8]) -> None:
        """A round begins at `now`, in which devices meet `fates`."""
        for value in self._plain.values():
            self._shelf.free(value)
        self._began = now
        self._plain = {}
        self._summed: set[int] = set()
        self._sum = zeros(self._segments)
        self.up, self.down = np.zeros(self._size, np.int64), np.zeros(self._size, np.int64)
        self.seconds, self.mask_ms = np.zeros(self._size), np.zeros(self._size)
        counts = np.bincount(fates[self._mine], minlength=len(FATES))
        self.fates = Counter({fate: int(count) for fate, count in zip(FATES, counts, strict=True) if fate and count})
        self.late = 0
        self.sent: set[int] = set()
        self._fates = fates
        self._tau: dict[int, int] = {}
        self.failed: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()

    def made(self, device: int, lanes: Sequence[Lane], tau: int = 0) -> None:
        """A device is about to mask `lanes`, which τ rounds have discounted."""
        self._tau[device] = tau
        self._plain[device] = self._shelf.keep_alone(b"".join(lane.data for lane in lanes))

    def uploaded(self, device: int, now: int) -> None:
        """A device has the receipt of its whole upload."""
        self.seconds[device] = (now - self._began) / 1000
        self._add(device)

    def close(self, survivors: Collection[int]) -> Notes:
        """The round is over, and the opened sum is over exactly `survivors`, some of them of this island (nobody: no sum)."""
        mine = set(self._mine.tolist()) & set(survivors)
        for device in sorted(mine - self._summed):
            self._add(device)
        for device in sorted(self._summed - mine if survivors else ()):
            self._combine(device, np.subtract)
        return Notes(
            self.up,
            self.down,
            self.seconds,
            self.mask_ms,
            self.fates,
            self.late + sum(not self._fates[device] for device in self.sent - self._summed),
            Counter(tau for device in mine if (tau := self._tau.get(device, 0))),
            self.failed,
            self.refusals,
            self._sum,
        )

    def _add(self, device: int) -> None:
        self._combine(device, np.add)
        self._summed.add(device)
        if not self._keeps:
            self._shelf.free(self._plain.pop(device))

    def _combine(self, device: int, operation: np.ufunc) -> None:
        data, start = self._shelf.read(self._plain[device]), 0
        for lane in self._sum:
            operation(lane, np.frombuffer(data, lane.dtype, lane.size, start), out=lane)
            start += lane.nbytes
