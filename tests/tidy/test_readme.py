"""The README is run: its commands as they stand, and its app on six devices, to a sum that verifies."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

DEVICES = 6
TIMEOUT_S = 120.0
BESIDE_THE_README = """\
import time
import numpy as np

def my_local_batches():
    dice = np.random.default_rng(1)
    for _ in range(2):
        features = dice.normal(size=(32, 20)).astype(np.float32)
        yield features, (features.sum(axis=1) > 0).astype(np.int64)

class app:
    @staticmethod
    def run():
        until = time.monotonic() + 100
        while not device.reason.startswith("for the next round"):
            assert time.monotonic() < until, device.reason
            time.sleep(0.05)

"""
"""What the README leaves to its reader: data, and an app that here runs until a round is finished."""

Fences = Callable[[Path], list[tuple[str, str]]]


@pytest.fixture(scope="module")
def section(root: Path, fences: Fences) -> tuple[str, list[str]]:
    """(the app, the shell blocks of "By hand") of the README."""
    readme = root / "README.md"
    app, *_ = [code for language, code in fences(readme) if language == "python"]
    by_hand = readme.read_text("utf-8").split("\n## By hand\n")[1].split("\n## ")[0]
    return app, re.findall(r"^```bash\n(.*?)^```$", by_hand, re.MULTILINE | re.DOTALL)


@pytest.fixture
def environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


@pytest.fixture
def port() -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number = str(probe.getsockname()[1])
    yield number


def test_app_is_ten_lines_and_uses_what_the_sdk_exports(section: tuple[str, list[str]]) -> None:
    import blindsum.sdk

    app, _ = section
    compile(app, "README.md", "exec")
    lines = [line for line in app.splitlines() if line.strip()]
    assert len(lines) <= 10
    [names] = re.findall(r"^from blindsum.sdk import (.+)$", app, re.MULTILINE)
    assert set(names.split(", ")) <= set(blindsum.sdk.__all__)


def test_commands_and_app_of_the_readme_end_in_a_verified_sum(
    section: tuple[str, list[str]], environment: dict[str, str], port: str, tmp_path: Path
) -> None:
    app, (once, roles, verify) = section
    subprocess.run(
        ["bash", "-euc", once.replace("1883", port)], cwd=tmp_path, env=environment, check=True, timeout=TIMEOUT_S
    )
    running = [_start(f"{roles.replace('1883', port)}\nwait", tmp_path, environment)]
    try:
        kits = sorted((tmp_path / "clinics" / "devices").iterdir())
        assert len(kits) == DEVICES
        for kit in kits:
            place = tmp_path / f"app-{kit.name}"
            place.mkdir()
            (place / "kit").symlink_to(kit)
            (place / "app.py").write_text(BESIDE_THE_README + app)
            running.append(_start("exec python app.py", place, environment))
        for device in running[1:]:
            assert device.wait(TIMEOUT_S) == 0
        _wait_for(tmp_path / verify.split()[2])
        command = ["bash", "-euc", verify]
        checked = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stdout + checked.stderr
        assert re.search(rf"survivors +[{DEVICES - 1}{DEVICES}]\n", checked.stdout), checked.stdout
        assert checked.stdout.splitlines()[-1] == "valid"
    finally:
        for process in running:
            _kill(process)


def _start(script: str, place: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["bash", "-uc", script], cwd=place, env=environment, stdout=subprocess.DEVNULL, start_new_session=True
    )


def _kill(process: subprocess.Popen[bytes]) -> None:
    """The shell and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _wait_for(path: Path) -> None:
    until = time.monotonic() + TIMEOUT_S
    while not path.exists():
        assert time.monotonic() < until, f"no {path.name}"
        time.sleep(0.05)
