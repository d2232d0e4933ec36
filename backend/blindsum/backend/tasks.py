"""Making a task: a training artifact and a threat model in, a record that the operator signs out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from blindsum.protocol.envelope import Head, is_name, seal_envelope
from blindsum.protocol.errors import BlindsumError, Refused
from blindsum.protocol.messages import (
    Algorithm,
    CodecSpec,
    SegmentSpec,
    Task,
    ThreatSpec,
    Training,
    chunks_of,
)
from blindsum.protocol.messages.common import CHUNK_SIZE
from blindsum.protocol.params import Derived, ThreatModel, derive
from blindsum.protocol.quantize import rotated_range
from blindsum.protocol.view import open_task
from blindsum.runtime.kit import load_key, load_trust, read_file
from blindsum.training import decode

__all__ = ["Plan", "TaskFiles", "create_task", "load_task", "save_task", "scaled"]

STATISTICS_LENGTH: Final = 3
"""Weight, examples, summed loss in 10^-6: what every device adds exactly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What an operator decides about a task. Times in seconds; `clip_norm` is the largest L2 norm of an update; `weight_max` the
    largest weight (in examples) of one device."""

    name: str
    threat: ThreatModel
    devices_min: int
    devices_max: int
    rounds: int
    epochs: int = 1
    batch_size: int = 32
    rate: float = 0.1
    clip_norm: float = 1.0
    weight_max: int = 64
    width: Literal[16, 24, 32, 64] = 24
    rotate: bool = False
    server_rate: float = 1.0
    join_s: float = 30.0
    upload_s: float = 300.0
    decide_s: float = 30.0
    chunk_size: int = CHUNK_SIZE


@dataclass(frozen=True, slots=True)
class TaskFiles:
    """A signed task with its two blobs, and what was derived for it."""

    name: str
    record: bytes
    plan: bytes
    model: bytes


def create_task(operator: Path, artifact: bytes, plan: Plan) -> tuple[TaskFiles, Derived]:
    """Sign a task with the operator's kit. Raises BlindsumError "parameters-unsafe" (with the numbers), "name-unusable", or what is
    wrong with the artifact."""
    if not is_name(plan.name):
        raise BlindsumError("name-unusable", repr(plan.name))
    trust, key = load_trust(operator), load_key(operator / "operator.pem")
    derived = derive(
        plan.threat,
        n_max=plan.devices_max,
        n_min=plan.devices_min,
        weight_max=plan.weight_max,
        width=plan.width,
    )
    parsed = decode(artifact)
    if parsed.manifest.optimiser == "gradient":
        raise BlindsumError("task-invalid", "the artifact's step hands out gradients and trains nothing")
    model = parsed.parameters.astype("<f4").tobytes()
    length = len(model) // 4
    span = rotated_range(plan.clip_norm, length) if plan.rotate else plan.clip_norm
    committee = derived.committee
    try:
        refs = [chunks_of(data, plan.chunk_size)[0] for data in (artifact, model)]
    except ValueError as error:
        raise BlindsumError("parameters-unsafe", str(error)) from None
    task = Task(
        trust=trust.digest,
        plan=refs[0],
        model=refs[1],
        segments=[
            SegmentSpec(name="parameters", length=length, width=plan.width, codec="quantised"),
            SegmentSpec(name="statistics", length=STATISTICS_LENGTH, width=64, codec="exact"),
        ],
        codec=CodecSpec(
            clip_micros=scaled("clip_norm", plan.clip_norm, 1e6),
            range_micros=scaled("clip_norm", span, 1e6),
            bits=derived.bits,
            weight_max=plan.weight_max,
            rotate=plan.rotate,
        ),
        threat=ThreatSpec(
            parties=committee.parties,
            threshold=committee.threshold,
            quorum=committee.quorum,
            malicious_parties=plan.threat.malicious_parties,
            corrupt_permille=plan.threat.corrupt_permille,
            dropped_permille=plan.threat.dropped_permille,
            cohort_min=plan.threat.cohort_min,
        ),
        devices_min=plan.devices_min,
        devices_max=plan.devices_max,
        suite="aes128-ctr",
        training=Training(epochs=plan.epochs, batch_size=plan.batch_size, rate_micros=scaled("rate", plan.rate, 1e6)),
        algorithm=Algorithm(name="fedavg", rate_micros=scaled("server_rate", plan.server_rate, 1e6)),
        join_ms=scaled("join_s", plan.join_s, 1e3),
        upload_ms=scaled("upload_s", plan.upload_s, 1e3),
        decide_ms=scaled("decide_s", plan.decide_s, 1e3),
        rounds_max=plan.rounds,
    )
    head = Head(type="task", fleet=trust.fleet, task=plan.name, round=0, sender="operator", to="all")
    record = seal_envelope(key, head, task)
    opened = open_task(trust, record)
    if isinstance(opened, Refused):
        code = "" if opened.code == "parameters-unsafe" else f"{opened.code}: "
        raise BlindsumError("parameters-unsafe", code + opened.detail)
    return TaskFiles(plan.name, record, artifact, model), derived


def scaled(name: str, value: float, factor: float) -> int:
    """A setting as the integer that travels. Raises BlindsumError "parameters-unsafe" where it is no finite number."""
    if not math.isfinite(value * factor):
        raise BlindsumError("parameters-unsafe", f"{name} is {value}")
    return round(value * factor)


def save_task(files: TaskFiles, folder: Path) -> Path:
    """Put a task where a coordinator looks for it: `<kit>/tasks/<name>/`."""
    place = folder / "tasks" / files.name
    place.mkdir(parents=True, exist_ok=True)
    (place / "plan.bin").write_bytes(files.plan)
    (place / "model.bin").write_bytes(files.model)
    (place / "task.cose").write_bytes(
        files.record
    )  # last: a coordinator that starts meanwhile sees a whole task or none
    return place


def load_task(place: Path) -> TaskFiles:
    """A task that `save_task` wrote."""
    return TaskFiles(
        place.name, read_file(place / "task.cose"), read_file(place / "plan.bin"), read_file(place / "model.bin")
    )
