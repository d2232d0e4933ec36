"""Scores, tables and wheels of the fleet examples."""

from __future__ import annotations

import hashlib
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from blindsum.fleet.comparison import Comparison, Metric, accuracy, area_under_curve, draw, rms_error
from blindsum.fleet.wheels import wheel_file
from blindsum.protocol.errors import BlindsumError

ERROR = Metric("error", rms_error(1.0), False, ".1f")


def comparison(**changes: object) -> Comparison:
    given = {
        "title": "t",
        "metric": ERROR,
        "names": ("a", "b"),
        "alone": (3.0, 1.0),
        "together": (1.0, 1.5),
        "pooled": (0.5, 1.0),
        "exact": True,
        "rounds": 2,
        "judge": "own",
    }
    return Comparison(**{**given, **changes})  # type: ignore[arg-type]


def test_area_under_curve_is_that_of_scikit_learn_with_ties() -> None:
    dice = np.random.default_rng(1)
    for _ in range(5):
        targets = dice.integers(0, 2, 60)
        outputs = np.round(dice.random((60, 2)), 1).astype(np.float32)
        assert area_under_curve(outputs, targets) == pytest.approx(roc_auc_score(targets, outputs[:, 1]))


def test_scores_of_known_predictions() -> None:
    assert accuracy(np.float32([[1, 0], [0, 1], [1, 0]]), np.array([0, 1, 1])) == pytest.approx(2 / 3)
    assert rms_error(10.0)(np.float32([[1], [2]]), np.float32([[1], [4]])) == pytest.approx(10 * 2**0.5)


def test_gain_and_gap_count_in_the_direction_that_is_better() -> None:
    result = comparison().result()
    assert (
        "2.0 alone, 1.2 together, 0.8 in one place; gain 0.8, gap 0.5, better for 1 of 2 owners; sums exact" in result
    )
    upwards = comparison(metric=Metric("accuracy", accuracy, True, ".1f")).result()
    assert "gain -0.8, gap -0.5, better for 1 of 2" in upwards
    assert comparison().lines()[-1].split() == ["mean", "2.0", "1.2", "0.8"]


@pytest.mark.parametrize("count", [2, 60])
def test_picture_of_few_and_many_owners(count: int, tmp_path: Path) -> None:
    names = tuple(f"owner {number}" for number in range(count))
    worlds = {world: tuple(np.linspace(1, 2, count)) for world in ("alone", "together", "pooled")}
    draw(comparison(names=names, **worlds), tmp_path / "p.png", source="nobody")
    assert (tmp_path / "p.png").stat().st_size > 10_000


def wheel(folder: Path, content: bytes) -> str:
    with zipfile.ZipFile(folder / "shed-1.0-py3-none-any.whl", "w") as file:
        file.writestr("shed/tools.csv", content)
        file.writestr("shed-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: shed\nVersion: 1.0\n")
        file.writestr("shed-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr("shed-1.0.dist-info/RECORD", "")
    return hashlib.sha256(content).hexdigest()


def test_file_of_a_wheel_is_fetched_once_and_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "index").mkdir()
    digest = wheel(tmp_path / "index", b"spade,hoe")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    said: list[str] = []
    cache = tmp_path / "cache"
    for _ in range(2):
        assert wheel_file("shed", "1.0", "shed/tools.csv", digest, tell=said.append, cache=cache) == b"spade,hoe"
    assert len(said) == 1 and "shed==1.0" in said[0]
    with pytest.raises(BlindsumError, match=r"fleet-package-missing.*not the file"):
        wheel_file("shed", "1.0", "shed/tools.csv", "0" * 64, tell=said.append, cache=cache)
    with pytest.raises(BlindsumError, match=rf"fleet-package-missing.*{Path(sys.executable).name}.*barn==1.0"):
        wheel_file("barn", "1.0", "barn/hay.csv", digest, tell=said.append, cache=cache)
