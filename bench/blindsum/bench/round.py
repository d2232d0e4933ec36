"""One whole round: all roles' work for it on one core, beside the bare cryptography and Flower's SecAgg+.

Ours are the production machines and messages of a simulated fleet in one process, a tenth of the devices dropped, four parties. The
limit is `fleet.bare_ms` for every device; both take the degree that `plan_for` derives, and so does the peer: Flower's own mod and
workflow in one process, where it is installed. Nobody trains.
"""

from __future__ import annotations

from typing import Final

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
        ours, limit = each_ms * devices / 1000, bare_ms(degree, length) * devices / 1000
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
