"""An operator looks at what a task has made, takes it out as ONNX, goes back to an earlier version, and stages the task."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from typer.testing import CliRunner

from blindsum.backend.cli import app
from blindsum.backend.registry import version
from blindsum.protocol.eligibility import place_of
from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.transcript import read_records, verify
from blindsum.training import models
from tests.e2e.smallfleet import DEVICES, TASK, SmallFleet, make_fleet
from tests.unit.test_tracking import scalars

WAIT_S = 120.0


def run(*arguments: object) -> Any:
    """A command with --json, and what it says."""
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1])


def play(fleet: SmallFleet, until: int) -> None:
    """Until this many rounds have transcripts."""

    def heard(_name: str, _event: dict[str, Any]) -> None:
        fleet.over = len(fleet.transcripts) >= until

    fleet.watch(WAIT_S, heard)
    fleet.over = False


def rest(fleet: SmallFleet) -> int:
    """Pause the task, and wait until the round that was running is over. Returns the last round with a transcript."""
    run("task", "pause", fleet.folder.root, TASK)
    seen = []

    def heard(name: str, event: dict[str, Any]) -> None:
        seen.append((name, event["event"], event.get("state"), event.get("phase")))
        paused = ("coordinator", "task", "paused", None) in seen
        fleet.over = paused and event["event"] == "tick" and fleet.at_rest

    fleet.watch(WAIT_S, heard)
    fleet.over = False
    return int(run("task", "show", fleet.folder.root, TASK)["last_round"])


def test_task_is_looked_at_exported_rolled_back_and_staged(tmp_path: Path) -> None:
    fleet = make_fleet(tmp_path, rounds=1000)
    root = fleet.folder.root
    settings = fleet.folder.coordinator / "coordinator.toml"
    settings.write_text(settings.read_text() + '\n[tracking]\ntensorboard = "runs"\n')
    with pytest.raises(BlindsumError, match="rollback-refused"):
        run("task", "rollback", root, TASK, "--round", 0)
    try:
        fleet.start()
        play(fleet, 2)
        last = rest(fleet)
        listed = run("model", "list", root, TASK)["tasks"][TASK]
        rounds = [made["round"] for made in listed]
        assert rounds == sorted(fleet.transcripts) and rounds[-1] == last
        assert [made["parent"] for made in listed] == [0, *rounds[:-1]]
        assert all(made["loss"] > 0 and made["contributors"] <= DEVICES and len(made["voters"]) >= 3 for made in listed)
        shown = run("model", "show", root, TASK, "--round", rounds[0])
        assert shown == {**listed[0], "verified": True}

        onnx.save(models.mlp([64, 32, 10], seed=1), tmp_path / "net.onnx")
        trained = tmp_path / "trained.onnx"
        exported = run("model", "export", tmp_path / "net.onnx", root, TASK, trained, "--round", rounds[0])
        _, flat = version(fleet.folder.coordinator, TASK, rounds[0])
        weights = [numpy_helper.to_array(tensor).ravel() for tensor in onnx.load(trained).graph.initializer]
        assert sorted(np.concatenate(weights).tolist()) == sorted(np.frombuffer(flat, "<f4").tolist())
        assert exported["sha256"] == listed[0]["model"] == hashlib.sha256(flat).hexdigest()

        run("task", "rollback", root, TASK, "--round", rounds[0])
        staged = sorted(place_of(f"device-{number}", TASK) for number in range(DEVICES))
        run("task", "stage", root, TASK, (staged[5] + 1) / 10)
        run("task", "resume", root, TASK)
        play(fleet, len(rounds) + 1)
        back = run("model", "list", root, TASK)["tasks"][TASK][-1]
        assert (back["parent"], back["rolled_back"]) == (rounds[0], True)
        path = fleet.transcripts[back["round"]]
        report = verify(path.read_bytes(), trust=fleet.base.trust)
        assert report.valid and report.facts["rolled_back_after"] == last
        assert read_records(path.read_bytes())["model"][0] == flat
        assert report.facts["devices"] <= 6
        fleet.judge()
    finally:
        fleet.stack.__exit__()

    tracked = scalars(fleet.folder.coordinator / "runs" / TASK)
    assert {("loss", number) for number in rounds} <= tracked.keys()
    assert tracked["survivors", rounds[0]] == listed[0]["contributors"]

    damaged = fleet.transcripts[rounds[0]]
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    with pytest.raises(BlindsumError, match=r"version-unknown.*does not verify"):
        version(fleet.folder.coordinator, TASK, rounds[0])
    with pytest.raises(BlindsumError, match="version-unknown"):
        version(fleet.folder.coordinator, TASK, 999)
