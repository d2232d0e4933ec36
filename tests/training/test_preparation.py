"""What becomes of a model before it is differentiated: folded, followed through its shapes, written out, upgraded."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from blindsum.protocol.errors import BlindsumError
from blindsum.training import TrainingSession, build_artifact, decode
from blindsum.training.autodiff.prepare import prepare
from blindsum.training.autodiff.select import select
from blindsum.training.autodiff.source import read_source

W = np.float32([[0.5, -1.0, 2.0], [1.5, 0.25, -0.75]])
X = np.arange(20, dtype=np.float32).reshape(5, 4)


def _prepared(model, trainable=None, **dimensions):
    source = read_source(model, None)
    return prepare(source, select(source, trainable).names, dimensions)


def _operators(prepared):
    return [node.op_type for node in prepared.graph.nodes]


HEADS = {
    "by_parts": "s = Shape (x) n = Gather (s, zero) u = Unsqueeze (n, zeros) t = Concat <axis=0> (u, minus, two)",
    "by_slices": "s = Shape (x) n = Slice (s, zeros, ones) t = Concat <axis=0> (n, minus, two)",
    "by_attribute": "n = Shape <start=0, end=1> (x) t = Concat <axis=0> (n, minus, two)",
    "by_size": "n = Size (x) q = Div (n, four) u = Reshape (q, ones) t = Concat <axis=0> (u, minus, two)",
    # as tf2onnx writes attention
    "by_products": "s = Shape (x) n = Slice (s, zeros, ones) p = ReduceProd <keepdims=1> (n) m = Max (p, ones, n)"
    " t = Concat <axis=0> (m, minus, two)",
    "by_choice": "s = Shape (x) c = Equal (s, minus) o = Where (c, ones, s) n = Slice (o, zeros, ones)"
    " t = Concat <axis=0> (n, minus, two)",
}
NUMBERS = {
    "zero": np.array(0),
    "zeros": np.array([0]),
    "ones": np.array([1]),
    "minus": np.array([-1]),
    "two": np.array([2]),
    "four": np.array(4),
    "w": W,
}


@pytest.mark.parametrize("way", HEADS)
def test_computed_reshape_becomes_constant_and_serves_every_batch(make_model, way):
    text = f"(float[N,4] x) => (float[N,2,3] y) {{ {HEADS[way]} r = Reshape (x, t) y = MatMul (r, w) }}"
    model = make_model(text, NUMBERS)
    prepared = _prepared(model)
    assert _operators(prepared) == ["Reshape", "MatMul"]
    assert prepared.graph.shape(prepared.output) == ("batch", 2, 3)
    session = TrainingSession(build_artifact(model, loss="mse"))
    for rows in (1, 3, 5):
        np.testing.assert_allclose(session.predict(X[:rows]), X[:rows].reshape(rows, 2, 2) @ W, rtol=1e-5)


def test_batch_is_followed_through_heads_that_share_its_dimension(make_model):
    body = "r = Reshape (x, joined) m = MatMul (r, w) y = Reshape (m, apart)"
    numbers = {"joined": np.array([-1, 2]), "apart": np.array([-1, 2, 3]), "w": W}
    prepared = _prepared(make_model(f"(float[N,4] x) => (float[N,2,3] y) {{ {body} }}", numbers))
    shapes = [prepared.graph.shape(node.output[0]) for node in prepared.graph.nodes]
    assert shapes == [("2*batch", 2), ("2*batch", 3), ("batch", 2, 3)]


def test_frozen_arithmetic_is_folded_and_trained_is_not(make_model):
    text = "(float[N,3] x) => (float[N,2] y) { t = Transpose (w) d = Mul (t, t) y = MatMul (x, d) }"
    model = make_model(text, {"w": W})
    assert _operators(_prepared(model)) == ["Transpose", "Mul", "MatMul"]
    other = make_model(text.replace("y = MatMul (x, d)", "m = MatMul (x, d) y = Add (m, b)"), {"w": W, "b": W[:, 0]})
    prepared = _prepared(other, "b")
    assert _operators(prepared) == ["MatMul", "Add"]
    np.testing.assert_array_equal(prepared.graph.constants["d"], W.T * W.T)


def test_what_changes_nothing_is_left_out(make_model):
    body = "i = Identity (x) d = Dropout (i) c = Cast <to=1> (d) k = Identity (w) m = Mul (c, k) e = Expand (m, same)"
    numbers = {"w": W, "same": np.array([2, 3])}
    model = make_model(f"(float[N,2,3] x) => (float[N,2,3] y) {{ {body} s = Shape (e) y = Expand (e, s) }}", numbers)
    assert _operators(_prepared(model)) == ["Mul"]
    assert TrainingSession(build_artifact(model, loss="mse")).layout == [("w", (2, 3))]


def _branching(condition, outer):
    """if `condition`: y = outer * w, else: y = outer + w; with a shape guard before it as TorchScript writes them."""
    then = helper.make_graph(
        [helper.make_node("Mul", ["h", "w"], ["inner"])],
        "then",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)],
    )
    two = numpy_helper.from_array(np.float32([2]), "two")
    other = helper.make_graph(
        [helper.make_node("Add", ["h", "w"], ["inner"]), helper.make_node("Mul", ["inner", "two"], ["outcome"])],
        "else",
        [],
        [helper.make_tensor_value_info("outcome", TensorProto.FLOAT, None)],
        [two],
    )
    nodes = [
        helper.make_node("Relu", ["x"], ["h"]),
        helper.make_node("Shape", [outer], ["s"]),
        helper.make_node("Gather", ["s", condition], ["k"]),
        helper.make_node("Equal", ["k", "three"], ["c"]),
        helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])
    numbers = {"w": W[0], "first": np.array(0), "last": np.array(-1), "three": np.array(3)}
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(a, n) for n, a in numbers.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def test_branch_whose_condition_is_constant_is_written_out():
    x = np.float32([[1, -2, 3], [4, 5, -6]])
    taken = TrainingSession(build_artifact(_branching("last", "x"), loss="mse"))
    np.testing.assert_allclose(taken.predict(x), np.maximum(x, 0) * W[0])
    other = _branching("last", "x")
    other.graph.initializer[3].CopyFrom(numpy_helper.from_array(np.array(4), "three"))
    other = TrainingSession(build_artifact(other, loss="mse"))
    np.testing.assert_allclose(other.predict(x), (np.maximum(x, 0) + W[0]) * 2)
    assert taken.layout == other.layout == [("w", (3,))]


def test_branch_that_depends_on_the_batch_is_refused_by_name():
    with pytest.raises(BlindsumError, match=r"training-operator-forbidden: node that makes 'y' \(If\)"):
        build_artifact(_branching("first", "x"), loss="mse")


def test_functions_of_the_model_are_written_out(make_model):
    model = make_model("(float[N,3] x) => (float[N,3] y) { y = Mul (x, w) }", {"w": W[0]})
    scaled = helper.make_function(
        "mine",
        "Scaled",
        ["a", "b"],
        ["c"],
        [helper.make_node("Mul", ["a", "b"], ["d"]), helper.make_node("Tanh", ["d"], ["c"])],
        [helper.make_opsetid("", 18)],
    )
    model.functions.append(scaled)
    model.graph.node[0].CopyFrom(helper.make_node("Scaled", ["x", "w"], ["y"], domain="mine"))
    model.opset_import.append(helper.make_opsetid("mine", 1))
    session = TrainingSession(build_artifact(model, loss="mse"))
    assert session.layout == [("w", (3,))]
    np.testing.assert_allclose(session.predict(X[:, :3]), np.tanh(X[:, :3] * W[0]), rtol=1e-6)


def test_output_with_the_batch_elsewhere_is_turned(make_model):
    text = "(float[N,2,4] x) => (float[2,N,3] y) { t = Transpose <perm=[1,0,2]> (x) y = MatMul (t, w) }"
    weight = np.arange(12, dtype=np.float32).reshape(4, 3)
    session = TrainingSession(build_artifact(make_model(text, {"w": weight}), loss="mse"))
    x = np.arange(24, dtype=np.float32).reshape(3, 2, 4)
    np.testing.assert_allclose(session.predict(x), x @ weight)


def test_any_value_of_the_model_may_be_the_output(make_model):
    text = "(float[N,3] x) => (float[N,3] y) { h = Mul (x, w) y = Tanh (h) }"
    session = TrainingSession(build_artifact(make_model(text, {"w": W[0]}), loss="mse", output="h"))
    np.testing.assert_allclose(session.predict(X[:, :3]), X[:, :3] * W[0])


@pytest.mark.parametrize("opset", [7, 9, 11, 12, 13, 15, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26])
def test_operator_sets_from_the_oldest_to_the_newest_train_alike(make_model, opset):
    body = "m = Gemm <transB=1> (x, w, b) r = Relu (m) f = Flatten (r) s = Softmax <axis=1> (f)"
    weights = {"w": np.arange(12, dtype=np.float32).reshape(3, 4) / 10, "b": W[0]}
    model = make_model(f"(float[N,4] x) => (float[N,3] s) {{ {body} }}", weights, opset)
    artifact = build_artifact(model, loss="cross-entropy")
    session = TrainingSession(artifact)
    assert session.manifest.opset == max(18, opset)
    z = np.maximum(X @ weights["w"].T + weights["b"], 0).astype(np.float64)
    expected = np.mean(np.logaddexp.reduce(z, axis=1) - z[np.arange(5), np.arange(5) % 3])
    assert session.step(X, np.arange(5) % 3) == pytest.approx(expected, rel=1e-5)


def test_operator_set_beyond_the_newest_is_refused(make_model):
    model = make_model("(float[N,3] x) => (float[N,3] y) { y = Mul (x, w) }", {"w": W[0]})
    model.opset_import[0].version = 27
    with pytest.raises(BlindsumError, match="operator set 27; export it with 26 or lower"):
        build_artifact(model, loss="mse")


QUANTISED = {
    "QDQ": """a = QuantizeLinear (x, scale, zero) b = DequantizeLinear (a, scale, zero)
        k = DequantizeLinear (w8, scale, zero) m = MatMul (b, k) h = Relu (m)""",
    "QLinear": """a = QuantizeLinear (x, scale, zero)
        m = QLinearMatMul (a, scale, zero, w8, scale, zero, wide, zero) d = DequantizeLinear (m, wide, zero) h = Relu (d)""",
    "dynamic": """a, s, z = DynamicQuantizeLinear (x) m = MatMulInteger (a, w8, z) c = Cast <to=1> (m)
        f = Mul (s, scale) n = Mul (c, f) h = Relu (n)""",
}


@pytest.mark.parametrize("form", QUANTISED)
def test_float_head_on_an_int8_backbone_trains(make_model, form):
    generator = np.random.default_rng(0)
    numbers = {
        "scale": np.array(0.05, np.float32),
        "wide": np.array(0.2, np.float32),
        "zero": np.array(0, np.int8),
        "w8": generator.integers(-60, 60, (4, 6)).astype(np.int8),
        "head": generator.normal(size=(6, 3)).astype(np.float32),
    }
    model = make_model(f"(float[N,4] x) => (float[N,3] y) {{ {QUANTISED[form]} y = MatMul (h, head) }}", numbers)
    artifact = build_artifact(model, loss="cross-entropy", trainable=None if form == "QDQ" else "head")
    session = TrainingSession(artifact)
    assert session.layout == [("head", (6, 3))]
    held = decode(artifact).constants
    assert held["w8"].dtype == np.int8 and not any(array.shape == (4, 6) for n, array in held.items() if n != "w8")
    x, t = generator.normal(size=(8, 4)).astype(np.float32), np.arange(8) % 3
    losses = [session.step(x, t) for _ in range(20)]
    assert losses[-1] < losses[0]


def test_names_of_ours_are_not_taken(make_model):
    model = make_model("(float[N,3] x) => (float[N,3] y) { y = Mul (x, w) }", {"w": W[0]})
    model.graph.initializer[0].name = model.graph.node[0].input[1] = "@w"
    with pytest.raises(BlindsumError, match="a name that starts with @"):
        build_artifact(model, loss="mse")


def test_value_that_nothing_makes_is_refused(make_model):
    model = make_model("(float[N,3] x) => (float[N,3] y) { h = Tanh (x) y = Mul (h, w) }", {"w": W[0]})
    del model.graph.node[0]
    with pytest.raises(BlindsumError, match="training-model-invalid"):
        build_artifact(model, loss="mse")


def test_shapes_that_do_not_agree_are_refused_by_node(make_model):
    model = make_model("(float[N,4] x) => (float[N,3] y) { y = MatMul (x, w) }", {"w": W})
    model.graph.node[0].name = "dense"
    with pytest.raises(BlindsumError, match=r"node 'dense' \(MatMul\)"):
        build_artifact(model, loss="mse")
    assert onnx.checker.check_model(model) is None  # the checker alone sees nothing
