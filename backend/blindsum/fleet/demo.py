"""The demo: the product's main job for real on one machine, and the proof that it did what it says."""

from __future__ import annotations

import queue
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from blindsum.backend.provision import FleetFolder, create_fleet, enrol
from blindsum.backend.stack import Stack
from blindsum.backend.tasks import Plan, create_task, save_task
from blindsum.fleet.baselines import alone, centralised, evaluate, plain_fedavg_step
from blindsum.fleet.data import Dataset, digits
from blindsum.fleet.figures import DemoFigures, RoundFigures
from blindsum.fleet.host import Drop, HostSpec
from blindsum.fleet.partition import dirichlet
from blindsum.fleet.plainsum import compare_with_plain
from blindsum.fleet.recipe import RECIPE
from blindsum.fleet.report import write_report
from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.params import ThreatModel
from blindsum.protocol.transcript import read_records, verify
from blindsum.protocol.trust import Trust
from blindsum.protocol.view import TaskView, open_task
from blindsum.runtime.mqtt import MqttLink
from blindsum.training import TrainingSession, build_artifact, models

__all__ = ["DemoSettings", "run_demo"]

TASK: Final = "digits"
HOSTS: Final = 2
"""Device clients share this many processes (each is a client of its own, with its own kit and database)."""
START_TIMEOUT_S: Final = 30.0
ROUND_TIMEOUT_S: Final = 60.0
RESTART_AFTER_S: Final = 1.0
DROPPED_PERMILLE: Final = 400
BACK_AGAIN: Final = ("connected", "offered", "opened", "followed")
PHASES: Final = ("before join", "after roster", "mid upload")


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSettings:
    """`transport`: "embedded", or the URL of a broker. `out`: everything of this run goes into a fresh folder there."""

    devices: int
    malicious_parties: int
    rounds: int
    dropout: float
    seed: int
    transport: str
    out: Path


@dataclass(slots=True)
class _Seen:
    """What the processes said, as it came in."""

    began: dict[int, float] = field(default_factory=dict)
    ended: dict[int, float] = field(default_factory=dict)
    joined: Counter[int] = field(default_factory=Counter)
    rostered: dict[int, int] = field(default_factory=dict)
    uploaded: Counter[int] = field(default_factory=Counter)
    failed: dict[int, str] = field(default_factory=dict)
    mask_ms: list[float] = field(default_factory=list)
    upload_bytes: list[int] = field(default_factory=list)
    transcripts: dict[int, Path] = field(default_factory=dict)
    restarted_at: float = 0.0
    party_restarted: bool = False
    finished: bool = False


def run_demo(
    settings: DemoSettings, *, on_progress: Callable[[float, str], None], on_line: Callable[[str], None]
) -> DemoFigures:
    """Run it all and write the report. Raises BlindsumError."""
    began = time.monotonic()
    out = _fresh_folder(settings.out)
    train, _ = digits()
    parts = dirichlet(train.targets, settings.devices, RECIPE.alpha, settings.seed)
    artifact = build_artifact(models.mlp(RECIPE.sizes, seed=settings.seed), loss="cross-entropy")
    seen = _Seen()
    events: queue.SimpleQueue[tuple[str, dict[str, Any]]] = queue.SimpleQueue()
    with Stack(out / "logs", lambda name, event: events.put((name, event))) as stack:
        broker = _broker(stack, settings.transport)
        fleet, base = _prepare(settings, out, broker, artifact)
        drops = _plan_drops(settings)
        for number, kit in enumerate(fleet.parties, 1):
            stack.party(number, kit)
        for host in range(HOSTS):
            stack.host(host, _host_spec(settings, out, fleet, parts, drops, host))
        _wait_for_devices(settings, stack, events, on_progress)
        stack.coordinator(fleet.coordinator)
        on_line(f"{settings.devices} devices, {base.committee.parties} parties and a coordinator on {broker}")
        _follow(settings, stack, events, seen, on_progress, on_line)
    on_progress(settings.rounds, "checking every sum, training the baselines")
    figures = _judge(settings, out, base, artifact, parts, drops, seen)
    figures = replace(figures, seconds=time.monotonic() - began)
    write_report(out / "report.html", out / "report.png", figures)
    return figures


# -- before the rounds ------------------------------------------------------------------------------------------------


def _fresh_folder(out: Path) -> Path:
    for number in range(1, 10_000):
        folder = out / f"run-{number:03d}"
        if not folder.exists():
            folder.mkdir(parents=True)
            return folder
    raise BlindsumError("folder-not-empty", str(out))


def _broker(stack: Stack, transport: str) -> str:
    if transport == "embedded":
        return stack.broker()
    link = MqttLink(transport, "blindsum-demo-probe")
    link.open((), on_message=lambda _inbound: True, on_state=lambda _state: None)
    try:
        link.wait_connected(5.0)
    finally:
        link.close()
    return transport


