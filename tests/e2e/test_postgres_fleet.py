"""A fleet whose coordinator keeps its rounds in PostgreSQL, on a server that is restarted in the middle of one."""

from __future__ import annotations

import os
import random
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
    """Each is done to the one that leads, in an upload that begins while the other stands by: however long that took to start."""
    fleet = small_fleet(rounds=100)
    kit = fleet.folder.coordinator
    settings = kit / "coordinator.toml"
    settings.write_text(f'database = "{postgres.database()}"\n{settings.read_text()}')
    second = kit.with_name("second")
    shutil.copytree(kit, second)
    fleet.start()
    fleet.stack.run("second", ["-m", "blindsum.backend.cli", "coordinator", str(second)])
    leads, paused, standby = "coordinator", "", {"coordinator": False, "second": False}
    killed_in = paused_in = 0

    def disturb(name: str, event: dict[str, Any]) -> None:
        nonlocal leads, paused, killed_in, paused_in
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
        fleet.over = event["event"] == "transcript" and 0 < paused_in < event["round"] and not paused
        other = next(each for each in standby if each != leads)
        if name != leads or not standby[other] or event["event"] != "phase" or event["phase"] != "upload":
            return
        if not killed_in:
            killed_in = event["round"]
            fleet.stack.kill(leads)
            fleet.stack.restart(leads)
        elif not paused_in and event["round"] > killed_in:
            paused_in, paused = event["round"], leads
            os.kill(fleet.stack.pid(leads), signal.SIGSTOP)

    fleet.watch(240.0, disturb)
    for path in (second / "transcripts").glob("*"):
        shutil.copy(path, kit / "transcripts")
    fleet.judge()
    ended = sorted([*fleet.finished, *fleet.failed])
    assert ended == list(range(1, ended[-1] + 1))
    assert ended[-1] > paused_in > killed_in > 0


def test_workers_that_are_killed_in_every_phase_lose_nothing_and_change_no_byte(
    small_fleet: Callable[..., Any], postgres: Any
) -> None:
    """What is summed is held against the plain sum of what devices trained: nothing is lost, and nothing counts twice."""
    fleet = small_fleet(rounds=3, workers=3)
    database, workers = postgres.database(), [f"worker-{number}" for number in (1, 2, 3)]
    settings = fleet.folder.coordinator / "coordinator.toml"
    settings.write_text(f'database = "{database}"\n{settings.read_text()}')
    for name in workers:
        own = fleet.folder.root / name / "worker.toml"
        own.write_text(own.read_text().replace('database = ""', f'database = "{database}"'))
        fleet.stack.run(name, ["-m", "blindsum.backend.cli", "worker", str(own.parent)])
    fleet.start()
    chosen, seen, paused = random.Random(7), set[str](), ""
    heard: dict[str, set[str]] = {name: set() for name in ("coordinator", *workers)}

    def disturb(name: str, event: dict[str, Any]) -> None:
        nonlocal paused
        if name in heard:
            heard[name].add(event["event"])
        if name != "coordinator" or event["event"] not in ("phase", "upload") or event["round"] == 1:
            return
        seen.add(event.get("phase", "upload"))
        if event["round"] == 3 and not paused:
            paused = chosen.choice(workers)
            os.kill(fleet.stack.pid(paused), signal.SIGSTOP)
        victim = chosen.choice([each for each in workers if each != paused])
        fleet.stack.kill(victim)
        fleet.stack.restart(victim)

    fleet.watch(240.0, disturb)
    os.kill(fleet.stack.pid(paused), signal.SIGCONT)
    assert seen >= {"upload", "check", "vote", "open", "done"}
    assert sorted([*fleet.finished, *fleet.failed]) == [1, 2, 3]
    assert len(fleet.finished) >= 2, fleet.failed
    assert "workers" in heard["coordinator"]
    assert any("chunks" in heard[name] for name in workers)
    fleet.judge()
