"""Which weights are trained: all, by name, the head, adapters."""

from __future__ import annotations

import re

import numpy as np
import pytest

from blindsum.protocol.errors import BlindsumError
from blindsum.training import SGD, Adapters, Head, TrainingSession, build_artifact, models

GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(6, 4)).astype(np.float32)
T = np.arange(6) % 3
NET = models.mlp([4, 5, 3], seed=1)


def _layout(model, trainable=None, **arguments):
    artifact = build_artifact(model, loss="mse", trainable=trainable, **arguments)
    return [name for name, _ in TrainingSession(artifact).layout]


def _normal(*shape):
    return GENERATOR.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("head", ["head", Head(), ["head"], [Head(), "layer2.bias"]])
def test_head_is_the_last_layer_with_its_bias(head):
    assert _layout(NET, head) == ["layer2.weight", "layer2.bias"]


def test_head_sees_a_bias_that_is_added_and_a_weight_that_is_turned(make_model):
    body = "h = MatMul (x, w1) r = Relu (h) t = Transpose (w2) m = MatMul (r, t) a = Add (b, m) y = Mul (a, scale)"
    weights = {"w1": _normal(4, 5), "w2": _normal(3, 5), "b": _normal(3), "scale": _normal(3)}
    model = make_model(f"(float[N,4] x) => (float[N,3] y) {{ {body} }}", weights)
    assert _layout(model, "head") == ["w2", "b"]


def test_model_without_a_layer_has_no_head(make_model):
    model = make_model("(float[N,4] x) => (float[N,4] y) { y = Mul (x, w) }", {"w": _normal(4)})
    with pytest.raises(BlindsumError, match="there is no head to train"):
        build_artifact(model, loss="mse", trainable="head")


def test_patterns_match_weights_or_the_nodes_that_read_them(make_model):
    body = "h = MatMul (x, w1) r = Relu (h) m = MatMul (r, w2) y = Add (m, b)"
    weights = {"w1": _normal(4, 5), "w2": _normal(5, 3), "b": _normal(3)}
    model = make_model(f"(float[N,4] x) => (float[N,3] y) {{ {body} }}", weights)
    for node, name in zip(model.graph.node, ("/fc1/MatMul", "/act/Relu", "/fc2/MatMul", "/fc2/Add"), strict=True):
        node.name = name
    assert _layout(model, "/fc2/*") == ["w2", "b"]
    assert _layout(model, ["/fc1/MatMul", "b"]) == ["w1", "b"]
    assert _layout(model, "w?") == ["w1", "w2"]


NOT_WEIGHTS = {
    "running statistics": ("n = BatchNormalization (x, w, b, mean, var) y = Identity (n)", ["w", "b"]),
    "the bounds of Clip": ("m = Mul (x, w) c = Clip (m, low, high) y = Add (c, b)", ["w", "b"]),
    "an infinite mask": ("m = Mul (x, w) a = Add (m, mask) e = Exp (a) y = Add (e, b)", ["w", "b"]),
    "what keeps a deviation from zero": (
        "m = Mul (x, w) q = Mul (m, m) a = Add (q, tiny) s = Sqrt (a) y = Add (s, b)",
        ["w", "b"],
    ),
    "scalars": ("m = Mul (x, w) h = Mul (m, low) y = Add (h, b)", ["w", "b"]),
}
NUMBERS = {
    "w": _normal(4),
    "b": _normal(4),
    "mean": _normal(4),
    "var": np.ones(4, np.float32),
    "low": np.array(-1, np.float32),
    "high": np.array(1, np.float32),
    "tiny": np.array([[1e-3]], np.float32),
    "mask": np.float32([0, 0, -np.inf, 0]),
}


@pytest.mark.parametrize("what", NOT_WEIGHTS)
def test_by_default_nothing_but_weights_is_trained(make_model, what):
    body, trained = NOT_WEIGHTS[what]
    constants = {name: NUMBERS[name] for name in re.findall(r"\w+", body) if name in NUMBERS}
    model = make_model(f"(float[N,4] x) => (float[N,4] y) {{ {body} }}", constants)
    assert _layout(model) == trained


def test_statistics_are_not_matched_by_a_pattern_but_by_name(make_model):
    body, trained = NOT_WEIGHTS["running statistics"]
    constants = {name: NUMBERS[name] for name in ("w", "b", "mean", "var")}
    model = make_model(f"(float[N,4] x) => (float[N,4] y) {{ {body} }}", constants)
    assert _layout(model, "*") == trained
    assert _layout(model, ["*", "mean"]) == [*trained, "mean"]


