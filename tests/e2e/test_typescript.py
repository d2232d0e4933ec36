"""The device in another language and with other cryptography: it knows the specification, and takes part in what runs here."""

from __future__ import annotations

import json
import queue
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blindsum.backend.provision import FleetFolder, create_fleet, enrol
from blindsum.backend.stack import Stack
from blindsum.backend.tasks import Plan, create_task, save_task
from blindsum.fleet.baselines import plain_ring_sum
from blindsum.fleet.data import digits
from blindsum.fleet.partition import iid
from blindsum.protocol import envelope
from blindsum.protocol.codec import decode
from blindsum.protocol.envelope import Head, open_envelope, seal_envelope
from blindsum.protocol.messages import Join
from blindsum.protocol.params import ThreatModel
from blindsum.protocol.ring import unpack
from blindsum.protocol.transcript import read_records, verify
from blindsum.protocol.view import TaskView, open_task
from blindsum.runtime.kit import load_key, load_trust
from blindsum.runtime.mqtt import MqttLink
from blindsum.runtime.ports import Inbound
from blindsum.runtime.topics import root_of, shard_of
from blindsum.sdk import Context, Device, Inspection
from blindsum.training import SGD, build_artifact, models

ROOT = Path(__file__).resolve().parents[2]
TASK, ROUNDS, DEVICES = "digits", 2, 4
WAIT_S = 60.0
UPGRADE_REQUIRED = 3
EMBEDDED = pytest.mark.parametrize("living", ["embedded"], indirect=True)


class Running:
    """Parties, a coordinator, three devices of ours and one that is not; `lanes[round][device]` is what each meant to send."""

    def __init__(self, root: Path, node: list[str], url: str) -> None:
        self.root, self.node, self.url = root, node, url
        self.events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.stack = Stack(root / "logs", lambda name, event: self.events.put({"role": name, **event}))
        self.lanes: dict[int, dict[str, list[np.ndarray]]] = {}
        self.folder: FleetFolder
        self.base: TaskView

    def start(self, running: ExitStack) -> None:
        running.enter_context(self.stack)
        self.url = self.url or self.stack.broker()
        self.folder = create_fleet(self.root / "fleet", fleet="babel", malicious_parties=1, broker=self.url)
        plan = Plan(
            name=TASK,
            threat=ThreatModel(corrupt_permille=0, dropped_permille=250, cohort_min=3),
            devices_min=DEVICES,
            devices_max=DEVICES,
            rounds=ROUNDS,
            epochs=3,
            batch_size=8,
            rate=0.2,
            clip_norm=8.0,
            weight_max=512,
            rotate=True,
            join_s=20.0,
            upload_s=20.0,
            chunk_size=1024,
        )
        artifact = build_artifact(models.logistic(64, 10), loss="cross-entropy", optimizer=SGD(lr=0.2))
        files, _ = create_task(self.folder.operator, artifact, plan)
        save_task(files, self.folder.coordinator)
        base = open_task(load_trust(self.folder.operator), files.record)
        assert isinstance(base, TaskView)
        self.base = base
        for number, kit in enumerate(self.folder.parties, 1):
            self.stack.party(number, kit)
        train, _ = digits()
        self.parts = iid(train.targets, DEVICES, seed=1)
        for name, part in zip(("anna", "ben", "cleo"), self.parts, strict=False):
            running.enter_context(self._ours(name, train.features[part], train.targets[part]))
        self.stack.coordinator(self.folder.coordinator)

    def theirs(self, name: str, *options: str) -> subprocess.CompletedProcess[str]:
        """Run the TypeScript device to its end on the last quarter of the data."""
        [kit] = enrol(self.folder, [name])
        train, _ = digits()
        rows = np.column_stack([train.features[self.parts[-1]], train.targets[self.parts[-1]]])
        np.savetxt(self.root / "data.csv", rows, fmt="%.8g", delimiter=",")
        command = [*self.node, "dist/main.js", str(kit), "--task", TASK, "--data", str(self.root / "data.csv")]
        return subprocess.run(
            [*command, "--inspect", str(self.root / "plain"), *options],
            cwd=ROOT / "examples" / "typescript",
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=False,
        )

    def transcripts(self) -> list[Path]:
        found = []
        until = time.monotonic() + WAIT_S
        while len(found) < ROUNDS:
            self.stack.check()
            event = self.events.get(timeout=max(0.1, until - time.monotonic()))
            if event["event"] == "transcript":
                found.append(Path(event["path"]))
        return found

    def _ours(self, name: str, features: np.ndarray, targets: np.ndarray) -> Device:
        def keep(inspection: Inspection) -> None:
            self.lanes.setdefault(inspection.round, {})[name] = inspection.lanes

        device = Device.open(enrol(self.folder, [name])[0], inspect=keep)

        @device.task(TASK)
        def examples(_context: Context) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            yield features, targets

        return device


