"""A fleet that lives for a whole module of tests, and apps with a device in it.

Two devices take part in every round, and each test brings its own. At the end every round of the fleet is judged, so no test may
leave an inexact sum or a second upload behind.
"""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from blindsum.backend.provision import FleetFolder, create_fleet, enrol
from blindsum.backend.stack import Stack
from blindsum.backend.tasks import Plan, create_task, save_task
from blindsum.fleet.data import digits
from blindsum.fleet.flaky import FlakyLink
from blindsum.fleet.plainsum import compare_with_plain
from blindsum.protocol.codec import decode
from blindsum.protocol.envelope import open_envelope
from blindsum.protocol.params import ThreatModel
from blindsum.protocol.transcript import read_records, verify
from blindsum.protocol.trust import Trust
from blindsum.protocol.view import TaskView, open_task
from blindsum.runtime.mqtt import MqttLink
from blindsum.runtime.ports import Inbound, Link
from blindsum.runtime.sqlite import SqliteStore
from blindsum.runtime.topics import Topics, root_of
from blindsum.sdk import Context, Device, DeviceEvent, Inspection, Policy
from blindsum.sdk.device import STOP_TIMEOUT_S
from blindsum.sdk.events import State
from blindsum.training import build_artifact, models

TASK = "digits"
WAIT_S = 60.0
SLACK_S = 3.0
"""What a machine with other work may add to a promised time."""
JOIN_S, UPLOAD_S = 0.8, 3.0
TRAIN, _ = digits()
BATCH = TRAIN.features[:24], TRAIN.targets[:24]

Examples = Callable[[Context], Iterator[tuple[Any, Any]]]


def some_digits(_context: Context) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    yield BATCH


class Held:
    """An examples function that does not come back before its release."""

    def __init__(self) -> None:
        self.entered, self.release = threading.Event(), threading.Event()

    def __call__(self, _context: Context) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        self.entered.set()
        assert self.release.wait(WAIT_S)
        yield BATCH


class Phone(Device):
    """A device whose connection can be made to die in the middle of an upload."""

    cut = False
    ahead_ms = 0
    """How far its clock is ahead."""

    def _now(self) -> int:
        return super()._now() + self.ahead_ms

    def _link(self, topics: Topics) -> Link:
        link = super()._link(topics)
        if not self.cut:
            return link
        flaky = FlakyLink(link)
        flaky.arm(chunks=0)
        return flaky


class App:
    """An app with a device in it: ten lines of product, and what a test wants to know."""

    def __init__(self, kit: Path, plain: Path, policy: Policy, examples: Examples) -> None:
        self.plain = plain
        self.examples = examples
        self.heard: list[DeviceEvent] = []
        self._at = 0
        self._changed = threading.Condition()
        self.device = Phone.open(kit, policy=policy, on_event=self._hear, inspect=self.inspect)

        @self.device.task(TASK)
        def train(context: Context) -> Iterator[tuple[Any, Any]]:
            yield from self.examples(context)

    def inspect(self, inspection: Inspection) -> None:
        folder = self.plain / f"round-{inspection.round:04d}"
        folder.mkdir(parents=True, exist_ok=True)
        lanes = {f"lane{number}": lane for number, lane in enumerate(inspection.lanes)}
        np.savez(folder / f"{self.device.name}.npz", update=inspection.update, weight=inspection.weight, **lanes)

    def next(self, *names: str, **data: object) -> DeviceEvent:
        """Wait for the next event of one of `names` with such data; those before it are passed over."""
        return self.next_of(lambda event: event.name in names and data.items() <= event.data.items())

    def next_of(self, wanted: Callable[[DeviceEvent], bool]) -> DeviceEvent:
        """Wait for the next event that is wanted; those before it are passed over."""

        def found() -> DeviceEvent | None:
            for at in range(self._at, len(self.heard)):
                if wanted(self.heard[at]):
                    self._at = at + 1
                    return self.heard[at]
            return None

        with self._changed:
            event = self._changed.wait_for(found, WAIT_S)
            seen = self.heard[self._at :]
            assert event is not None, f"none wanted in {seen}; {self.device.state}: {self.device.reason}"
            return event

    def names(self, number: object) -> list[str]:
        """What happened in a round, in order."""
        return [event.name for event in self.heard if event.data.get("round") == number]

    def _hear(self, event: DeviceEvent) -> None:
        with self._changed:
            self.heard.append(event)
            self._changed.notify_all()


