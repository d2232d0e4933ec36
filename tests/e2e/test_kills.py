"""SIGKILL of every role at random moments: rounds finish exactly or fail cleanly, and nothing accepted is lost. `scripts/siege`
does it hundreds of times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.e2e.siege import Siege

KILLS = 8
WITHIN_S = 280.0
ROUNDS = 1000


@pytest.mark.parametrize("broker", ["embedded", "mosquitto"])
def test_fleet_under_siege_sums_exactly_loses_nothing_and_repeats_nothing(
    small_fleet: Callable[..., Any], local_mosquitto: Callable[..., Any], broker: str
) -> None:
    if broker == "embedded":
        fleet = small_fleet(rounds=ROUNDS)
        kill = fleet.stack.restart_broker
    else:
        mosquitto = local_mosquitto()
        fleet = small_fleet(rounds=ROUNDS, url=mosquitto.url)
        kill = mosquitto.restart
    siege = Siege(fleet, 20, kill)
    siege.lay(KILLS, WITHIN_S)
    assert sum(siege.kills.values()) == KILLS
    assert len(fleet.finished) >= 3, fleet.failed


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
