"""Models that other people trained: their heads and all of them are fine-tuned, with the oracle's gradients."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from blindsum.training import SGD, TrainingSession, build_artifact

from .oracle import run
from .zoo.pretrained import PRETRAINED, Pretrained, at_16_khz, constants, weights

Array = NDArray[Any]
STEPS = 4
GRADIENT_ERROR_MAX = 1e-4  # of an element, relative to the norm of its tensor's gradient
NOISE = 1e-6  # what is left of a gradient that is zero by symmetry, relative to the norm of the whole

NAMES = [name for name, given in PRETRAINED.items() if given.installs]


@pytest.mark.parametrize("name", NAMES)
def test_head_of_a_pretrained_model_is_fine_tuned(name: str) -> None:
    given = PRETRAINED[name]
    model = given.model()
    optimiser = SGD(lr=given.lr, clip_norm=1.0)
    artifact = build_artifact(
        model,
        loss=given.loss,
        trainable=given.head if given.fixed else "head",  # a head inside a branch has to be named
        optimizer=optimiser,
        output=given.output,
        dimensions=given.dimensions,
        fixed=given.fixed,
    )
    session = TrainingSession(artifact)
    named = [name for pattern in given.head for name in fnmatch.filter(constants(model), pattern)]
    assert sorted(named) == sorted(name for name, _ in session.layout)
    inputs, targets = given.batch()
    losses = [session.step(inputs, targets) for _ in range(STEPS)]
    assert sorted(losses, reverse=True) == losses
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", NAMES)
def test_whole_pretrained_model_is_fine_tuned_with_the_gradient_of_the_oracle(name: str) -> None:
    given = PRETRAINED[name]
    model = given.model()
    plain = at_16_khz(model)
    names = weights(plain, given.output)
    artifact = build_artifact(
        model,
        loss=given.loss,
        trainable=names,
        optimizer="gradient",
        output=given.output,
        dimensions=given.dimensions,
        fixed=given.fixed,
    )
    session = TrainingSession(artifact)
    inputs, targets = given.batch()
    loss, ours = session.step(inputs, targets)
    expected_loss, expected = _oracle(given, plain, names)
    assert loss == pytest.approx(expected_loss, rel=1e-4)
    _require_equal(session.layout, ours, expected)
    session.parameters = session.parameters - given.lr * ours / np.linalg.norm(ours)
    assert session.step(inputs, targets)[0] < loss


def _require_equal(layout: Sequence[tuple[str, tuple[int, ...]]], ours: Array, theirs: Mapping[str, Array]) -> None:
    """The flat gradient `ours` is, tensor by tensor, that of the other side."""
    assert {name for name, _ in layout} == set(theirs)
    noise = NOISE * np.sqrt(sum(np.linalg.norm(part) ** 2 for part in theirs.values()))
    start = 0
    for name, shape in layout:
        expected = theirs[name].ravel()
        part = ours[start : start + expected.size]
        start += expected.size
        error = np.abs(part - expected).max()
        assert error <= GRADIENT_ERROR_MAX * np.linalg.norm(expected) + noise, (name, shape)
    assert start == ours.size


def _oracle(given: Pretrained, model: onnx.ModelProto, names: Sequence[str]) -> tuple[float, dict[str, Array]]:
    """Loss and gradients as PyTorch computes them in float64 from the ONNX graph."""
    stored = constants(model)
    leaves = {name: torch.from_numpy(stored[name].astype(np.float64)).requires_grad_() for name in names}
    inputs, targets = given.batch()
    feeds = {name: np.moveaxis(array, 0, given.batch_axes.get(name, 0)) for name, array in inputs.items()}
    feeds |= {name: np.array(value) for name, value in given.fixed.items()}
    prediction = run(_lifted(model), {**feeds, **leaves})[given.logits]
    loss = given.torch_loss(prediction, torch.from_numpy(targets))
    slopes = torch.autograd.grad(loss, list(leaves.values()))
    return loss.item(), {name: slope.numpy() for name, slope in zip(leaves, slopes, strict=True)}


def _lifted(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model at the operator set that the oracle knows, its constants initialisers, so that they can be replaced."""
    proto = onnx.version_converter.convert_version(model, 18)
    stored = constants(proto)
    nodes = [node for node in proto.graph.node if node.op_type != "Constant"]
    del proto.graph.node[:], proto.graph.initializer[:]
    proto.graph.node.extend(nodes)
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in stored.items())
    return proto
