"""What a device's link carries goes one after another, and once."""

from __future__ import annotations

import numpy as np
import pytest

from blindsum.fleet import Conditions, DeviceClass, Fleet, FleetReport, Local

PARAMETERS, SENT = 200_000, 600_000 + 24
"""In three bytes each, with the statistics."""


def played(workers: int = 0, **link: float) -> FleetReport:
    def update(local: Local) -> np.ndarray:
        return np.full(PARAMETERS, 1e-3, np.float32)

    kind = DeviceClass(train_s=1.0, spread=0.0, latency_ms=1.0, **link)
    conditions = Conditions(classes=(kind,))
    fleet = Fleet(np.zeros(PARAMETERS, np.float32), devices=5, update=update, conditions=conditions, workers=workers)
    report = fleet.run(1)
    assert report.exact and not report.rounds[0].code
    return report


@pytest.mark.parametrize("rate", [25_000.0, 200_000.0])
def test_upload_of_several_chunks_takes_its_bytes_at_the_links_rate_and_is_not_sent_twice(rate: float) -> None:
    only = played(up=rate, down=1e12).rounds[0]
    assert (
        SENT / rate < only.upload_s.percentiles[0] - 1.0 < (SENT + 20_000) / rate + 4.0
    )  # what is asked for again has its pauses
    assert SENT < only.bytes_up.percentiles[-1] < SENT + 200_000  # one chunk was on its way when it was asked for


def test_model_takes_at_least_its_bytes_at_the_links_rate() -> None:
    rate = 400_000.0
    assert played(up=1e12, down=rate).rounds[0].upload_s.percentiles[0] - 1.0 > 4 * PARAMETERS / rate


@pytest.mark.parametrize(("rate", "times"), [(30_000.0, 2), (60_000.0, 2), (100_000.0, 1), (400_000.0, 1)])
def test_model_of_several_chunks_comes_at_the_links_pace(rate: float, times: int) -> None:
    """Below 80 kB/s a chunk takes longer than any device waits before it knows its link: it asks, once, for what is coming."""
    model = 4 * PARAMETERS
    only = played(up=1e12, down=rate).rounds[0]
    assert model < only.bytes_down.percentiles[-1] < times * model + 40_000
    assert model / rate < only.upload_s.percentiles[-1] < 1.1 * model / rate + 3.0


def test_slow_links_give_the_same_history_with_any_number_of_workers() -> None:
    one, two = (played(workers, up=25_000.0, down=400_000.0) for workers in (0, 2))
    assert one.digest == two.digest
    assert [each.upload_s for each in one.rounds] == [each.upload_s for each in two.rounds]
    assert [each.bytes_up for each in one.rounds] == [each.bytes_up for each in two.rounds]
    assert [each.bytes_down for each in one.rounds] == [each.bytes_down for each in two.rounds]
