"""docs/SDK.md is run, block by block, on a real kit; what it promises to be public is what is there."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

import blindsum.sdk
from blindsum.backend.broker import EmbeddedBroker
from blindsum.backend.provision import create_fleet, enrol
from blindsum.backend.tasks import Plan, create_task, criterion
from blindsum.protocol.eligibility import KINDS
from blindsum.protocol.params import ThreatModel
from blindsum.protocol.view import RoundView, TaskView, open_task
from blindsum.runtime.kit import load_trust
from blindsum.sdk import Device, State
from blindsum.training import build_artifact, models

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "SDK.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
TASK = "fraud-detector"
X = np.sin(np.arange(40 * 4)).reshape(40, 4).astype(np.float32)
Y = np.arange(40) % 3


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the page leaves to its reader: a kit with two versions of a model, an app, data, an ONNX file."""
    with EmbeddedBroker() as broker:
        url = broker.url
    fleet = create_fleet(tmp_path / "fleet", fleet="f", malicious_parties=1, broker=url)
    kit = enrol(fleet, ["phone"])[0]
    (tmp_path / "kit").symlink_to(kit)
    monkeypatch.chdir(tmp_path)
    net = models.mlp([4, 8, 3], seed=1)
    renamed = {item.name: item.name if at < 2 else f"head.{at}" for at, item in enumerate(net.graph.initializer)}
    for node in net.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    for item in net.graph.initializer:
        item.name = renamed[item.name]
    onnx.save(net, "net.onnx")
    artifact = build_artifact(net, loss="cross-entropy")
    threat = ThreatModel(malicious_parties=1, corrupt_permille=0, dropped_permille=300, cohort_min=5)
    files, _ = create_task(
        fleet.operator, artifact, Plan(name=TASK, threat=threat, devices_min=10, devices_max=100, rounds=20)
    )
    base = open_task(load_trust(fleet.operator), files.record)
    assert isinstance(base, TaskView)

    def stock(device: Device) -> None:
        for number in (1, 2):
            device.model(TASK).keep(RoundView(base, number, None, b"", (), b""), artifact, files.model)  # type: ignore[arg-type]

    async def until_done() -> None:
        await asyncio.sleep(0)

    return {
        "app": SimpleNamespace(run=lambda: None, until_done=until_done),
        "my_local_batches": lambda: iter([(X, Y)]),
        "my_rows": lambda: [1, 2, 3],
        "battery": SimpleNamespace(charging=True),
        "network": SimpleNamespace(metered=False),
        "sha256_of_my_artifact": hashlib.sha256(artifact).hexdigest(),
        "key_from_secure_storage": lambda: bytes(range(32)),
        "features": X,
        "targets": Y,
        "stock": stock,
    }


def test_every_block_of_the_page_runs(world: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    blocks = [code for language, code in BLOCKS if language == "python"]
    assert len(blocks) == 11
    for code in blocks:
        if "dry_run" in code or "device.model(" in code:
            world["stock"](world["device"])
        exec(compile(code, "docs/SDK.md", "exec"), world)
    said = capsys.readouterr().out
    assert "phone connecting" in said and "state {'state': 'stopped'" in said
    assert "what leaves:" in said and "False broker" in said
    assert world["prediction"].shape == (40, 3) and world["model"].active == 1
    assert world["device"].state is State.STOPPED


def test_shell_block_of_the_page_is_a_command_with_criteria_that_exist() -> None:
    [line] = [code for language, code in BLOCKS if language == "bash"]
    words = shlex.split(line)
    given = [words[at + 1] for at, word in enumerate(words) if word == "--eligible"]
    assert [criterion(text).kind for text in given] == ["examples-min", "once-per", "share", "retry"]
    help_text = subprocess.run(
        [sys.executable, "-m", "blindsum.backend.cli", "task", "create", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "200"},
    ).stdout
    assert "--eligible" in help_text


def test_every_criterion_and_state_is_on_the_page_and_no_other() -> None:
    kinds = re.findall(r"^\| `([a-z-]+)=", PAGE, re.MULTILINE)
    assert kinds == [kind for kind, _ in KINDS]
    table = PAGE.split("| state | means |")[1].split("\n\n")[0]
    named = {
        word for row in table.splitlines() for word in re.findall(r"`(\w+)`", row.split("|")[1] if "|" in row else "")
    }
    assert named == {state.value for state in State}


def test_public_surface_is_what_the_page_lists() -> None:
    listed = {
        name: set(re.findall(r"`(\w+)`", rest))
        for name, rest in re.findall(
            r"^\| `([A-Z]\w+)` \| (.*) \|$", PAGE.split("| attribute of | are |")[1], re.MULTILINE
        )
    }
    for name, attributes in listed.items():
        kind = getattr(blindsum.sdk, name)
        fields = {field.name for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set()
        public = {key for key in vars(kind) if not key.startswith("_")} | fields
        inside = {"Model": {"keep", "keep_personal", "personal", "newest"}, "Events": {"put"}}.get(name, set())
        assert public - inside == attributes, name
    mentioned = set(re.findall(r"`(\w+)`", PAGE.split("## Stability")[1].split("| attribute")[0]))
    assert set(blindsum.sdk.__all__) <= mentioned
    policy = next(code for _, code in BLOCKS if "Policy(\n" in code)
    assert set(re.findall(r"^    (\w+)=", policy, re.MULTILINE)) == {
        field.name for field in dataclasses.fields(blindsum.sdk.Policy)
    }
