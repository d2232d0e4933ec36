"""Convolutions over images, written with fewer products: the same result and the same gradient."""

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
    [
        ((4, 4), 80, (1, 1, 1, 1)),
        ((8, 8), 64, (1, 1, 1, 1)),
        ((7, 5), 64, (1, 0, 1, 2)),
        ((6, 8), 64, (0, 0, 0, 0)),
        ((11, 18), 16, (1, 1, 1, 1)),  # the last tiles are not full
    ],
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
    require_torch_gradient(session, x, targets, y, doubles, 1e-5)


@pytest.mark.parametrize(
    ("sizes", "weight", "result", "attributes"),
    [
        ((16, 66, 66), (16, 16, 3, 3), (16, 66, 66), "pads=[1,1,1,1]"),  # large
        ((64, 8, 8), (8, 64, 3, 3), (8, 8, 8), "pads=[1,1,1,1]"),  # few filters
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


@pytest.mark.parametrize(
    "reduced", ["GlobalAveragePool(h)", "ReduceMean<keepdims=0>(h, axes)", "MaxPool<kernel_shape=[2, 2]>(h)"]
)
def test_layers_behind_each_other_and_a_mean_have_the_gradient_of_torch(reduced):
    """A residual block: what lies between its convolutions stays as they have it, what they read and give does not."""
    text = f"""(float[N,16,12,12] x) => (float[N,C,H,W] y) {{
        a = Mul(x, w0)
        b = Conv<pads=[1,1,1,1]>(a, w1, b1)
        c = Relu(b)
        d = Conv<pads=[1,1,1,1]>(c, w2)
        e = Conv(a, w3)
        f = Add(e, d)
        g = Sigmoid(f)
        h = Sub(g, c)
        y = {reduced}
    }}"""
    text = text.replace("float[N,C,H,W] y", "float[N,C] y") if "keepdims" in reduced else text
    shapes = {"w0": (16, 1, 1), "w1": (24, 16, 3, 3), "b1": (24,), "w2": (24, 24, 3, 3), "w3": (24, 16, 1, 1)}
    arrays = {name: GENERATOR.normal(0.0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}
    artifact = build_artifact(
        make_model(text, arrays | {"axes": np.array([-1, 2])}),
        loss="mse",
        optimizer="gradient",
        trainable=list(arrays),
    )
    assert decode(artifact).manifest.operators["Conv"] == 2  # the pointwise one and its gradient
    session = TrainingSession(artifact)
    x = GENERATOR.normal(size=(ROWS, 16, 12, 12)).astype(np.float32)

    t = {name: torch.tensor(array, dtype=torch.float64, requires_grad=True) for name, array in arrays.items()}
    a = torch.tensor(x).double() * t["w0"]
    c = torch.relu(torch.conv2d(a, t["w1"], t["b1"], padding=1))
    h = torch.sigmoid(torch.conv2d(a, t["w3"]) + torch.conv2d(c, t["w2"], padding=1)) - c
    y = torch.max_pool2d(h, 2, stride=1) if "MaxPool" in reduced else h.mean((2, 3), keepdim="keepdims" not in reduced)
    targets = GENERATOR.normal(size=tuple(y.shape)).astype(np.float32)
    require_torch_gradient(session, x, targets, y, t, 1e-5)
