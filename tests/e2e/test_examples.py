"""Every example runs as it is, from any folder, and ends with its result."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from blindsum.training import models

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TRAINING = EXAMPLES.parent / "docs" / "TRAINING.md"
TUNED = "train_without_federation.py"  # its model's package does not install on Python 3.13
RESULTS = {
    "embed_device.py": r"result: (\d\d)\.\d% of 450 held-out digits, learnt from 4 clinics",
    "secure_sum.py": r"result: anna \+ ben \+ cleo \+ eva = \[15, 16, 19, 19\]",
    TUNED: r"result: (\d+)\.\d% of 100 unseen sheets",
}
FLEETS = {
    "hospitals.py": (4, r"0\.\d{3}"),
    "phones_activity.py": (4, r"\d+\.\d%"),
    "images.py": (3, r"\d+\.\d%"),
}
"""Rounds and the form of a score: these run in a reduced form; the others fetch tens of megabytes or simulate for a minute."""
LARGE = {"bank_fraud.py", "city_sensors.py", "wind_turbines.py"}
ACCURACY_MIN = 85
GRADIENTS = """
import numpy as np
from onnx import numpy_helper, parser
from blindsum.training import TrainingSession, build_artifact

head = '<ir_version: 8, opset_import: ["" : 18]> m (float[N,2] x) => (float[N,2] y)'
model = parser.parse_model(head + "{{ s = Add(x, b) y = Relu(s) }}")
model.graph.initializer.append(numpy_helper.from_array(np.zeros(2, np.float32), "b"))

def gradient():
    session = TrainingSession(build_artifact(model, loss="mse", optimizer="gradient"))
    return session.step(np.float32([[1, -1]]), np.float32([[0, -1]]))[1]

print(*gradient())
{rule}
print(*gradient())
"""


def test_every_example_has_a_result_to_check() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {*RESULTS, *FLEETS, *LARGE}


@pytest.mark.parametrize("name", [name for name in RESULTS if sys.version_info < (3, 13) or name != TUNED])
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


@pytest.mark.parametrize("name", FLEETS)
def test_fleet_example_says_what_owners_gain_and_draws_it(name: str, tmp_path: Path) -> None:
    rounds, score = FLEETS[name]
    picture = tmp_path / "picture.png"
    command = [sys.executable, str(EXAMPLES / name), "--rounds", str(rounds), "--out", str(picture)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr
    last = done.stdout.splitlines()[-1]
    form = rf"result: \S+ {score} alone, {score} together, {score} in one place; gain -?{score}, gap -?{score}, "
    assert re.fullmatch(form + r"better for \d+ of \d+ owners; sums exact", last), last
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_tutorial_is_part_of_its_example() -> None:
    tutorial, *_ = _python(TRAINING)
    assert tutorial in (EXAMPLES / TUNED).read_text("utf-8")
    assert len([line for line in tutorial.splitlines() if line.strip()]) <= 20


def test_rule_of_the_training_page_takes_the_place_of_the_built_in() -> None:
    _, rule = _python(TRAINING)
    done = subprocess.run(
        [sys.executable, "-c", GRADIENTS.format(rule=rule)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    before, after = (np.array(line.split(), float) for line in done.stdout.splitlines())
    assert np.array_equal(before, [1.0, 0.0])
    np.testing.assert_allclose(after, [1.0, 0.01])


def test_training_of_the_readme_runs(tmp_path: Path) -> None:
    _, _, alone = _python(EXAMPLES.parent / "README.md")
    onnx.save(models.mlp([4, 8, 3], seed=1), tmp_path / "net.onnx")
    data = "import numpy as np\nfeatures, targets = np.eye(4, dtype=np.float32), np.array([0, 1, 2, 0])\n"
    done = subprocess.run(
        [sys.executable, "-c", data + alone], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert set(ast.literal_eval(done.stdout)) == {"loss", "accuracy"}


def test_script_of_the_readme_runs_and_draws_its_report(tmp_path: Path) -> None:
    _, script, _ = _python(EXAMPLES.parent / "README.md")
    before = """
import numpy as np
from blindsum.fleet import Dataset
from blindsum.training import build_artifact, models

artifact = build_artifact(models.mlp([4, 8, 3], seed=1), loss="cross-entropy")
held_out = Dataset("four", np.eye(4, dtype=np.float32), np.array([0, 1, 2, 0]), 3)
one_part_a_device = [held_out] * 12
"""
    done = subprocess.run(
        [sys.executable, "-c", before + script.replace("rounds=20", "rounds=1") + "print(report.exact)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.endswith("True\n"), done.stderr
    assert (tmp_path / "report.html").stat().st_size > 10_000


def _python(document: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", document.read_text("utf-8"), re.MULTILINE | re.DOTALL)
