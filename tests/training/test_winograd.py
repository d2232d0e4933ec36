"""Convolutions of many channels on small images, written with fewer products: the same result and the same gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from blindsum.training import TrainingSession, build_artifact, decode

from .conftest import make_model, require_torch_gradient

ROWS = 3
GENERATOR = np.random.default_rng(9)


def _model(sizes, weight, result, attributes):
    """A trained factor stands before the convolution, so that the gradient for its input counts too."""
    text = f"""(float[N,{",".join(map(str, sizes))}] x) => (float[N,{",".join(map(str, result))}] y) {{
        a = Mul(x, w0)
        y = Conv<{attributes}>(a, w1, b1)
    }}"""
    arrays = {
        "w0": GENERATOR.normal(size=(sizes[0], 1, 1)).astype(np.float32),
        "w1": GENERATOR.normal(0.0, 0.05, weight).astype(np.float32),
        "b1": GENERATOR.normal(size=weight[0]).astype(np.float32),
    }
    return make_model(text, arrays), arrays


@pytest.mark.parametrize(
    ("size", "filters", "pads"),
    [((4, 4), 80, (1, 1, 1, 1)), ((8, 8), 64, (1, 1, 1, 1)), ((7, 5), 64, (1, 0, 1, 2)), ((6, 8), 64, (0, 0, 0, 0))],
)
def test_gradient_is_that_of_torch(size, filters, pads):
    top, left, bottom, right = pads
    height, width = size[0] + top + bottom - 2, size[1] + left + right - 2
    model, arrays = _model((64, *size), (filters, 64, 3, 3), (filters, height, width), f"pads={list(pads)}")
    artifact = build_artifact(model, loss="mse", optimizer="gradient")
    assert "Conv" not in decode(artifact).manifest.operators
    session = TrainingSession(artifact)
    x = GENERATOR.normal(size=(ROWS, 64, *size)).astype(np.float32)
    targets = GENERATOR.normal(size=(ROWS, filters, height, width)).astype(np.float32)
    doubles = {name: torch.tensor(array, dtype=torch.float64, requires_grad=True) for name, array in arrays.items()}
    padded = torch.nn.functional.pad(torch.tensor(x).double() * doubles["w0"], (left, right, top, bottom))
    y = torch.conv2d(padded, doubles["w1"], doubles["b1"])
    require_torch_gradient(session, x, targets, y, doubles, 3e-6)


@pytest.mark.parametrize(
    ("sizes", "weight", "result", "attributes"),
    [
        ((64, 10, 10), (64, 64, 3, 3), (64, 10, 10), "pads=[1,1,1,1]"),  # large
        ((64, 8, 8), (32, 64, 3, 3), (32, 8, 8), "pads=[1,1,1,1]"),  # few filters
        ((64, 8, 8), (64, 64, 3, 3), (64, 4, 4), "pads=[1,1,1,1], strides=[2,2]"),
        ((64, 8, 8), (64, 64, 3, 3), (64, 8, 8), "pads=[2,2,2,2], dilations=[2,2]"),
        ((128, 8, 8), (64, 64, 3, 3), (64, 8, 8), "pads=[1,1,1,1], group=2"),
        ((64, 3, 3), (64, 64, 3, 3), (64, 1, 1), ""),  # a tile for one output
        ((64, 8, 8), (64, 64, 5, 5), (64, 8, 8), "pads=[2,2,2,2]"),
    ],
)
def test_other_convolutions_stay_what_they_are(sizes, weight, result, attributes):
    model, _ = _model(sizes, weight, result, attributes or "group=1")
    artifact = decode(build_artifact(model, loss="mse"))
    assert "Conv" in artifact.manifest.operators


def test_frozen_convolutions_stay_what_they_are():
    model, _ = _model((64, 8, 8), (64, 64, 3, 3), (64, 8, 8), "pads=[1,1,1,1]")
    assert decode(build_artifact(model, loss="mse", trainable=["w0"])).manifest.operators["Conv"] == 1
