"""The benches of rounds and fleets run, and name what they measure."""

from __future__ import annotations

import pytest

from blindsum.bench import fleet, round, secaggplus


def test_fleet_bench_measures_ours_with_masks_and_without_beside_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "SIZES", (30,))
    monkeypatch.setattr(fleet, "BARE_DEVICES", 3)
    monkeypatch.setattr(fleet, "WHOLE", (20, 2))
    masked, plain, whole = fleet.rows()
    assert (masked["name"], plain["name"]) == ("30 devices; Flower without masks", "30 devices without masks; pfl")
    assert float(str(masked["ours"])) > float(str(masked["limit"])) > 0
    assert float(str(plain["ours"])) > 0
    assert str(whole["name"]).startswith("20 devices, 2 rounds") and whole["unit"] == "s"
    assert float(str(whole["ours"])) > float(str(whole["limit"])) > 0


def test_round_bench_measures_a_whole_round_beside_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(round, "SIZES", ((30, 500),))
    monkeypatch.setattr(fleet, "BARE_DEVICES", 3)
    (row,) = round.rows()
    assert str(row["name"]).startswith("30 devices, 500 parameters") and row["unit"] == "s"
    assert float(str(row["ours"])) > float(str(row["limit"])) > 0
    assert (row["peer"] is None) == (not secaggplus.peer_name())
