"""Broadcasts that devices of an island know already.

A coordinator repeats what it announces until a round is over, and nothing comes of a copy: it is counted as received when it leaves
and is never on its way. Where a device stops, or forgets the round, before it would have come, it is taken back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Copies", "Flight"]

TOLD_MAX: Final = 8
"""Different broadcasts of a round whose copies are spared: announcement, roster, result or failure, and to spare."""
NEVER: Final = 1 << 62


class Flight(NamedTuple):
    """A broadcast that leaves the broker at `left`, in ms; `source` and `counter` of whoever has sent it."""

    left: int
    source: int
    counter: int
    body: bytes


@dataclass(slots=True)
class _Told:
    """A broadcast: which of its repetitions each device was the first not to need (by device number), and those that may be on
    their way."""

    body: bytes
    since: NDArray[np.int64]
    away: NDArray[np.bool_]
    away_until: int = NEVER
    repeated: int = 0
    flights: deque[tuple[int, Flight]] = field(default_factory=deque)


class Copies:
    """Copies for those of `size` devices that are `mine`. `arrives(device, flight)`: when one reaches a device, in ms; `longest`:
    how long one of so many bytes may take."""

    def __init__(
        self,
        size: int,
        mine: Collection[int],
        *,
        arrives: Callable[[int, Flight], int],
        longest: Callable[[int], int],
    ) -> None:
        self._mine = np.zeros(size, np.bool_)
        self._mine[list(mine)] = True
        self._arrives, self._longest = arrives, longest
        self.begin(np.zeros(size, np.int64))

    def begin(self, received: NDArray[np.int64]) -> None:
        """A round begins, in which bytes are counted in `received`, by device number."""
        self._received = received
        self._told: list[_Told] = []

    def heard(self, device: int, body: bytes, *, away_until: int = 0) -> None:
        """Nothing comes of `body` at `device` any more; where `away_until` is given, until then (ms)."""
        for told in self._told:
            if told.body == body and told.since[device] == NEVER:
                told.since[device] = told.repeated
                if away_until:
                    told.away[device], told.away_until = True, away_until

    def leave(self, flight: Flight) -> list[int]:
        """The numbers of the devices that `flight` has to be brought to. For all others it is a copy, and counted."""
        told = next((each for each in self._told if each.body == flight.body), None)
        if told is None:
            size = len(self._mine)
            told = _Told(flight.body, np.full(size, NEVER, np.int64), np.zeros(size, np.bool_))
            if len(self._told) < TOLD_MAX:
                self._told.append(told)
        landed = self._longest(len(flight.body))
        while told.flights and told.flights[0][1].left + landed < flight.left:
            told.flights.popleft()
        known = told.since != NEVER
        if flight.left + landed >= told.away_until:
            known &= ~told.away
            told.since[told.away] = NEVER
        if known.any():
            self._received[known] += len(flight.body)
            told.flights.append((told.repeated, flight))
        told.repeated += 1
        return np.flatnonzero(self._mine & ~known).tolist()

    def recall(self, device: int) -> list[tuple[int, Flight]]:
        """`device` has stopped or left the round: the last copies that were counted for it, as (when it arrives, flight). What
        has not arrived is to be taken back (`uncount`)."""
        out = []
        for told in self._told:
            since, told.since[device] = int(told.since[device]), NEVER
            out += [(self._arrives(device, flight), flight) for serial, flight in told.flights if since <= serial]
        return out

    def uncount(self, device: int, flight: Flight) -> None:
        """`flight` has not reached `device`."""
        self._received[device] -= len(flight.body)

    def close(self, until: int) -> None:
        """What arrives from `until` on is not received any more."""
        for told in self._told:
            landed = self._longest(len(told.body))
            for serial, flight in told.flights:
                if flight.left + landed >= until:
                    for device in np.flatnonzero(told.since <= serial).tolist():
                        if self._arrives(device, flight) >= until:
                            self.uncount(device, flight)
