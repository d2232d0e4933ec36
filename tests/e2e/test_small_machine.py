"""One core and 512 MB: a device trains and uploads a model of a million parameters, with the whole backend beside it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

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


def test_million_parameters_fit_a_machine_of_one_core_and_512_mb(tmp_path: Path) -> None:
    (tmp_path / "net.bsa").write_bytes(build_artifact(models.mlp([784, 1024, 200, 10], seed=1), loss="cross-entropy"))
    command = [sys.executable, "-c", SMALL, str(tmp_path / "net.bsa"), str(MEMORY)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["devices"] == ["other-1", "other-2", "phone"]
    assert told["size"] > 1_000_000 and told["moved"]
    assert told["resident"] <= MEMORY, f"{told['resident'] >> 20} MiB"
