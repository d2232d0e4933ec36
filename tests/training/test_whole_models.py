"""Whole models, from PyTorch's exporters to fifty steps, beside PyTorch."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from functools import cache

import numpy as np
import onnx
import pytest
import torch

from blindsum.bench.zoo import Example, example, export
from blindsum.training import SGD, TrainingSession, build_artifact

from .zoo.twins import Array, distinguish, gradient, losses, places
from .zoo.variants import VARIANTS

BATCH, STEPS = 6, 50
GRADIENT_ERROR_MAX = 1e-4  # of an element, relative to the norm of its tensor's gradient
NOISE = 1e-6  # what is left of a gradient that is zero by symmetry, relative to the norm of the whole
LOSS_ERROR_MAX = 2e-3  # relative, over fifty steps in float32

EXPORTS = [("MLP", "torchscript"), ("MLP", "dynamo")]


@cache
def twins(name: str, exporter: str) -> tuple[Example, onnx.ModelProto]:
    family, norm, _ = name.partition(" with ")
    made = VARIANTS[name]() if name in VARIANTS else example(family, norm=bool(norm))
    distinguish(made.net)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's exporters announce their own ends
        model = export(made, dynamo=exporter == "dynamo", names_kept=exporter == "unfolded")
    return made, onnx.load_model_from_string(model)


@pytest.mark.parametrize(("name", "exporter"), EXPORTS)
def test_gradient_of_a_whole_model_is_that_of_autograd(name: str, exporter: str) -> None:
    made, model = twins(name, exporter)
    at = places(model, made.net)
    session = TrainingSession(build_artifact(model, loss=made.loss, trainable=list(at), optimizer="gradient"))
    assert {title for title, _ in session.layout} == set(at)
    for size in (1, BATCH):
        inputs, targets = made.batch(size, seed=size)
        loss, ours = session.step(_features(inputs), targets)
        expected_loss, expected = gradient(made, made.net, inputs, targets)
        assert loss == pytest.approx(expected_loss, rel=1e-5)
        start = 0
        for title, shape in session.layout:
            theirs = expected[at[title]]
            part = ours[start : start + theirs.size]
            start += theirs.size
            bound = GRADIENT_ERROR_MAX * np.linalg.norm(theirs) + NOISE * np.linalg.norm(expected)
            assert np.abs(part - theirs).max() <= bound, (title, shape, size)
        assert start == ours.size


@pytest.mark.parametrize("name", ["MLP"])
def test_fifty_steps_lose_what_pytorch_loses(name: str) -> None:
    made, model = twins(name, "torchscript")
    batches = [made.batch(BATCH, seed=step % 3) for step in range(STEPS)]
    optimizer = SGD(lr=0.05)
    session = TrainingSession(
        build_artifact(model, loss=made.loss, trainable=list(places(model, made.net)), optimizer=optimizer)
    )
    ours = [session.step(_features(inputs), targets) for inputs, targets in batches]
    module = copy.deepcopy(made.net)
    theirs = losses(made, module, torch.optim.SGD(module.parameters(), optimizer.lr), batches)
    np.testing.assert_allclose(ours, theirs, rtol=LOSS_ERROR_MAX)
    assert np.mean(ours[-3:]) < 0.9 * np.mean(ours[:3]), "it learns nothing"


def _features(inputs: Sequence[Array]) -> Array | tuple[Array, ...]:
    return inputs[0] if len(inputs) == 1 else tuple(inputs)
