"""Copies of broadcasts: counted when they leave, and never on their way, without any change of the report."""

from unittest.mock import patch

import numpy as np
import pytest
from msgspec.structs import replace

from blindsum.fleet import Conditions, DeviceClass, Dropout, Fleet, plan_for
from blindsum.fleet.copies import Copies, Flight
from blindsum.fleet.results import RoundReport

NEAR = DeviceClass(name="near", train_s=9.0, spread=0.8)
FAR = DeviceClass(name="far", train_s=6.0, spread=0.5, latency_ms=2500.0, down=4000.0)
ENDLESS = DeviceClass(name="endless", train_s=30.0, spread=0.1, latency_ms=6000.0, down=1500.0)
ALL_AT_ONCE = Dropout(before_join=0.1, after_roster=0.1, mid_upload=0.1, corrupted=0.05, slow=0.05)


def rounds(profile: str, kinds: tuple[DeviceClass, ...], staleness: int = 0) -> list[RoundReport]:
    """Two rounds of 24 devices, without what is measured."""
    changes = {"join_s": 30.0, "upload_s": 60.0, "staleness": staleness, "profile": profile, "devices_min": 3}
    plan = plan_for(24, ALL_AT_ONCE, **changes)
    fleet = Fleet(
        np.zeros(50, np.float32),
        devices=24,
        update=lambda local: np.full(50, 0.01 * local.device, np.float32),
        plan=plan,
        dropout=ALL_AT_ONCE,
        conditions=Conditions(classes=kinds, pause_s=1.0),
        workers=0,
    )
    report = fleet.run(2)
    return [replace(each, wall_s=0.0, mask_ms=each.upload_s) for each in report.rounds]


def one_by_one() -> object:
    """No device is ever said to know a broadcast."""
    return patch.object(Copies, "heard", lambda *_args, **_named: None)


@pytest.mark.parametrize("kinds", [(NEAR,), (NEAR, FAR), (FAR, ENDLESS)], ids=["near", "both", "endless"])
@pytest.mark.parametrize(("profile", "staleness"), [("roster", 0), ("no-roster", 0), ("no-roster", 3)])
def test_a_report_is_the_same_whether_copies_are_spared_or_delivered(
    profile: str, staleness: int, kinds: tuple[DeviceClass, ...]
) -> None:
    with one_by_one():
        expected = rounds(profile, kinds, staleness)
    assert rounds(profile, kinds, staleness) == expected


def test_only_devices_that_have_not_heard_a_broadcast_are_brought_it() -> None:
    received = np.zeros(4, np.int64)
    copies = Copies(4, [0, 1, 3], arrives=lambda device, flight: flight.left + 10 * device, longest=lambda size: 30)
    copies.begin(received)
    assert copies.leave(Flight(1000, 0, 1, b"hello")) == [0, 1, 3]
    copies.heard(0, b"hello")
    copies.heard(1, b"other")
    assert copies.leave(Flight(2000, 0, 2, b"hello")) == [1, 3]
    copies.heard(3, b"hello")
    assert received.tolist() == [5, 0, 0, 0]
    assert copies.leave(Flight(3000, 0, 3, b"hello")) == [1]
    assert [at for at, _ in copies.recall(3)] == [3030]  # the second was brought to it
    assert copies.leave(Flight(4000, 0, 4, b"hello")) == [1, 3]


def test_a_copy_that_would_come_after_the_round_is_not_received() -> None:
    received = np.zeros(2, np.int64)
    copies = Copies(2, [0, 1], arrives=lambda device, flight: flight.left + 10 * device, longest=lambda size: 10)
    copies.begin(received)
    copies.leave(Flight(1000, 0, 1, b"hello"))
    copies.heard(0, b"hello")
    copies.heard(1, b"hello")
    copies.leave(Flight(2000, 0, 2, b"hello"))
    copies.close(2005)
    assert received.tolist() == [5, 0]


def test_who_declines_a_round_hears_of_it_anew_when_it_is_about_to_close() -> None:
    received = np.zeros(1, np.int64)
    copies = Copies(1, [0], arrives=lambda _device, flight: flight.left, longest=lambda size: 100)
    copies.begin(received)
    copies.leave(Flight(1000, 0, 1, b"hello"))
    copies.heard(0, b"hello", away_until=3000)
    assert copies.leave(Flight(2000, 0, 2, b"hello")) == []
    assert copies.leave(Flight(2900, 0, 3, b"hello")) == [0]
