"""One whole round: all roles' work for it on one core, beside the bare cryptography and additions, and Flower's SecAgg+.

Ours are the production machines and messages of a simulated fleet in one process, a tenth of the devices dropped, four parties. The
limit is `fleet.bare_ms` for every device, and adding the uploads up; both take the degree that our threat model asks for, and so
does the peer: Flower's own mod and workflow in one process, where it is installed. Nobody trains.
"""

from __future__ import annotations

import time
from typing import Final

import numpy as np

from blindsum.bench import secaggplus
from blindsum.bench.fleet import bare_ms, round_ms

__all__ = ["rows"]

SIZES: Final = ((100, 10_000), (40, 100_000))
"""(devices, parameters)."""
DROPPED: Final = 0.1


def rows() -> list[dict[str, object]]:
    """Seconds of one round: {name, ours, limit, peer, unit, ratio}; `ratio` is ours / limit."""
    table: list[dict[str, object]] = []
    peer = secaggplus.peer_name()
    for devices, length in SIZES:
        each_ms, degree = round_ms(devices, length, masks=True)
        ours, limit = each_ms * devices / 1000, devices * (bare_ms(degree, length) / 1000 + _add_s(length))
        theirs = secaggplus.round_s(devices, length, degree, DROPPED) if peer else None
        table.append(
            {
                "name": f"{devices} devices, {length} parameters, k = {degree}",
                "ours": round(ours, 3),
                "limit": round(limit, 3),
                "peer": None if theirs is None else round(theirs, 3),
                "unit": "s",
                "ratio": round(ours / limit, 2),
            }
        )
    return table


def _add_s(length: int) -> float:
    """Seconds to add one vector to a running sum, the best of a few."""
    total, one = np.zeros(length, np.uint32), np.ones(length, np.uint32)
    times = []
    for _ in range(9):
        began = time.perf_counter()
        np.add(total, one, out=total)
        times.append(time.perf_counter() - began)
    return min(times)
