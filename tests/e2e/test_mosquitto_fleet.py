"""The same rounds on a broker of another make, which is also killed while devices upload."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

ROUNDS = 3
DOWN_S = 0.5


def test_rounds_on_mosquitto_are_exact(small_fleet: Callable[..., Any], local_mosquitto: Callable[..., Any]) -> None:
    fleet = small_fleet(rounds=ROUNDS, url=local_mosquitto().url)
    fleet.start()
    fleet.watch(90.0)
    assert fleet.finished == [1, 2, 3] and not fleet.failed
    fleet.judge()


def test_fleet_runs_from_its_kits_on_the_broker_that_init_configured(
    small_fleet: Callable[..., Any], production_mosquitto: Callable[..., Any], free_port: int
) -> None:
    """TLS 1.3, a client certificate and an access list for each role, all from `create_fleet` and `enrol`."""
    fleet = small_fleet(rounds=2, url=f"mqtts://localhost:{free_port}")
    production_mosquitto(fleet.folder.broker / "mosquitto.conf")
    fleet.start()
    fleet.watch(90.0)
    assert fleet.finished == [1, 2] and not fleet.failed and not fleet.refused
    fleet.judge()


def test_rounds_go_on_after_mosquitto_was_killed_in_the_middle_of_one(
    small_fleet: Callable[..., Any], local_mosquitto: Callable[..., Any]
) -> None:
    broker = local_mosquitto()
    fleet = small_fleet(rounds=ROUNDS, url=broker.url)
    fleet.start()
    wanted = {1: "vote", 2: "upload"}
    back_at: list[float] = []

    def disturb(name: str, event: dict[str, Any]) -> None:
        if back_at and time.monotonic() >= back_at[0]:
            back_at.clear()
            broker.start()
        if name == "coordinator" and event["event"] == "phase" and wanted.get(event["round"]) == event["phase"]:
            wanted.pop(event["round"])
            broker.kill()  # it kept nothing: sessions, queues and retained messages are gone
            back_at.append(time.monotonic() + DOWN_S)

    fleet.watch(120.0, disturb)
    assert not wanted
    assert len(fleet.finished) >= ROUNDS - 1, fleet.failed
    fleet.judge()
