"""A device in an app, in ten lines, with everything it needs beside it: broker, four parties and a coordinator as processes.

Needs `pip install -e ".[all]"`; takes about ten seconds: `python examples/embed_device.py`
"""

import contextlib
import queue
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from blindsum.backend.provision import create_fleet, enrol
from blindsum.backend.stack import Stack
from blindsum.backend.tasks import Plan, create_task, save_task
from blindsum.fleet.baselines import evaluate
from blindsum.fleet.data import digits
from blindsum.fleet.partition import iid
from blindsum.protocol.params import ThreatModel
from blindsum.protocol.transcript import read_records, verify
from blindsum.runtime.kit import load_trust
from blindsum.sdk import Context, Device, DeviceEvent, Policy
from blindsum.training import SGD, build_artifact, models

CLINICS, ROUNDS = 4, 3


def app(kit: Path, features: np.ndarray, targets: np.ndarray) -> Device:
    """The ten lines. A real app has one device and its own data; here four clinics share a process."""
    device = Device.open(kit, policy=Policy(min_cohort=3), on_event=lambda event: tell(device.name, event))

    @device.task("digits")
    def examples(context: Context) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        yield features, targets  # they never leave this process

    return device


def tell(name: str, event: DeviceEvent) -> None:
    if event.name == "uploading":
        print(f"  {name}: round {event.data['round']}, {event.data['bytes']} masked bytes")


def main() -> None:
    events: queue.SimpleQueue[dict[str, object]] = queue.SimpleQueue()
    train, held_out = digits()
    artifact = build_artifact(models.mlp([64, 32, 10], seed=1), loss="cross-entropy", optimizer=SGD(lr=0.2))
    with (
        tempfile.TemporaryDirectory() as folder,
        Stack(Path(folder) / "logs", lambda _name, event: events.put(event)) as stack,
        contextlib.ExitStack() as running,
    ):
        # what an operator does once: keys, a kit for each organisation and device, a signed task
        broker = stack.broker()
        fleet = create_fleet(Path(folder) / "fleet", fleet="clinics", malicious_parties=1, broker=broker)
        kits = enrol(fleet, [f"clinic-{number}" for number in range(1, CLINICS + 1)])
        threat = ThreatModel(corrupt_permille=0, dropped_permille=250, cohort_min=3)
        plan = Plan(
            name="digits", threat=threat, devices_min=3, devices_max=CLINICS, rounds=ROUNDS, epochs=5, batch_size=8, rate=0.2,
            clip_norm=8.0, weight_max=512, join_s=10.0, upload_s=10.0,
        )  # fmt: skip
        files, _ = create_task(fleet.operator, artifact, plan)
        save_task(files, fleet.coordinator)

        # what runs: four parties and a coordinator as processes of their own, four apps with a device each in this one
        for number, kit in enumerate(fleet.parties, 1):
            stack.party(number, kit)
        for kit, part in zip(kits, iid(train.targets, CLINICS, seed=1), strict=True):
            running.enter_context(app(kit, train.features[part], train.targets[part]))
        stack.coordinator(fleet.coordinator)

        transcript = Path()
        while (event := events.get(timeout=60))["event"] != "task-finished":
            stack.check()
            if event["event"] == "round-finished" and event["role"] == "coordinator":
                print(f"round {event['round']}: the parties opened the sum of {event['count']} updates")
            elif event["event"] == "transcript":
                transcript = Path(str(event["path"]))
        data = transcript.read_bytes()
        report = verify(data, trust=load_trust(fleet.operator))
        model = np.frombuffer(read_records(data)["next"][0], "<f4").astype(np.float32)
        accuracy = evaluate(artifact, model, held_out)["accuracy"]
        print(f"transcript of the last round: {'valid' if report.valid else report.faults}")
        print(
            f"result: {accuracy:.1%} of {len(held_out)} held-out digits, learnt from {CLINICS} clinics that showed nobody theirs"
        )


if __name__ == "__main__":
    main()