def test_model_with_all_weights_in_constant_nodes_trains_those(make_model):
    body = """w = Constant <value = float[4,3] {1,2,3,4,5,6,7,8,9,1,2,3}> () b = Constant <value_floats=[1.0,2.0,3.0]> ()
        k = Constant <value_floats=[0.5]> () m = MatMul (x, w) h = Mul (m, k) y = Add (h, b)"""
    model = make_model(f"(float[N,4] x) => (float[N,3] y) {{ {body} }}", {})
    assert _layout(model) == ["w", "b"]


# -- adapters ---------------------------------------------------------------------------------------------------------


def test_adapters_change_nothing_before_training():
    plain = TrainingSession(build_artifact(NET, loss="cross-entropy", optimizer=SGD(lr=0.0)))
    adapted = TrainingSession(
        build_artifact(NET, loss="cross-entropy", trainable=Adapters(rank=2), optimizer=SGD(lr=0.5))
    )
    np.testing.assert_array_equal(adapted.predict(X), plain.predict(X))
    assert adapted.step(X, T) == plain.step(X, T)
    assert adapted.layout == [
        ("layer1.weight.down", (4, 2)), ("layer1.weight.up", (2, 5)), ("layer2.weight.down", (5, 2)), ("layer2.weight.up", (2, 3))
    ]  # fmt: skip


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("alpha", [None, 6.0])
def test_adapters_train_as_the_layers_that_they_stand_for(make_model, flipped, alpha):
    scale = np.array(1.0 if alpha is None else alpha / 2, np.float32)
    w, b, down, up = _normal(4, 3), _normal(3), _normal(4, 2), _normal(2, 3)
    head, attribute = "(float[N,4] x) => (float[N,3] y)", "<transB=1>" if flipped else ""
    stored = w.T.copy() if flipped else w
    base = make_model(f"{head} {{ y = Gemm {attribute} (x, w, b) }}", {"w": stored, "b": b})
    spelt = "g = Gemm (x, w, b) l = MatMul (x, down) k = Mul (l, scale) u = MatMul (k, up) y = Add (g, u)"
    explicit = make_model(f"{head} {{ {spelt} }}", {"w": w, "b": b, "scale": scale, "down": down, "up": up})
    sessions = [
        TrainingSession(build_artifact(model, loss="cross-entropy", trainable=trainable, optimizer=SGD(lr=0.1)))
        for model, trainable in ((base, Adapters(rank=2, alpha=alpha)), (explicit, ["down", "up"]))
    ]
    for session in sessions:
        session.parameters = np.concatenate([down.ravel(), up.ravel()])
        for _ in range(3):
            session.step(X, T)
    np.testing.assert_allclose(sessions[0].parameters, sessions[1].parameters, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(sessions[0].predict(X), sessions[1].predict(X), rtol=1e-4, atol=1e-5)


def test_adapters_begin_normal_from_their_seed():
    def vector(seed):
        adapters = Adapters(rank=64, match="wide", seed=seed)
        return TrainingSession(build_artifact(WIDE, loss="mse", trainable=adapters)).parameters[: 200 * 64]

    assert np.array_equal(vector(3), vector(3)) and not np.array_equal(vector(3), vector(4))
    assert vector(3).std() == pytest.approx(200**-0.5, rel=0.03)


WIDE = models.mlp([200, 3], seed=1)
WIDE.graph.initializer[0].name = WIDE.graph.node[0].input[1] = "wide"


def test_adapters_may_stand_beside_weights(make_model):
    assert _layout(NET, [Adapters(rank=1, match="layer1.*"), "head"]) == [
        "layer2.weight", "layer2.bias", "layer1.weight.down", "layer1.weight.up"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("trainable", "said"),
    [
        (Adapters(match="layer9.*"), "it finds no matrix of Gemm or MatMul"),
        ([Adapters(), Adapters(match="layer1.*")], "two find layer1.weight"),
    ],
)
def test_adapters_that_fit_nothing_are_refused(trainable, said):
    with pytest.raises(BlindsumError, match=said):
        build_artifact(NET, loss="mse", trainable=trainable)


def test_matrix_with_another_use_gets_no_adapter(make_model):
    body = "t = Transpose (w) h = MatMul (x, t) y = MatMul (h, w)"
    tied = make_model(f"(float[N,3] x) => (float[N,3] y) {{ {body} }}", {"w": _normal(3, 3)})
    with pytest.raises(BlindsumError, match="it finds no matrix"):
        build_artifact(tied, loss="mse", trainable=Adapters())


@pytest.mark.parametrize("arguments", [{"rank": 0}, {"rank": 4, "alpha": 0.0}, {"alpha": float("nan")}, {"seed": -1}])
def test_adapters_out_of_range_are_refused(arguments):
    with pytest.raises(BlindsumError, match="training-request-invalid"):
        Adapters(**arguments)
