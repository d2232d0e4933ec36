"""SIGKILL of every role at random moments: rounds finish exactly or fail cleanly, and nothing accepted is lost."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import pytest

ROUNDS = 20
ROLES = ("coordinator", "party-1", "party-2", "party-3", "party-4", "host-0")
QUIET_S = (0.2, 1.6)
"""From when the killed role is back at the broker to the next kill. A slow machine so has as much peace as a fast one."""


@pytest.mark.timeout(900)
def test_twenty_rounds_with_a_role_killed_at_random_moments(small_fleet: Callable[..., Any]) -> None:
    fleet = small_fleet(rounds=ROUNDS)
    fleet.start()
    dice = random.Random(20)
    kills = 0
    away = ""
    next_kill = time.monotonic() + 3.0

    def disturb(name: str, event: dict[str, Any]) -> None:
        nonlocal kills, away, next_kill
        if away and name == away and event["event"] == "connected":
            away, next_kill = "", time.monotonic() + dice.uniform(*QUIET_S)
        if away or time.monotonic() < next_kill:
            return
        away = dice.choice(ROLES)
        fleet.stack.kill(away)
        fleet.stack.restart(away)
        kills += 1

    fleet.watch(600.0, disturb)
    assert kills >= 10
    assert sorted([*fleet.finished, *fleet.failed]) == list(range(1, ROUNDS + 1))
    assert len(fleet.finished) >= ROUNDS // 2, fleet.failed
    fleet.judge()


def test_the_broker_is_killed_between_and_inside_rounds(small_fleet: Callable[..., Any]) -> None:
    fleet = small_fleet(rounds=6)
    fleet.start()
    wanted = {2: "upload", 4: "vote"}

    def disturb(name: str, event: dict[str, Any]) -> None:
        if name == "coordinator" and event["event"] == "phase" and wanted.get(event["round"]) == event["phase"]:
            wanted.pop(event["round"])
            fleet.stack.restart_broker()

    fleet.watch(240.0, disturb)
    assert not wanted
    assert len(fleet.finished) >= 5, fleet.failed
    fleet.judge()
