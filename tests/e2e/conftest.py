"""A small fleet of real processes on a real broker, to be killed and disturbed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.smallfleet import SmallFleet, make_fleet


@pytest.fixture
def small_fleet(tmp_path: Path) -> Iterator[Callable[..., SmallFleet]]:
    """`small_fleet(rounds=…)` prepares a fleet; `start` it, then `watch` and `judge`."""
    made: list[SmallFleet] = []

    def make(**settings: Any) -> SmallFleet:
        made.append(make_fleet(tmp_path, **settings))
        return made[-1]

    yield make
    for fleet in made:
        fleet.stack.__exit__()
