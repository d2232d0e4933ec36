"""`Device` as an app embeds it, against real parties, a real coordinator and real brokers.

One fleet a broker serves all tests here: two devices take part in every round, and each test brings its own. At the end every
round of the fleet is judged, so no test may leave an inexact sum or a second upload behind.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from blindsum.backend.broker import EmbeddedBroker
from blindsum.backend.provision import FleetFolder, create_fleet, enrol
from blindsum.backend.stack import Stack
from blindsum.backend.tasks import Plan, create_task, save_task
from blindsum.fleet.data import digits
from blindsum.fleet.flaky import FlakyLink
from blindsum.fleet.plainsum import compare_with_plain
from blindsum.protocol.codec import decode
from blindsum.protocol.envelope import open_envelope
from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.params import ThreatModel
from blindsum.protocol.transcript import read_records, verify
from blindsum.protocol.trust import Trust
from blindsum.protocol.view import TaskView, open_task
from blindsum.runtime.kit import load_trust
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

        def found() -> DeviceEvent | None:
            for at in range(self._at, len(self.heard)):
                event = self.heard[at]
                if event.name in names and data.items() <= event.data.items():
                    self._at = at + 1
                    return event
            return None

        with self._changed:
            event = self._changed.wait_for(found, WAIT_S)
            assert event is not None, f"no {names} {data} in {self.heard}; {self.device.state}: {self.device.reason}"
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

    def app(self, name: str, policy: Policy | None = None, examples: Examples = some_digits) -> App:
        kit = enrol(self.folder, [name])[0]
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
        assert len(self.transcripts) >= 2
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


@pytest.fixture(scope="module", params=["embedded", "mosquitto"])
def living(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Living]:
    url = request.getfixturevalue("module_mosquitto")().url if request.param == "mosquitto" else ""
    fleet = Living(tmp_path_factory.mktemp("living"), url)
    try:
        fleet.start()
        yield fleet
    finally:
        fleet.stop()
    fleet.judge()


on_the_embedded_broker = pytest.mark.parametrize("living", ["embedded"], indirect=True)


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


# -- taking part ------------------------------------------------------------------------------------------------------


def test_device_takes_part_in_round_after_round(living: Living) -> None:
    states: list[tuple[State, str]] = []

    def examples(context: Context) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        states.append((app.device.state, app.device.reason))
        yield from some_digits(context)

    app = living.app("taker", examples=examples)
    assert (app.device.state, app.device.reason) == (State.STOPPED, "not started")
    with app.device as device:
        first = app.next("round-finished").data
        second = app.next("round-finished").data
        assert device.state is not State.STOPPED
    for data in (first, second):
        life = app.names(data["round"])
        assert life == ["joined", "train", "trained", "masked", "uploading", "uploaded", "round-finished"]
    assert first["model"] != second["model"]
    trained = next(event.data for event in app.heard if event.name == "trained")
    assert trained["examples"] == 24 and 0 < trained["loss"] < 5
    assert (State.TRAINING, f"round {first['round']}") in states
    assert len(states) >= 4  # two rounds of two epochs
    assert (device.state, device.reason) == (State.STOPPED, "stopped by the app")
    model = device.model(TASK)
    assert {first["round"], second["round"]} <= {version.number for version in model.versions}
    assert model.activate(second["round"]) and model.predict(BATCH[0]).shape == (24, 10)


@on_the_embedded_broker
def test_examples_that_fail_in_any_way_cost_one_round_and_nothing_else(living: Living) -> None:
    def raising(_context: Context) -> Iterator[tuple[Any, Any]]:
        yield BATCH
        raise LookupError("the camera is gone")

    def exiting(_context: Context) -> Iterator[tuple[Any, Any]]:
        raise SystemExit(1)

    def not_a_number(_context: Context) -> Iterator[tuple[Any, Any]]:
        yield BATCH[0] * np.float32(np.nan), BATCH[1]

    def of_another_shape(_context: Context) -> Iterator[tuple[Any, Any]]:
        yield BATCH[0][:, :10], BATCH[1]

    def nothing(_context: Context) -> Iterator[tuple[Any, Any]]:
        yield from ()

    def endless(_context: Context) -> Iterator[tuple[Any, Any]]:
        while True:
            time.sleep(0.01)
            yield BATCH[0][:1], BATCH[1][:1]

    wrong: dict[str, tuple[Examples, str, str]] = {
        "raising": (raising, "training-failed", "examples-failed"),
        "exiting": (exiting, "training-failed", "examples-failed"),
        "nan": (not_a_number, "training-failed", "training-diverged"),
        "shape": (of_another_shape, "training-failed", "training-batch-invalid"),
        "nothing": (nothing, "training-failed", "no-examples"),
        "endless": (endless, "training-aborted", "the round is over"),
    }
    apps = {name: living.app(name, examples=examples) for name, (examples, _, _) in wrong.items()}
    for app in apps.values():
        app.device.start()
    lost = {}
    for name, app in apps.items():
        _, event, why = wrong[name]
        early = app.next(event).data
        assert why in (early.get("code"), early.get("reason")), early
        assert app.device.state is not State.TRAINING
        app.examples = some_digits
        lost[name] = early["round"]
    for name, app in apps.items():
        assert app.next("uploaded").data["round"] > lost[name]
        assert "uploading" not in app.names(lost[name])
        stop_in_time(app.device)
        assert ("header", name, lost[name]) not in living.said


@on_the_embedded_broker
def test_update_that_the_app_does_not_let_pass_never_leaves(living: Living) -> None:
    app = living.app("careful")
    inspected: list[int] = []

    def veto(inspection: Inspection) -> None:
        inspected.append(inspection.round)
        raise PermissionError("not this one")

    app.device._inspect = veto
    app.device.start()
    failed = app.next("training-failed").data
    stop_in_time(app.device)
    assert failed["code"] == "examples-failed" and "PermissionError" in str(failed["detail"])
    assert inspected == [failed["round"]]
    assert ("header", "careful", failed["round"]) not in living.said
    assert round_key_of(app.device._kit) is not None  # joined, and nothing spent


@on_the_embedded_broker
def test_callback_that_raises_and_one_that_stops_the_device_do_no_harm(living: Living) -> None:
    stopped = threading.Event()

    def hear(event: DeviceEvent) -> None:
        if event.name == "uploaded":
            device.stop()
            stopped.set()
        raise RuntimeError("a bug in the app")

    device = Device.open(living.app("clumsy").device._kit, on_event=hear, inspect=living.apps[-1].inspect)
    device.task(TASK)(some_digits)
    device.start()
    assert stopped.wait(WAIT_S)
    assert device.state is State.STOPPED


@on_the_embedded_broker
def test_examples_function_may_stop_the_device(living: Living) -> None:
    stopped = threading.Event()

    def stopping(_context: Context) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        app.device.stop()
        stopped.set()
        yield BATCH

    app = living.app("leaving", examples=stopping)
    app.device.start()
    assert stopped.wait(WAIT_S)
    assert app.device.state is State.STOPPED
    app.examples = some_digits
    app.device.start()  # nothing of the first life is in the way
    app.next("uploaded")


# -- policy -----------------------------------------------------------------------------------------------------------


@on_the_embedded_broker
def test_conditions_decide_before_and_during_training(living: Living) -> None:
    now = {"charging": False, "unmetered": True}

    def unplugged(_context: Context) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        yield BATCH
        now["charging"] = False
        yield BATCH
        yield BATCH

    policy = Policy(require="charging and unmetered", conditions=lambda: now)
    app = living.app("picky", policy, unplugged)
    app.device.start()
    declined = app.next("declined").data
    assert declined["reason"] == "not charging"
    assert (app.device.state, app.device.reason) == (State.WAITING, "not charging")
    now["charging"] = True
    aborted = app.next("training-aborted").data
    assert aborted["reason"] == "not charging"
    assert "not charging" in app.device.reason and app.device.state is State.WAITING
    app.next("declined", reason="not charging")  # the next round finds it still unplugged
    now["charging"], app.examples = True, some_digits
    app.next("uploaded")
    stop_in_time(app.device)
    for early in (declined["round"], aborted["round"]):
        assert ("header", "picky", early) not in living.said


@on_the_embedded_broker
def test_task_below_the_policys_floor_is_refused_and_the_app_is_told(living: Living) -> None:
    app = living.app("demanding", Policy(min_cohort=3))
    app.device.start()
    refused = app.next("refused").data
    assert refused["code"] == "policy-floor"
    assert app.device.state is State.WAITING and "cohort" in app.device.reason
    stop_in_time(app.device)
    assert not [who for who in living.said if who[1] == "demanding"]


# -- stop and start ---------------------------------------------------------------------------------------------------


def test_round_goes_on_after_a_stop_while_training(living: Living) -> None:
    entered, release = threading.Event(), threading.Event()

    def held(_context: Context) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        entered.set()
        assert release.wait(WAIT_S)
        yield BATCH

    app = living.app("paused", examples=held)
    app.device.start()
    assert entered.wait(WAIT_S)
    number = app.next("train").data["round"]
    assert app.device.state is State.TRAINING
    stop_in_time(app.device)  # though the examples function has not come back
    app.examples = some_digits
    app.device.start()
    release.set()
    ended = app.next("uploaded", "round-abandoned", round=number)
    # a machine that is slow today may miss the deadline; then the round is left cleanly
    assert ended.name == "uploaded" or ended.data["code"] == "deadline", ended
    app.next("round-finished")
    stop_in_time(app.device)
    assert app.names(number).count("uploading") <= 1


def test_round_goes_on_after_a_stop_while_uploading(living: Living) -> None:
    app = living.app("tunnel")
    app.device.cut = True
    app.device.start()
    number = app.next("uploading").data["round"]
    assert app.device.state in (State.UPLOADING, State.CONNECTING)
    stop_in_time(app.device)
    assert round_key_of(app.device._kit) == ("uploading", b"")
    app.device.cut = False
    app.device.start()
    ended = app.next("uploaded", "round-abandoned", "round-finished", round=number)
    app.next("round-finished")
    stop_in_time(app.device)
    assert app.names(number).count("uploading") == 1, ended
    assert len(living.said["header", "tunnel", number]) <= 1


@on_the_embedded_broker
def test_round_whose_deadline_passed_meanwhile_is_left_cleanly(living: Living) -> None:
    entered, release = threading.Event(), threading.Event()

    def held(_context: Context) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        entered.set()
        assert release.wait(WAIT_S)
        yield BATCH

    app = living.app("asleep", examples=held)
    app.device.start()
    assert entered.wait(WAIT_S)
    number = app.next("train").data["round"]
    stop_in_time(app.device)
    held_key = round_key_of(app.device._kit)
    assert held_key is not None and held_key[0] == "training" and any(held_key[1])
    release.set()
    living.apps[0].next("round-finished", round=number)  # without this device
    app.examples = some_digits
    app.device.start()
    assert app.next("round-abandoned", round=number).data["code"] in ("deadline", "superseded")
    assert app.next("uploaded").data["round"] > number
    stop_in_time(app.device)
    assert ("header", "asleep", number) not in living.said
    store = (app.device._kit / "device.db").read_bytes()
    assert held_key[1] not in store  # the key of the round is erased, not only forgotten


@on_the_embedded_broker
def test_device_that_only_follows_gets_the_models_and_sends_nothing(living: Living) -> None:
    kit = enrol(living.folder, ["reader"])[0]
    device = Device.open(kit)
    device.follow(TASK)
    with device:
        heard = device.events()
        numbers = [next(event.data["round"] for event in heard if event.name == "model") for _ in range(2)]
        versions = {version.number: version.sha256 for version in device.model(TASK).versions}
    assert set(numbers) <= versions.keys() and len(set(versions.values())) == len(versions) >= 2
    assert device.model(TASK).activate() and device.model(TASK).predict(BATCH[0]).shape == (24, 10)
    assert not [who for who in living.said if who[1] == "reader"] and device.uses() == []


@on_the_embedded_broker
def test_weeks_offline_and_clocks_that_jump_cost_rounds_and_nothing_else(living: Living) -> None:
    entered, release = threading.Event(), threading.Event()

    def held(_context: Context) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        entered.set()
        assert release.wait(WAIT_S)
        yield BATCH

    app = living.app("sailor", examples=held)
    app.device.start()
    assert entered.wait(WAIT_S)
    number = app.next("train").data["round"]
    stop_in_time(app.device)
    release.set()
    app.examples = some_digits
    app.device.ahead_ms = 21 * 86_400_000  # three weeks later, or so this clock says
    app.device.start()
    assert app.next("round-abandoned", round=number).data["code"] == "deadline"
    time.sleep(2 * JOIN_S)  # rounds begin whose joining is long over by this clock
    assert not [event for event in app.heard if event.name == "joined" and event.data["round"] != number]
    app.device.ahead_ms = -21 * 86_400_000  # while it runs
    assert app.next("refused").data["code"] == "clock-skew"
    assert "set the clock" in app.device.reason
    app.device.ahead_ms = 0
    assert app.next("uploaded").data["round"] > number
    stop_in_time(app.device)
    assert ("header", "sailor", number) not in living.said


@on_the_embedded_broker
def test_withdrawn_consent_leaves_the_round_and_erases_what_was_to_leave(living: Living) -> None:
    app = living.app("revoker")
    app.device.cut = True  # the body of the upload is never through
    app.device.start()
    number = app.next("uploading").data["round"]
    began = time.monotonic()
    app.device.consent = False
    assert time.monotonic() - began < STOP_TIMEOUT_S + SLACK_S
    assert (app.device.state, app.device.reason) == (State.WAITING, "for the user's consent")
    assert round_key_of(app.device._kit) is None
    store = SqliteStore(app.device._kit / "device.db")
    plan = living.base.task.plan.id.hex()
    assert all(key.startswith(f"blob/{plan}/") for key in store.keys("blob/")) and not store.outbox()
    store.close()
    app.device.cut = False
    app.device.consent = True
    again = app.next("uploaded").data["round"]
    assert again > number
    stop_in_time(app.device)
    assert [(use.what, use.round) for use in app.device.uses() if use.round in (number, again)] == [
        ("update", again),
        ("join", again),
        ("update", number),
        ("join", number),
    ]


@on_the_embedded_broker
def test_round_goes_on_after_a_pause_and_full_disks_are_waited_out(
    living: Living, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blindsum.sdk.device.REVIVE_S", 0.3)
    full = threading.Event()

    def filling(_context: Context) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        if not full.is_set():
            full.set()
            store = app.device._life._store  # type: ignore[union-attr]
            store._db.execute("PRAGMA max_page_count = 1")  # not below what is used: nothing more fits
        yield BATCH

    app = living.app("crammed", examples=filling)
    app.device.start()
    assert str(app.next("state", state="failed").data["reason"]).startswith("disk-full")
    assert app.next("stopped").data["code"] == "disk-full"
    app.next("uploaded")
    app.device.pause()
    assert app.device.state is State.PAUSED
    app.device.resume()
    app.next("uploaded")
    stop_in_time(app.device)


@on_the_embedded_broker
def test_process_killed_at_any_moment_goes_on_with_sealed_state_and_sends_nothing_twice(living: Living) -> None:
    """What it must not do, a second upload or an inexact sum, is judged for the whole fleet at the end."""

    def app(kit: Path, moment: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(Path(__file__).with_name("mortal_app.py")), str(kit), TASK]
        return subprocess.Popen([*command, str(living.root / "plain"), moment], stdout=subprocess.PIPE, text=True)

    moments = ["joined", "train", "uploading", "uploaded"]
    kits = enrol(living.folder, [f"mortal-{moment}" for moment in moments])
    first = {moment: app(kit, moment) for moment, kit in zip(moments, kits, strict=True)}
    heard = {moment: process.communicate(timeout=WAIT_S)[0] for moment, process in first.items()}
    assert {moment: process.returncode for moment, process in first.items()} == dict.fromkeys(moments, -signal.SIGKILL)
    second = {moment: app(kit, "") for moment, kit in zip(moments, kits, strict=True)}
    for moment, process in second.items():
        said = [json.loads(line) for line in (heard[moment] + process.communicate(timeout=2 * WAIT_S)[0]).splitlines()]
        assert process.returncode == 0 and said[-1]["state"] == "stopped"
        ended = next(event for event in said if event["event"] == "round-finished")
        sent = [event["round"] for event in said if event["event"] == "uploading"]
        assert ended["round"] in sent and len(sent) == len(set(sent)), moment


# -- no fleet needed --------------------------------------------------------------------------------------------------


@pytest.fixture
def lonely(tmp_path: Path) -> Path:
    """The kit of a device whose broker is not there."""
    with EmbeddedBroker() as broker:
        url = broker.url
    folder = create_fleet(tmp_path / "fleet", fleet="lonely", malicious_parties=1, broker=url)
    return enrol(folder, ["robinson"])[0]


def until(device: Device, state: State) -> None:
    end = time.monotonic() + WAIT_S
    while device.state is not state:
        assert time.monotonic() < end, (device.state, device.reason)
        time.sleep(0.01)


def test_broker_that_is_not_there_is_nothing_special(lonely: Path) -> None:
    device = Device.open(lonely)
    device.task(TASK)(some_digits)
    url = device._settings.broker.url
    device.start()
    assert device.state is State.CONNECTING and url in device.reason
    stop_in_time(device)


@pytest.mark.parametrize("scheme", ["mqtt", "mqtts"])
def test_stop_does_not_wait_for_a_broker_that_does_not_answer(lonely: Path, scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        authority = x509.load_der_x509_certificate(load_trust(lonely).ca)
        (lonely / "ca.pem").write_bytes(authority.public_bytes(Encoding.PEM))
        url = f"{scheme}://127.0.0.1:{mute.getsockname()[1]}"
        text = (lonely / "device.toml").read_text("utf-8").partition("[broker]")[0]
        ca = 'ca = "ca.pem"\n' if scheme == "mqtts" else ""
        (lonely / "device.toml").write_text(f'{text}[broker]\nurl = "{url}"\n{ca}', "utf-8")
        device = Device.open(lonely)
        for _ in range(2):
            device.start()
            mute.accept()
            assert device.state is State.CONNECTING
            stop_in_time(device)


def test_connection_that_comes_and_goes_shows_in_the_state(lonely: Path) -> None:
    device = Device.open(lonely)
    port = int(device._settings.broker.url.rsplit(":", 1)[1])
    broker = EmbeddedBroker()
    with device:
        for _ in range(2):
            assert device.state is State.CONNECTING
            broker.start(port)
            until(device, State.WAITING)
            assert device.reason == "for a round"
            broker.stop()
            until(device, State.CONNECTING)


def test_two_devices_on_one_kit_do_not_run_at_once(lonely: Path) -> None:
    first, second = Device.open(lonely), Device.open(lonely)
    with first:
        with pytest.raises(BlindsumError, match="database-in-use"):
            second.start()
        assert second.state is State.STOPPED
        second.stop()
        assert first.state is State.CONNECTING
    with second:
        assert second.state is State.CONNECTING


def test_device_starts_once_and_takes_no_task_while_it_runs(lonely: Path) -> None:
    device = Device.open(lonely)
    with device:
        with pytest.raises(BlindsumError, match="device-running"):
            device.start()
        with pytest.raises(BlindsumError, match="device-running"):
            device.task("late")(some_digits)
    device.task("late")(some_digits)
    device.stop()  # a second time does nothing


def test_start_that_fails_leaves_nothing_open(lonely: Path) -> None:
    settings = (lonely / "device.toml").read_text("utf-8")
    (lonely / "device.toml").write_text(settings.replace("mqtt://", "gopher:"), "utf-8")
    device = Device.open(lonely)
    before = threading.active_count()
    for _ in range(2):
        with pytest.raises(BlindsumError, match="broker-url-invalid"):
            device.start()
        assert device.state is State.STOPPED
    assert threading.active_count() == before
    (lonely / "device.toml").write_text(settings, "utf-8")
    with Device.open(lonely):
        pass  # the database was given back


def test_unusable_task_name_is_told_at_the_start(lonely: Path) -> None:
    device = Device.open(lonely)
    device.task("Fraud!")(some_digits)
    with pytest.raises(BlindsumError, match="name-unusable"):
        device.start()
    assert device.state is State.STOPPED
