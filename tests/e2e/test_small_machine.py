"""Small machines: what a round of a million parameters takes of a device, and that one core and 512 MB hold the backend too."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from blindsum.backend.broker import EmbeddedBroker
from blindsum.runtime.mqtt import MqttLink
from blindsum.testing.backend import FakeBackend
from blindsum.training import build_artifact, models

MEMORY = 512 << 20
SMALL = """
import json, os, re, resource, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[2]), int(sys.argv[2])))
import numpy as np
from blindsum.sdk import Device
from blindsum.testing.backend import FakeBackend

with FakeBackend(open(sys.argv[1], "rb").read(), others=2, join_s=20.0, decide_s=30.0, devices_min=3) as backend:
    device = Device.open(backend.kit())

    @device.task("task")
    def examples(context):
        yield np.ones((64, 784), np.float32), np.arange(64) % 10

    with device:
        done = backend.round(60.0)
status = open("/proc/self/status").read()
resident = 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1])
print(json.dumps({"devices": done.devices, "resident": resident, "size": done.mean.size, "moved": bool(done.mean.any())}))
"""


MEASURED = """
import json, re, sys
import numpy as np
from blindsum.protocol.messages import Training
from blindsum.sdk import Device
from blindsum.sdk.trainer import Job, train
from blindsum.training import TrainingSession

def batches(_):
    yield np.ones((64, 784), np.float32), np.arange(64) % 10

if sys.argv[1] == "train":
    plan = open(sys.argv[2], "rb").read()
    model = TrainingSession(plan).parameters.astype("<f4").tobytes()
    how = Training(epochs=1, batch_size=32, rate_micros=100_000, proximal_micros=0, control_micros=0)
    train(Job(plan, model, batches), how)
    ended = "trained"
else:
    device = Device.open(sys.argv[2])
    device.task("task")(batches)
    with device:
        print("ready", flush=True)
        ends = {"round-finished", "round-abandoned", "training-failed"}
        ended = next(event.name for event in device.events() if event.name in ends)
peak = re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())
print(json.dumps({"ended": ended, "peak": 1024 * int(peak[1])}))
"""


class OverMqtt:
    """Links of a fake backend's roles, for a device in another process."""

    def __init__(self, url: str) -> None:
        self._url = url

    def link(self, name: str) -> MqttLink:
        return MqttLink(self._url, name.replace("/", "-"))


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "net.bsa"
    path.write_bytes(build_artifact(models.mlp([784, 1024, 200, 10], seed=1), loss="cross-entropy"))
    return path


def begin(what: str, argument: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", MEASURED, what, str(argument)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def told(process: subprocess.Popen[str]) -> Any:
    out, complaints = process.communicate(timeout=100)
    assert process.returncode == 0, complaints
    return json.loads(out.splitlines()[-1])


def test_round_takes_no_more_memory_than_training_and_four_models(artifact: Path) -> None:
    backend = FakeBackend(artifact.read_bytes(), others=2, join_s=60.0, decide_s=30.0, devices_min=3)
    with EmbeddedBroker() as broker:
        backend.bus = OverMqtt(broker.url)  # type: ignore[assignment]
        with backend:
            settings = (kit := backend.kit()) / "device.toml"
            settings.write_text(re.sub(r"mqtt://[\d.:]+", broker.url, settings.read_text("utf-8")), "utf-8")
            phone = begin("take part", kit)
            assert phone.stdout is not None and phone.stdout.readline() == "ready\n"
            done = backend.round(90.0)
            round_ = told(phone)
    assert "phone" in done.devices and round_["ended"] == "round-finished"
    training = told(begin("train", artifact))
    model = 4 * done.mean.size
    more = round_["peak"] - training["peak"]
    assert more <= 4 * model, f"{more / model:.1f} models of {model >> 20} MiB"


def test_million_parameters_fit_a_machine_of_one_core_and_512_mb(artifact: Path) -> None:
    command = [sys.executable, "-c", SMALL, str(artifact), str(MEMORY)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["devices"] == ["other-1", "other-2", "phone"]
    assert told["size"] > 1_000_000 and told["moved"]
    assert told["resident"] <= MEMORY, f"{told['resident'] >> 20} MiB"
