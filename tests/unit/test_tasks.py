"""A task: derived from a threat model, signed by the operator, refused where it would promise too much."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from blindsum.backend.provision import FleetFolder, create_fleet
from blindsum.backend.tasks import Plan, create_task, criterion, load_task, save_task
from blindsum.protocol.envelope import open_envelope
from blindsum.protocol.errors import BlindsumError, Refused
from blindsum.protocol.messages import chunks_of
from blindsum.protocol.messages.common import CHUNK_SIZE_MAX, SMALL_CHUNK_SIZE
from blindsum.protocol.params import ThreatModel
from blindsum.protocol.quantize import rotated_range
from blindsum.protocol.view import TaskView, open_task
from blindsum.runtime.kit import load_trust, save_key
from blindsum.training import TrainingSession, build_artifact, models

ARTIFACT = build_artifact(models.mlp([4, 8, 3], seed=1), loss="cross-entropy")
THREAT = ThreatModel(malicious_parties=1, corrupt_permille=50, dropped_permille=300, cohort_min=5)
PLAN = Plan(name="fraud", threat=THREAT, devices_min=10, devices_max=100, rounds=20)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> FleetFolder:
    folder = tmp_path_factory.mktemp("fleet") / "fleet"
    return create_fleet(folder, fleet="banks", malicious_parties=1, broker="mqtt://127.0.0.1:1883")


def refused(fleet: FleetFolder, **changes: object) -> str:
    with pytest.raises(BlindsumError) as caught:
        create_task(fleet.operator, ARTIFACT, replace(PLAN, **changes))  # type: ignore[arg-type]
    return f"{caught.value.code}: {caught.value.detail}"


def view_of(fleet: FleetFolder, plan: Plan = PLAN) -> TaskView:
    files, _ = create_task(fleet.operator, ARTIFACT, plan)
    opened = open_task(load_trust(fleet.coordinator), files.record)
    assert isinstance(opened, TaskView), opened
    return opened


def test_eligibility_is_signed_with_the_task(fleet: FleetFolder) -> None:
    criteria = tuple(map(criterion, ("examples-min=20", "share=100,50", "retry=60,600")))
    task = view_of(fleet, replace(PLAN, eligibility=criteria)).task
    assert [(c.kind, c.version, c.values) for c in task.eligibility] == [
        ("examples-min", 1, [20]),
        ("share", 1, [100, 50]),
        ("retry", 1, [60, 600]),
    ]


@pytest.mark.parametrize(
    "text", ["", "moon=1", "share=100", "examples-min", "examples-min=-1", "examples-min=1.5", "share=1,2,3"]
)
def test_criterion_that_no_device_would_know_is_refused(text: str) -> None:
    with pytest.raises(BlindsumError, match=r"task-invalid.*examples-min \(1 values\)"):
        criterion(text)


def test_every_role_accepts_the_record_and_reads_the_plan_from_it(fleet: FleetFolder) -> None:
    plan = replace(PLAN, epochs=3, batch_size=16, rate=0.25, clip_norm=2.5, weight_max=32, server_rate=0.5, join_s=1.5)
    view = view_of(fleet, plan)
    task = view.task
    assert view.name == "fraud"
    assert (task.devices_min, task.devices_max, task.rounds_max) == (10, 100, 20)
    assert (task.training.epochs, task.training.batch_size, task.training.rate_micros) == (3, 16, 250_000)
    assert (task.algorithm.name, task.algorithm.rate_micros) == ("fedavg", 500_000)
    assert (task.join_ms, task.upload_ms, task.decide_ms) == (1500, 300_000, 30_000)
    assert (task.codec.clip_micros, task.codec.range_micros, task.codec.weight_max) == (2_500_000, 2_500_000, 32)
    assert view.threat == THREAT


def test_task_commits_to_the_artifact_and_to_its_first_model(fleet: FleetFolder) -> None:
    files, _ = create_task(fleet.operator, ARTIFACT, PLAN)
    start = TrainingSession(ARTIFACT).parameters
    task = view_of(fleet).task
    assert files.plan == ARTIFACT and files.model == start.astype("<f4").tobytes()
    assert task.plan == chunks_of(ARTIFACT, SMALL_CHUNK_SIZE)[0]
    assert task.model == chunks_of(files.model, SMALL_CHUNK_SIZE)[0]
    assert [(s.name, s.length, s.width, s.codec) for s in task.segments] == [
        ("parameters", start.size, 24, "quantised"),
        ("statistics", 3, 64, "exact"),
    ]


def test_chunks_are_as_small_as_what_parties_open_allows(fleet: FleetFolder) -> None:
    """The shares of all dropped edges of 100 000 devices do not fit into 1024 small chunks."""
    assert view_of(fleet).task.plan.chunk_size == SMALL_CHUNK_SIZE
    many = replace(
        PLAN, devices_max=100_000, threat=ThreatModel(corrupt_permille=100, dropped_permille=300, cohort_min=5)
    )
    assert view_of(fleet, replace(many, width=32)).task.plan.chunk_size == CHUNK_SIZE_MAX
    assert view_of(fleet, replace(PLAN, chunk_size=8192)).task.plan.chunk_size == 8192


def test_cryptographic_numbers_are_derived_and_described(fleet: FleetFolder) -> None:
    files, derived = create_task(fleet.operator, ARTIFACT, PLAN)
    task = view_of(fleet).task
    assert (task.threat.parties, task.threat.threshold, task.threat.quorum) == (4, 2, 3)
    assert task.codec.bits == derived.bits
    assert PLAN.devices_max * (2 ** (derived.bits - 1) - 1) * PLAN.weight_max < 2**23  # no sum wraps
    assert PLAN.devices_max * (2**derived.bits - 1) * PLAN.weight_max >= 2**23  # and no bit is wasted
    for figure in (derived.bits, derived.degree, derived.survivors_min):
        assert str(figure) in derived.describe()
    assert files.name == "fraud"


def test_rotation_narrows_the_range(fleet: FleetFolder) -> None:
    length = TrainingSession(ARTIFACT).parameters.size
    codec = view_of(fleet, replace(PLAN, rotate=True, clip_norm=4.0)).task.codec
    assert codec.rotate and codec.range_micros == round(rotated_range(4.0, length) * 1e6)


def test_record_of_another_fleets_operator_is_refused_by_this_fleet(fleet: FleetFolder, tmp_path: Path) -> None:
    other = create_fleet(tmp_path / "other", fleet="banks", malicious_parties=1, broker="mqtt://127.0.0.1:1883")
    files, _ = create_task(other.operator, ARTIFACT, PLAN)
    assert open_task(load_trust(fleet.coordinator), files.record) == Refused("signature-invalid", detail="operator")


def test_operator_key_that_is_not_the_bundles_makes_no_task(fleet: FleetFolder, tmp_path: Path) -> None:
    (tmp_path / "trust.cbor").write_bytes((fleet.operator / "trust.cbor").read_bytes())
    save_key(tmp_path / "operator.pem", Ed25519PrivateKey.generate())
    with pytest.raises(BlindsumError, match="signature-invalid"):
        create_task(tmp_path, ARTIFACT, PLAN)


@pytest.mark.parametrize("name", ["", "Fraud", "a b", "../x", "a" * 65])
def test_unusable_name_is_refused(fleet: FleetFolder, name: str) -> None:
    assert refused(fleet, name=name).startswith("name-unusable")


@pytest.mark.parametrize(
    ("changes", "figure"),
    [
        ({"devices_max": 100_000, "weight_max": 4096}, "100000"),
        ({"devices_min": 4}, "4 to 100"),
        ({"devices_min": 200}, "200 to 100"),
        ({"threat": ThreatModel(malicious_parties=2, cohort_min=5)}, "7 parties, the trust bundle 4"),
        ({"threat": ThreatModel(corrupt_permille=500, dropped_permille=450, cohort_min=2), "devices_min": 80}, "900 permille"),
        ({"width": 17}, "width"),
        ({"epochs": 0}, "epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"clip_norm": -1.0}, "clip_norm"),
        ({"rate": -0.1}, "rate"),
        ({"join_s": 0.0}, "join_s"),
        ({"upload_s": 1e9}, "upload_s"),
        ({"rounds": -1}, "rounds is -1"),
        ({"weight_max": 0}, "weight_max is 0"),
        ({"chunk_size": 1}, "chunks of 1"),
    ],
)  # fmt: skip
def test_unsafe_or_meaningless_numbers_are_refused_by_name(
    fleet: FleetFolder, changes: dict[str, object], figure: str
) -> None:
    detail = refused(fleet, **changes)
    assert detail.startswith("parameters-unsafe") and figure in detail


@pytest.mark.parametrize("name", ["rate", "server_rate", "clip_norm", "join_s", "upload_s", "decide_s"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused_by_name(fleet: FleetFolder, name: str, value: float) -> None:
    detail = refused(fleet, **{name: value})
    assert detail.startswith("parameters-unsafe") and name in detail


def test_artifact_that_trains_nothing_or_is_damaged_is_refused(fleet: FleetFolder) -> None:
    gradient = build_artifact(models.mlp([4, 3], seed=1), loss="cross-entropy", optimizer="gradient")
    with pytest.raises(BlindsumError, match="task-invalid"):
        create_task(fleet.operator, gradient, PLAN)
    for damaged in (ARTIFACT[:-1], b"", b"not an artifact"):
        with pytest.raises(BlindsumError, match="training-artifact"):
            create_task(fleet.operator, damaged, PLAN)


def test_saved_task_is_what_a_coordinator_loads(fleet: FleetFolder, tmp_path: Path) -> None:
    files, _ = create_task(fleet.operator, ARTIFACT, PLAN)
    place = save_task(files, tmp_path)
    assert place == tmp_path / "tasks" / "fraud"
    loaded = load_task(place)
    assert (loaded.name, loaded.record, loaded.plan, loaded.model) == (
        files.name,
        files.record,
        files.plan,
        files.model,
    )


def test_signed_record_is_written_last(fleet: FleetFolder, tmp_path: Path) -> None:
    """A coordinator takes the folders with a record for whole tasks."""
    files, _ = create_task(fleet.operator, ARTIFACT, PLAN)
    place = tmp_path / "tasks" / "fraud"
    place.mkdir(parents=True)
    (place / "model.bin").mkdir()  # so that writing the model fails
    with pytest.raises(OSError):
        save_task(files, tmp_path)
    assert (place / "plan.bin").exists() and not (place / "task.cose").exists()


def test_incomplete_task_is_named(tmp_path: Path, fleet: FleetFolder) -> None:
    files, _ = create_task(fleet.operator, ARTIFACT, PLAN)
    place = save_task(files, tmp_path)
    os.remove(place / "model.bin")
    with pytest.raises(BlindsumError, match="kit-incomplete"):
        load_task(place)


def test_record_holds_no_float(fleet: FleetFolder) -> None:
    def kinds(value: object) -> set[type]:
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return {type(value)}.union(*map(kinds, inner))

    files, _ = create_task(fleet.operator, ARTIFACT, replace(PLAN, rate=1 / 3, clip_norm=math.pi))
    assert float not in kinds(open_envelope(files.record).payload)
    assert np.frombuffer(files.model, "<f4").size > 0
