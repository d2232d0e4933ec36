"""What app developers test with: the example app's own tests, and that the plugin costs others nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

from blindsum.protocol.queries import Count
from blindsum.protocol.transcript import verify
from blindsum.sdk import Context, Device, answer
from blindsum.testing.backend import FakeBackend

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = "blindsum.testing.plugin"


def test_example_app_passes_its_own_tests() -> None:
    known = any(point.value == PLUGIN for point in entry_points(group="pytest11"))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--rootdir", "."),
            *("-c", os.devnull, "--import-mode=prepend", *([] if known else ["-p", PLUGIN]), "."),
        ],
        cwd=ROOT / "examples" / "app",
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^5 passed", done.stdout, re.MULTILINE), done.stdout


def test_package_brings_the_plugin_along() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["entry-points"]["pytest11"] == {"blindsum": PLUGIN}
    code = f"import sys, pytest; before = set(sys.modules); import {PLUGIN}; print(*sorted(set(sys.modules) - before))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert all(name.startswith("blindsum") for name in loaded), loaded
    assert len(loaded) <= 4


def test_round_of_the_fake_backend_is_a_real_one_also_when_deliveries_are_lost() -> None:
    with FakeBackend(Count(values_max=9), task="things", join_s=20.0, decide_s=30.0, devices_min=4) as backend:
        device = Device.open(backend.kit())

        @device.task("things")
        @answer
        def things(_context: Context) -> list[int]:
            return [1, 2, 3]

        with device:
            whole = backend.round()
            backend.bus.lose(0.1)
            disturbed = backend.round(60.0)
        trust = backend.trust
    for number, done in enumerate((whole, disturbed), 1):
        assert done.answer is not None
        assert done.answer.value == (3 if "phone" in done.devices else 0)
        report = verify(done.transcript, trust=trust)
        assert report.valid and report.facts["round"] == number
    assert "phone" in whole.devices
