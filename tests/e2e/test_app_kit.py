"""What app developers test with: the example app's own tests, and that the plugin costs others nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest

from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.queries import Answer, Count, Mean
from blindsum.protocol.transcript import verify
from blindsum.sdk import Context, Device, Policy, answer, update
from blindsum.testing.backend import FakeBackend
from blindsum.testing.recording import Recording, record
from blindsum.training import build_artifact, models

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
    assert re.search(r"^6 passed", done.stdout, re.MULTILINE), done.stdout


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


def test_same_answer_again_and_again_outlives_the_results_that_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal sums are one blob, which the results that are kept still need when an old one goes."""
    monkeypatch.setattr("blindsum.protocol.machines.desk.RESULTS_KEPT", 2)
    with FakeBackend(Count(values_max=9), task="things", devices=0, join_s=20.0, decide_s=30.0) as backend:
        for number in range(1, 6):
            done = backend.round(60.0)
            assert (done.number, done.answer) == (number, Answer(devices=3, value=0))


# -- before anything leaves -------------------------------------------------------------------------------------------


def test_dry_run_of_a_query_says_the_integers_that_would_be_added_and_a_recording_keeps_them(tmp_path: Path) -> None:
    values, charging = [20, 30.5, 1000], [True]
    with FakeBackend(Mean(low=0, high=1000, digits=1, values_max=9), task="t", join_s=20.0, devices_min=4) as backend:
        policy = Policy(require="charging", conditions=lambda: {"charging": charging[0]})
        device = Device.open(backend.kit(), policy=policy)

        @device.task("t")
        @answer
        def measured(context: Context) -> list[float]:
            assert context.query == Mean(low=0, high=1000, digits=1, values_max=9)
            return values

        with pytest.raises(BlindsumError, match="model-unknown"):
            device.dry_run("t")
        with device:
            done = backend.round()
            left = device.uses()
            run = device.dry_run("t")
            assert device.uses() == left
        assert done.statistics == run.statistics == (3, 200 + 305 + 1000)
        assert (run.examples, run.memory, run.version) == (3, 0, 1)
        assert "that this device answers, and 2 of its answer" in str(run) and "at least 2 devices" in str(run)
        charging[0] = False
        with pytest.raises(BlindsumError, match="condition-unmet: not charging"):
            device.dry_run("t")
        record(device, "t").save(tmp_path / "mean.recording")
    recording = Recording.load(tmp_path / "mean.recording")  # and all of the backend is gone
    assert recording.replay(device).differences == ()
    values.append(1)
    assert recording.replay(device).differences == ("statistic 0: 4, recorded 3", "statistic 1: 1515, recorded 1505")
    assert recording.replay(answer(lambda _context: [30.5, 20, 70, 30])).differences == ("statistic 0: 4, recorded 3",)


def test_dry_run_and_recording_of_own_training_are_what_the_sum_gets(tmp_path: Path) -> None:
    with FakeBackend(build_artifact(models.logistic(3, 1), loss="binary-cross-entropy"), join_s=20.0) as backend:
        device = Device.open(backend.kit())

        @device.task("task")
        @update
        def learn(_context: Context, parameters: np.ndarray) -> tuple[np.ndarray, int]:
            return parameters + np.float32([1, 2, 3, 4]), 5

        with device:
            done = backend.round()
            run = device.dry_run("task")
        assert "phone" in done.devices and done.statistics == run.statistics == (5, 0)
        assert (run.examples, run.memory) == (5, 0) and "the change of 4 shared parameters" in str(run)
        recording = record(device, "task")
        assert np.allclose(recording.update, done.mean * done.weight / 5, atol=0.01)
        assert device.model("task").activate() and device.model("task").predict(np.ones((1, 3))).shape == (1, 1)
        recording.save(tmp_path / "r")
    again = Recording.load(tmp_path / "r")
    assert (again.round, again.statistics) == (1, (5, 0)) and np.array_equal(again.update, recording.update)
    assert again.replay(update(lambda _context, _parameters: ([1, 2, 3, 5], 5))).differences == (
        "update: up to 1 from the recorded one, whose length is 5.48",
    )
    (tmp_path / "r").write_bytes((tmp_path / "r").read_bytes()[:-1])
    with pytest.raises(BlindsumError, match="recording-invalid"):
        Recording.load(tmp_path / "r")
