"""The walk-through of four organisations, as it stands in the document: a network namespace, a folder and a kit for each host."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

PARTIES = (1, 2, 3, 4)
CLINICS = 5
TIMEOUT_S = 240.0
LISTENING = " 0A "
"""State of a listening socket in /proc/net/tcp."""
APP = """\
import sys, time
import numpy as np
from blindsum.sdk import Device, Policy

device = Device.open("kit", policy=Policy(min_cohort=4))

@device.task("readmission")
def examples(context):
    dice = np.random.default_rng(int(sys.argv[1]))
    features = dice.normal(size=(32, 20)).astype(np.float32)
    yield features, (features.sum(axis=1) > 0).astype(np.int64)

with device:
    until = time.monotonic() + 220
    while not device.reason.startswith("for the next round"):
        assert time.monotonic() < until, device.reason
        time.sleep(0.05)
"""


@dataclass
class Hosts:
    """Hosts whose only cable leads to the broker's: a namespace and a folder each. Nothing is forwarded."""

    root: Path
    prefix: str = field(default_factory=lambda: f"bs{os.getpid()}")
    names: list[str] = field(default_factory=list)
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def add(self, name: str) -> Path:
        """A host and its folder; the first is the broker's."""
        space, number = f"{self.prefix}-{name}", len(self.names)
        _ip("netns", "add", space)
        self.names.append(name)
        _ip("-n", space, "link", "set", "lo", "up")
        address = "127.0.0.1"
        if number:
            address = f"10.213.{number}.1"
            broker = f"{self.prefix}-{self.names[0]}"
            _ip(
                "link",
                "add",
                f"v{number}",
                "netns",
                space,
                "type",
                "veth",
                "peer",
                "name",
                f"b{number}",
                "netns",
                broker,
            )
            _ip("-n", space, "addr", "add", f"10.213.{number}.2/30", "dev", f"v{number}")
            _ip("-n", space, "link", "set", f"v{number}", "up")
            _ip("-n", broker, "addr", "add", f"{address}/30", "dev", f"b{number}")
            _ip("-n", broker, "link", "set", f"b{number}", "up")
        etc = Path("/etc/netns") / space
        etc.mkdir(parents=True)
        (etc / "hosts").write_text(f"127.0.0.1 localhost\n{address} broker.example\n")
        folder = self.root / name
        folder.mkdir()
        return folder

    def run(self, name: str, script: str) -> str:
        ran = subprocess.run(
            self._command(name, script),
            cwd=self.root / name,
            env=_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, f"{name}: {ran.stdout}{ran.stderr}"
        return ran.stdout

    def start(self, name: str, script: str) -> subprocess.Popen[bytes]:
        with (self.root / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                self._command(name, script),
                cwd=self.root / name,
                env=_environment(),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.running.append(process)
        return process

    def close(self) -> None:
        for process in self.running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for name in self.names:
            _ip("netns", "del", f"{self.prefix}-{name}")
            shutil.rmtree(Path("/etc/netns") / f"{self.prefix}-{name}")

    def _command(self, name: str, script: str) -> list[str]:
        return ["ip", "netns", "exec", f"{self.prefix}-{name}", "bash", "-euc", script]


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    made = Hosts(tmp_path)
    yield made
    made.close()


@pytest.fixture
def blocks(pytestconfig: pytest.Config) -> Callable[[str], list[str]]:
    """The blocks of the walk-through whose first line names a host."""
    text = (pytestconfig.rootpath / "docs" / "OPERATING.md").read_text("utf-8")
    section = text.split("\n## Four organisations, step by step\n")[1].split("\n## ")[0]
    found = re.findall(r"^```bash\n# (.+?)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return lambda host: [script for name, script in found if name == host]


def test_walk_through_ends_in_a_sum_that_every_organisation_verifies(
    hosts: Hosts, blocks: Callable[[str], list[str]]
) -> None:
    [once], [serve], [coordinate] = blocks("registry"), blocks("broker"), blocks("coordinator")
    [party, verify] = blocks("party 1, 2, 3, 4")
    broker = hosts.add("broker")
    registry = hosts.add("registry")
    said = hosts.run("registry", once)
    kits = registry / "clinics"
    shutil.move(kits / "broker", broker)
    for number in PARTIES:
        shutil.move(kits / f"party-{number}", hosts.add(f"party-{number}"))
    shutil.move(kits / "coordinator", hosts.add("coordinator"))
    for number in range(1, CLINICS + 1):
        folder = hosts.add(f"clinic-{number}")
        shutil.move(kits / "devices" / f"clinic-{number:05d}", folder / "kit")
        (folder / "app.py").write_text(APP)
    assert {path.name for path in kits.iterdir()} == {"operator", "devices"} and not list((kits / "devices").iterdir())

    with (broker / "broker" / "mosquitto.conf").open("a") as config:
        config.write("user root\n")  # else it would become a user who may not read the test's folder
    hosts.start("broker", serve)
    _until(lambda: ":22B3 " in hosts.run("broker", "cat /proc/net/tcp /proc/net/tcp6"))  # 8883
    for number in PARTIES:
        hosts.start(f"party-{number}", party.replace("party-N", f"party-{number}"))
    coordinator = hosts.start(
        "coordinator", coordinate.replace("blindsum coordinator", "sleep 3; blindsum coordinator")
    )
    clinics = [hosts.start(f"clinic-{number}", f"exec python app.py {number}") for number in range(1, CLINICS + 1)]
    for clinic in clinics:
        assert clinic.wait(TIMEOUT_S) == 0, "".join(log.read_text() for log in hosts.root.glob("clinic-*.log"))
    transcript = hosts.root / "coordinator" / "coordinator" / "transcripts" / "readmission-000001.blindsum"
    _until(lambda: transcript.exists() or coordinator.poll() is not None)

    checksum = said.split()[-2]
    for number in PARTIES:
        host = f"party-{number}"
        log = (hosts.root / f"{host}.log").read_text()
        assert log.startswith(f"{checksum}  party-{number}/trust.cbor\n")
        assert "problem" not in log
        sockets = hosts.run(host, "cat /proc/net/tcp /proc/net/tcp6")
        assert LISTENING not in sockets, "a party waits for nobody"
        with pytest.raises(AssertionError):  # nobody but the broker is on its cable
            hosts.run(host, "timeout 2 bash -c '</dev/tcp/10.213.1.2/22'")
        shutil.copy(transcript, hosts.root / host)
        report = json.loads(hosts.run(host, verify.replace("party-N", f"party-{number}").rstrip() + " --json"))
        assert report["valid"] and report["trust_pinned"] and report["survivors"] >= CLINICS - 1
        assert {path.name for path in (hosts.root / host).iterdir()} == {f"party-{number}", transcript.name}


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def _environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}{os.pathsep}/usr/sbin"}


def _until(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + TIMEOUT_S
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.1)
