"""Which devices a task wants: SPEC.md section 5.7."""

from __future__ import annotations

from typing import Any, Final

from scenarios.case import File
from scenarios.scene import Scene

__all__ = ["files"]

_DAY_S: Final = 86_400
_NOON: Final = 20_000 * _DAY_S * 1000 + 43_200_000


def files(_scene: Scene) -> list[File]:
    file = File("eligibility.json", "which devices a task wants", "5.7", "eligibility")
    history: dict[str, Any] = {"device": "d-1", "task": "t", "round": 8, "issued_at": _NOON, "examples": 20}
    fresh = {"round": 0, "issued_at": 0}
    for name, criteria, changes in (
        ("no criterion", [], {}),
        ("examples enough", [("examples-min", 20)], {}),
        ("an example too few", [("examples-min", 21)], {}),
        ("examples that the app does not count", [("examples-min", 0)], {"examples": None}),
        ("the first round of all", [("once-per", _DAY_S), ("rounds-apart", 100)], {}),
        ("the same day", [("once-per", _DAY_S)], {"last": {"round": 7, "issued_at": _NOON - 43_200_000}}),
        ("the day before", [("once-per", _DAY_S)], {"last": {"round": 7, "issued_at": _NOON - 43_200_001}}),
        ("a last round in the future", [("once-per", _DAY_S)], {"last": {"round": 7, "issued_at": _NOON + 10**9}}),
        ("rounds too near", [("rounds-apart", 3)], {"last": {"round": 5, "issued_at": 1}}),
        ("rounds far enough apart", [("rounds-apart", 2)], {"last": {"round": 5, "issued_at": 1}}),
        ("all devices", [("share", 1000, 0)], {}),
        ("no device", [("share", 0, 0)], {}),
        ("a share that grows to all in round 8", [("share", 300, 100)], {}),
        *(
            (f"a share of {p} permille, device {d}", [("share", p, 0)], {"device": d})
            for p in (100, 500)
            for d in "abcd"
        ),
        ("times to wait", [("retry", 60, 600)], {}),
        ("one criterion of two", [("examples-min", 1), ("examples-min", 21)], {}),
        ("a kind of later years", [("phase-of-the-moon", 1)], {}),
        ("one value too many", [("examples-min", 1, 1)], {}),
    ):
        asked = [{"kind": kind, "version": 1, "values": values} for kind, *values in criteria]
        file.ok(name, criteria=asked, **{"last": fresh, **history, **changes})
    newer = [{"kind": "examples-min", "version": 2, "values": [1]}]
    file.ok("a version of later years", criteria=newer, last=fresh, **history)
    return [file]
