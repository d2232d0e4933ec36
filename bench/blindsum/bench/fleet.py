"""Simulated rounds a device, with masks and without, beside the bare cryptography of one device's part of a round.

10 000 parameters in a 24-bit ring, four parties, a tenth of the devices drops out. The limit is what a device, four parties and
a coordinator cannot do without: key pair, agreement with every neighbour, keystreams at all ends, boxes sealed and opened; no
signature, no message, no store, no clock. It is measured in the same run. Peers, where they are installed, have no masks and no
dropouts: beside our round with masks stands Flower's simulation, which takes all cores where ours takes one; beside our round
without masks pfl, which adds vectors and has no messages either. The last row is a whole run on all cores, from the start of its
processes to its report.
"""

from __future__ import annotations

import os
import time

import numpy as np
from numpy.typing import NDArray

from blindsum.bench import flowerfleet, pflfleet
from blindsum.fleet import Dropout, Fleet, Local, plan_for
from blindsum.protocol.keys import (
    BOX_PRIVATE_SIZE,
    agree,
    box_keypair,
    box_open,
    box_private,
    box_seal,
    edge_keypair,
    edge_private,
)
from blindsum.protocol.params import ThreatModel
from blindsum.protocol.prg import apply
from blindsum.protocol.ring import Segment, zeros

__all__ = ["bare_ms", "round_ms", "rows"]

LENGTH = 10_000
SIZES = (100, 400)
PARTIES = 4
SELF_SEEDS = 4
HOLDERS = 3
"""Parties that expand each self mask."""
BARE_DEVICES = 50
WHOLE = (1000, 3)
"""(devices, rounds) of the whole run."""


def rows() -> list[dict[str, object]]:
    """Milliseconds of wall time a device and round, all roles together: {name, ours, limit, peer, unit, ratio}."""
    table: list[dict[str, object]] = []
    for size in SIZES:
        masked, degree = round_ms(size, LENGTH, masks=True)
        plain, _ = round_ms(size, LENGTH, masks=False)
        limit, flower = bare_ms(degree, LENGTH), flowerfleet.round_ms(size, LENGTH)
        for name, ours, least, peer in (
            (f"{size} devices; Flower without masks", masked, limit, flower),
            (f"{size} devices without masks; pfl", plain, None, pflfleet.round_ms(size, LENGTH)),
        ):
            table.append(
                {
                    "name": name,
                    "ours": round(ours, 2),
                    "limit": None if least is None else round(least, 2),
                    "peer": None if peer is None else round(peer, 3),
                    "unit": "ms a device",
                    "ratio": None if least is None else round(ours / least, 2),
                }
            )
    return [*table, whole()]


def whole() -> dict[str, object]:
    """The row of the whole run. Its limit is that of one core, shared by all; Flower's rounds count without its start."""
    size, rounds = WHOLE
    fleet = a_fleet(size, LENGTH, masks=True, workers=None)
    began = time.perf_counter()
    report = fleet.run(rounds)
    ours = time.perf_counter() - began
    assert report.exact and len(report.rounds) == rounds
    cores, flower = os.cpu_count() or 1, flowerfleet.round_ms(size, LENGTH)
    limit = bare_ms(report.rounds[-1].degree, LENGTH) * size * rounds / 1000 / cores
    return {
        "name": f"{size} devices, {rounds} rounds, {cores} cores; Flower without masks",
        "ours": round(ours, 2),
        "limit": round(limit, 2),
        "peer": None if flower is None else round(flower * size * rounds / 1000, 2),
        "unit": "s",
        "ratio": round(ours / limit, 2),
    }


def a_fleet(size: int, length: int, *, masks: bool, workers: int | None) -> Fleet:
    """One of which a tenth drops out."""
    dropout = Dropout.spread(0.1)
    threat = ThreatModel(corrupt_permille=50, dropped_permille=200, cohort_min=max(2, size // 10))
    return Fleet(
        np.zeros(length, np.float32),
        devices=size,
        update=_constant,
        dropout=dropout,
        plan=plan_for(size, dropout, threat=threat),
        workers=workers,
        masks="on" if masks else "off",
    )


def round_ms(size: int, length: int, *, masks: bool) -> tuple[float, int]:
    """(ms a device, degree of the graph) of a round in one process, so that it compares with the limit on one core."""
    report = a_fleet(size, length, masks=masks, workers=0).run(1)
    only = report.rounds[0]
    assert not only.code and report.exact
    return 1000 * only.wall_s / size, only.degree


def _constant(local: Local) -> NDArray[np.float32]:
    return np.full(local.parameters.size, 0.001, np.float32)


def bare_ms(degree: int, length: int) -> float:
    """ms of the bare cryptography of one device."""
    segments = [Segment("model", length, 24)]
    lanes = zeros(segments)
    boxes = [box_keypair(os.urandom(BOX_PRIVATE_SIZE)) for _ in range(PARTIES)]
    ready = [box_private(private) for private, _ in boxes]
    others = [edge_keypair(os.urandom(32))[1] for _ in range(degree)]
    streams = [(os.urandom(24), 1) for _ in range(degree + SELF_SEEDS + SELF_SEEDS * HOLDERS)]
    began = time.perf_counter()
    for _ in range(BARE_DEVICES):
        private, _ = edge_keypair(os.urandom(32))
        own = edge_private(private)
        for other in others:
            assert agree(own, other) is not None
        apply(segments, lanes, streams, suite="aes128-ctr")
        for place, (_, public) in enumerate(boxes):
            assert box_open(ready[place], b"", box_seal(public, b"", bytes(192))) is not None
    return 1000 * (time.perf_counter() - began) / BARE_DEVICES
