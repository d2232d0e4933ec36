"""Simulated fleets beside the bare cryptography of their devices, and beside what others take to simulate less.

10 000 parameters in a 24-bit ring, four parties, a tenth of the devices drops out. The first row is what a user of `Fleet` gets: a
whole run on all cores, from the start of its processes to its report, with the plan that `plan_for` derives. The others are rounds
in one process, all with the same number of neighbours, so that they show what a device costs in small fleets and large ones.

The limit is what devices, parties and coordinator of one fleet cannot share: key pairs, an agreement for each edge, keystreams at
both of its ends, self masks by device and parties, vectors added up; no box, no signature, no message, no store, no clock. It is
measured in the same run. Peers, where they are installed, have no masks and no dropouts: beside our rounds with masks stands
Flower's simulation, which takes all cores where our single rounds take one; beside our round without masks pfl, which adds vectors
and has no messages either.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from blindsum.bench import flowerfleet, pflfleet
from blindsum.fleet import Dropout, Fleet, Local, plan_for
from blindsum.protocol.keys import agree, edge_keypair, edge_private
from blindsum.protocol.params import ThreatModel
from blindsum.protocol.prg import apply
from blindsum.protocol.ring import Segment, zeros

__all__ = ["bare_ms", "round_ms", "rows"]

LENGTH: Final = 10_000
WHOLE = (1000, 3)
"""(devices, rounds) of the whole run."""
FLAT = ((100, 370), (1000, 200))
"""(devices, permille that the threat model lets drop) of the rounds: as many neighbours each."""
ROUNDS: Final = 2
"""Of a single row, of which the quicker counts: the first also makes devices known."""
SELF_SEEDS: Final = 4
BARE_DEVICES = 200


def rows() -> list[dict[str, object]]:
    """{name, ours, limit, peer, unit, ratio, ms a device}: wall time of all roles together; `ratio` is ours to the limit."""
    found = [_whole(), *(_round(size, dropped, masks=masks) for size, dropped in FLAT for masks in (True, False))]
    return [each.row() for each in found]  # peers last: their processes may outlive their rounds


def a_fleet(
    size: int, length: int, *, dropped: int | None = None, masks: bool = True, workers: int | None = None
) -> Fleet:
    """One of which a tenth drops out; `dropped`: how many permille its threat model allows for (None: what `Fleet` derives)."""
    dropout, plan = Dropout.spread(0.1), None
    if dropped is not None:
        threat = ThreatModel(corrupt_permille=50, dropped_permille=dropped, cohort_min=max(2, size // 10))
        plan = plan_for(size, dropout, threat=threat)
    return Fleet(
        np.zeros(length, np.float32),
        devices=size,
        update=_constant,
        dropout=dropout,
        plan=plan,
        workers=workers,
        masks="on" if masks else "off",
    )


def round_ms(size: int, length: int, *, dropped: int | None = None, masks: bool = True) -> tuple[float, int]:
    """(ms a device, degree of the graph) of a round in one process, so that it compares with the limit on one core."""
    report = a_fleet(size, length, dropped=dropped, masks=masks, workers=0).run(ROUNDS)
    assert report.exact and len(report.finished) == ROUNDS
    return 1000 * min(each.wall_s for each in report.rounds) / size, report.rounds[-1].degree


def bare_ms(degree: int, length: int, *, masks: bool = True) -> float:
    """ms of the bare cryptography of one device's part in a round of a fleet."""
    segments = [Segment("model", length, 24)]
    lanes, total = zeros(segments), zeros(segments)
    others = [edge_keypair(os.urandom(32))[1] for _ in range(degree // 2 if masks else 0)]
    streams = [(os.urandom(24), 1) for _ in range(degree + 2 * SELF_SEEDS if masks else 0)]
    times = []
    for _ in range(BARE_DEVICES):
        began = time.perf_counter()
        private, _ = edge_keypair(os.urandom(32))
        own = edge_private(private)
        for other in others:
            assert agree(own, other) is not None
        apply(segments, lanes, streams, suite="aes128-ctr")
        np.add(total[0], lanes[0], out=total[0])
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times)


@dataclass(frozen=True, slots=True)
class _Found:
    """One row but for its peer. `scale`: ms a device and round times it are the row's unit."""

    name: str
    ours: float
    limit: float
    unit: str
    scale: float
    peer_ms: Callable[[], float | None]

    def row(self) -> dict[str, object]:
        peer = self.peer_ms()
        return {
            "name": self.name,
            "ours": round(self.ours, 3),
            "limit": round(self.limit, 3),
            "peer": None if peer is None else round(peer * self.scale, 3),
            "unit": self.unit,
            "ratio": round(self.ours / self.limit, 2),
            "ms a device": round(self.ours / self.scale, 3),
        }


def _whole() -> _Found:
    """Its limit is that of one core, shared by all; Flower's rounds count without its start."""
    size, rounds = WHOLE
    fleet = a_fleet(size, LENGTH)
    began = time.perf_counter()
    report = fleet.run(rounds)
    ours = time.perf_counter() - began
    assert report.exact and len(report.finished) == rounds
    degree, cores, scale = report.rounds[-1].degree, os.cpu_count() or 1, size * rounds / 1000
    name = f"{size} devices, {rounds} rounds, k = {degree} as derived, {cores} cores; Flower without masks"
    return _Found(name, ours, bare_ms(degree, LENGTH) * scale / cores, "s", scale, lambda: _flower_ms(size))


def _round(size: int, dropped: int, *, masks: bool) -> _Found:
    ours, degree = round_ms(size, LENGTH, dropped=dropped, masks=masks)
    limit = bare_ms(degree, LENGTH, masks=masks)
    if masks:
        return _Found(
            f"{size} devices, k = {degree}; Flower without masks", ours, limit, "ms", 1.0, lambda: _flower_ms(size)
        )
    peer = partial(pflfleet.round_ms, size, LENGTH)
    return _Found(f"{size} devices without masks; pfl", ours, limit, "ms", 1.0, peer)


@cache
def _flower_ms(size: int) -> float | None:
    return flowerfleet.round_ms(size, LENGTH)


def _constant(local: Local) -> NDArray[np.float32]:
    return np.full(local.parameters.size, 0.001, np.float32)
