"""Models that other people trained: their heads are fine-tuned."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Any

import onnx
import pytest
from numpy.typing import NDArray

from blindsum.training import SGD, TrainingSession, build_artifact

from .zoo.pretrained import PRETRAINED, Pretrained, constants

Array = NDArray[Any]
STEPS = 4

NAMES = [name for name, given in PRETRAINED.items() if given.installs]


@pytest.mark.parametrize("name", NAMES)
def test_head_of_a_pretrained_model_is_fine_tuned(name: str) -> None:
    given = PRETRAINED[name]
    model = given.model()
    named = [name for pattern in given.head for name in fnmatch.filter(constants(model), pattern)]
    assert sorted(named) == sorted(_require_learning(given, model, "head"))


def _require_learning(given: Pretrained, model: onnx.ModelProto, names: str | Sequence[str]) -> list[str]:
    """Train a few steps on one batch; returns what is trained."""
    artifact = build_artifact(
        model, loss=given.loss, trainable=names, optimizer=SGD(lr=given.lr), dimensions=given.dimensions
    )
    session = TrainingSession(artifact)
    inputs, targets = given.batch()
    losses = [session.step(inputs, targets) for _ in range(STEPS)]
    assert sorted(losses, reverse=True) == losses
    assert losses[-1] < losses[0]
    return [name for name, _ in session.layout]
