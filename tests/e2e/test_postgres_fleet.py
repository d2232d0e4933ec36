"""A fleet whose coordinator keeps its rounds in PostgreSQL, on a server that is restarted in the middle of one."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def test_database_server_is_restarted_in_a_round_and_nothing_is_lost(
    small_fleet: Callable[..., Any], postgres: Any
) -> None:
    fleet = small_fleet(rounds=4)
    settings = fleet.folder.coordinator / "coordinator.toml"
    settings.write_text(f'database = "{postgres.database()}"\n{settings.read_text()}')
    fleet.start()
    wanted = {2: "upload", 3: "vote"}

    def disturb(name: str, event: dict[str, Any]) -> None:
        if name != "coordinator" or event["event"] != "phase" or wanted.get(event["round"]) != event["phase"]:
            return
        wanted.pop(event["round"])
        postgres.stop()
        postgres.start()
        until = time.monotonic() + 20
        while "coordinator" not in fleet.stack.died:  # it ends at its next write; a supervisor starts it again
            assert time.monotonic() < until
            time.sleep(0.02)
        fleet.stack.restart("coordinator")

    fleet.watch(120.0, disturb)
    assert not wanted
    assert not (fleet.folder.coordinator / "coordinator.db").exists()
    assert sorted([*fleet.finished, *fleet.failed]) == [1, 2, 3, 4]
    assert len(fleet.finished) >= 3, fleet.failed
    fleet.judge()
