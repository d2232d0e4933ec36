"""Whom a task wants: criteria that the operator signed and each device holds against what it remembers (SPEC.md section 5.7).

A device that does not know a criterion's kind or version, or finds other values than that version has, is not eligible: an older
device stays out of what it cannot judge.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from blindsum.protocol.keys import digest
from blindsum.protocol.messages import Criterion

__all__ = ["KINDS", "SHARE_MAX", "History", "not_eligible", "place_of", "retry_window"]

SHARE_MAX: Final = 1000
"""A share of the devices is so many thousandths."""


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What a device knows of itself and a task. `examples`: how many it holds, None where its app does not say. `round` and
    `issued_at`: of the last round it uploaded in (the manifest's time, milliseconds), 0 before the first."""

    device: str
    examples: int | None = None
    round: int = 0
    issued_at: int = 0


@dataclass(frozen=True, slots=True)
class _Asked:
    values: Sequence[int]
    task: str
    number: int
    issued_at: int
    history: History


def not_eligible(criteria: Sequence[Criterion], *, task: str, number: int, issued_at: int, history: History) -> str:
    """ "" where this device is wanted in round `number`, whose manifest says `issued_at`; else why not, for people."""
    for criterion in criteria:
        known = KINDS.get((criterion.kind, criterion.version))
        if known is None or len(criterion.values) != known[0]:
            return f"the task asks for {criterion.kind!r} version {criterion.version}, which this device does not know"
        if reason := known[1](_Asked(criterion.values, task, number, issued_at, history)):
            return reason
    return ""


def retry_window(criteria: Sequence[Criterion]) -> tuple[int, int]:
    """(least, most) milliseconds a device waits after a round that it left without an upload; (0, 0) where nothing is said."""
    for criterion in criteria:
        if (criterion.kind, criterion.version, len(criterion.values)) == ("retry", 1, 2):
            least, most = criterion.values
            return 1000 * least, 1000 * max(least, most)
    return 0, 0


def place_of(device: str, task: str) -> int:
    """Where a device stands in a task's staged roll-outs: 0 to 999, the same for ever."""
    return int.from_bytes(digest("share", task, device)[:8]) % SHARE_MAX


def _examples_min(asked: _Asked) -> str:
    [least] = asked.values
    held = asked.history.examples
    if held is None:
        return f"the task asks for {least} examples, and the app does not say how many there are"
    return f"{held} examples, {least} are asked for" if held < least else ""


def _once_per(asked: _Asked) -> str:
    [period_s] = asked.values
    last, period_ms = asked.history.issued_at, max(1, 1000 * period_s)
    same = asked.history.round > 0 and last // period_ms >= asked.issued_at // period_ms
    return f"took part in this period of {period_s} s already" if same else ""


def _rounds_apart(asked: _Asked) -> str:
    [least] = asked.values
    last = asked.history.round
    return f"took part in round {last}, {least} rounds must lie between" if 0 < last >= asked.number - least else ""


def _share(asked: _Asked) -> str:
    permille, step = asked.values
    now = permille + step * (asked.number - 1)
    place = place_of(asked.history.device, asked.task)
    return f"the task is with {now} of {SHARE_MAX} devices so far" if place >= now else ""


KINDS: Final[dict[tuple[str, int], tuple[int, Callable[[_Asked], str]]]] = {
    ("examples-min", 1): (1, _examples_min),
    ("once-per", 1): (1, _once_per),
    ("rounds-apart", 1): (1, _rounds_apart),
    ("share", 1): (2, _share),
    ("retry", 1): (2, lambda _asked: ""),
}
"""(kind, version): (how many values it has, the check)."""
