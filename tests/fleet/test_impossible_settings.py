"""What a script or a file gets wrong is said before the run, with the numbers; what its update function does, at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from blindsum.fleet import Availability, Conditions, Dataset, DeviceClass, Dropout, Fleet, Learned, Local, plan_for
from blindsum.fleet.partition import dirichlet, iid
from blindsum.fleet.simfile import load_fleet
from blindsum.protocol.errors import BlindsumError
from blindsum.testing.behaviours import GarbageBox, WrongSums
from blindsum.training import build_artifact, models

LENGTH, DEVICES = 9, 12
ONES = np.ones(LENGTH, np.float32)


def small(**settings: object) -> Fleet:
    chosen: dict[str, object] = {"devices": DEVICES, "update": lambda local: ONES, "workers": 0, **settings}
    return Fleet(chosen.pop("model", np.zeros(LENGTH, np.float32)), **chosen)  # type: ignore[arg-type]


def links(**changes: float) -> Conditions:
    """Twelve devices of one kind, all alike."""
    return Conditions(classes=(DeviceClass(spread=0.0, **changes),))


def refusal(act: object) -> BlindsumError:
    with pytest.raises(BlindsumError) as caught:
        act()  # type: ignore[operator]
    return caught.value


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"devices": 6.0}, "devices is 6.0, not a whole number"),
        ({"devices": float("nan")}, "devices is nan"),
        ({"devices": 100_001}, "3..100000"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 1 << 64}, "seed is 18446744073709551616"),
        ({"seed": None}, "seed is None"),
        ({"workers": 1000}, "workers is 1000, not in 0..64"),
        ({"workers": 1.5}, "workers is 1.5"),
        ({"buffer": -2}, "buffer is -2"),
        ({"masks": "none"}, "known: on, off"),
        ({"profile": "noroster"}, "known: roster, no-roster"),
        ({"plan": plan_for(DEVICES), "buffer": 4}, "those of the plan"),
        ({"model": "net.onnx"}, "of type str"),
        ({"model": np.zeros(0, np.float32)}, "0 numbers"),
        ({"model": [0.0, np.nan]}, "all finite"),
        ({"byzantine": {"parties/1": WrongSums()}}, "known: party/1 to party/4, device/0 to device/11"),
        ({"byzantine": {"device/12": GarbageBox(1)}}, "device/12"),
        ({"byzantine": {"party/1": WrongSums}}, "no Behaviour"),
        ({"byzantine": {"device/1": WrongSums()}}, "WrongSums is what a party does, not a device"),
        ({"byzantine": {"party/1": GarbageBox(1)}}, "GarbageBox is what a device does, not a party"),
        ({"plan": plan_for(DEVICES, algorithm="scaffold")}, "give an artifact and data, not a function"),
        ({"plan": plan_for(DEVICES, algorithm="evaluate")}, "bare ones have none"),
        ({"plan": plan_for(DEVICES, proximal=0.1)}, "proximal pulls at the steps of a training"),
        ({"dropout": 0.1}, "0.1, not a Dropout"),
        ({"transport": "mqtt", "real": float("nan")}, "a share of nan"),
        ({"transport": "mqtt", "real": 2.0}, "24 of 12 devices"),
        (
            {"conditions": Conditions(classes=(DeviceClass(train_s=9999.0),))},
            "1000 permille of the devices cannot train and upload in time",
        ),
        ({"name": None}, "not a text"),
        ({"name": "x" * 101}, "up to 100 characters"),
        ({"plan": 5}, "plan is 5, not a Plan"),
        ({"buffer": 2}, "buffer is 2, not in 3..12"),
        ({"conditions": links(up=1.0)}, "1000 permille of the links cannot carry a join in 8 s"),
        ({"conditions": links(down=1.0)}, "0 devices join at best, a round takes 3"),
        ({"conditions": links(latency_ms=4000.0)}, "1000 permille of the links cannot carry a join in 8 s"),
        ({"conditions": links(up=100.0)}, "50.6 s to upload 5051 bytes; a round has 8 s + 40.12 s"),
        (
            {"conditions": links(down=2e4), "model": np.zeros(250_000, np.float32)},
            "50 s to fetch 1000041 bytes, 4 s to train",
        ),
        (
            {"conditions": links(train_s=60.0), "profile": "no-roster"},
            "0 of 12 devices upload in a round at best, which takes 3",
        ),
        (
            {"conditions": links(train_s=1e6), "profile": "no-roster", "staleness": 5, "buffer": 4},
            "1e+06 s to train",
        ),
        ({"dropout": Dropout(slow=0.9), "profile": "no-roster"}, "1 of 12 devices upload in a round at best"),
        ({"conditions": Conditions(availability=Availability(day=0.0, night=0.0))}, "0 devices join at best"),
    ],
)
def test_what_is_no_setting_is_refused_with_what_would_be_one(settings: dict[str, object], said: str) -> None:
    told = refusal(lambda: small(**settings))
    assert told.code == "simulation-impossible"
    assert said in told.detail


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: plan_for(-6), "devices is -6"),
        (lambda: plan_for(DEVICES, epoch=3), "no epoch; it has name, threat"),
        (lambda: Dropout(slow="0.1"), "not shares"),
        (lambda: Conditions(classes=DeviceClass()), "no tuple of DeviceClass"),
        (
            lambda: Conditions(classes=(DeviceClass(name="old", spread=1000.0),)),
            "spread of class 'old' is 1000.0, not in 0..3",
        ),
        (lambda: Conditions(availability=Availability(zones=10**30)), "zones"),
        (lambda: Conditions(availability=Availability(zones=1.5)), "zones is 1.5, not a whole number"),
        (lambda: Conditions(pause_s=float("nan")), "pause_s is nan, not in 1..1e+07"),
    ],
)
def test_parts_of_a_fleet_refuse_what_cannot_be(make: object, said: str) -> None:
    told = refusal(make)
    assert told.code == "simulation-impossible"
    assert said in told.detail


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"epochs": 1.5}, "epochs is 1.5, not a whole number from 1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"rate": 1e-8}, "rate is 1e-08, not a number from 1e-06"),
        ({"rate": 0.0}, "rate is 0.0"),
        ({"rate": "fast"}, "rate is 'fast', not a number"),
        ({"rate": 1e30}, "rate is 1e+30"),
        ({"proximal": -1.0}, "proximal is -1.0, not a number from 0"),
        ({"epochs": 1001}, "epochs is 1001, not a whole number from 1 to 1000"),
        ({"batch_size": 65_537}, "batch_size is 65537"),
        ({"clip_norm": 0.0}, "clip_norm is 0.0, not a number from 1e-06"),
        ({"join_s": 0.0}, "join_s is 0.0, not a number from 0.1 to 604800"),
        ({"decide_s": 1e9}, "decide_s is 1000000000.0"),
        ({"server_rate": 0.0}, "server_rate is 0.0"),
        ({"chunk_size": 1 << 20}, "chunk_size is 1048576, not a whole number from 0 to 262144"),
        ({"clip_norm": float("inf")}, "clip_norm is inf"),
    ],
)
def test_plan_whose_numbers_would_travel_as_others_is_refused(changes: dict[str, object], said: str) -> None:
    told = refusal(lambda: small(plan=plan_for(DEVICES, **changes)))
    assert told.code == "parameters-unsafe"
    assert said in told.detail


@pytest.mark.parametrize(
    ("features", "targets", "code", "said"),
    [
        (np.ones((0, 3)), np.ones(0, np.int64), "simulation-impossible", "device 2: no examples"),
        (np.ones((4, 2)), np.ones(4, np.int64), "training-batch-invalid", "device 2: features of shape (4, 2)"),
        (np.ones((4, 3)), np.full(4, 2), "training-batch-invalid", "device 2: targets from 2 to 2"),
        (np.ones((4, 3)), np.ones(3, np.int64), "training-batch-invalid", "device 2: 4 features but 3 targets"),
        (np.full((4, 3), np.nan), np.ones(4, np.int64), "training-batch-invalid", "device 2 holds NaN"),
    ],
)
def test_data_that_no_device_can_train_on_are_refused_with_whose_they_are(
    features: np.ndarray, targets: np.ndarray, code: str, said: str
) -> None:
    artifact = build_artifact(models.mlp((3, 2), seed=1), loss="cross-entropy")
    good = Dataset("good", np.ones((1, 3), np.float32), np.ones(1, np.int64), 2)  # one example is enough
    bad = Dataset("bad", features, targets, 2)
    told = refusal(lambda: Fleet(artifact, data=[good, good, bad, good], workers=0))
    assert told.code == code
    assert said in told.detail
    assert "test" in refusal(lambda: Fleet(artifact, data=[good] * 4, test=bad, workers=0)).detail
    assert refusal(lambda: Fleet(artifact, data=good, workers=0)).code == "simulation-impossible"


def test_training_in_steps_larger_than_the_model_is_refused() -> None:
    artifact = build_artifact(models.mlp((3, 2), seed=1), loss="cross-entropy")
    part = Dataset("any", np.ones((8, 3), np.float32), np.ones(8, np.int64), 2)
    told = refusal(lambda: Fleet(artifact, data=[part] * 4, plan=plan_for(4, clip_norm=1e6), workers=0))
    assert told.code == "simulation-impossible"
    assert "clip_norm is 1e+06: in 16 bits a value an update changes a parameter by 30.5 or not at all" in told.detail
    Fleet(artifact, data=[part] * 4, plan=plan_for(4, clip_norm=1e4), workers=0)


def test_parts_that_are_no_arrays_and_partitions_of_no_whole_numbers_are_refused() -> None:
    artifact = build_artifact(models.mlp((3, 2), seed=1), loss="cross-entropy")
    lists = Dataset("lists", [[1.0, 2.0, 3.0]], [1], 2)  # type: ignore[arg-type]
    assert "not list" in refusal(lambda: Fleet(artifact, data=[lists] * 4, workers=0)).detail
    labels = np.zeros(100, np.int64)
    assert "owners is 1.5" in refusal(lambda: iid(labels, 1.5, seed=1)).detail  # type: ignore[arg-type]
    assert "seed is -1" in refusal(lambda: dirichlet(labels, 4, 0.5, seed=-1)).detail


def test_run_that_could_not_keep_or_tell_what_it_finds_is_refused_before_it_begins(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    fleet = small()
    assert "cannot be written" in refusal(lambda: fleet.run(1, checkpoint=file / "checkpoint")).detail
    assert "cannot be written: it is a folder" in refusal(lambda: fleet.run(1, checkpoint=tmp_path)).detail
    assert "tracker is 3" in refusal(lambda: fleet.run(1, tracker=3)).detail  # type: ignore[arg-type]


def test_rounds_wait_for_the_hours_in_which_devices_come() -> None:
    hours = Availability(day=1.0, night=0.0)
    fleet = small(conditions=Conditions(availability=hours, pause_s=8 * 3600.0))
    report = fleet.run(4)
    assert [(each.code, each.joined) for each in report.rounds] == [("", DEVICES)] * 4


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        (lambda: 1 / 0, "simulation-update-failed", "ZeroDivisionError: division by zero (" + __file__),
        (lambda: None, "simulation-update-failed", "gave nothing"),
        (lambda: np.ones(LENGTH + 1), "update-wrong-shape", "(10,) where (9,) belongs"),
        (lambda: Learned(ONES, weight=1.5), "simulation-update-failed", "'float'"),
        (lambda: Learned(ONES, weight=0), "weight-out-of-range", "0 is not in 1..64"),
        (lambda: Learned(ONES, loss=float("nan")), "simulation-update-failed", "nan"),
    ],
)
def test_mistake_of_an_update_function_ends_the_run_and_names_device_and_round(
    given: object, code: str, said: str, workers: int
) -> None:
    def update(local: Local) -> object:
        return given() if (local.device, local.round) == (3, 2) else ONES  # type: ignore[operator]

    told = refusal(lambda: small(update=update, workers=workers).run(2))
    assert told.code == code
    assert told.detail.startswith("device 3 in round 2: ") and said in told.detail


def test_update_may_be_any_array_of_the_right_length() -> None:
    digests = {
        small(update=update).run(1).digest
        for update in (lambda local: ONES, lambda local: [1.0] * LENGTH, lambda local: np.ones((3, 3)))
    }
    assert len(digests) == 1


def test_numbers_that_run_away_cost_one_device_its_round_and_are_counted() -> None:
    def update(local: Local) -> np.ndarray:
        return ONES * (np.nan if local.device == 3 else 1)

    report = small(update=update, devices=30).run(1)
    assert report.rounds[0].dropped == {"update-not-finite": 1}
    assert (report.rounds[0].code, report.rounds[0].survivors, report.exact) == ("", 29, True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed = -1", "seed is -1"),
        ("[data]\nhidden = 0", "hidden is 0"),
        ('[data]\nset = "none"\nlength = 0', "length is 0"),
        ('[data]\nset = "none"\nlength = 10_000_000_000', "length is 10000000000"),
        ("[task]\nbuffer = -2", "buffer is -2"),
        ("[task]\nbuffer = 50", "buffer is 50, not in 3..12"),
        ("rounds = 0", "rounds is 0"),
    ],
)
def test_numbers_of_a_file_that_cannot_be_are_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text(f"devices = {DEVICES}\n{text}\n")
    told = refusal(lambda: load_fleet(file))
    assert told.code == "simulation-impossible"
    assert said in told.detail
