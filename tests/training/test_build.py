"""What `build_artifact` makes of a model, and what it refuses."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from blindsum.protocol.errors import BlindsumError
from blindsum.training import SGD, Adam, CrossEntropy, TrainingSession, build_artifact, decode, models
from blindsum.training.autodiff import registry
from blindsum.training.protobuf import read_model

ARRAY = np.float32([[0.5, -1.0, 2.0], [1.5, 0.25, -0.75]])


def _operators(graph):
    return [node.operator for node in read_model(graph).nodes]


def test_bytes_do_not_depend_on_the_hash_seed(tmp_path):
    code = """
import hashlib
import os
import subprocess
import sys
from blindsum.training import build_artifact, models
artifact = build_artifact(models.mlp([4, 6, 5, 3], seed=5), loss="cross-entropy", optimizer="adam")
print(hashlib.sha256(artifact).hexdigest())
"""
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            cwd=tmp_path,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


@pytest.mark.parametrize("optimizer", ["sgd", SGD(lr=0.1, momentum=0.9), "adam", "gradient"])
@pytest.mark.parametrize("loss", ["cross-entropy", "binary-cross-entropy", "mse"])
def test_same_model_gives_the_same_bytes(loss, optimizer):
    first = build_artifact(models.mlp([4, 6, 3], seed=5), loss=loss, optimizer=optimizer)
    assert first == build_artifact(models.mlp([4, 6, 3], seed=5), loss=loss, optimizer=optimizer)
    assert first != build_artifact(models.mlp([4, 6, 3], seed=6), loss=loss, optimizer=optimizer)


def test_optimiser_may_be_named_or_given():
    model = models.mlp([4, 6, 3], seed=5)
    assert build_artifact(model, loss="mse", optimizer="adam") == build_artifact(model, loss="mse", optimizer=Adam())


def test_model_may_be_proto_bytes_or_path(tmp_path):
    model = models.mlp([4, 6, 3], seed=5)
    data = model.SerializeToString(deterministic=True)
    (tmp_path / "model.onnx").write_bytes(data)
    artifact = build_artifact(model, loss="mse")
    assert artifact == build_artifact(data, loss="mse") == build_artifact(tmp_path / "model.onnx", loss="mse")
    assert decode(artifact).manifest.source == hashlib.sha256(data).hexdigest()


def test_model_that_is_given_is_left_alone():
    model = models.mlp([4, 6, 3], seed=5)
    before = model.SerializeToString(deterministic=True)
    build_artifact(model, loss="mse")
    assert model.SerializeToString(deterministic=True) == before


def test_graphs_hold_standard_operators_only():
    for optimizer in ("sgd", SGD(momentum=0.9), "adam", "gradient"):
        artifact = decode(build_artifact(models.mlp([4, 6, 3], seed=5), loss="cross-entropy", optimizer=optimizer))
        for graph in filter(None, artifact.graphs().values()):
            model = onnx.load_model_from_string(graph)
            assert {node.domain for node in model.graph.node} == {""}
            assert [item.domain for item in model.opset_import] == [""]
            assert all(onnx.defs.has(node.op_type) for node in model.graph.node)


def test_frozen_prefix_costs_no_backward_node():
    model = models.mlp([4, 6, 5, 3], seed=5)
    whole = decode(build_artifact(model, loss="mse", optimizer="gradient"))
    head = decode(build_artifact(model, loss="mse", optimizer="gradient", trainable=["layer3.*"]))
    assert [weight.name for weight in head.manifest.parameters] == ["layer3.weight", "layer3.bias"]
    # forward: 3 Gemm and 2 Relu; backward: one Gemm for the weight, one ReduceSum for the bias
    assert _operators(head.train).count("Gemm") == 4
    assert _operators(head.train).count("ReduceSum") == 1
    assert "Greater" not in _operators(head.train)
    assert _operators(whole.train).count("Gemm") == 3 + 3 + 2


def test_frozen_weights_do_not_move():
    session = TrainingSession(build_artifact(models.mlp([4, 6, 3], seed=5), loss="mse", trainable=["layer2.weight"]))
    x, t = np.ones((2, 4), np.float32), np.ones((2, 3), np.float32)
    frozen = {name: array.copy() for name, array in session._engine.artifact.constants.items()}
    session.step(x, t)
    assert {"layer1.weight", "layer1.bias", "layer2.bias"} <= set(frozen)
    assert all(np.array_equal(frozen[name], array) for name, array in session._engine.artifact.constants.items())


def test_flat_vector_is_in_the_order_of_the_model():
    model = models.mlp([2, 3, 2], seed=5)
    session = TrainingSession(build_artifact(model, loss="mse", trainable=["layer2.*", "layer1.weight"]))
    assert session.layout == [("layer1.weight", (2, 3)), ("layer2.weight", (3, 2)), ("layer2.bias", (2,))]
    stored = {item.name: numpy_helper.to_array(item).ravel() for item in model.graph.initializer}
    assert np.array_equal(session.parameters, np.concatenate([stored[name] for name, _ in session.layout]))


@pytest.mark.parametrize(
    ("loss", "final", "targets"),
    [
        ("cross-entropy", "Softmax", np.array([0, 2])),
        ("cross-entropy", "Softmax <axis=1>", np.array([0, 2])),
        ("cross-entropy", "LogSoftmax", np.array([0, 2])),
        ("binary-cross-entropy", "Sigmoid", np.float32([[0, 1, 1], [1, 0, 1]])),
    ],
)
def test_final_activation_is_left_to_the_loss(loss, final, targets, make_model):
    head, tail = "(float[N,2] x) => (float[N,3] y) {", "}"
    bare = make_model(f"{head} y = MatMul (x, w) {tail}", {"w": ARRAY})
    whole = make_model(f"{head} z = MatMul (x, w) i = Identity (z) y = {final} (i) {tail}", {"w": ARRAY})
    x = np.float32([[1, 2], [3, -1]])
    sessions = [TrainingSession(build_artifact(model, loss=loss, optimizer="gradient")) for model in (bare, whole)]
    results = [session.step(x, targets) for session in sessions]
    assert results[0][0] == results[1][0]
    assert np.array_equal(results[0][1], results[1][1])
    assert sessions[0].evaluate(x, targets) == sessions[1].evaluate(x, targets)
    assert not np.allclose(sessions[0].predict(x), sessions[1].predict(x))


def test_softmax_over_the_batch_is_not_cut(make_model):
    text = "(float[N,2] x) => (float[N,3] y) { z = MatMul (x, w) y = Softmax <axis=0> (z) }"
    session = TrainingSession(build_artifact(make_model(text, {"w": ARRAY}), loss="cross-entropy"))
    x = np.float32([[1, 2], [3, -1]])
    exponent = np.exp(session.predict(x).astype(np.float64))
    expected = -np.log(exponent[[0, 1], [0, 2]] / exponent.sum(axis=1)).mean()
    assert session.evaluate(x, np.array([0, 2]))["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", [("B", 2, 2), ("B", -1, 2), (-1, 2, 2), (0, 2, 2), ("B", 1, 2, 2)])
@pytest.mark.parametrize("batch", [1, 2])
def test_fixed_batch_becomes_dynamic(make_model, batch, shape):
    # c is no batch, though it is reshaped to a head of 1 as well
    body = "c = Reshape (s, one) r = Reshape (x, shape) h = Mul (r, c) f = Flatten (h) y = MatMul (f, w)"
    text = f"(float[{batch},4] x) => (float[{batch},3] y) {{ {body} }}"
    weights = {
        "s": np.float32([2, 3]),
        "w": np.arange(12, dtype=np.float32).reshape(4, 3),
        "shape": np.array([batch if size == "B" else size for size in shape]),
        "one": np.array([1, 2]),
    }
    session = TrainingSession(build_artifact(make_model(text, weights), loss="mse", optimizer="gradient"))
    x = np.arange(20, dtype=np.float32).reshape(5, 4)
    np.testing.assert_allclose(session.predict(x), (x * [2, 3, 2, 3]) @ weights["w"])
    for rows in (1, 2, 5):
        loss, _ = session.step(x[:rows], session.predict(x[:rows]) + 2)
        assert loss == pytest.approx(4.0)


def test_constant_nodes_are_trained_when_named_and_only_then(make_model):
    body = "c = Constant <value_floats=[1.0, 2.0, 3.0]> () h = Mul (x, c) y = Add (h, b)"
    text = f"(float[N,3] x) => (float[N,3] y) {{ {body} }}"
    model = make_model(text, {"b": np.float32([1, 1, 1])})
    by_default = TrainingSession(build_artifact(model, loss="mse"))
    named = TrainingSession(build_artifact(model, loss="mse", trainable=["c"]))
    assert by_default.layout == [("b", (3,))]
    assert named.layout == [("c", (3,))]
    assert named.parameters.tolist() == [1.0, 2.0, 3.0]


def test_scalar_weight_is_trained_when_named_and_only_then(make_model):
    model = make_model(
        "(float[N,3] x) => (float[N,3] y) { h = Mul (x, k) y = Add (h, b) }",
        {"k": np.array(2.0, np.float32), "b": np.float32([1, 1, 1])},
    )
    assert TrainingSession(build_artifact(model, loss="mse")).layout == [("b", (3,))]
    assert TrainingSession(build_artifact(model, loss="mse", trainable=["*"])).layout == [("k", ()), ("b", (3,))]


def test_weight_shared_by_two_layers_gets_the_sum_of_both_gradients(make_model, check_gradient):
    weights = {"w": np.float32([[0.5, 1.0], [-1.0, 0.25]])}
    model = make_model("(float[N,2] x) => (float[N,2] y) { h = MatMul (x, w) t = Tanh (h) y = MatMul (t, w) }", weights)
    generator = np.random.default_rng(0)
    x, t = generator.normal(size=(2, 4, 2)).astype(np.float32)
    check_gradient(model, "mse", x, t)


@pytest.mark.parametrize("optimizer", ["sgd", SGD(momentum=0.5), "adam", "gradient"])
def test_two_weights_with_one_gradient_are_both_trained(make_model, optimizer):
    weights = {"a": np.float32([1, 2]), "b": np.float32([3, 4])}
    model = make_model("(float[N,2] x) => (float[N,2] y) { s = Add (a, b) y = Add (x, s) }", weights)
    session = TrainingSession(build_artifact(model, loss="mse", optimizer=optimizer))
    start = session.parameters
    result = session.step(np.zeros((1, 2), np.float32), np.zeros((1, 2), np.float32))
    moved = result[1] if optimizer == "gradient" else session.parameters - start
    assert np.all(moved != 0)
    np.testing.assert_allclose(moved[:2], moved[2:], rtol=1e-3)


def test_frozen_operators_need_no_rule(make_model, monkeypatch):
    monkeypatch.delitem(registry._RULES, "Sin")
    model = make_model("(float[N,3] x) => (float[N,3] y) { s = Sin (x) y = Mul (s, w) }", {"w": np.float32([1, 2, 3])})
    session = TrainingSession(build_artifact(model, loss="mse"))
    assert session.step(np.ones((1, 3)), np.ones((1, 3))) > 0


def test_unsupported_operator_is_named_with_what_it_blocks(make_model, monkeypatch):
    monkeypatch.delitem(registry._RULES, "Sin")
    text = "(float[N,3] x) => (float[N,3] y) { a = Mul (x, w1) b = Sin (a) c = Mul (b, w2) y = Add (c, w3) }"
    model = make_model(text, {name: np.float32([1, 2, 3]) for name in ("w1", "w2", "w3")})
    model.graph.node[1].name = "wave"
    with pytest.raises(BlindsumError) as caught:
        build_artifact(model, loss="mse")
    assert caught.value.code == "training-operator-unsupported"
    assert caught.value.detail == (
        "node 'wave' (Sin) has no gradient rule in operator set 18, which blocks w1; without it: trainable=['w2', 'w3']"
    )
    rest = TrainingSession(build_artifact(model, loss="mse", trainable=["w2", "w3"]))
    assert rest.layout == [("w2", (3,)), ("w3", (3,))]


def test_refusal_of_a_rule_says_what_it_blocks(make_model, monkeypatch):
    def refuse(b):
        raise BlindsumError("training-model-invalid", f"node {b.node.name!r} is too wavy")

    monkeypatch.setitem(registry._RULES, "Sin", {7: registry.Entry(refuse, broadcast=False)})
    text = "(float[N,3] x) => (float[N,3] y) { a = Mul (x, w1) b = Sin (a) y = Mul (b, w2) }"
    said = _refusal(make_model(text, {name: np.float32([1, 2, 3]) for name in ("w1", "w2")}))
    assert said.startswith("training-model-invalid: node '' is too wavy, which blocks w1; without it: trainable=['w2']")


def _refusal(model, **arguments):
    with pytest.raises(BlindsumError) as caught:
        build_artifact(model, **{"loss": "mse", **arguments})
    return str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"loss": "hinge"}, "loss 'hinge' is none of cross-entropy, binary-cross-entropy, mse"),
        ({"optimizer": "lamb"}, "optimizer 'lamb' is none of sgd, adam, adamw, adagrad, rmsprop, gradient"),
        ({"trainable": ["layer9.*"]}, "trainable 'layer9.*' matches none of layer1.weight, layer1.bias"),
        ({"trainable": []}, "trainable is empty"),
        ({"loss": None}, "loss None is none of cross-entropy"),
        ({"loss": CrossEntropy}, "loss <class 'blindsum.training.losses.CrossEntropy'> is none of cross-entropy"),
        ({"optimizer": Adam}, "optimizer <class 'blindsum.training.optimisers.Adam'> is none of sgd, adam"),
    ],
)
def test_wrong_argument_is_refused_with_the_right_ones(arguments, said):
    assert _refusal(models.mlp([4, 3], seed=1), **arguments).startswith(f"training-request-invalid: {said}")


@pytest.mark.parametrize(
    "make", [lambda: SGD(lr=-1.0), lambda: SGD(momentum=1.0), lambda: SGD(lr=float("nan")), lambda: Adam(beta2=1.0)]
)
def test_hyperparameter_out_of_range_is_refused(make):
    with pytest.raises(BlindsumError, match="training-request-invalid"):
        make()


def test_weight_without_influence_is_refused_when_named(make_model):
    text = "(float[N,3] x) => (float[N,3] y) { a = Mul (x, w) f = Floor (v) y = Add (a, f) }"
    model = make_model(text, {"w": np.float32([1, 2, 3]), "v": np.float32([1, 2, 3])})
    assert TrainingSession(build_artifact(model, loss="mse")).layout == [("w", (3,))]
    assert "does not depend smoothly on v" in _refusal(model, trainable=["v", "w"])


def test_bytes_that_are_no_model_are_refused():
    for data in (b"", b"no model", models.mlp([4, 3], seed=1).SerializeToString()[:40]):
        assert _refusal(data).startswith("training-model-invalid: not a valid ONNX model")


@pytest.mark.parametrize(
    ("value", "trainable", "said"),
    [
        (np.nan, None, "weight 'w' holds NaN"),
        (np.nan, "v", "weight 'w' holds NaN"),
        (np.inf, "w", "'w' holds NaN or infinity and cannot be trained"),
    ],
)
def test_weight_that_is_no_number_is_refused_by_name(make_model, value, trainable, said):
    weights = {"w": np.float32([1, value, 3]), "v": np.float32([1, 2, 3])}
    model = make_model("(float[N,3] x) => (float[N,3] y) { m = Mul (x, w) y = Mul (m, v) }", weights)
    assert _refusal(model, trainable=trainable).startswith(f"training-model-invalid: {said}")


def test_missing_file_is_refused(tmp_path):
    assert _refusal(tmp_path / "absent.onnx").startswith("training-request-invalid")


def test_external_data_are_read_beside_a_path_and_nowhere_else(tmp_path):
    model, path = models.mlp([40, 60], seed=1), tmp_path / "model.onnx"
    expected = TrainingSession(build_artifact(model, loss="mse")).parameters
    onnx.save_model(model, path, save_as_external_data=True, location="weights", size_threshold=0)
    session = TrainingSession(build_artifact(path, loss="mse"))
    assert np.array_equal(session.parameters, expected)
    for pointer in (path.read_bytes(), onnx.load_model(path, load_external_data=False)):
        assert _refusal(pointer).startswith("training-external-data")


def test_output_that_is_not_float32_is_refused(make_model):
    double = make_model("(float[N,3] x) => (double[N,3] y) { m = Mul (x, w) y = Cast <to=11> (m) }", {"w": ARRAY[0]})
    assert "its output is not float32" in _refusal(double)


def test_foreign_domain_is_refused(make_model):
    model = make_model("(float[N,3] x) => (float[N,3] y) { y = Mul (x, w) }", {"w": np.float32([1, 2, 3])})
    model.graph.node[0].domain = "com.example"
    model.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    assert _refusal(model).startswith("training-operator-forbidden: the model uses operators of com.example")


def test_operator_that_devices_do_not_run_is_refused(make_model):
    model = make_model("(float[N,3] x) => (float[N,3] y) { r = RandomUniformLike (x) y = Mul (r, w) }", {"w": ARRAY[0]})
    assert _refusal(model).startswith("training-operator-forbidden: node that makes 'r' (RandomUniformLike)")


def test_several_inputs_are_given_by_name_or_in_order(make_model):
    table = np.arange(12, dtype=np.float32).reshape(4, 3)
    model = make_model(
        "(float[N,3] x, int64[M] k) => (float[N,3] y) { a = Mul (x, w) g = Gather (e, k) y = Add (a, g) }",
        {"w": ARRAY[0], "e": table},
    )
    session = TrainingSession(build_artifact(model, loss="mse", trainable=["w"], optimizer="gradient"))
    stated = [(item.name, item.dtype, item.shape) for item in session.manifest.features]
    assert stated == [("x", "float32", (3,)), ("k", "int64", ())]
    x, k = np.float32([[1, 2, 3], [4, 5, 6]]), np.array([3, 0])
    expected = x * ARRAY[0] + table[k]
    np.testing.assert_allclose(session.predict((x, k)), expected, rtol=1e-6)
    np.testing.assert_allclose(session.predict({"k": k, "x": x}), expected, rtol=1e-6)
    loss, gradient = session.step({"x": x, "k": k}, expected + 2)
    assert loss == pytest.approx(4.0)
    np.testing.assert_allclose(gradient, 2 * (-2 * x).sum(axis=0) / 6, rtol=1e-5)
    assert session.evaluate((x, k), expected + 2)["loss"] == pytest.approx(4.0)
    for features in (x, (x,), (x, k, k), {"x": x}, {"x": x, "k": k, "z": k}, (x, k[:1]), (k, x)):
        with pytest.raises(BlindsumError, match="training-batch-invalid"):
            session.predict(features)


def test_input_that_the_output_does_not_need_is_left_out(make_model):
    model = make_model(
        "(float[N,3] x, float[N,9] z) => (float[N,3] y, float[N,9] v) { y = Mul (x, w) v = Abs (z) }", {"w": ARRAY[0]}
    )
    session = TrainingSession(build_artifact(model, loss="mse", output="y"))
    assert [item.name for item in session.manifest.features] == ["x"]
    assert "choose the output to train: output= one of y, v" in _refusal(model)
    assert "output 'q' is none of y, v" in _refusal(model, output="q")


def test_symbolic_dimensions_are_fixed_by_name_or_place(make_model):
    text = "(float[N,T,3] x, float[N,T,?] z) => (float[N,T,3] y) { a = Mul (x, w) y = Add (a, z) }"
    model, sizes = make_model(text, {"w": ARRAY[0]}), {"T": 5, "z.2": 3}
    session = TrainingSession(build_artifact(model, loss="mse", dimensions=sizes))
    assert [item.shape for item in session.manifest.features] == [(5, 3), (5, 3)]
    assert 'dimensions={"T": ..., "z.2": ...}' in _refusal(model)
    assert "dimensions U; the symbolic ones are T, z.2" in _refusal(model, dimensions={**sizes, "U": 1})


def test_batch_may_be_another_dimension(make_model):
    text = "(float[N,2] x, float[3,N] z) => (float[3,N] y) { m = MatMul (x, w) t = Transpose (m) y = Add (t, z) }"
    session = TrainingSession(build_artifact(make_model(text, {"w": ARRAY}), loss="mse", optimizer="gradient"))
    assert [item.shape for item in session.manifest.features] == [(2,), (3,)]
    x, z = np.float32([[1, 2], [3, 4], [5, 6], [7, 8]]), np.arange(12, dtype=np.float32).reshape(4, 3)
    np.testing.assert_allclose(session.predict((x, z)), x @ ARRAY + z, rtol=1e-6)
    _, gradient = session.step((x, z), x @ ARRAY + z + 6)
    np.testing.assert_allclose(gradient.reshape(2, 3), -np.tile(x.sum(axis=0)[:, None], 3), rtol=1e-5)


def test_input_may_be_fixed(make_model):
    text = "(float[N,3] x, float scale) => (float[N,3] y) { a = Mul (x, w) y = Mul (a, scale) }"
    model = make_model(text, {"w": ARRAY[0]})
    session = TrainingSession(build_artifact(model, loss="mse", fixed={"scale": 3}))
    np.testing.assert_allclose(session.predict(ARRAY), ARRAY * ARRAY[0] * 3, rtol=1e-6)
    assert "or a constant (fixed={'scale': ...})" in _refusal(model)
    assert "fixed 'q' is none of x, scale" in _refusal(model, fixed={"q": 1})
    assert "fixed 'scale' of shape (1,), not []" in _refusal(model, fixed={"scale": [1]})


def test_inputs_of_different_fixed_batches_are_refused(make_model):
    body = "a = Concat <axis=0> (x, x) b = Mul (a, w) y = Add (b, z)"
    model = make_model(f"(float[2,3] x, float[4,3] z) => (float[4,3] y) {{ {body} }}", {"w": ARRAY[0]})
    assert "the first dimensions of its inputs are not one batch: x 2, z 4" in _refusal(model)


def test_output_that_does_not_fit_the_loss_is_refused(make_model):
    summed = make_model(
        "(float[N,3] x) => (float[1,2] y) { s = ReduceSum (x, a) y = MatMul (s, w) }",
        {"a": np.array([0]), "w": ARRAY.T},
    )
    flat = make_model("(float[N,1] x) => (float[N,1] y) { y = Mul (x, w) }", {"w": ARRAY[0][:1]})
    said = "cross-entropy needs an output of shape (batch, classes, ...) with two classes or more, not ('batch', 1)"
    assert said in _refusal(flat, loss="cross-entropy")
    assert "mse needs an output of shape (batch, fixed sizes), not (1, 2)" in _refusal(summed)


def test_manifest_says_what_is_trained():
    manifest = decode(
        build_artifact(models.mlp([4, 6, 3], seed=5), loss="cross-entropy", optimizer=Adam(lr=0.5))
    ).manifest
    assert (manifest.loss, manifest.optimiser, manifest.opset) == ("cross-entropy", "adam", 18)
    assert manifest.hyperparameters == {"lr": 0.5, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}
    assert manifest.metrics == ("loss", "accuracy")
    assert (manifest.features[0].name, manifest.features[0].shape) == ("features", (4,))
    assert (manifest.targets.shape, manifest.targets.dtype) == ((), "int64")
    assert manifest.size == 4 * 6 + 6 + 6 * 3 + 3
    assert manifest.operators["Gemm"] == 5


@pytest.mark.parametrize(("shape", "axis"), [("3", 1), ("2,3", 2)])
def test_final_softmax_of_an_old_operator_set_is_left_to_the_loss(shape, axis, make_model):
    text = f"(float[N,{shape}] x) => (float[N,{shape}] y) {{ z = Mul (x, w) y = Softmax <axis={axis}> (z) }}"
    model = make_model(text, {"w": np.float32([0.5, -1.0, 2.0])}, opset=11)
    session = TrainingSession(build_artifact(model, loss=CrossEntropy(axis=-1), optimizer="gradient"))
    x = np.float32([[1, 2, 1], [3, -1, 1]])[None] if axis == 2 else np.float32([[1, 2, 1], [3, -1, 1]])
    t = np.array([[0, 2]]) if axis == 2 else np.array([0, 2])
    exponent = np.exp(x.reshape(2, 3).astype(np.float64) * [0.5, -1.0, 2.0])
    expected = -np.log(exponent[[0, 1], [0, 2]] / exponent.sum(axis=1)).mean()
    loss, _ = session.step(x, t)
    assert loss == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(session.predict(x).sum(axis=-1), 1.0, rtol=1e-5)
