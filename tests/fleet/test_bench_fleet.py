"""The fleet bench runs, and names what it measures."""

from __future__ import annotations

import pytest

from blindsum.bench import fleet


def test_fleet_bench_measures_ours_with_masks_and_without_beside_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "SIZES", (30,))
    monkeypatch.setattr(fleet, "BARE_DEVICES", 3)
    masked, plain = fleet.rows()
    assert (masked["name"], plain["name"]) == ("30 devices", "30 devices, no masks")
    assert float(str(masked["ours"])) > float(str(masked["limit"])) > 0
    assert float(str(plain["ours"])) > 0
