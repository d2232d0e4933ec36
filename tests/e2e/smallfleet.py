"""A small fleet of real processes on a real broker, to be killed and disturbed."""

from __future__ import annotations

import queue
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from blindsum.backend.provision import FleetFolder, create_fleet, enrol
from blindsum.backend.stack import Stack
from blindsum.backend.tasks import Plan, create_task, save_task, transcripts
from blindsum.fleet.data import digits
from blindsum.fleet.host import HostSpec
from blindsum.fleet.partition import iid
from blindsum.fleet.plainsum import compare_with_plain
from blindsum.protocol.params import ThreatModel
from blindsum.protocol.transcript import read_records, verify
from blindsum.protocol.trust import Trust
from blindsum.protocol.view import TaskView, open_task
from blindsum.training import build_artifact, models

TASK = "digits"
DEVICES = 8
START_S = 60.0


@dataclass
class SmallFleet:
    """Four parties, a coordinator and eight devices in one host process, all children of this one."""

    root: Path
    stack: Stack
    url: str
    folder: FleetFolder
    base: TaskView
    events: queue.SimpleQueue[tuple[str, dict[str, Any]]]
    refused: Counter[tuple[str, str]] = field(default_factory=Counter)
    finished: list[int] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)
    transcripts: dict[int, Path] = field(default_factory=dict)
    over: bool = False
    at_rest: bool = False
    """The coordinator's last phase was the end of a round."""

    def start(self) -> None:
        """The coordinator comes last, when the devices are there: on a busy machine their start takes longer than joining."""
        for number, kit in enumerate(self.folder.parties, 1):
            self.stack.party(number, kit)
        self.stack.host(0, self.root / "host.json")
        missing = DEVICES
        while missing:
            self.stack.check()
            name, event = self.events.get(timeout=START_S)
            missing -= name == "host-0" and event["event"] == "connected"
        self.stack.coordinator(self.folder.coordinator)

    def watch(self, until: float, each: Callable[[str, dict[str, Any]], None] = lambda _name, _event: None) -> None:
        """Hear events until the task is finished. Fails where that takes longer than `until` seconds from now."""
        deadline = time.monotonic() + until
        while not self.over:
            assert time.monotonic() < deadline, f"finished {self.finished}, failed {self.failed}"
            self.stack.check()
            try:
                name, event = self.events.get(timeout=0.2)
            except queue.Empty:
                each("", {"event": "tick"})
                continue
            self.hear(name, event)
            each(name, event)

    def judge(self) -> None:
        """Every transcript verifies against the fleet's own keys, and every sum is the plain ring sum, bit for bit. A coordinator
        that was killed between writing one and saying so has written it all the same."""
        self.transcripts |= transcripts(self.folder.coordinator, TASK)
        self.finished = sorted({*self.finished, *self.transcripts})
        for path in (self.folder.coordinator / "failures").glob("*.blindsum"):
            self.failed.setdefault(int(path.stem.rpartition("-")[2]), "not told")
        assert set(self.transcripts) == set(self.finished)
        for number, path in self.transcripts.items():
            data = path.read_bytes()
            report = verify(data, trust=self.base.trust)
            assert report.valid, report.faults
            exact, updates = compare_with_plain(
                self.base, read_records(data), self.root / "plain" / f"round-{number:04d}"
            )
            assert exact
            assert len(updates) >= report.facts["survivors_min"]

    def hear(self, name: str, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "refused":
            self.refused[name, event["code"]] += event.get("count", 1) + 1 >> 1  # told at the 1st, 2nd, 4th, 8th…
        if kind == "flood":
            self.refused[name, "sender-over-share"] += event["unread"]
        if name != "coordinator":
            return
        if kind == "phase":
            self.at_rest = event["phase"] == "failed"
        self.at_rest = self.at_rest or kind == "transcript"
        if kind == "round-finished" and event["round"] not in self.finished:
            self.finished.append(event["round"])
        elif kind == "round-failed":
            self.failed[event["round"]] = event["code"]
        elif kind == "transcript":
            self.transcripts[event["round"]] = Path(event["path"])
            if event["round"] not in self.finished:
                self.finished.append(event["round"])
        elif kind == "task-finished":
            self.over = True


def make_fleet(
    root: Path,
    *,
    rounds: int,
    url: str = "",
    chunk_size: int = 2048,
    hidden: int = 32,
    devices_min: int = 4,
    join_s: float = 3.0,
    upload_s: float = 8.0,
    devices_max: int = DEVICES,
    slow: tuple[int, ...] = (),
    workers: int = 0,
    **plan: Any,
) -> SmallFleet:
    """A fleet in the folder `root`, on the broker at `url` or on an embedded one of its own. Whoever makes it closes its stack."""
    events: queue.SimpleQueue[tuple[str, dict[str, Any]]] = queue.SimpleQueue()
    stack = Stack(root / "logs", lambda name, event: events.put((name, event)))
    stack.__enter__()
    broker = url or stack.broker()
    name = f"e2e-{time.time_ns() % 10**9}"
    folder = create_fleet(root / "fleet", fleet=name, malicious_parties=1, broker=broker, workers=workers)
    planned = Plan(
        name=TASK,
        threat=ThreatModel(malicious_parties=1, corrupt_permille=50, dropped_permille=500, cohort_min=2),
        devices_min=devices_min,
        devices_max=devices_max,
        rounds=rounds,
        clip_norm=5.0,
        join_s=join_s,
        upload_s=upload_s,
        decide_s=6.0,
        chunk_size=chunk_size,
        **plan,
    )
    artifact = build_artifact(models.mlp([64, hidden, 10], seed=1), loss="cross-entropy")
    files, _ = create_task(folder.operator, artifact, planned)
    save_task(files, folder.coordinator)
    kits = enrol(folder, [f"device-{number}" for number in range(DEVICES)])
    parts = iid(digits()[0].targets, DEVICES, 1)
    spec = HostSpec(
        task=TASK,
        kits={number: str(kit) for number, kit in enumerate(kits)},
        parts={number: [int(index) for index in part[:40]] for number, part in enumerate(parts)},
        drops=[],
        plain=str(root / "plain"),
        seed=1,
        slow=list(slow),
    )
    (root / "host.json").write_bytes(msgspec.json.encode(spec))
    base = open_task(Trust.decode((folder.operator / "trust.cbor").read_bytes()), files.record)
    assert isinstance(base, TaskView)
    return SmallFleet(root, stack, broker, folder, base, events)
