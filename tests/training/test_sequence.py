"""Convolutions over sequences, written with fewer products: the same result and the same gradient."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from blindsum.training import TrainingSession, build_artifact, decode

from .conftest import make_model, require_torch_gradient

ROWS = 3
GENERATOR = np.random.default_rng(5)


def _model(length, weight, attributes):
    """A trained factor stands before the convolution, so that the gradient for its input counts too."""
    arrays = {
        "w0": GENERATOR.normal(size=(weight[1], 1)).astype(np.float32),
        "w1": GENERATOR.normal(0.0, 0.1, weight).astype(np.float32),
        "b1": GENERATOR.normal(size=weight[0]).astype(np.float32),
    }
    text = f"""(float[N,{weight[1]},{length}] x) => (float[N,C,L] y) {{
        a = Mul(x, w0)
        y = Conv<{attributes}>(a, w1, b1)
    }}"""
    return make_model(text, arrays), arrays


@pytest.mark.parametrize(
    ("length", "weight", "dilation", "pads"),
    [
        (64, (40, 32, 5), 8, (16, 16)),
        (16, (32, 48, 3), 1, (1, 1)),
        (18, (32, 32, 5), 2, (4, 2)),  # the last tile is not full
        (13, (32, 32, 3), 1, (0, 0)),
    ],
)
def test_gradient_is_that_of_torch(length, weight, dilation, pads):
    model, arrays = _model(length, weight, f"dilations=[{dilation}], pads=[{pads[0]}, {pads[1]}]")
    artifact = build_artifact(model, loss="mse", optimizer="gradient")
    assert "Conv" not in decode(artifact).manifest.operators
    session = TrainingSession(artifact)
    x = GENERATOR.normal(size=(ROWS, weight[1], length)).astype(np.float32)
    doubles = {name: torch.tensor(array, dtype=torch.float64, requires_grad=True) for name, array in arrays.items()}
    padded = torch.nn.functional.pad(torch.tensor(x).double() * doubles["w0"], pads)
    y = torch.conv1d(padded, doubles["w1"], doubles["b1"], dilation=dilation)
    targets = GENERATOR.normal(size=tuple(y.shape)).astype(np.float32)
    require_torch_gradient(session, x, targets, y, doubles, 1e-5)


@pytest.mark.parametrize(
    ("length", "weight", "attributes"),
    [
        (40, (32, 32, 5), "pads=[2, 2]"),  # long
        (16, (32, 16, 5), "pads=[2, 2]"),  # few channels
        (16, (32, 32, 4), "pads=[2, 1]"),
        (16, (32, 32, 5), "pads=[2, 2], strides=[2]"),
        (16, (32, 32, 5), "pads=[3, 5], dilations=[2]"),  # the sequences change places
        (4, (32, 32, 3), ""),  # a tile for two outputs
        (16, (32, 32, 3), "pads=[1, 1], group=2"),
    ],
)
def test_other_convolutions_stay_what_they_are(length, weight, attributes):
    groups = 2 if "group" in attributes else 1
    model, _ = _model(length, (weight[0], weight[1] * groups, weight[2]), attributes or "group=1")
    if groups == 2:
        kernel = onnx.numpy_helper.from_array(np.ones(weight, np.float32), "w1")
        next(item for item in model.graph.initializer if item.name == "w1").CopyFrom(kernel)
    assert "Conv" in decode(build_artifact(model, loss="mse")).manifest.operators


@pytest.mark.parametrize(("channels", "convolutions"), [(32, 1), (64, 0)])
def test_frozen_convolutions_need_more_channels(channels, convolutions):
    model, _ = _model(16, (channels, channels, 3), "pads=[1, 1]")
    operators = decode(build_artifact(model, loss="mse", trainable=["w0"])).manifest.operators
    assert operators.get("Conv", 0) == convolutions


CHAIN = """(float[N,32,32] x) => (float[N,C,L] y) {
    a = Mul(x, w0)
    b = Conv<dilations=[8], pads=[16, 16]>(a, w1, b1)
    c = Relu(b)
    d = Conv<dilations=[8], pads=[16, 16]>(c, w2)
    e = Add(d, c)
    f = Conv<dilations=[4], pads=[4, 4]>(e, w3, b3)
    g = Sigmoid(f)
    h = Add(g, e)
    y = REDUCED
}"""


@pytest.mark.parametrize(
    ("reduced", "trained"),
    [
        ("GlobalAveragePool(h)", 6),
        ("ReduceMean(h, axes)", 6),
        ("ReduceMean<keepdims=0>(h, axes)", 2),
        ("Tanh(h)", 6),
    ],
)
def test_layers_behind_each_other_and_a_mean_have_the_gradient_of_torch(reduced, trained):
    generator = np.random.default_rng(8)
    arrays = {
        "w0": generator.normal(size=(32, 1)).astype(np.float32),
        **{name: generator.normal(0.0, 0.1, (32, 32, 5)).astype(np.float32) for name in ("w1", "w2")},
        "b1": generator.normal(size=32).astype(np.float32),
        "w3": generator.normal(0.0, 0.1, (32, 32, 3)).astype(np.float32),
        "b3": generator.normal(size=32).astype(np.float32),
    }
    text = CHAIN.replace("REDUCED", reduced)
    text = text.replace("float[N,C,L] y", "float[N,C] y") if "keepdims" in reduced else text
    model = make_model(text, arrays | {"axes": np.array([-1])})
    chosen = list(arrays)[-trained:]
    artifact = build_artifact(model, loss="mse", optimizer="gradient", trainable=chosen)
    assert ("Conv" in decode(artifact).manifest.operators) == (trained < len(arrays))
    session = TrainingSession(artifact)
    x = generator.normal(size=(ROWS, 32, 32)).astype(np.float32)

    t = {name: torch.tensor(array, dtype=torch.float64, requires_grad=True) for name, array in arrays.items()}
    conv = torch.nn.functional.conv1d
    c = torch.relu(conv(torch.tensor(x).double() * t["w0"], t["w1"], t["b1"], dilation=8, padding=16))
    e = conv(c, t["w2"], dilation=8, padding=16) + c
    h = torch.sigmoid(conv(e, t["w3"], t["b3"], dilation=4, padding=4)) + e
    y = torch.tanh(h) if "Tanh" in reduced else h.mean(2, keepdim="keepdims" not in reduced)
    targets = generator.normal(size=tuple(y.shape)).astype(np.float32)
    require_torch_gradient(session, x, targets, y, t, 1e-5)
