"""Making a task: a training artifact and a threat model in, a record that the operator signs out."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from blindsum.backend.plan import Plan, algorithm_for, check_numbers, check_plan, control_scale, scaled
from blindsum.backend.provision import trust_of
from blindsum.protocol.eligibility import KINDS
from blindsum.protocol.envelope import Head, is_name, seal_envelope
from blindsum.protocol.errors import BlindsumError, Refused
from blindsum.protocol.messages import (
    CodecSpec,
    Criterion,
    NoRoster,
    SegmentSpec,
    Task,
    ThreatSpec,
    Training,
    chunks_of,
)
from blindsum.protocol.messages.common import CHUNK_SIZE_MAX, SMALL_CHUNK_SIZE
from blindsum.protocol.params import Derived, ThreatModel, derive
from blindsum.protocol.quantize import rotated_range
from blindsum.protocol.trust import Trust
from blindsum.protocol.view import TaskView, open_task
from blindsum.runtime.kit import load_key, load_trust, read_file
from blindsum.runtime.settings import Settings, load_settings
from blindsum.training import decode
from blindsum.training.personal import split

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from blindsum.training.manifest import Manifest

__all__ = [
    "FoundTask",
    "Plan",
    "TaskControl",
    "TaskFiles",
    "change_control",
    "create_task",
    "criterion",
    "load_control",
    "load_task",
    "read_task",
    "save_task",
    "sign_task",
    "statistics_length",
    "task_names",
    "task_place",
    "transcript_path",
    "transcripts",
]

STATISTICS_LENGTH: Final = 3
"""Weight, examples, summed loss in 10^-6: what every device adds exactly."""


@dataclass(frozen=True, slots=True)
class TaskFiles:
    """A signed task with its two blobs, and what was derived for it."""

    name: str
    record: bytes
    plan: bytes
    model: bytes


class TaskControl(Settings, frozen=True):
    """`control.toml` of a task: what its coordinator is to do. What the operator signed stays as it is."""

    state: Literal["running", "paused", "stopped"] = "running"
    pause_s: float = 0.0
    """Seconds from the end of one round to the beginning of the next."""
    stage: float = 100.0
    """The share of the devices that may join, in per cent."""

    @property
    def permille(self) -> int:
        return round(10 * self.stage)


@dataclass(frozen=True, slots=True)
class FoundTask:
    """A task in a coordinator's kit. `last_round` is the newest with a transcript, or 0; `over`: all rounds have ended."""

    view: TaskView
    derived: Derived
    control: TaskControl
    last_round: int
    over: bool


def create_task(
    operator: Path, artifact: bytes, plan: Plan, parameters: bytes | None = None
) -> tuple[TaskFiles, Derived]:
    """Sign a task with the operator's kit. `parameters`: the model that round 1 starts from, instead of the artifact's own. Raises
    BlindsumError "parameters-unsafe" (with the numbers), "name-unusable", or what is wrong with the artifact."""
    trust, key = load_trust(operator), load_key(operator / "operator.pem")
    parsed = decode(artifact)
    check_plan(parsed.manifest, plan)
    shared, _ = split(parsed.manifest, parsed.parameters)
    model = shared.astype("<f4").tobytes()
    if parameters is not None and len(parameters) != len(model):
        raise BlindsumError("task-invalid", f"a model of {len(parameters)} bytes; the artifact shares {len(model)}")
    statistics = statistics_length(parsed.manifest, plan)
    return sign_task(trust, key, artifact, parameters or model, plan, statistics=statistics)


