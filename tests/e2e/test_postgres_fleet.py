"""A fleet whose coordinator keeps its rounds in PostgreSQL, on a server that is restarted in the middle of one."""

from __future__ import annotations

import os
import shutil
import signal
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


def test_coordinator_that_stands_by_goes_on_where_the_first_was_killed_or_paused(
    small_fleet: Callable[..., Any], postgres: Any
) -> None:
    fleet = small_fleet(rounds=3)
    kit = fleet.folder.coordinator
    settings = kit / "coordinator.toml"
    settings.write_text(f'database = "{postgres.database()}"\n{settings.read_text()}')
    second = kit.with_name("second")
    shutil.copytree(kit, second)
    fleet.start()
    fleet.stack.run("second", ["-m", "blindsum.backend.cli", "coordinator", str(second)])
    leads, paused, standby = "coordinator", "", {"coordinator": False, "second": False}
    wanted = {2: "upload", 3: "upload"}

    def disturb(name: str, event: dict[str, Any]) -> None:
        nonlocal leads, paused
        if name not in standby:
            return
        standby[name] = event["event"] == "standby" or (standby[name] and event["event"] != "started")
        if name == "second":
            fleet.hear("coordinator", event)
        if event["event"] == "started":
            assert name != leads or not paused
            leads = name
            if paused:  # it has been replaced, and wakes up
                os.kill(fleet.stack.pid(paused), signal.SIGCONT)
                until = time.monotonic() + 60
                while paused not in fleet.stack.died:
                    assert time.monotonic() < until
                    time.sleep(0.02)
                assert "lease-lost" in (fleet.root / "logs" / f"{paused}.log").read_text()
                fleet.stack.restart(paused)
                paused = ""
        other = next(each for each in standby if each != leads)
        if name != leads or not standby[other] or event["event"] != "phase":
            return
        if wanted.get(event["round"]) != event["phase"]:
            return
        wanted.pop(event["round"])
        if wanted:
            fleet.stack.kill(leads)
            fleet.stack.restart(leads)
        else:
            paused = leads
            os.kill(fleet.stack.pid(leads), signal.SIGSTOP)

    fleet.watch(240.0, disturb)
    assert not wanted
    assert not paused
    assert sorted([*fleet.finished, *fleet.failed]) == [1, 2, 3]
    assert fleet.finished, fleet.failed
    for path in (second / "transcripts").glob("*"):
        shutil.copy(path, kit / "transcripts")
    fleet.judge()
