"""A clock held against what is signed with a time, and said to people."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

__all__ = ["RENEWAL", "SET_CLOCK", "clock_says", "lasting", "out_of_time"]

SET_CLOCK: Final = "set the clock (NTP)"
RENEWAL: Final = "set the clock (NTP) if it is wrong, else have the kit made again"

_UNITS: Final = (("days", 86_400_000), ("hours", 3_600_000), ("minutes", 60_000))


def clock_says(now: int) -> str:
    """The time `now` (ms since 1970) as people read it, or that it is none."""
    try:
        return f"{datetime.fromtimestamp(now / 1000, UTC):%Y-%m-%d %H:%M} UTC"
    except (OverflowError, ValueError, OSError):
        return f"{now // 1000} s since 1970"


def lasting(ms: int) -> str:
    """A duration in its largest whole unit, of minutes, hours and days, such as "400 days"."""
    for unit, size in _UNITS:
        if ms >= 2 * size:
            return f"{ms // size} {unit}"
    return f"{ms // 1000} seconds"


def out_of_time(what: str, *, since: int, until: int, now: int) -> tuple[str, str]:
    """(what is wrong, what to do) where `what`, which holds from `since` until `until`, does not at `now` (ms), else two ""."""
    if now < since:
        return f"this clock says {clock_says(now)}, and {what} begins on {clock_says(since)}", SET_CLOCK
    if now > until:
        return f"{what} ended on {clock_says(until)}; this clock says {clock_says(now)}", RENEWAL
    return "", ""