def sign_task(
    trust: Trust,
    key: Ed25519PrivateKey,
    artifact: bytes,
    model: bytes,
    plan: Plan,
    *,
    statistics: int = STATISTICS_LENGTH,
) -> tuple[TaskFiles, Derived]:
    """Sign a task with the operator's key: what devices run (`artifact`, to the protocol just bytes) and the flat little-endian
    float32 parameters that round 1 starts from. `statistics`: length of the exact segment. Raises BlindsumError
    "parameters-unsafe" (with the numbers), "name-unusable" or "task-invalid"."""
    check_numbers(plan)
    if plan.chunk_size == 0:
        try:
            small = replace(plan, chunk_size=SMALL_CHUNK_SIZE)
            return sign_task(trust, key, artifact, model, small, statistics=statistics)
        except BlindsumError as error:
            if error.code != "parameters-unsafe":
                raise
            plan = replace(plan, chunk_size=CHUNK_SIZE_MAX)
    derived = derive(
        plan.threat,
        n_max=plan.devices_max,
        n_min=plan.devices_min,
        weight_max=plan.weight_max,
        width=plan.width,
        roster=plan.profile == "roster",
    )
    controls = plan.algorithm == "scaffold"
    length = 0 if plan.algorithm == "evaluate" else len(model) // 4
    if controls:
        model += bytes(len(model))  # the server's control variate, first zero
    span = rotated_range(plan.clip_norm, length) if plan.rotate and length else plan.clip_norm
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
            *(
                SegmentSpec(name=name, length=length, width=plan.width, codec="quantised")
                for name in ("parameters", *(["controls"] if controls else []))
                if length
            ),
            SegmentSpec(name="statistics", length=statistics, width=64, codec="exact"),
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
        training=Training(
            epochs=plan.epochs,
            batch_size=plan.batch_size,
            rate_micros=scaled("rate", plan.rate, 1e6),
            proximal_micros=scaled("proximal", plan.proximal, 1e6),
            control_micros=control_scale(plan) if controls else 0,
        ),
        algorithm=algorithm_for(plan),
        join_ms=scaled("join_s", plan.join_s, 1e3),
        upload_ms=scaled("upload_s", plan.upload_s, 1e3),
        decide_ms=scaled("decide_s", plan.decide_s, 1e3),
        rounds_max=plan.rounds,
        eligibility=list(plan.eligibility),
        **({} if plan.profile == "roster" else {"no_roster": NoRoster(staleness_max=plan.staleness)}),
    )
    head = Head(type="task", fleet=trust.fleet, task=plan.name, round=0, sender="operator", to="all")
    record = seal_envelope(key, head, task)
    opened = open_task(trust, record)
    if isinstance(opened, Refused):
        code = "" if opened.code == "parameters-unsafe" else f"{opened.code}: "
        raise BlindsumError("parameters-unsafe", code + opened.detail)
    return TaskFiles(plan.name, record, artifact, model), derived


def statistics_length(manifest: Manifest, plan: Plan) -> int:
    """Weight, examples, and the summed loss or all metrics of an evaluation."""
    return 2 + (len(manifest.metrics) if plan.algorithm == "evaluate" else 1)


def criterion(text: str) -> Criterion:
    """`kind=value,value` as a criterion of the newest version that is known. Raises BlindsumError "task-invalid"."""
    kind, _, said = text.partition("=")
    version = max((version for known, version in KINDS if known == kind), default=0)
    count = KINDS[kind, version][0] if version else 0
    values = said.split(",")
    if not version or len(values) != count or not all(value.isascii() and value.isdigit() for value in values):
        known = ", ".join(f"{kind} ({count} values)" for (kind, _), (count, _) in KINDS.items())
        raise BlindsumError("task-invalid", f"eligibility {text!r}; known: {known}, all whole numbers")
    return Criterion(kind=kind, version=version, values=[int(value) for value in values])


def threat_of(operator: Path, *, corrupt: float, dropped: float, cohort_min: int) -> ThreatModel:
    """The threat model of a task in the fleet of an operator's kit; `corrupt` and `dropped` are shares of its devices."""
    return ThreatModel(
        malicious_parties=(len(load_trust(operator).parties) - 1) // 3,
        corrupt_permille=scaled("corrupt", corrupt, 1e3),
        dropped_permille=scaled("dropped", dropped, 1e3),
        cohort_min=cohort_min,
    )


def task_place(kit: Path, name: str) -> Path:
    """Where a coordinator's kit keeps a task."""
    return kit / "tasks" / name


