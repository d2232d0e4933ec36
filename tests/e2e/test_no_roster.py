"""Rounds without a roster over a real broker: devices of the SDK begin when they see a round, and parties read headers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from blindsum.fleet.plainsum import compare_with_plain
from blindsum.protocol.transcript import read_records


def test_rounds_without_a_roster_are_exact_over_a_broker(small_fleet: Callable[..., Any]) -> None:
    fleet = small_fleet(rounds=2, profile="no-roster", upload_s=30.0)
    fleet.start()
    fleet.watch(180.0)
    assert fleet.finished == [1, 2] and not fleet.failed
    fleet.judge()


def test_training_that_outlasts_its_round_is_in_a_later_one_over_a_broker(small_fleet: Callable[..., Any]) -> None:
    """Device 7 trains until its round is over; rounds take seven of eight devices and close when they have them."""
    fleet = small_fleet(rounds=5, profile="no-roster", staleness=4, devices_max=7, slow=(7,), upload_s=60.0)
    told: dict[str, list[int]] = {"trained": [], "kept": [], "uploaded": []}

    def hear(_name: str, event: dict[str, Any]) -> None:
        if event.get("device") == "device-7" and event["event"] in told:
            told[event["event"]].append(event["round"])

    fleet.start()
    fleet.watch(400.0, hear)
    assert fleet.finished == [1, 2, 3, 4, 5] and not fleet.failed
    fleet.judge()
    summed = []
    for number, path in fleet.transcripts.items():
        records = read_records(path.read_bytes())
        _, updates = compare_with_plain(fleet.base, records, fleet.root / "plain" / f"round-{number:04d}")
        summed += [number] * ("device-7" in [name for name, _, _ in updates])
    assert set(summed) - set(told["trained"]), (summed, told)
    assert len(summed) <= len(set(told["trained"])) and told["kept"]
