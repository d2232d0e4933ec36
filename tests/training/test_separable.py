"""Rows of a batch that count each for itself: what the builder says of a model is what running it shows."""

from __future__ import annotations

import numpy as np
import pytest

from blindsum.bench.zoo import example, export
from blindsum.training import TrainingSession, build_artifact, decode

from .conftest import make_model

ROWS = 4
GENERATOR = np.random.default_rng(5)

APART = {
    "pointwise": "(float[N,6] x) => (float[N,6] y) { a = Mul(x, w6) y = Tanh(a) }",
    "product": "(float[N,2,3] x) => (float[N,2,4] y) { y = MatMul(x, w34) }",
    "product of two batches": "(float[N,2,3] x) => (float[N,2,2] y) "
    "{ b = MatMul(x, w33) t = Transpose<perm=[0,2,1]>(x) y = MatMul(b, t) }",
    "dense": "(float[N,6] x) => (float[N,4] y) { y = Gemm<transB=1>(x, w46) }",
    "softmax": "(float[N,6] x) => (float[N,6] y) { a = Mul(x, w6) y = Softmax(a) }",
    "normalised rows": "(float[N,2,3] x) => (float[N,2,3] y) { y = LayerNormalization(x, w3) }",
    "mean of positions": "(float[N,2,3] x) => (float[N,3] y) { a = Mul(x, w3) y = ReduceMean<keepdims=0>(a, one) }",
    "batch in the middle": "(float[N,2,3] x) => (float[N,3] y) "
    "{ a = Mul(x, w3) t = Transpose<perm=[1,0,2]>(a) s = Softmax<axis=0>(t) y = Gather<axis=0>(s, first) }",
    "positions in the batch": "(float[N,2,3] x) => (float[N,8] y) "
    "{ r = Reshape(x, rows) a = MatMul(r, w34) y = Reshape(a, back) }",
    "slices": "(float[N,6] x) => (float[N,4] y) "
    "{ a = Mul(x, w6) l = Slice(a, zero, two, one) r = Slice(a, two, four, one) y = Concat<axis=1>(l, r) }",
    "padding": "(float[N,6] x) => (float[N,8] y) { a = Mul(x, w6) y = Pad(a, sides) }",
    "convolution": "(float[N,2,3] x) => (float[N,4,2] y) { y = Conv(x, w422) }",
}
MIXED = {
    "softmax": "(float[N,6] x) => (float[N,6] y) { a = Mul(x, w6) y = Softmax<axis=0>(a) }",
    "mean": "(float[N,6] x) => (float[N,6] y) { a = Mul(x, w6) m = ReduceMean(a, zero) y = Sub(a, m) }",
    "mean of all": "(float[N,6] x) => (float[N,6] y) { a = Mul(x, w6) m = ReduceMean(a) y = Sub(a, m) }",
    "pairs": "(float[N,6] x) => (float[N,6] y) "
    "{ a = Mul(x, w6) t = Transpose<perm=[1,0]>(a) p = MatMul(a, t) y = MatMul(p, a) }",
    "running sum": "(float[N,6] x) => (float[N,6] y) { a = Mul(x, w6) y = CumSum(a, row) }",
    "rows of other rows": "(float[N,2,3] x) => (float[N,2,3] y) "
    "{ a = Mul(x, w3) f = Reshape(a, columns) t = Transpose<perm=[1,0]>(f) y = Reshape(t, cube) }",
    "shifted rows": "(float[N,6] x) => (float[N,6] y) { a = Mul(x, w6) y = Pad(a, shift) }",
    "batch in a hidden place": "(float[N,2,3] x) => (float[N,2,3] y) "
    "{ a = Mul(x, w3) t = Transpose<perm=[1,0,2]>(a) s = Softmax<axis=1>(t) y = Transpose<perm=[1,0,2]>(s) }",
}
WEIGHTS = {f"w{''.join(map(str, s))}": s for s in ((6,), (3,), (3, 3), (3, 4), (4, 6), (4, 2, 2))}
CONSTANTS = {
    "zero": [0],
    "one": [1],
    "two": [2],
    "four": [4],
    "rows": [-1, 3],
    "back": [-1, 8],
    "columns": [-1, 6],
    "cube": [-1, 2, 3],
    "sides": [0, 1, 0, 1],
    "shift": [1, 0, -1, 0],
}


def _model(text):
    weights = {name: GENERATOR.normal(size=shape).astype(np.float32) for name, shape in WEIGHTS.items()}
    constants = {name: np.array(value, np.int64) for name, value in CONSTANTS.items()}
    given = {**weights, **constants, "row": np.array(0), "first": np.array(0)}
    return make_model(text, {name: array for name, array in given.items() if f"{name})" in text or f"{name}," in text})


@pytest.mark.parametrize(
    ("text", "apart"),
    [(text, True) for text in APART.values()] + [(text, False) for text in MIXED.values()],
    ids=[*APART, *(f"mixed by {name}" for name in MIXED)],
)
def test_rows_are_apart_where_each_alone_gives_the_same(text, apart):
    artifact = build_artifact(_model(text), loss="mse")
    session = TrainingSession(artifact)
    (item,) = session.manifest.features
    x = GENERATOR.normal(size=(ROWS, *item.shape)).astype(np.float32)
    alone = np.concatenate([session.predict(row[None]) for row in x])
    assert np.allclose(session.predict(x), alone, atol=1e-5) == apart
    assert session.manifest.separable == apart


@pytest.mark.parametrize("name", ["MobileNetV3-like", "LSTM", "BERT-tiny", "autoencoder", "DLRM-like"])
def test_common_model_keeps_rows_apart(name):
    made = example(name)
    assert decode(build_artifact(export(made), loss=made.loss)).manifest.separable


def test_loss_of_pairs_and_statistics_of_batches_mix_rows():
    model = _model("(float[N,6] x) => (float[N,4] y) { y = Gemm<transB=1>(x, w46) }")
    assert not decode(build_artifact(model, loss="contrastive")).manifest.separable
    model = export(example("1-D CNN", norm=True), names_kept=True)
    assert decode(build_artifact(model, loss="cross-entropy")).manifest.separable
    assert not decode(build_artifact(model, loss="cross-entropy", batch_norm="train")).manifest.separable
