"""The tutorial is run: its commands and its app as they stand, but for the two ports."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

CLINICS = 6
TIMEOUT_S = 200.0
ACCURACY_MIN = 0.9


@pytest.fixture
def tutorial(pytestconfig: pytest.Config) -> tuple[list[str], str]:
    """Its blocks for the shell, and its app; on free ports."""
    text = (pytestconfig.rootpath / "docs" / "TUTORIAL.md").read_text("utf-8")
    for port in ("1883", "8480"):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            text = text.replace(port, str(probe.getsockname()[1]))
    [app] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return re.findall(r"```bash\n(.*?)```", text, re.DOTALL), app


@pytest.fixture
def environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


@pytest.fixture
def stack(
    tutorial: tuple[list[str], str], environment: dict[str, str], tmp_path: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """What the first terminal shows, once all before it was done."""
    [fleet, task, up, *_], app = tutorial
    (tmp_path / "clinic.py").write_text(app)
    for block in (fleet, task):
        subprocess.run(["bash", "-euc", block], cwd=tmp_path, env=environment, check=True, timeout=TIMEOUT_S)
    settings = tmp_path / "clinics" / "coordinator" / "coordinator.toml"
    settings.write_text(
        settings.read_text().replace("127.0.0.1:8480", "127.0.0.1:0")
    )  # another fleet may have the page's
    process = subprocess.Popen(
        ["bash", "-euc", f"exec {up}"], cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, start_new_session=True
    )
    yield process
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(20)


def test_six_clinics_train_a_model_that_all_of_them_can_use(
    stack: subprocess.Popen[bytes], tutorial: tuple[list[str], str], environment: dict[str, str], tmp_path: Path
) -> None:
    [_, _, _, devices, after], _ = tutorial
    ran = subprocess.run(
        ["bash", "-euc", devices],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=TIMEOUT_S,
    )
    assert stack.poll() is None
    accuracies = [float(value) for value in re.findall(r"clinic \d: .*?accuracy\D+([\d.]+)", ran.stdout)]
    assert len(accuracies) == CLINICS, ran.stdout + ran.stderr
    assert min(accuracies) >= ACCURACY_MIN, ran.stdout
    transcript = tmp_path / after.split("verify ")[1].split()[0]
    until = time.monotonic() + 20
    while not transcript.exists():
        assert time.monotonic() < until
        time.sleep(0.1)
    ran = subprocess.run(
        ["bash", "-euc", after], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.splitlines()[-1] == "valid"
