"""Every gradient rule against central finite differences (float64) and against onnx.reference."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from blindsum.protocol.errors import BlindsumError
from blindsum.training import Backward, Gradients, TrainingSession, build_artifact, rule
from blindsum.training.autodiff import differentiable, registry

BATCH = 5
# name -> (shape of one example, body from x to y, shapes of the weights). Where the rule under test has an operand of
# its own that needs a gradient, "h = Mul (x, s)" makes the other one need one too.
CASES = {
    "add": ((3, 4), "h = Mul (x, s) y = Add (h, w)", {"s": (4,), "w": (3, 4)}),
    "add_broadcast_row": ((3, 4), "h = Mul (x, s) y = Add (w, h)", {"s": (1, 3, 1), "w": (4,)}),
    "add_to_itself": ((3, 4), "h = Mul (x, w) y = Add (h, h)", {"w": (4,)}),
    "sub": ((3, 4), "h = Mul (x, s) y = Sub (w, h)", {"s": (4,), "w": (3, 1)}),
    "mul_broadcast_up": ((4,), "h = Mul (x, s) y = Mul (h, w)", {"s": (4,), "w": (1, 4)}),
    "mul_square": ((3, 4), "h = Mul (x, w) y = Mul (h, h)", {"w": (3, 4)}),
    "div": ((3, 4), "h = Mul (x, s) y = Div (h, w)", {"s": (4,), "w": (3, 1)}),
    "div_by_features": ((3, 4), "h = Mul (x, s) e = Add (h, w) y = Div (w, e)", {"s": (4,), "w": (4,)}),
    "neg": ((3, 4), "h = Mul (x, w) y = Neg (h)", {"w": (3, 4)}),
    "sum_of_three": ((4,), "a = Mul (x, w) b = Mul (a, a) c = Add (a, b) y = Mul (a, c)", {"w": (4,)}),
    "relu": ((3, 4), "h = Add (x, w) y = Relu (h)", {"w": (3, 4)}),
    "sigmoid": ((3, 4), "h = Mul (x, w) y = Sigmoid (h)", {"w": (3, 4)}),
    "tanh": ((3, 4), "h = Mul (x, w) y = Tanh (h)", {"w": (3, 4)}),
    "softmax": ((3, 4), "h = Mul (x, w) y = Softmax (h)", {"w": (3, 4)}),
    "softmax_axis": ((3, 4), "h = Mul (x, w) y = Softmax <axis=1> (h)", {"w": (3, 4)}),
    "log_softmax": ((3, 4), "h = Mul (x, w) y = LogSoftmax (h)", {"w": (3, 4)}),
    "log_softmax_axis": ((3, 4), "h = Mul (x, w) y = LogSoftmax <axis=-2> (h)", {"w": (3, 4)}),
    "identity": ((3, 4), "h = Mul (x, w) y = Identity (h)", {"w": (3, 4)}),
    "flatten": ((3, 4), "h = Mul (x, w) y = Flatten (h)", {"w": (3, 4)}),
    "flatten_axis_2": ((3, 4), "h = Mul (x, w) f = Flatten <axis=2> (h) y = Reshape (f, shape)", {"w": (3, 4)}),
    "reshape": ((3, 4), "h = Mul (x, w) y = Reshape (h, shape)", {"w": (3, 4)}),
    "reshape_then_add": (
        (3, 4),
        "h = Mul (x, w) r = Reshape (h, rows) s = Reshape (r, shape) y = Add (s, b)",
        {"w": (3, 4), "b": (2, 6)},
    ),
    "reshape_with_zero": ((3, 4), "h = Mul (x, w) r = Reshape (h, keep) y = Mul (r, r)", {"w": (3, 4)}),
    "flatten_then_mul": ((3, 4), "h = Mul (x, w) f = Flatten (h) y = Mul (f, v)", {"w": (3, 4), "v": (12,)}),
    "reshape_of_weight": ((6,), "f = Reshape (w, flat) y = Mul (x, f)", {"w": (2, 3)}),
    "transpose": ((3, 4), "h = Mul (x, w) y = Transpose <perm=[0, 2, 1]> (h)", {"w": (3, 4)}),
    "transpose_of_weight": ((3,), "t = Transpose (w) y = MatMul (x, t)", {"w": (4, 3)}),
    "matmul": ((3,), "h = Mul (x, s) y = MatMul (h, w)", {"s": (3,), "w": (3, 4)}),
    "matmul_dense_over_last_axis": ((2, 3), "h = Mul (x, s) y = MatMul (h, w)", {"s": (3,), "w": (3, 4)}),
    "matmul_batched": ((2, 4, 3), "h = Mul (x, s) y = MatMul (h, w)", {"s": (3,), "w": (2, 3, 4)}),
    "matmul_broadcast_stack": ((1, 4, 3), "h = Mul (x, s) y = MatMul (h, w)", {"s": (3,), "w": (2, 3, 4)}),
    "matmul_weight_on_the_left": ((3, 4), "h = Mul (x, s) y = MatMul (w, h)", {"s": (4,), "w": (2, 3)}),
    "matmul_vector_right": ((2, 3), "h = Mul (x, s) y = MatMul (h, w)", {"s": (3,), "w": (3,)}),
    "matmul_vector_left": ((3, 4), "h = Mul (x, s) y = MatMul (w, h)", {"s": (4,), "w": (3,)}),
    "matmul_two_vectors": ((3,), "d = MatMul (v, w) y = Mul (x, d)", {"v": (3,), "w": (3,)}),
    "gemm_no_bias": ((3,), "h = Mul (x, s) y = Gemm (h, w)", {"s": (3,), "w": (3, 4)}),
    "gemm_scaled": (
        (3,),
        "h = Mul (x, s) y = Gemm <alpha=0.5, beta=3.0> (h, w, b)",
        {"s": (3,), "w": (3, 4), "b": (4,)},
    ),
    "gemm_weight_transposed": (
        (3,),
        "h = Mul (x, s) y = Gemm <transB=1> (h, w, b)",
        {"s": (3,), "w": (4, 3), "b": (1, 4)},
    ),
    "gemm_left_transposed": (
        (3,),
        "h = Mul (x, s) a = Transpose (h) y = Gemm <transA=1, alpha=2.0> (a, w, b)",
        {"s": (3,), "w": (3, 4), "b": (1,)},
    ),
    "gemm_both_transposed": (
        (3,),
        "h = Mul (x, s) a = Transpose (h) y = Gemm <transA=1, transB=1> (a, w)",
        {"s": (3,), "w": (4, 3)},
    ),
    "shape_stops": (
        (3, 4),
        "h = Mul (x, w) d = Shape (h) y = Reshape (h, d)",
        {"w": (3, 4)},
    ),
    "comparison_stops": (
        (4,),
        "h = Mul (x, w) c = Greater (h, zero) m = Cast <to=1> (c) y = Mul (h, m)",
        {"w": (4,)},
    ),
}
for _name in ("Ceil", "Floor", "Round", "Sign"):
    CASES[f"{_name.lower()}_stops"] = ((4,), f"h = Mul (x, w) f = {_name} (h) y = Mul (h, f)", {"w": (4,)})


def _model(make_model, name, opset=18):
    shape, body, weights = CASES[name]
    generator = np.random.default_rng(sum(map(ord, name)))
    arrays = {key: (0.3 + generator.random(size)).astype(np.float32) for key, size in weights.items()}
    extra = {
        "shape": np.array([-1, 2, 6]),
        "rows": np.array([-1, 12]),
        "keep": np.array([-1, 0, 2, 2]),
        "flat": np.array([6]),
        "zero": np.array(0.0, np.float32),
    }
    arrays |= {key: array for key, array in extra.items() if key in body}
    sizes = ",".join(map(str, ("N", *shape)))
    proto = make_model(f"(float[{sizes}] x) => (float y) {{ {body} }}", arrays, opset)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    proto = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    x = generator.normal(size=(BATCH, *shape)).astype(np.float32)
    return proto, x, generator


def _targets(proto, x, generator):
    prediction = TrainingSession(build_artifact(proto, loss="mse")).predict(x)
    return generator.normal(size=prediction.shape).astype(np.float32)


@pytest.mark.parametrize("name", CASES)
def test_rule_gives_the_gradient(name, make_model, check_gradient):
    proto, x, generator = _model(make_model, name)
    check_gradient(proto, "mse", x, _targets(proto, x, generator))


def test_every_rule_has_a_case(make_model):
    operators = {node.op_type for name in CASES for node in _model(make_model, name)[0].graph.node}
    assert set(differentiable()) <= operators


@pytest.mark.parametrize("loss", ["cross-entropy", "binary-cross-entropy", "mse"])
def test_loss_gives_the_gradient(loss, make_model, check_gradient):
    generator = np.random.default_rng(3)
    weights = {"w": generator.normal(size=(3, 4)).astype(np.float32), "b": generator.normal(size=4).astype(np.float32)}
    proto = make_model("(float[N,3] x) => (float[N,4] y) { y = Gemm (x, w, b) }", weights)
    x = generator.normal(size=(BATCH, 3)).astype(np.float32)
    targets = {
        "cross-entropy": generator.integers(0, 4, BATCH),
        "binary-cross-entropy": generator.integers(0, 2, (BATCH, 4)).astype(np.float32),
        "mse": generator.normal(size=(BATCH, 4)).astype(np.float32),
    }
    check_gradient(proto, loss, x, targets[loss])


@pytest.mark.parametrize("opset", [9, 11, 13, 17, 18, 21])
def test_gradient_is_right_at_every_operator_set(opset, make_model, check_gradient):
    proto, x, generator = _model(make_model, "gemm_scaled", opset)
    check_gradient(proto, "mse", x, _targets(proto, x, generator))


def test_user_gives_an_operator_its_rule(make_model, check_gradient, monkeypatch):
    monkeypatch.setattr(registry, "_RULES", {name: dict(found) for name, found in registry._RULES.items()})
    proto = make_model("(float[N,3] x) => (float[N,3] y) { h = Mul (x, w) y = Sin (h) }", {"w": np.float32([1, 2, 3])})
    with pytest.raises(BlindsumError, match=r"\(Sin, operator set 18\) blocks w"):
        build_artifact(proto, loss="mse")

    @rule("Sin", since=7)
    def sin(b: Backward) -> Gradients:
        return [b.op("Mul", b.dy, b.op("Cos", b.x[0]))]

    generator = np.random.default_rng(0)
    x, t = generator.normal(size=(2, BATCH, 3)).astype(np.float32)
    check_gradient(proto, "mse", x, t)


def test_second_rule_for_one_version_is_refused():
    with pytest.raises(BlindsumError, match="training-request-invalid: Relu already has a rule"):
        rule("Relu", since=6)(lambda b: [b.dy])


def test_rule_of_the_newest_version_not_above_the_operator_set_is_taken(monkeypatch):
    monkeypatch.setattr(registry, "_RULES", {})
    old, new = (lambda b: [b.dy]), (lambda b: [None])
    rule("Relu", since=6)(old)
    rule("Relu", since=20)(new)
    assert [registry.find("Relu", opset).rule for opset in (18, 19, 20, 23)] == [old, old, new, new]
    assert registry.find("Relu", 5) is None
