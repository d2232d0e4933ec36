"""The benches of rounds and fleets run, and name what they measure."""

from __future__ import annotations

import json

import pytest

from blindsum.bench import cli, fleet, round, secaggplus
from blindsum.fleet import Dropout, plan_for
from blindsum.protocol.graph import degree_for


def test_fleet_bench_measures_a_run_and_rounds_with_masks_and_without_beside_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fleet, "FLAT", ((30, 370),))
    monkeypatch.setattr(fleet, "BARE_DEVICES", 3)
    monkeypatch.setattr(fleet, "WHOLE", (20, 2))
    whole, masked, plain = fleet.rows()
    assert str(whole["name"]).startswith("20 devices, 2 rounds, k = ") and whole["unit"] == "s"
    assert str(masked["name"]).startswith("30 devices, k = ") and masked["unit"] == "ms"
    assert plain["name"] == "30 devices without masks; pfl"
    for row in (whole, masked, plain):
        assert float(str(row["ours"])) > float(str(row["limit"])) > 0
    assert whole["ms a device"] == pytest.approx(1000 * float(str(whole["ours"])) / 20 / 2, abs=0.05)


def test_fleet_bench_plays_the_plan_that_a_user_gets_and_rounds_with_as_many_neighbours_in_every_fleet() -> None:
    assert fleet.a_fleet(100, 9).plan == plan_for(100, Dropout.spread(0.1))
    (few, small), (many, large) = fleet.FLAT
    assert fleet.round_ms(few, 9, dropped=small)[1] == degree_for(975 * many // 1000, 50, large) == 30


def test_bench_says_how_to_get_the_peers_that_are_not_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(cli.BENCHES, "fleet", lambda: [{"name": "one", "ours": 1.25, "peer": None}])
    monkeypatch.setattr(cli, "find_spec", lambda name: name == "pfl")
    cli.bench("fleet")
    told = capsys.readouterr()
    assert "pip install 'flwr[simulation]'" in told.err and "pfl" not in told.err
    cli.bench("fleet", as_json=True)
    assert json.loads(capsys.readouterr().out)["missing"] == ["flwr[simulation]"]


def test_round_bench_measures_a_whole_round_beside_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(round, "SIZES", ((30, 500),))
    monkeypatch.setattr(fleet, "BARE_DEVICES", 3)
    (row,) = round.rows()
    assert str(row["name"]).startswith("30 devices, 500 parameters") and row["unit"] == "s"
    assert float(str(row["ours"])) > float(str(row["limit"])) > 0
    assert (row["peer"] is None) == (not secaggplus.peer_name())
