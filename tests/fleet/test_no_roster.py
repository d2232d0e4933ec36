"""Fleets without rosters: exact sums, rounds that close when they are full, and the same bytes with any number of processes."""

from __future__ import annotations

import numpy as np

from blindsum.backend.tasks import Plan
from blindsum.fleet import Dropout, Fleet, Local
from blindsum.protocol.params import ThreatModel


def update(local: Local) -> np.ndarray:
    return np.full(64, 0.01 * (1 + local.device % 7), np.float32)


def test_fleet_without_a_roster_sums_exactly_whoever_drops_and_with_any_number_of_processes() -> None:
    models = []
    for workers in (0, 2):
        fleet = Fleet(
            np.zeros(64, np.float32),
            devices=80,
            update=update,
            profile="no-roster",
            dropout=Dropout.spread(0.2),
            workers=workers,
        )
        report = fleet.run(2)
        assert all(not each.code and each.exact for each in report.rounds)
        assert all(40 <= each.survivors < 80 and each.joined == each.degree == 0 for each in report.rounds)
        models.append([each.model for each in report.rounds])
    assert models[0] == models[1]
    assert "no roster" in report.derived and "read every upload" in report.derived


def test_round_of_a_fleet_closes_when_it_is_full() -> None:
    plan = Plan(
        name="simulation",
        threat=ThreatModel(corrupt_permille=50, cohort_min=10),
        devices_min=15,
        devices_max=20,
        rounds=5,
        profile="no-roster",
        upload_s=300.0,
    )
    report = Fleet(np.zeros(64, np.float32), devices=60, update=update, plan=plan, workers=0).run(2)
    assert [each.survivors for each in report.rounds] == [20, 20]
    assert all(each.exact and each.seconds < 60 for each in report.rounds)
