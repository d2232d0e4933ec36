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
KILLS = 25
"""Then the rest of the rounds is left in peace, however slow the machine is."""


@pytest.mark.timeout(900)
def test_twenty_rounds_with_a_role_killed_at_random_moments(small_fleet: Callable[..., Any]) -> None:
    fleet = small_fleet(rounds=ROUNDS)
    fleet.start()
    dice = random.Random(20)
    kills = 0
    next_kill = time.monotonic() + 3.0

    def disturb(_name: str, _event: dict[str, Any]) -> None:
        nonlocal kills, next_kill
        if time.monotonic() < next_kill or kills >= KILLS:
            return
        role = dice.choice(ROLES)
        fleet.stack.kill(role)
        fleet.stack.restart(role)
        kills += 1
        next_kill = time.monotonic() + dice.uniform(*QUIET_S)

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