def task_names(kit: Path) -> list[str]:
    """The tasks in a coordinator's kit."""
    return sorted(path.parent.name for path in (kit / "tasks").glob("*/task.cose"))


def transcript_path(kit: Path, task: str, number: int, *, failed: bool = False) -> Path:
    """Where the coordinator of `kit` writes what a round was, or, where it failed, what there was of it."""
    return kit / ("failures" if failed else "transcripts") / f"{task}-{number:06d}.blindsum"


def transcripts(kit: Path, task: str) -> dict[int, Path]:
    """The transcripts of a task, by round, in order."""
    paths = sorted((kit / "transcripts").glob(f"{task}-[0-9]*.blindsum"))
    return {int(found[1]): path for path in paths if (found := re.fullmatch(rf"{re.escape(task)}-(\d+)", path.stem))}


def save_task(files: TaskFiles, kit: Path) -> Path:
    """Put a task where a coordinator looks for it. Raises BlindsumError "task-invalid" where another has its name."""
    place = task_place(kit, files.name)
    if (place / "task.cose").exists():
        raise BlindsumError("task-invalid", f"a task {files.name} is already in {place}")
    place.mkdir(parents=True, exist_ok=True)
    (place / "plan.bin").write_bytes(files.plan)
    (place / "model.bin").write_bytes(files.model)
    _put(place / "task.cose", files.record)  # last: a coordinator that looks meanwhile sees a whole task or none
    return place


def load_task(place: Path) -> TaskFiles:
    """A task that `save_task` wrote."""
    record, plan, model = (read_file(place / name) for name in ("task.cose", "plan.bin", "model.bin"))
    return TaskFiles(place.name, record, plan, model)


def read_task(kit: Path, name: str) -> FoundTask:
    """A task and its control. Raises BlindsumError "task-not-here" or "task-invalid"."""
    place = task_place(kit, name)
    if not is_name(name) or not (place / "task.cose").exists():
        raise BlindsumError("task-not-here", f"{name!r}; known: {', '.join(task_names(kit)) or 'none'}")
    opened = open_task(trust_of(kit), read_file(place / "task.cose"))
    if isinstance(opened, Refused):
        raise BlindsumError("task-invalid", f"{place}: {opened.code} {opened.detail}")
    width = next((segment.width for segment in opened.task.segments if segment.codec == "quantised"), 24)
    derived = derive(
        opened.threat,
        n_max=opened.task.devices_max,
        n_min=opened.task.devices_min,
        weight_max=opened.task.codec.weight_max,
        width=width,
        roster=opened.has_roster,
    )
    over = any(transcript_path(kit, name, opened.task.rounds_max, failed=failed).exists() for failed in (False, True))
    return FoundTask(opened, derived, load_control(place), max(transcripts(kit, name), default=0), over)


def load_control(place: Path) -> TaskControl:
    """What a task's coordinator is to do. Raises BlindsumError "config-invalid"."""
    path = place / "control.toml"
    return load_settings(path, TaskControl) if path.exists() else TaskControl()


def change_control(kit: Path, name: str, **changes: Any) -> TaskControl:
    """Change a task's control; a running coordinator heeds it before the next round. Raises BlindsumError "task-not-here",
    "task-stopped" or "parameters-unsafe"."""
    place = task_place(kit, name)
    before = read_task(kit, name).control
    if before.state == "stopped" and changes.get("state") != "stopped":
        raise BlindsumError("task-stopped", name)
    control = msgspec.structs.replace(before, **changes)
    if not 0.0 <= control.pause_s < math.inf:
        raise BlindsumError("parameters-unsafe", f"pause_s is {control.pause_s}")
    if not 0.0 <= control.stage <= 100.0:
        raise BlindsumError("parameters-unsafe", f"a stage of {control.stage} per cent")
    written = f'state = "{control.state}"\npause_s = {float(control.pause_s)}\nstage = {float(control.stage)}\n'
    _put(place / "control.toml", written.encode())
    return control


def _put(path: Path, data: bytes) -> None:
    """Whole or not at all."""
    (partial := path.with_suffix(".partial")).write_bytes(data)
    partial.replace(path)
