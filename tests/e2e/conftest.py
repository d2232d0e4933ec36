"""A small fleet of real processes on a real broker, to be killed and disturbed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from blindsum.backend.broker import EmbeddedBroker
from blindsum.backend.provision import create_fleet, enrol
from tests.e2e.livingfleet import Living
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


@pytest.fixture
def lonely(tmp_path: Path) -> Path:
    """The kit of a device whose broker is not there."""
    with EmbeddedBroker() as broker:
        url = broker.url
    folder = create_fleet(tmp_path / "fleet", fleet="lonely", malicious_parties=1, broker=url)
    return enrol(folder, ["robinson"])[0]


@pytest.fixture(scope="module")
def living(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Living]:
    """A fleet for all tests of a module, on the broker that its parameter names: "embedded" or "module_mosquitto"."""
    url = "" if request.param == "embedded" else request.getfixturevalue(request.param)().url
    fleet = Living(tmp_path_factory.mktemp("living"), url)
    try:
        fleet.start()
        yield fleet
    finally:
        fleet.stop()
    fleet.judge()
