"""Dense layers whose examples are columns: the same result and the same gradient, whatever stands between them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from blindsum.training import SGD, TrainingSession, build_artifact, decode
from blindsum.training.autodiff import columns

from .conftest import make_model

ROWS = 5
GENERATOR = np.random.default_rng(4)
LAYERS = """
    h = Gemm<transB=1, alpha=0.5>(x, w1, b1)
    a = Relu(h)
    i = Gemm<transB=1>(a, w2)
    c = Tanh(i)
    y = Gemm<transB=1, beta=2.0>(c, w3, b3)"""
ASIDE = LAYERS.replace("(c, w3", "(d, w3").replace("y =", "s = ReduceSum(a, one)\n d = Add(c, s)\n y =")
SHAPES = {"w1": (160, 130), "b1": (160,), "w2": (128, 160), "w3": (3, 128), "b3": (3,)}


def _model(layers):
    arrays = {name: GENERATOR.normal(0.0, 0.1, shape).astype(np.float32) for name, shape in SHAPES.items()}
    constants = {"one": np.array([1])} if "one" in layers else {}
    return make_model(f"(float[N,130] x) => (float[N,3] y) {{ {layers} }}", arrays | constants)


def _weights_left(artifact):
    """Of how many products of the step's forward pass the left matrix is a weight."""
    nodes = onnx.load_from_string(decode(artifact).train).graph.node
    return sum(node.op_type == "Gemm" and node.input[0] in SHAPES and len(node.input) != 2 for node in nodes)


@pytest.mark.parametrize(("layers", "left"), [(LAYERS, 1), (ASIDE, 0)])
def test_gradient_is_that_of_rows(layers, left, monkeypatch):
    model = _model(layers)
    x, targets = GENERATOR.normal(size=(ROWS, 130)), GENERATOR.integers(0, 3, ROWS)
    made = build_artifact(model, loss="cross-entropy", optimizer="gradient", trainable=list(SHAPES))
    assert _weights_left(made) == left
    loss, slope = TrainingSession(made).step(x, targets)
    monkeypatch.setattr(columns, "ELEMENTS_MIN", 1 << 30)
    plain = build_artifact(model, loss="cross-entropy", optimizer="gradient", trainable=list(SHAPES))
    assert made != plain or not left
    expected, wanted = TrainingSession(plain).step(x, targets)
    assert loss == pytest.approx(expected, rel=1e-6)
    assert np.abs(slope - wanted).max() <= 2e-6 * np.abs(wanted).max()


def test_frozen_layers_stay_rows():
    artifact = build_artifact(_model(LAYERS), loss="cross-entropy", optimizer=SGD(), trainable=["w3"])
    assert _weights_left(artifact) == 0
