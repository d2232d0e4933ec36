"""Making a task: a training artifact and a threat model in, a record that the operator signs out."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from blindsum.backend.provision import trust_of
from blindsum.protocol.algorithm import STATE_VECTORS, algorithm_of
from blindsum.protocol.codec import DecodeError
from blindsum.protocol.eligibility import KINDS
from blindsum.protocol.envelope import Head, is_name, seal_envelope
from blindsum.protocol.errors import BlindsumError, Refused
from blindsum.protocol.messages import (
    Algorithm,
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
    "check_plan",
    "create_task",
    "criterion",
    "load_control",
    "load_task",
    "read_task",
    "save_task",
    "scaled",
    "sign_task",
    "statistics_length",
    "task_names",
    "task_place",
    "transcript_path",
    "transcripts",
]

ADAPTIVE: Final = ("fedadam", "fedyogi")
ADAPTIVE_RATE: Final = 0.01
STALENESS_MAX: Final = 100
STATISTICS_LENGTH: Final = 3
"""Weight, examples, summed loss in 10^-6: what every device adds exactly."""

WHOLE: Final = dict.fromkeys(("devices_min", "devices_max", "rounds", "epochs", "batch_size", "weight_max"), 1) | {
    "population": 0,
    "chunk_size": 0,
    "staleness": 0,
}
"""A plan's whole numbers, and the least of each."""
SCALED_MAX: Final = 1 << 53
"""Above it, two numbers may travel as one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What an operator decides about a task. Times in seconds; `clip_norm` is the largest L2 norm of an update; `weight_max` the
    largest weight (in examples) of one device. `chunk_size` 0: 120 KiB, which every broker takes, or 256 KiB where 1024 chunks of
    120 KiB do not hold what a round needs.

    `algorithm`: "fedavg", "fedavgm", "fedadam", "fedyogi", "scaffold" (the artifact's optimiser is SGD with `control`), or
    "evaluate", which leaves the model as it is and sums metrics. `server_rate`: None takes 0.01 for fedadam and fedyogi, 1 for
    the others. `momentum` is that of fedavgm and beta 1 of the adaptive two, `beta2` and `tau` are theirs; `population`: the
    weight of all devices together, in a round or not (scaffold). `profile` "no-roster": one upload a device, when it is ready,
    under the first mask layer alone (docs/THREAT-MODEL.md); `join_s` then adds to `upload_s`, and a round closes as soon as
    `devices_max` uploads are in. There, `staleness` makes rounds the buffers of FedBuff: a device whose training outlasts its round
    adds it, discounted, to one of so many rounds later. `proximal`: FedProx's mu, beside
    any algorithm (the artifact's optimiser has one).
    """

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
    algorithm: str = "fedavg"
    server_rate: float | None = None
    momentum: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3
    population: int = 0
    proximal: float = 0.0
    join_s: float = 30.0
    upload_s: float = 300.0
    decide_s: float = 30.0
    chunk_size: int = 0
    profile: Literal["roster", "no-roster"] = "roster"
    staleness: int = 0
    eligibility: tuple[Criterion, ...] = ()


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
    if not is_name(plan.name):
        raise BlindsumError("name-unusable", repr(plan.name))
    if plan.profile not in ("roster", "no-roster"):
        raise BlindsumError("task-invalid", f"profile {plan.profile!r}; known: roster, no-roster")
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
    "parameters-unsafe" (with the numbers) or "task-invalid"."""
    for name, least in WHOLE.items():
        value = getattr(plan, name)
        if type(value) is not int or value < least:
            raise BlindsumError("parameters-unsafe", f"{name} is {value!r}, not a whole number from {least}")
    if not 0 <= plan.staleness <= (STALENESS_MAX if plan.profile == "no-roster" else 0):
        told = f"staleness {plan.staleness}; profile no-roster takes up to {STALENESS_MAX} rounds, roster none"
        raise BlindsumError("task-invalid", told)
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
            control_micros=_control_scale(plan) if controls else 0,
        ),
        algorithm=_algorithm(plan),
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


def check_plan(manifest: Manifest, plan: Plan) -> None:
    """Raises BlindsumError "task-invalid" where the artifact's step cannot do what the plan asks of it."""
    if plan.algorithm != "evaluate" and manifest.optimiser == "gradient":
        raise BlindsumError("task-invalid", "the artifact's step hands out gradients and trains nothing")
    if plan.proximal and "proximal" not in manifest.hyperparameters:
        raise BlindsumError("task-invalid", "FedProx needs an artifact whose optimiser has a proximal term")
    if plan.algorithm == "scaffold" and not (
        manifest.control
        and manifest.optimiser == "sgd"
        and "momentum" not in manifest.hyperparameters
        and not manifest.personal
    ):
        raise BlindsumError(
            "task-invalid", "SCAFFOLD needs an artifact with plain SGD, a control variate and no personal layers"
        )


def _algorithm(plan: Plan) -> Algorithm:
    name = plan.algorithm
    if name not in STATE_VECTORS:
        others = "FedProx is proximal beside one of them, FedBuff profile no-roster with a staleness"
        raise BlindsumError("task-invalid", f"algorithm {name!r}; known: {', '.join(STATE_VECTORS)}; {others}")
    rate = plan.server_rate if plan.server_rate is not None else ADAPTIVE_RATE if name in ADAPTIVE else 1.0
    given = {"rate_micros": ("server_rate", rate)} if name != "evaluate" else {}
    if name in ("fedavgm", *ADAPTIVE):
        given["beta1_micros"] = "momentum", plan.momentum
    if name in ADAPTIVE:
        given |= {"beta2_micros": ("beta2", plan.beta2), "tau_micros": ("tau", plan.tau)}
    if name == "scaffold" and plan.population < 1:
        raise BlindsumError("task-invalid", "SCAFFOLD needs the population: the weight of all devices together")
    try:
        numbers = {field: scaled(what, value, 1e6) for field, (what, value) in given.items()}
        return algorithm_of(name, **numbers, population=plan.population if name == "scaffold" else 0)
    except DecodeError:
        told = ", ".join(f"{what} {value}" for what, value in given.values())
        told = f"{name} with {told}; momentum and beta2 are in [0, 1), the others at least 0"
        raise BlindsumError("task-invalid", told) from None


def _control_scale(plan: Plan) -> int:
    """So that controls are as large as updates: learning rate times the steps of a device with `weight_max` examples."""
    return scaled("rate", plan.rate * plan.epochs * -(-plan.weight_max // plan.batch_size), 1e6)


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


def scaled(name: str, value: float, factor: float) -> int:
    """A setting as the integer that travels. Raises BlindsumError "parameters-unsafe" where it is no finite number, or would travel
    as another one."""
    if not math.isfinite(value * factor) or abs(value * factor) > SCALED_MAX:
        raise BlindsumError("parameters-unsafe", f"{name} is {value}, not a number up to {SCALED_MAX / factor:g}")
    if value and not round(value * factor):
        raise BlindsumError("parameters-unsafe", f"{name} is {value}, and the least but 0 is {1 / factor:g}")
    return round(value * factor)


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