@pytest.fixture(scope="module")
def living(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, typescript: list[str]
) -> Iterator[Running]:
    """On the broker that its parameter names: "embedded" or "module_mosquitto"."""
    url = "" if request.param == "embedded" else request.getfixturevalue(request.param)().url
    running = Running(tmp_path_factory.mktemp("babel"), typescript, url)
    with ExitStack() as stack:
        running.start(stack)
        yield running


def test_second_implementation_agrees_with_every_vector(typescript: list[str]) -> None:
    vectors = ROOT / "protocol" / "vectors"
    done = subprocess.run(
        [*typescript, "dist/vectors.js", str(vectors)],
        cwd=ROOT / "examples" / "typescript",
        capture_output=True,
        text=True,
        check=False,
    )
    others = ("no-roster", "failed")  # it knows rosters only, and judges finished rounds
    files = [path for path in vectors.rglob("*.json") if path.parent.name not in others]
    cases = sum(len(json.loads(path.read_text("utf-8"))["cases"]) for path in files)
    assert done.stdout.splitlines()[-1] == f"{len(files)} files, {cases} cases, 0 mismatches", done.stdout + done.stderr
    assert done.returncode == 0


def test_second_implementation_notices_a_wrong_vector(typescript: list[str], tmp_path: Path) -> None:
    document = json.loads((ROOT / "protocol" / "vectors" / "derive.json").read_text("utf-8"))
    document["cases"][0]["out"]["key"] = {"$hex": "00"}
    (tmp_path / "derive.json").write_text(json.dumps(document), "utf-8")
    command = [*typescript, "dist/vectors.js", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT / "examples" / "typescript", capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].endswith("1 mismatches")


@EMBEDDED
def test_client_of_another_version_is_told_to_upgrade(living: Running) -> None:
    done = living.theirs("from-the-future", "--speak", "2")
    assert done.returncode == UPGRADE_REQUIRED, done.stdout + done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"event": "upgrade-required", "service": 1, "device": 2}


@EMBEDDED
def test_coordinator_answers_a_device_of_another_version(living: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    [kit] = enrol(living.folder, ["early-bird"])
    root, got = root_of("babel"), queue.SimpleQueue[bytes]()

    def arrived(inbound: Inbound) -> bool:
        got.put(inbound.body)
        link.ack(inbound.token)
        return True

    link = MqttLink(living.url, "early-bird")
    link.open(
        [f"{root}/dn/early-bird/+", f"{root}/bc/{TASK}/announcement"], on_message=arrived, on_state=lambda _state: None
    )
    try:
        announced = open_envelope(got.get(timeout=WAIT_S)).head
        head = Head(
            type="join", fleet="babel", task=TASK, round=announced.round, sender="device/early-bird", to="coordinator"
        )
        with monkeypatch.context() as patch:
            patch.setattr(envelope, "PROTOCOL_VERSION", 2)
            join = Join(manifest=bytes(32), certificate=b"in another form", key=bytes(32))
            raw = seal_envelope(load_key(kit / "key.pem"), head, join)
        link.wait_connected(WAIT_S)
        topic = f"{root}/up/{shard_of('early-bird')}/early-bird/join"
        assert link.publish(topic, raw, retain=False, done=lambda _outcome: None)
        while (answer := open_envelope(got.get(timeout=WAIT_S))).head.type != "receipt":
            pass
    finally:
        link.close()
    assert answer.valid(load_trust(kit).coordinator)
    assert (answer.payload["status"], answer.payload["code"]) == ("refused", "upgrade-required")


@pytest.mark.parametrize("living", ["embedded", "module_mosquitto"], indirect=True)
def test_device_in_another_language_is_part_of_an_exact_sum(living: Running) -> None:
    done = living.theirs("dan", "--rounds", str(ROUNDS))
    assert done.returncode == 0, done.stdout + done.stderr
    told = [json.loads(line)["event"] for line in done.stdout.splitlines()]
    assert [name for name in told if name in ("joined", "uploading", "uploaded", "round-finished")] == [
        "joined",
        "uploading",
        "uploaded",
        "round-finished",
    ] * ROUNDS
    for number, path in enumerate(living.transcripts(), 1):
        data = path.read_bytes()
        report = verify(data, trust=living.base.trust)
        assert report.valid, report.faults
        records = read_records(data)
        assert len(decode(records["survivors"][0])) == DEVICES
        dan = unpack(living.base.segments, (living.root / "plain" / f"dan-{number}.bin").read_bytes())
        assert any(lane.any() for lane in dan)
        lanes = [*living.lanes[number].values(), dan]
        assert plain_ring_sum(living.base.segments, lanes) == records["sum"][0]