def _prepare(settings: DemoSettings, out: Path, broker: str, artifact: bytes) -> tuple[FleetFolder, TaskView]:
    # a broker that other runs share keeps their fleets apart by name
    fleet = create_fleet(
        out / "fleet",
        fleet=f"demo-{time.time_ns() % 10**9}",
        malicious_parties=settings.malicious_parties,
        broker=broker,
    )
    cohort_min = max(2, settings.devices // 4)
    threat = ThreatModel(
        malicious_parties=settings.malicious_parties,
        corrupt_permille=50,
        dropped_permille=DROPPED_PERMILLE,
        cohort_min=cohort_min,
    )
    plan = Plan(
        name=TASK,
        threat=threat,
        devices_min=cohort_min + 1,
        devices_max=settings.devices,
        rounds=settings.rounds,
        epochs=RECIPE.epochs,
        batch_size=RECIPE.batch_size,
        rate=RECIPE.rate,
        clip_norm=RECIPE.clip_norm,
        weight_max=RECIPE.weight_max,
        join_s=RECIPE.join_s,
        upload_s=RECIPE.upload_s,
        decide_s=RECIPE.decide_s,
        chunk_size=RECIPE.chunk_size,
    )
    files, _ = create_task(fleet.operator, artifact, plan)
    save_task(files, fleet.coordinator)
    enrol(fleet, [_device_name(number) for number in range(settings.devices)])
    base = open_task(Trust.decode((fleet.operator / "trust.cbor").read_bytes()), files.record)
    assert isinstance(base, TaskView), base
    return fleet, base


def _device_name(number: int) -> str:
    return f"device-{number + 1:03d}"


def _plan_drops(settings: DemoSettings) -> list[Drop]:
    """Who drops out when: about `dropout` of the devices in each round, in all three phases by turns."""
    dice = np.random.default_rng([settings.seed, 1])
    count = round(settings.dropout * settings.devices)
    drops = []
    for number in range(1, settings.rounds + 1):
        for place, device in enumerate(dice.permutation(settings.devices)[:count]):
            drops.append(Drop(number, int(device), PHASES[(number + place) % 3]))
    return drops


def _host_spec(
    settings: DemoSettings,
    out: Path,
    fleet: FleetFolder,
    parts: list[Any],
    drops: list[Drop],
    host: int,
) -> Path:
    mine = [number for number in range(settings.devices) if number % HOSTS == host]
    spec = HostSpec(
        task=TASK,
        kits={number: str(fleet.device(_device_name(number))) for number in mine},
        parts={number: [int(index) for index in parts[number]] for number in mine},
        drops=[drop for drop in drops if drop.device in mine],
        plain=str(out / "plain"),
        seed=settings.seed,
    )
    path = out / f"host-{host}.json"
    path.write_bytes(msgspec.json.encode(spec))
    return path


# -- the rounds -------------------------------------------------------------------------------------------------------


def _wait_for_devices(
    settings: DemoSettings,
    stack: Stack,
    events: queue.SimpleQueue[tuple[str, dict[str, Any]]],
    on_progress: Callable[[float, str], None],
) -> None:
    """Let the first round begin when the clients are there: on a slow machine their start takes longer than joining."""
    deadline = time.monotonic() + START_TIMEOUT_S
    connected: set[int] = set()
    while len(connected) < settings.devices and time.monotonic() < deadline:
        stack.check()
        try:
            name, event = events.get(timeout=0.1)
        except queue.Empty:
            continue
        if name.startswith("host-") and event["event"] == "connected":
            connected.add(int(event["number"]))
            on_progress(0, f"{len(connected)} of {settings.devices} devices connected")


def _follow(
    settings: DemoSettings,
    stack: Stack,
    events: queue.SimpleQueue[tuple[str, dict[str, Any]]],
    seen: _Seen,
    on_progress: Callable[[float, str], None],
    on_line: Callable[[str], None],
) -> None:
    """Hear everybody until the task is finished; kill a party on the way and bring it back."""
    victim = "party-2"
    kill_in = settings.rounds // 2 + 1
    killed_at = 0.0
    last_word = time.monotonic()
    while not seen.finished or (killed_at and not seen.party_restarted):
        stack.check()
        now = time.monotonic()
        if killed_at and not seen.restarted_at and now - killed_at >= RESTART_AFTER_S:
            stack.restart(victim)
            seen.restarted_at = now
            on_line(f"{victim} started again")
        try:
            name, event = events.get(timeout=0.1)
        except queue.Empty:
            if now - last_word > ROUND_TIMEOUT_S:
                raise BlindsumError("demo-stuck", "no process has said anything for a minute") from None
            continue
        last_word = now
        if name == "coordinator":
            _hear_coordinator(event, seen, on_progress, on_line)
            if event["event"] == "phase" and event["phase"] == "check" and event["round"] == kill_in and not killed_at:
                stack.kill(victim)
                killed_at = time.monotonic()
                on_line(f"round {kill_in}: {victim} killed with SIGKILL")
        elif name == victim and seen.restarted_at and event["event"] in BACK_AGAIN:
            seen.party_restarted = True
        elif event["event"] == "training-failed":
            on_line(f"{event['device']}: {event['code']} {event['detail']}")
        elif event["event"] == "masked":
            seen.mask_ms.append(float(event["ms"]))
        elif event["event"] == "uploading":
            seen.upload_bytes.append(int(event["bytes"]))


def _hear_coordinator(
    event: dict[str, Any],
    seen: _Seen,
    on_progress: Callable[[float, str], None],
    on_line: Callable[[str], None],
) -> None:
    kind, number = event["event"], int(event.get("round", 0))
    done = len(seen.ended)
    if kind == "phase":
        seen.began.setdefault(number, time.monotonic())
        if "devices" in event:
            seen.rostered[number] = int(event["devices"])
        words = {"join": "devices join", "upload": "devices train and upload", "open": "parties open the sum"}
        on_progress(done, f"round {number}: {words.get(event['phase'], 'parties ' + event['phase'])}")
    elif kind == "join":
        seen.joined[number] += 1
    elif kind == "upload":
        seen.uploaded[number] += 1
        on_progress(done, f"round {number}: {seen.uploaded[number]} of {seen.rostered.get(number, 0)} uploaded")
    elif kind == "round-failed":
        seen.failed[number] = str(event["code"])
        seen.ended[number] = time.monotonic()
        on_line(f"round {number} failed: {event['code']}")
    elif kind == "round-finished":
        seen.ended[number] = time.monotonic()
        took = seen.ended[number] - seen.began[number]
        joined, count = seen.joined[number], event["count"]
        on_progress(len(seen.ended), f"round {number} done")
        on_line(
            f"round {number}: {joined} joined, {seen.rostered.get(number)} in the roster, {count} summed, {took:.1f} s"
        )
    elif kind == "transcript":
        seen.transcripts[number] = Path(event["path"])
    elif kind == "task-finished":
        seen.finished = True


# -- after the rounds -------------------------------------------------------------------------------------------------


def _judge(
    settings: DemoSettings,
    out: Path,
    base: TaskView,
    artifact: bytes,
    parts: list[Any],
    drops: list[Drop],
    seen: _Seen,
) -> DemoFigures:
    """Hold every transcript against what the devices meant to send, and the model against its baselines."""
    train, test = digits()
    start = TrainingSession(artifact).parameters
    plain, secure = start.copy(), start.copy()
    rounds: list[RoundFigures] = []
    for number in sorted(seen.transcripts):
        records = read_records(seen.transcripts[number].read_bytes())
        exact, updates = compare_with_plain(base, records, out / "plain" / f"round-{number:04d}")
        plain = plain_fedavg_step(plain, [(update, weight) for _, update, weight in updates])
        secure = np.frombuffer(records["next"][0], "<f4").astype(np.float32)
        failed = Counter(drop.phase for drop in drops if drop.round == number)
        rounds.append(
            RoundFigures(
                round=number,
                enrolled=settings.devices,
                joined=seen.joined[number],
                uploaded=seen.uploaded[number],
                survivors=len(updates),
                dropped={phase: failed[phase] for phase in PHASES},
                weight=sum(weight for _, _, weight in updates),
                seconds=seen.ended[number] - seen.began[number],
                exact=exact,
                accuracy_secure=evaluate(artifact, secure, test)["accuracy"],
                accuracy_plain=evaluate(artifact, plain, test)["accuracy"],
            )
        )
    if not rounds:
        codes = ", ".join(f"round {number}: {code}" for number, code in seen.failed.items())
        raise BlindsumError("demo-no-round", codes)
    epochs = settings.rounds * RECIPE.epochs

    def trained(data: Dataset, how: Callable[..., NDArray[np.float32]]) -> float:
        size, rate = RECIPE.batch_size, RECIPE.rate
        parameters = how(artifact, data, epochs=epochs, batch_size=size, rate=rate, seed=settings.seed)
        return evaluate(artifact, parameters, test)["accuracy"]

    transcript = out / "transcript.blindsum"
    shutil.copyfile(seen.transcripts[rounds[-1].round], transcript)
    body = sum(segment.packed_size for segment in base.segments)
    return DemoFigures(
        data=f"{train.name}: {len(train)} examples of {settings.devices} owners (Dirichlet {RECIPE.alpha})",
        parameters=start.size,
        parties=base.committee.parties,
        rounds=tuple(rounds),
        failed=dict(seen.failed),
        accuracy_central=trained(train, centralised),
        accuracy_alone=tuple(trained(train.take(part), alone) for part in parts),
        upload_bytes_per_parameter=body / start.size,
        upload_bytes=round(median(seen.upload_bytes)),
        device_mask_ms=median(seen.mask_ms),
        party_restarted=seen.party_restarted,
        transcripts_valid=all(verify(path.read_bytes(), trust=base.trust).valid for path in seen.transcripts.values()),
        transcript=transcript,
        report=out / "report.html",
        picture=out / "report.png",
        seconds=0.0,
    )
