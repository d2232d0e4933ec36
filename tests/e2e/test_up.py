"""`blindsum up`: a whole fleet from its folder, watched on the terminal and in a real browser, and mended when it breaks."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from selenium import webdriver

from blindsum.backend.provision import FleetFolder, create_fleet, enrol
from blindsum.backend.tasks import Plan, change_control, create_task, save_task
from blindsum.protocol.params import ThreatModel
from blindsum.protocol.transcript import verify
from blindsum.runtime.kit import load_trust
from blindsum.sdk import Context, Device
from blindsum.training import build_artifact, models

DEVICES, ROUNDS = 5, 40
WAIT_S = 60.0
REST_S = 2.5
ARTIFACT = build_artifact(models.mlp([4, 8, 3], seed=1), loss="cross-entropy")
PLAN = Plan(
    name="wear",
    threat=ThreatModel(malicious_parties=1, corrupt_permille=50, dropped_permille=500, cohort_min=2),
    devices_min=4,
    devices_max=DEVICES,
    rounds=ROUNDS,
    join_s=2.0,
    upload_s=6.0,
    decide_s=4.0,
)


class Up:
    """A running `blindsum up`, with its devices in this process."""

    def __init__(self, folder: FleetFolder, page: str) -> None:
        self.folder, self.page = folder, f"http://{page}"
        self.events: list[dict[str, Any]] = []
        command = [sys.executable, "-m", "blindsum.backend.cli", "up", str(folder.root), "--json"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        threading.Thread(target=self._hear, daemon=True).start()

    def _hear(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.events.append(json.loads(line))

    def wait(self, wanted: Callable[[dict[str, Any]], bool], count: int = 1) -> None:
        """Until `count` events are as wanted."""
        end = time.monotonic() + WAIT_S
        while sum(map(wanted, list(self.events))) < count:
            assert self.process.poll() is None
            assert time.monotonic() < end, self.events[-20:]
            time.sleep(0.05)

    def finished(self, rounds: int) -> None:
        self.wait(lambda event: event["event"] == "round-finished" and event["process"] == "coordinator", rounds)

    def begun(self) -> set[int]:
        """Rounds of the task that have begun."""
        return {event["round"] for event in list(self.events) if event["event"] == "phase" and event["task"] == "wear"}

    def children(self) -> dict[str, int]:
        """Process ids of the roles, by the last part of their command line."""
        listed = subprocess.run(["ps", "-ewwo", "pid,args"], capture_output=True, text=True, check=True).stdout
        found = re.findall(
            rf"^\s*(\d+) .* (?:party|coordinator) ({re.escape(str(self.folder.root))}/\S+)$", listed, re.MULTILINE
        )
        return {Path(kit).name: int(pid) for pid, kit in found}

    def broker(self) -> int:
        """Process id of the embedded broker."""
        command = ["ps", "--ppid", str(self.process.pid), "-wwo", "pid,args"]
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        [pid] = re.findall(r"^\s*(\d+) .*blindsum\.backend\.broker ", listed, re.MULTILINE)
        return int(pid)


@pytest.fixture
def up(tmp_path: Path, free_port: int) -> Iterator[Up]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        page = f"127.0.0.1:{probe.getsockname()[1]}"
    folder = create_fleet(
        tmp_path / "fleet", fleet="up", malicious_parties=1, broker=f"mqtt://127.0.0.1:{free_port}", page=page
    )
    save_task(create_task(folder.operator, ARTIFACT, PLAN)[0], folder.coordinator)
    kits = enrol(folder, [f"turbine-{number}" for number in range(DEVICES)])
    running = Up(folder, page)
    with ExitStack() as devices:
        for kit in kits:
            device = Device.open(kit)
            device.task("wear")(_examples)
            devices.enter_context(device)
        yield running
        if running.process.poll() is None:
            running.process.send_signal(signal.SIGINT)
            assert running.process.wait(20) == 0


def _examples(context: Context) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    dice = np.random.default_rng(context.round)
    x = dice.normal(size=(24, 4)).astype(np.float32)
    yield x, np.argmax(x[:, :3], axis=1)


def test_fleet_comes_up_finishes_rounds_and_starts_a_killed_party_and_broker_again(up: Up) -> None:
    up.finished(2)
    os.kill(up.children()["party-2"], signal.SIGKILL)
    up.wait(lambda event: event["process"] == "party-2" and event["event"] == "connected", 2)
    connected = len([event for event in up.events if event["event"] == "connected"])
    os.kill(up.broker(), signal.SIGKILL)
    up.wait(lambda event: event["event"] == "connected", connected + 5)
    done = len([event for event in up.events if event["event"] == "round-finished"])
    up.finished(done + 2)
    trust = load_trust(up.folder.operator)
    transcripts = sorted((up.folder.coordinator / "transcripts").glob("*.blindsum"))
    assert len(transcripts) >= 3
    assert all(verify(path.read_bytes(), trust=trust).valid for path in transcripts)


def test_task_rests_goes_on_and_ends_as_it_is_told_and_a_new_one_is_taken_up(up: Up) -> None:
    kit = up.folder.coordinator
    up.finished(1)
    change_control(kit, "wear", state="paused")
    up.wait(lambda event: event["event"] == "task" and event["state"] == "paused")
    time.sleep(REST_S)  # the round that runs goes on to its end
    begun = up.begun()
    time.sleep(REST_S)
    assert up.begun() == begun
    change_control(kit, "wear", state="running")
    up.wait(lambda event: event["event"] == "phase" and event["phase"] == "offer", len(begun) + 1)
    change_control(kit, "wear", state="stopped")
    up.wait(lambda event: event["event"] == "task" and event["state"] == "stopped")
    files, _ = create_task(up.folder.operator, ARTIFACT, replace(PLAN, name="tear", rounds=1))
    place = kit / "tasks" / "tear"
    place.mkdir()
    (place / "task.cose").write_bytes(files.record)  # as whoever copies a folder writes it, one file after the other
    up.wait(lambda event: event["event"] == "task-refused" and event["task"] == "tear")
    (place / "plan.bin").write_bytes(files.plan)
    (place / "model.bin").write_bytes(files.model)
    up.wait(lambda event: event["event"] == "phase" and event["task"] == "tear")


def test_nothing_goes_on_running_when_up_is_killed(up: Up) -> None:
    up.finished(1)
    children = up.children()
    assert set(children) == {"coordinator", "party-1", "party-2", "party-3", "party-4"}
    up.process.kill()
    end = time.monotonic() + WAIT_S
    while up.children():
        assert time.monotonic() < end, up.children()
        time.sleep(0.1)


def test_watch_shows_the_same_board_as_the_page(up: Up, browser: webdriver.Chrome) -> None:
    up.finished(3)
    command = [sys.executable, "-m", "blindsum.backend.cli", "watch", up.page, "--json"]
    board = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert board["role"] == "coordinator" and board["connected"]
    assert board["tasks"][0]["finished"] >= 3 and board["devices_online"] == DEVICES

    browser.get(up.page)
    end = time.monotonic() + WAIT_S
    while "rounds done" not in browser.page_source:
        assert time.monotonic() < end
        time.sleep(0.1)
    shown = browser.execute_script("return document.body.innerText")
    for word in (
        "wear",
        "connected to the broker",
        "in the sum",
        "party-4 here",
        f"{DEVICES} devices here",
        "Training loss",
    ):
        assert word in shown
    headline = "return document.querySelector('article h3').innerText"  # at once: the page replaces its elements
    before = browser.execute_script(headline)
    end = time.monotonic() + WAIT_S
    while browser.execute_script(headline) == before:  # it is live
        assert time.monotonic() < end
        time.sleep(0.1)
    for width in (320, 1200):
        for scheme in ("light", "dark"):
            _emulate(browser, width, scheme)
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width
            assert browser.execute_script(_LEAST_CONTRAST) >= 4.5, (width, scheme)
    assert not browser.get_log("browser")  # no error, nothing refused by the content security policy


def _emulate(browser: webdriver.Chrome, width: int, scheme: str) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)


_LEAST_CONTRAST = """
const part = (value) => { const c = value / 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
const light = (colour) => {
  const [r, g, b] = colour.match(/[\\d.]+/g).map(Number);
  return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
};
const ground = (element) => {
  for (let at = element; at; at = at.parentElement) {
    const colour = getComputedStyle(at).backgroundColor;
    if (!colour.endsWith(", 0)")) return colour;
  }
};
let least = 21;
for (const element of document.querySelectorAll("body *")) {
  if (![...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim())) continue;
  const style = getComputedStyle(element);
  const [a, b] = [light(element.namespaceURI.endsWith("svg") ? style.fill : style.color), light(ground(element))];
  least = Math.min(least, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
}
return least;
"""
"""WCAG 2.2, 1.4.3: the least contrast of any text with what is behind it."""
