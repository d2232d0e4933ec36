"""Models on a device: versions come, are activated, rolled back, tuned; personal layers stay where they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from blindsum.backend.provision import FleetFolder, create_fleet, enrol
from blindsum.backend.tasks import Plan, TaskFiles, create_task
from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.params import ThreatModel
from blindsum.protocol.view import RoundView, TaskView, open_task
from blindsum.runtime.kit import load_trust
from blindsum.runtime.vault import Vault
from blindsum.sdk import Context, Device, Model, Policy
from blindsum.sdk.trainer import Job, train
from blindsum.training import TrainingSession, build_artifact, decode, export_model, models
from blindsum.training.personal import join, split

NET = models.mlp([4, 8, 3], seed=1)
NAMES = [weight.name for weight in decode(build_artifact(NET, loss="cross-entropy")).manifest.parameters]
HEAD = NAMES[-2:]
ARTIFACT = build_artifact(NET, loss="cross-entropy", personal=HEAD)
MANIFEST = decode(ARTIFACT).manifest
SHARED, OWN = split(MANIFEST, decode(ARTIFACT).parameters)
X = np.sin(np.arange(40 * 4)).reshape(40, 4).astype(np.float32)
Y = np.arange(40) % 3
THREAT = ThreatModel(malicious_parties=1, corrupt_permille=0, dropped_permille=300, cohort_min=5)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> FleetFolder:
    return create_fleet(
        tmp_path_factory.mktemp("f") / "fleet", fleet="f", malicious_parties=1, broker="mqtt://127.0.0.1:1"
    )


@pytest.fixture(scope="module")
def task(fleet: FleetFolder) -> tuple[TaskFiles, TaskView]:
    files, _ = create_task(
        fleet.operator, ARTIFACT, Plan(name="t", threat=THREAT, devices_min=10, devices_max=100, rounds=20)
    )
    base = open_task(load_trust(fleet.operator), files.record)
    assert isinstance(base, TaskView)
    return files, base


def round_of(base: TaskView, number: int) -> RoundView:
    """All of a round that a shelf looks at."""
    return RoundView(base, number, None, b"", (), b"")  # type: ignore[arg-type]


def parameters(number: int) -> bytes:
    return (SHARED + np.float32(number)).astype("<f4").tobytes()


@pytest.fixture
def model(tmp_path: Path, task: tuple[TaskFiles, TaskView]) -> Model:
    shelf = Model(tmp_path / "models" / "t", device="d-1", task="t", vault=None)
    for number in (1, 2, 3):
        shelf.keep(round_of(task[1], number), ARTIFACT, parameters(number))
    return shelf


def again(model: Model) -> Model:
    return Model(model._place, device="d-1", task="t", vault=model._vault)


def expected(shared: np.ndarray, own: np.ndarray = OWN) -> np.ndarray:
    session = TrainingSession(ARTIFACT)
    session.parameters = join(MANIFEST, shared, own)
    return session.predict(X)


# -- personal layers --------------------------------------------------------------------------------------------------


def test_cut_vector_is_joined_again() -> None:
    flat = np.arange(MANIFEST.size, dtype=np.float32)
    shared, own = split(MANIFEST, flat)
    assert own.size == 8 * 3 + 3 and shared.size + own.size == flat.size
    assert np.array_equal(join(MANIFEST, shared, own), flat)
    with pytest.raises(ValueError, match="do not fit"):
        join(MANIFEST, own, shared)


def test_task_with_personal_layers_sums_the_others_only(task: tuple[TaskFiles, TaskView]) -> None:
    files, base = task
    assert base.task.segments[0].length == SHARED.size
    assert files.model == SHARED.tobytes()


def test_update_holds_shared_parameters_and_the_own_ones_train_on(task: tuple[TaskFiles, TaskView]) -> None:
    settings = task[1].task.training
    first = train(Job(ARTIFACT, SHARED.tobytes(), lambda _e: [(X, Y)]), settings)
    assert first.update.shape == SHARED.shape and np.abs(first.update).max() > 0
    assert first.personal.shape == OWN.shape and np.abs(first.personal - OWN).max() > 0
    second = train(Job(ARTIFACT, SHARED.tobytes(), lambda _e: [(X, Y)], personal=first.personal), settings)
    assert second.loss < first.loss
    assert np.abs(second.personal - first.personal).max() > 0


@pytest.mark.parametrize("personal", [["nothing*"], ["*"]])
def test_personal_layers_that_are_none_or_all_are_refused(personal: list[str]) -> None:
    with pytest.raises(BlindsumError, match=r"training-request-invalid.*personal"):
        build_artifact(NET, loss="cross-entropy", personal=personal)


def test_result_is_exported_with_the_personal_layers_as_they_were_built() -> None:
    exported = onnx.load_from_string(export_model(NET, ARTIFACT, SHARED + np.float32(1)))
    weights = {item.name: onnx.numpy_helper.to_array(item) for item in exported.graph.initializer}
    before = {item.name: onnx.numpy_helper.to_array(item) for item in NET.graph.initializer}
    for name in NAMES:
        assert np.array_equal(weights[name], before[name] + (0 if name in HEAD else np.float32(1))), name


# -- versions ---------------------------------------------------------------------------------------------------------


def test_nothing_is_in_use_before_the_app_says_so(model: Model) -> None:
    assert [version.number for version in model.versions] == [3, 2, 1] and model.active is None
    with pytest.raises(BlindsumError, match="model-unknown"):
        model.predict(X)


def test_version_is_activated_rolled_back_and_kept_across_a_restart(model: Model) -> None:
    assert model.activate(2) and model.activate()
    assert again(model).active == 3
    assert np.array_equal(model.predict(X), expected(SHARED + np.float32(3)))
    assert model.rollback() == 2
    assert np.array_equal(again(model).predict(X), expected(SHARED + np.float32(2)))
    with pytest.raises(BlindsumError, match="version 9; here: 1, 2, 3"):
        model.activate(9)
    assert model.active == 2


def test_canary_share_is_the_same_answer_every_time_and_grows(tmp_path: Path, task: tuple[TaskFiles, TaskView]) -> None:
    def canaries(share: float) -> set[int]:
        found = set()
        for device in range(40):
            shelf = Model(tmp_path / str(device), device=f"d-{device}", task="t", vault=None)
            shelf.keep(round_of(task[1], 1), ARTIFACT, parameters(1))
            if shelf.activate(share=share):
                found.add(device)
                assert shelf.active == 1
        return found

    few, many = canaries(0.2), canaries(0.6)
    assert few == canaries(0.2) and few < many and 2 <= len(few) <= 16
    assert canaries(0.0) == set() and len(canaries(1.0)) == 40


def test_old_versions_go_but_for_those_in_use(model: Model, task: tuple[TaskFiles, TaskView]) -> None:
    model.activate(1)
    model.activate(2)
    for number in range(4, 30):
        model.keep(round_of(task[1], number), ARTIFACT, parameters(number))
    assert [version.number for version in model.versions] == [29, 28, 27, 26, 2, 1]
    files = {path.name for path in model._place.iterdir()}
    assert len(files) == 6 + len({"task", "index", "plan"})
    assert model.rollback() == 1


def test_damaged_version_is_not_run(model: Model) -> None:
    model.activate(3)
    (model._place / "00000003").write_bytes(bytes(len(parameters(3))))
    with pytest.raises(BlindsumError, match=r"model-unknown.*damaged"):
        again(model).predict(X)


def test_tuning_is_this_devices_own_until_another_activation(model: Model) -> None:
    model.activate(1)
    before = model.evaluate(X, Y)["loss"]
    model.tune(lambda _epoch: [(X, Y)], epochs=5)
    assert model.tuned and again(model).tuned
    assert again(model).evaluate(X, Y)["loss"] == model.evaluate(X, Y)["loss"] < before
    model.activate(1)
    assert not model.tuned and model.evaluate(X, Y)["loss"] == before


def test_tuning_that_fails_changes_nothing(model: Model) -> None:
    model.activate(1)
    before = model.predict(X)
    with pytest.raises(BlindsumError, match="training-diverged"):
        model.tune([(X * np.float32(np.nan), Y)])
    assert np.array_equal(model.predict(X), before) and not again(model).tuned


def test_personal_layers_are_part_of_predictions_and_sealed_on_disk(
    tmp_path: Path, task: tuple[TaskFiles, TaskView]
) -> None:
    shelf = Model(tmp_path / "m", device="d-1", task="t", vault=Vault(bytes(32)))
    shelf.keep(round_of(task[1], 1), ARTIFACT, parameters(1))
    shelf.activate()
    own = OWN + np.float32(0.5)
    shelf.keep_personal(own)
    assert np.array_equal(shelf.predict(X), expected(SHARED + np.float32(1), own))
    assert np.array_equal(again(shelf).predict(X), shelf.predict(X))
    disk = b"".join(path.read_bytes() for path in shelf._place.iterdir())
    assert own.tobytes() not in disk and parameters(1) not in disk


# -- dry run ----------------------------------------------------------------------------------------------------------


def test_dry_run_says_what_would_leave_and_sends_and_keeps_nothing(
    fleet: FleetFolder, task: tuple[TaskFiles, TaskView]
) -> None:
    kit = enrol(fleet, ["dry"])[0]
    charging = [True]
    device = Device.open(kit, policy=Policy(require="charging", conditions=lambda: {"charging": charging[0]}))
    with pytest.raises(BlindsumError, match="task-not-registered"):
        device.dry_run("t")

    @device.task("t")
    def examples(_context: Context) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        yield X, Y

    with pytest.raises(BlindsumError, match="model-unknown"):
        device.dry_run("t")
    device.model("t").keep(round_of(task[1], 1), ARTIFACT, SHARED.tobytes())
    before = {path: path.read_bytes() for path in kit.rglob("*") if path.is_file()}
    run = device.dry_run("t")
    assert (run.examples, run.version) == (40, 1) and run.loss > 0 and run.memory > 4 * MANIFEST.size
    assert run.upload_bytes > 3 * SHARED.size and run.download_bytes == len(ARTIFACT) + 4 * SHARED.size
    assert f"{SHARED.size} shared parameters" in str(run) and "at least 5 devices" in str(run) and HEAD[0] in str(run)
    assert {path: path.read_bytes() for path in kit.rglob("*") if path.is_file()} == before
    charging[0] = False
    with pytest.raises(BlindsumError, match="condition-unmet: not charging"):
        device.dry_run("t")
