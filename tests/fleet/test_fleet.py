"""Simulated fleets: exact sums, the same bytes every time, and settings that cannot work refused before anything runs."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from multiprocessing.context import ForkProcess
from pathlib import Path

import numpy as np
import pytest

from blindsum.fleet import Availability, Conditions, DeviceClass, Dropout, Fleet, Learned, Local, plan_for
from blindsum.fleet.data import digits
from blindsum.fleet.partition import dirichlet
from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.params import ThreatModel
from blindsum.testing.behaviours import GarbageBox, TwoHeaders, WrongSums
from blindsum.training import build_artifact, models

LENGTH = 60
DROPOUT = Dropout(before_join=0.05, after_roster=0.1, mid_upload=0.1, corrupted=0.05, slow=0.05)


def step(local: Local) -> Learned:
    """An update that says who gave it, and when."""
    update = np.full(local.parameters.size, 0.01 * (1 + local.device % 5) / local.round, np.float32)
    return Learned(update, weight=1 + local.device % 3, examples=10, loss=0.5)


def small(**settings: object) -> Fleet:
    chosen: dict[str, object] = {"devices": 12, "update": step, "workers": 0, **settings}
    return Fleet(np.zeros(LENGTH, np.float32), **chosen)  # type: ignore[arg-type]


def test_every_opened_sum_is_the_plain_sum_of_its_survivors() -> None:
    report = small(devices=30, dropout=DROPOUT).run(3)
    assert [each.code for each in report.rounds] == ["", "", ""]
    assert report.exact
    assert any(each.survivors < each.rostered for each in report.rounds)
    fates = {fate for each in report.rounds for fate in each.dropped}
    assert fates >= {"after roster", "mid upload"}


def test_a_round_adds_the_weighted_mean_of_the_updates() -> None:
    fleet = small(plan=plan_for(12, width=32))
    report = fleet.run(1)
    weights = np.asarray([1 + device % 3 for device in range(12)])
    mean = (weights * [0.01 * (1 + device % 5) for device in range(12)]).sum() / weights.sum()
    assert np.allclose(report.parameters, mean, atol=1e-5)
    assert (report.rounds[0].weight, report.rounds[0].examples) == (weights.sum(), 120)
    assert report.rounds[0].loss == pytest.approx(0.5)


def test_one_seed_gives_the_same_bytes_with_any_number_of_workers() -> None:
    conditions = Conditions(loss=0.02, duplicate=0.05, classes=(DeviceClass(), DeviceClass(name="sensor", train_s=9.0)))
    runs = [small(devices=24, workers=workers, dropout=DROPOUT, conditions=conditions).run(2) for workers in (0, 1, 3)]
    assert len({run.digest for run in runs}) == 1
    assert [each.code for each in runs[0].rounds] == ["", ""]
    virtual = [[(each.survivors, each.seconds, each.bytes_up, each.upload_s) for each in run.rounds] for run in runs]
    assert virtual[0] == virtual[1] == virtual[2]
    assert small(devices=24, seed=8, dropout=DROPOUT, conditions=conditions).run(2).digest != runs[0].digest


def test_workers_end_by_themselves_when_their_fleet_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int | None] = []
    join = ForkProcess.join

    def joined(process: ForkProcess, timeout: float | None = None) -> None:
        join(process, timeout)
        ended.append(process.exitcode)

    monkeypatch.setattr(ForkProcess, "join", joined)
    assert small(devices=6, workers=2).run(1).exact
    assert ended == [0, 0]


def test_one_seed_gives_the_same_bytes_under_any_hash_seed() -> None:
    script = (
        "import numpy as np\nfrom blindsum.fleet import Dropout, Fleet\n"
        "fleet = Fleet(np.zeros(40, np.float32), devices=12, workers=0, dropout=Dropout.spread(0.3),\n"
        "              update=lambda local: np.full(40, local.device / 100, np.float32))\n"
        "report = fleet.run(2)\nprint(report.digest, [each.seconds for each in report.rounds])"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", script], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("0", "1")
    }
    assert len(said) == 1


def test_a_fleet_learns_what_its_owners_hold() -> None:
    train, held = digits()
    parts = [train.take(indices) for indices in dirichlet(train.targets, 10, 0.5, 7)]
    artifact = build_artifact(models.mlp((64, 32, 10), seed=7), loss="cross-entropy")
    plan = plan_for(10, clip_norm=8.0, weight_max=256, batch_size=8, rate=0.2, epochs=2)
    report = Fleet(artifact, data=parts, test=held, plan=plan, workers=0).run(3)
    accuracies = [each.accuracy or 0.0 for each in report.rounds]
    assert report.exact
    assert accuracies[-1] > 0.75 and accuracies[-1] > accuracies[0]
    assert report.rounds[-1].examples == len(train)


def test_byzantine_roles_are_outvoted_and_named() -> None:
    report = small(devices=21, byzantine={"party/2": WrongSums(), "device/4": GarbageBox(1, 3)}).run(1)
    only = report.rounds[0]
    assert only.code == "" and only.exact
    assert only.faults["party/2"] == "opening-differs"
    assert only.excluded == {"box-unreadable": 1}
    assert only.survivors == 20


@pytest.mark.parametrize("workers", [0, 1])
def test_device_that_shows_parties_another_header_is_left_out_and_named(workers: int) -> None:
    only = small(devices=21, byzantine={"device/4": TwoHeaders(1, 2)}, workers=workers).run(1).rounds[0]
    assert only.code == "" and only.exact
    assert only.faults == {"device/device-000005": "second-header"}
    assert only.excluded == {"second-header": 1}


def test_devices_are_there_at_their_hours() -> None:
    conditions = Conditions(availability=Availability(day=1.0, night=0.5, zones=2))
    report = small(devices=40, conditions=conditions).run(1)
    assert (
        2 < report.rounds[0].dropped["away"] < 20
    )  # virtual time begins at midnight; for half of the fleet it is noon


def test_a_round_that_too_few_finish_fails_and_says_why() -> None:
    # a join is there in time, an upload of some 10 kB is not
    thin = DeviceClass(train_s=30.0, spread=0.0, up=300.0)
    report = small(devices=20, conditions=Conditions(classes=(thin,))).run(1)
    assert report.rounds[0].code == "survivors-too-few"
    assert report.rounds[0].dropped == {"late": 20}
    assert report.parameters.any() == np.False_


def test_masks_can_be_left_out_to_see_what_they_cost() -> None:
    assert small(masks="off").run(1).digest == small().run(1).digest


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"dropout": Dropout(after_roster=0.6)}, "600 permille"),
        ({"plan": plan_for(12, devices_min=12), "dropout": Dropout(before_join=0.5)}, "6 devices join at best"),
        ({"devices": 2}, "devices is 2"),
        ({"update": None}, "neither data"),
        ({"byzantine": {"party/1": WrongSums(), "party/2": WrongSums()}}, "2 byzantine parties"),
        ({"byzantine": {"device/1": GarbageBox(1)}}, "1 byzantine devices"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_the_run(settings: dict[str, object], said: str) -> None:
    with pytest.raises(BlindsumError) as caught:
        small(**settings)
    assert caught.value.code == "simulation-impossible"
    assert said in caught.value.detail


def test_a_ring_that_would_wrap_is_refused_with_the_numbers() -> None:
    with pytest.raises(BlindsumError) as caught:
        small(devices=10_000, plan=plan_for(10_000, width=16, weight_max=64))
    assert caught.value.code == "parameters-unsafe"
    assert "16" in caught.value.detail


def test_a_cohort_below_the_minimum_is_refused() -> None:
    with pytest.raises(BlindsumError) as caught:
        small(plan=plan_for(12, threat=ThreatModel(cohort_min=50)))
    assert caught.value.code == "parameters-unsafe"


def test_a_worker_that_is_killed_is_told_and_what_was_finished_goes_on(tmp_path: Path) -> None:
    killed: list[int] = []

    def progress(done: float, _: str) -> None:
        if done >= 1 and not killed:
            [worker] = multiprocessing.active_children()
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
            killed.append(worker.pid)

    file = tmp_path / "checkpoint"
    with pytest.raises(BlindsumError) as caught:
        small(workers=1).run(2, checkpoint=file, on_progress=progress)
    assert (caught.value.code, caught.value.detail) == ("simulation-worker-died", "exit status -9")
    assert small(workers=0).run(2, checkpoint=file, resume=True).digest == small().run(2).digest
