"""Dropout drops while a device trains, where the author asks for it, and never when it predicts."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from blindsum.protocol.errors import BlindsumError
from blindsum.training import SGD, Adapters, TrainingSession, build_artifact, decode

TEXT = "(float[N,6] x) => (float[N,6] y) { h = Mul (x, w) y = Dropout (h, ratio) }"
SHARES = {"ratio": np.float32(0.25)}
X = np.random.default_rng(5).normal(size=(64, 6)).astype(np.float32)
W = np.linspace(0.5, 1.5, 6, dtype=np.float32)


def _session(make_model, text=TEXT, seed=0, optimizer="gradient", more=None, **options):
    proto = make_model(text, {"w": W, **SHARES, **(more or {})})
    artifact = build_artifact(proto, loss="mse", optimizer=optimizer, trainable=["w"], **{"dropout": True, **options})
    return TrainingSession(artifact, seed=seed)


def _expected(noise):
    """Loss and gradient of w where the targets are zero."""
    factor = (noise >= 0.25) / 0.75
    y = X * W * factor
    return np.mean(y**2), np.sum(2 * y * factor * X, axis=0) / y.size


def test_step_drops_by_the_seed_and_scales_the_rest(make_model):
    session = _session(make_model, seed=7)
    for step in range(3):
        noise = np.random.default_rng((7, step)).random((64, 6), np.float32)
        loss, gradient = session.step(X, np.zeros_like(X))
        expected_loss, expected = _expected(noise)
        assert loss == pytest.approx(expected_loss, rel=1e-5)
        np.testing.assert_allclose(gradient, expected, rtol=1e-5)
        assert 0.15 < np.mean(noise < 0.25) < 0.35


def test_prediction_and_evaluation_do_not_drop(make_model):
    session = _session(make_model)
    np.testing.assert_allclose(session.predict(X), X * W, rtol=1e-6)
    assert session.evaluate(X, np.zeros_like(X))["loss"] == pytest.approx(np.mean((X * W) ** 2), rel=1e-5)


@pytest.mark.parametrize("node", ["y = Dropout (h, ratio, yes)", "y, kept = Dropout (h, ratio, yes)"])
def test_dropout_is_passed_over_where_nobody_asks_for_it(node, make_model):
    text = TEXT.replace("y = Dropout (h, ratio)", node)
    session = _session(make_model, text, dropout=False, more={"yes": np.array(True)})
    assert session.manifest.noise == ()
    loss, _ = session.step(X, np.zeros_like(X))
    assert loss == pytest.approx(np.mean((X * W) ** 2), rel=1e-5)


def test_mask_says_what_is_kept(make_model):
    text = TEXT.replace("y = Dropout (h, ratio)", "d, kept = Dropout (h, ratio) m = Cast <to=1> (kept) y = Mul (d, m)")
    loss, _ = _session(make_model, text).step(X, np.zeros_like(X))
    assert loss == pytest.approx(_expected(np.random.default_rng((0, 0)).random((64, 6), np.float32))[0], rel=1e-5)


@pytest.mark.parametrize(("ratio", "loss"), [(0.0, np.mean((X * W) ** 2)), (1.0, 0.0)])
def test_extreme_ratios(ratio, loss, make_model):
    text = TEXT.replace(
        "y = Dropout (h, ratio)", "a = Dropout (h) b = Mul (a, no) d = Dropout (h, ratio) y = Add (b, d)"
    )
    session = _session(make_model, text, more={"ratio": np.float32(ratio), "no": np.float32(0)})
    assert session.step(X, np.zeros_like(X))[0] == pytest.approx(loss, rel=1e-5)


def test_batch_may_be_another_axis(make_model):
    text = TEXT.replace(
        "y = Dropout (h, ratio)",
        "t = Transpose <perm=[1, 0]> (h) d = Dropout (t, ratio) y = Transpose <perm=[1, 0]> (d)",
    )
    loss, _ = _session(make_model, text).step(X, np.zeros_like(X))
    assert loss == pytest.approx(_expected(np.random.default_rng((0, 0)).random((64, 6), np.float32))[0], rel=1e-5)


def test_batch_in_pieces_drops_as_the_whole_batch(make_model):
    ends = []
    for accumulate in (1, 4):
        session = _session(make_model, optimizer=SGD(lr=0.1))
        session.fit(X, np.zeros_like(X), batch_size=32, epochs=2, accumulate=accumulate)
        ends.append(session.parameters)
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-5)


def test_restored_session_drops_on_as_the_one_that_was_saved(make_model):
    first, second = _session(make_model, seed=3, optimizer="adam"), _session(make_model, optimizer="adam")
    first.step(X, np.zeros_like(X))
    second.restore(first.checkpoint())
    for _ in range(2):
        assert first.step(X, np.zeros_like(X)) == second.step(X, np.zeros_like(X))
    assert np.array_equal(first.parameters, second.parameters)


def test_gradient_is_the_same_where_forward_results_are_computed_again(make_model):
    text = TEXT.replace("y = Dropout (h, ratio)", "a = Tanh (h) b = Dropout (a, ratio) c = Sin (b) y = Mul (c, c)")
    losses = [_session(make_model, text, recompute=size).step(X, np.zeros_like(X)) for size in (None, 96)]
    assert losses[0][0] == losses[1][0]
    np.testing.assert_allclose(losses[0][1], losses[1][1], rtol=1e-6)


def test_adapters_train_beside_dropout(make_model):
    text = "(float[N,6] x) => (float[N,6] y) { d = Dropout (x, ratio) y = Gemm (d, w) }"
    weights = {"w": np.eye(6, dtype=np.float32), **SHARES}
    artifact = build_artifact(
        make_model(text, weights), loss="mse", trainable=Adapters(rank=2), optimizer=SGD(lr=1.0), dropout=True
    )
    session = TrainingSession(artifact)
    np.testing.assert_allclose(session.predict(X), X, rtol=1e-6)
    before = session.evaluate(X, -X)["loss"]
    session.fit(X, -X, epochs=5)
    assert session.evaluate(X, -X)["loss"] < before


def test_model_without_dropout_is_refused(make_model):
    with pytest.raises(BlindsumError, match="training-request-invalid: dropout"):
        _session(make_model, "(float[N,6] x) => (float[N,6] y) { h = Mul (x, w) y = Mul (h, ratio) }")


def test_what_cannot_be_dropped_by_example_is_refused(make_model):
    text = TEXT.replace("y = Dropout (h, ratio)", "d = Dropout (w, ratio) y = Mul (h, d)")
    with pytest.raises(BlindsumError, match=r"training-model-invalid.*it drops from"):
        _session(make_model, text)
    text = TEXT.replace("y = Dropout (h, ratio)", "r = ReduceMean <keepdims=0> (h) y = Dropout (h, r)")
    with pytest.raises(BlindsumError, match=r"training-model-invalid.*ratio is not a constant"):
        _session(make_model, text)


@pytest.mark.parametrize("seed", [-1, 1 << 63])
def test_seed_is_bounded(seed, make_model):
    with pytest.raises(BlindsumError, match="training-request-invalid: seed="):
        _session(make_model, seed=seed)


def test_pytorch_model_exported_in_training_mode_trains_with_dropout():
    torch.manual_seed(1)
    net = torch.nn.Sequential(torch.nn.Linear(6, 32), torch.nn.ReLU(), torch.nn.Dropout(0.5), torch.nn.Linear(32, 2))
    out = io.BytesIO()
    axes = {"x": {0: "n"}, "y": {0: "n"}}
    torch.onnx.export(
        net.train(),
        torch.zeros(1, 6),
        out,
        input_names=["x"],
        output_names=["y"],
        dynamic_axes=axes,
        opset_version=17,
        dynamo=False,
        training=torch.onnx.TrainingMode.TRAINING,
        do_constant_folding=False,
    )
    artifact = build_artifact(out.getvalue(), loss="cross-entropy", optimizer=SGD(lr=0.5), dropout=True)
    assert [item.shape for item in decode(artifact).manifest.noise] == [(32,)]
    session, labels = TrainingSession(artifact), (X[:, 0] > X[:, 1]).astype(np.int64)
    losses = [session.step(X, labels) for _ in range(60)]
    assert session.evaluate(X, labels)["loss"] < min(losses[0] / 2, losses[-1] + 0.1)
    np.testing.assert_allclose(
        TrainingSession(artifact).predict(X).argmax(1), net.eval()(torch.tensor(X)).argmax(1).numpy()
    )
