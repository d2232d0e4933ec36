"""Every example runs as it is, from any folder, and ends with its result."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
RESULTS = {
    "embed_device.py": r"result: (\d\d)\.\d% of 450 held-out digits, learnt from 4 clinics",
    "secure_sum.py": r"result: anna \+ ben \+ cleo \+ eva = \[15, 16, 19, 19\]",
    "train_without_federation.py": r"result: (\d\d)\.\d% of 450 held-out digits",
}
ACCURACY_MIN = 85


def test_every_example_has_a_result_to_check() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(RESULTS)


@pytest.mark.parametrize("name", RESULTS)
def test_example_runs_as_is_and_ends_with_its_result(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr
    found = re.match(RESULTS[name], done.stdout.splitlines()[-1])
    assert found, done.stdout
    assert all(int(accuracy) >= ACCURACY_MIN for accuracy in found.groups())
    assert not list(tmp_path.iterdir())
