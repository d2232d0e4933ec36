"""Real clients of a real broker in the rounds of a simulated fleet."""

from __future__ import annotations

import numpy as np
import pytest

from blindsum.fleet import Conditions, Dataset, DeviceClass, Dropout, Fleet, Learned, Local, plan_for
from blindsum.protocol.errors import BlindsumError
from blindsum.testing.behaviours import GarbageBox
from blindsum.training import SGD, build_artifact, models

PATIENT = {"join_s": 60.0, "upload_s": 120.0}  # nobody waits that long; a machine that is slow may
SOON = Conditions(classes=(DeviceClass(train_s=1.0),))


def step(local: Local) -> Learned:
    return Learned(np.full(local.parameters.size, 0.01 * (1 + local.device), np.float32), weight=1 + local.device % 3)


def planes(**settings: object) -> Fleet:
    """Owners of planes that differ, under SCAFFOLD: what a device learnt in round 1 shows in round 2."""
    features = np.random.default_rng(1).normal(0, 1, (8, 12, 3)).astype(np.float32)
    parts = [Dataset("planes", each, each[:, :1] + number % 3, 1) for number, each in enumerate(features)]
    artifact = build_artifact(models.mlp((3, 1), seed=1), loss="mse", optimizer=SGD(lr=0.05, control=True))
    plan = plan_for(8, algorithm="scaffold", epochs=3, batch_size=12, rate=0.05, width=32, **PATIENT)
    return Fleet(artifact, data=parts, plan=plan, conditions=SOON, workers=0, **settings)  # type: ignore[arg-type]


def test_real_devices_train_in_the_rounds_of_simulated_ones_to_the_same_model() -> None:
    virtual, mixed = planes().run(2), planes(transport="mqtt", real=0.5).run(2)
    assert [(each.code, each.exact, each.survivors) for each in mixed.rounds] == [("", True, 8)] * 2
    assert np.allclose(mixed.parameters, virtual.parameters, atol=1e-4)
    assert np.linalg.norm(virtual.parameters) > 0.1
    assert mixed.rounds[1].loss == pytest.approx(virtual.rounds[1].loss, abs=1e-3)
    assert mixed.rounds[0].bytes_up.percentiles[0] > 0 and mixed.rounds[0].mask_ms.percentiles[0] > 0


def test_real_devices_meet_the_fates_that_are_drawn_for_them() -> None:
    drops = Dropout(before_join=0.1, after_roster=0.15, mid_upload=0.15)
    settings = {"dropout": drops, "plan": plan_for(16, drops, **PATIENT), "conditions": SOON, "workers": 0}
    fleet = Fleet(np.zeros(30, np.float32), devices=16, update=step, transport="mqtt", real=0.75, **settings)  # type: ignore[arg-type]
    report = fleet.run(2)
    for each in report.rounds:
        lost = sum(each.dropped.get(fate, 0) for fate in ("before join", "after roster", "mid upload"))
        assert lost > 0 and not each.code and each.exact
        assert each.survivors == 16 - lost


def test_what_cannot_be_over_mqtt_is_refused() -> None:
    few = {"devices": 12, "update": step, "workers": 0, "transport": "mqtt"}
    for changes in ({"real": 0.01}, {"real": 1.1}, {"devices": 200, "real": 1.0}):
        with pytest.raises(BlindsumError, match=r"simulation-impossible.*over MQTT"):
            Fleet(np.zeros(9, np.float32), **{**few, **changes})  # type: ignore[arg-type]
    fleet = Fleet(np.zeros(9, np.float32), **few)  # type: ignore[arg-type]
    with pytest.raises(BlindsumError, match=r"simulation-impossible.*checkpoint"):
        fleet.run(1, checkpoint="never-written")


def test_byzantine_devices_stay_simulated() -> None:
    plan = plan_for(21)
    fleet = Fleet(
        np.zeros(9, np.float32),
        devices=21,
        update=step,
        plan=plan,
        byzantine={"device/0": GarbageBox(1, 3)},
        transport="mqtt",
    )
    assert fleet._real and 0 not in fleet._real


def test_broker_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blindsum.fleet.bridge.CONNECT_TIMEOUT_S", 0.5)
    fleet = Fleet(np.zeros(9, np.float32), devices=5, update=step, workers=0, transport="mqtt://127.0.0.1:1", real=0.5)
    with pytest.raises(BlindsumError, match="broker-unreachable"):
        fleet.run(1)


def test_real_devices_take_part_in_rounds_without_a_roster() -> None:
    fleet = Fleet(
        np.zeros(40, np.float32),
        devices=12,
        update=lambda _local: np.full(40, 0.01, np.float32),
        plan=plan_for(12, profile="no-roster", **PATIENT),
        conditions=SOON,
        transport="mqtt",
        real=0.25,
        workers=0,
    )
    report = fleet.run(1)
    assert report.exact and report.rounds[0].survivors == 12
