"""Rounds without a roster over a real broker: devices of the SDK begin when they see a round, and parties read headers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def test_rounds_without_a_roster_are_exact_over_a_broker(small_fleet: Callable[..., Any]) -> None:
    fleet = small_fleet(rounds=2, profile="no-roster", upload_s=30.0)
    fleet.start()
    fleet.watch(180.0)
    assert fleet.finished == [1, 2] and not fleet.failed
    fleet.judge()