class Living:
    """A fleet that runs one round after another. `apps` are stopped and all rounds judged at the end."""

    def __init__(self, root: Path, url: str) -> None:
        self.root, self.url = root, url
        self.transcripts: list[Path] = []
        self.said: dict[tuple[str, str, int], set[bytes]] = defaultdict(set)
        self.apps: list[App] = []
        self.stack = Stack(root / "logs", self._hear)
        self.folder: FleetFolder
        self.base: TaskView

    def start(self) -> None:
        self.stack.__enter__()
        self.url = self.url or self.stack.broker()
        self.folder = create_fleet(
            self.root / "fleet", fleet=f"sdk-{time.time_ns() % 10**9}", malicious_parties=1, broker=self.url
        )
        plan = Plan(
            name=TASK,
            threat=ThreatModel(malicious_parties=1, corrupt_permille=50, dropped_permille=800, cohort_min=2),
            devices_min=2,
            devices_max=8,
            rounds=1000,
            epochs=2,
            batch_size=8,
            clip_norm=5.0,
            join_s=JOIN_S,
            upload_s=UPLOAD_S,
            decide_s=10.0,
            chunk_size=1024,
        )
        artifact = build_artifact(models.mlp([64, 16, 10], seed=1), loss="cross-entropy")
        files, _ = create_task(self.folder.operator, artifact, plan)
        save_task(files, self.folder.coordinator)
        base = open_task(Trust.decode((self.folder.operator / "trust.cbor").read_bytes()), files.record)
        assert isinstance(base, TaskView)
        self.base = base
        self._spy = MqttLink(self.url, "spy")
        uplinks = (f"{root_of(base.trust.fleet)}/up/+/+/+",)
        self._spy.open(uplinks, on_message=self._overhear, on_state=lambda _state: None)
        self._spy.wait_connected(WAIT_S)
        for number, kit in enumerate(self.folder.parties, 1):
            self.stack.party(number, kit)
        for name in ("constant-a", "constant-b"):
            self.app(name).device.start()
        self.stack.coordinator(self.folder.coordinator)

    def app(
        self, name: str, policy: Policy | None = None, examples: Examples = some_digits, disk: Path | None = None
    ) -> App:
        kit = enrol(self.folder, [name])[0]
        if disk is not None:
            kit = Path(shutil.copytree(kit, disk / name))
        self.apps.append(App(kit, self.root / "plain", policy or Policy(), examples))
        return self.apps[-1]

    def stop(self) -> None:
        for app in self.apps:
            app.device.stop()
        self._spy.close()
        self.stack.__exit__()

    def judge(self) -> None:
        """Every transcript verifies, every sum is the plain sum of its survivors, and nobody said two different things."""
        assert not self.stack.died
        assert self.transcripts
        for path in self.transcripts:
            data = path.read_bytes()
            report = verify(data, trust=self.base.trust)
            assert report.valid, report.faults
            number = report.facts["round"]
            exact, _ = compare_with_plain(self.base, read_records(data), self.root / "plain" / f"round-{number:04d}")
            assert exact, f"round {number}"
        twice = {who: len(different) for who, different in self.said.items() if len(different) > 1}
        assert not twice, f"two different messages of one kind, device and round: {twice}"
        assert {kind for kind, _, _ in self.said} == {"join", "header"}

    def _hear(self, name: str, event: dict[str, Any]) -> None:
        if name == "coordinator" and event["event"] == "transcript":
            self.transcripts.append(Path(event["path"]))

    def _overhear(self, inbound: Inbound) -> bool:
        self._spy.ack(inbound.token)
        device, kind = inbound.topic.split("/")[-2:]
        if kind in ("join", "header"):
            self.said[kind, device, open_envelope(inbound.body).head.round].add(inbound.body)
        return True


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def at_broker(kit: Path, url: str, *, ca: str = "") -> None:
    """Have a kit's device look for its broker at `url`."""
    settings = kit / "device.toml"
    text = re.sub(r'url = "[^"]*"', f'url = "{url}"', settings.read_text("utf-8"))
    settings.write_text(text + (f'ca = "{ca}"\n' if ca else ""), "utf-8")


def stop_in_time(device: Device) -> None:
    began = time.monotonic()
    device.stop()
    assert time.monotonic() - began < STOP_TIMEOUT_S + SLACK_S
    assert (device.state, device.reason) == (State.STOPPED, "stopped by the app")


def round_key_of(kit: Path) -> tuple[str, bytes] | None:
    """(phase, X25519 key) of the round in a stopped device's database."""
    store = SqliteStore(kit / "device.db")
    try:
        raw = store.get(f"state/{TASK}")
    finally:
        store.close()
    return None if raw is None else (decode(raw)["phase"], decode(raw)["key"])
