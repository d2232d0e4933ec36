"""Frozen convolutions of sequences run as convolutions of images, and give the same."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest

from blindsum.training import TrainingSession, build_artifact, decode
from blindsum.training.protobuf import read_model

from .conftest import make_model

GENERATOR = np.random.default_rng(6)
WEIGHTS = {
    name: GENERATOR.normal(0.0, 0.3, shape).astype(np.float32)
    for name, shape in {
        "w1": (16, 3, 5),
        "b1": (16,),
        "w2": (16, 16, 3),
        "w3": (24, 16, 3),
        "grouped": (16, 4, 3),
        "head": (5, 24),
    }.items()
} | {"end": np.array([-1]), "flat": np.array([0, 24])}
NET = """(float[N,3,21] x) => (float[N,5] y) {
    a = Conv<pads=[2,4],dilations=[2],strides=[2]>(x, w1, b1)
    b = Relu(a)
    c = Conv<auto_pad="SAME_UPPER">(b, w2)
    d = Add(b, c)
    e = MaxPool<kernel_shape=[3],strides=[2],pads=[1,0],ceil_mode=1>(d)
    f = AveragePool<kernel_shape=[2],strides=[1],pads=[1,1],count_include_pad=1>(e)
    g = Conv<group=4,pads=[1,1]>(f, grouped)
    h = Sigmoid(g)
    i = Mul(h, f)
    j = Conv(i, w3)
    k = GlobalAveragePool(j)
    l = Reshape(k, flat)
    y = Gemm<transB=1>(l, head)
}"""
X = GENERATOR.normal(size=(6, 3, 21)).astype(np.float32)
Y = np.array([0, 1, 2, 3, 4, 0])


@pytest.fixture(scope="module")
def model():
    return make_model(NET, WEIGHTS)


def _ranks(graph, operator):
    """Of the values that such nodes read, by way of what was put before them."""
    nodes = read_model(graph).nodes
    images = {node.outputs[0] for node in nodes if node.operator == "Unsqueeze"}
    return [node.inputs[1] in images for node in nodes if node.operator == operator]


def test_prediction_is_that_of_the_model(model):
    expected = ort.InferenceSession(model.SerializeToString()).run(None, {"x": X})[0]
    session = TrainingSession(build_artifact(model, loss="cross-entropy"))
    np.testing.assert_allclose(session.predict(X), expected, rtol=1e-5, atol=1e-6)


def test_frozen_convolutions_are_of_images_and_trained_ones_of_sequences(model):
    artifact = decode(build_artifact(model, loss="cross-entropy", trainable=["w3", "head"]))
    assert _ranks(artifact.train, "Conv") == [True, True, False, False]  # blocks have no groups
    assert _ranks(artifact.predict, "Conv") == [True, True, False, True]


def test_trained_layers_behind_frozen_ones_learn_as_with_all_of_them(model):
    """The gradient of the last layers does not depend on whether those before them are trained too."""
    slopes = {}
    for trainable in (None, ["w3", "head"]):
        session = TrainingSession(
            build_artifact(model, loss="cross-entropy", trainable=trainable, optimizer="gradient")
        )
        _, slope = session.step(X, Y)
        at = 0
        for name, shape in session.layout:
            slopes.setdefault(name, []).append(slope[at : at + np.prod(shape)])
            at += np.prod(shape)
    for name in ("w3", "head"):
        np.testing.assert_allclose(*slopes[name], rtol=1e-4, atol=1e-6)


def test_value_between_convolutions_may_be_the_output(model):
    session = TrainingSession(build_artifact(model, loss="mse", output="i"))
    model_of_i = make_model(NET.replace("(float[N,5] y)", "(float[N,16,7] i)"), WEIGHTS)
    wanted = ort.InferenceSession(model_of_i.SerializeToString()).run(None, {"x": X})[0]
    np.testing.assert_allclose(session.predict(X), wanted, rtol=1e-5, atol=1e-6)
    assert np.isfinite(session.step(X, wanted))
