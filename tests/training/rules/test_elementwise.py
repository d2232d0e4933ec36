"""Rules of arithmetic and of functions of one number."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from blindsum.training import TrainingSession, build_artifact
from tests.training.cases import case, check

CASES = {
    "add": case("h = Mul (x, s) y = Add (h, w)", (3, 4), s=(4,), w=(3, 4)),
    "add_broadcast_row": case("h = Mul (x, s) y = Add (w, h)", (3, 4), s=(1, 3, 1), w=(4,)),
    "add_to_itself": case("h = Mul (x, w) y = Add (h, h)", (3, 4), w=(4,)),
    "sub": case("h = Mul (x, s) y = Sub (w, h)", (3, 4), s=(4,), w=(3, 1)),
    "sub_weight": case("h = Mul (x, s) y = Sub (h, w)", (3, 4), s=(1,), w=(4,)),
    "mul_broadcast_up": case("h = Mul (x, s) y = Mul (h, w)", (4,), s=(4,), w=(1, 4)),
    "mul_square": case("h = Mul (x, w) y = Mul (h, h)", (3, 4), w=(3, 4)),
    "div": case("h = Mul (x, s) y = Div (h, w)", (3, 4), s=(4,), w=(3, 1)),
    "div_by_features": case("h = Mul (x, s) e = Add (h, w) y = Div (w, e)", (3, 4), between=(0.5, 2), s=(4,), w=(4,)),
    "div_of_equal_shapes": case("h = Mul (x, s) e = Add (x, w) y = Div (h, e)", (4,), between=(0.5, 2), s=(4,), w=(4,)),
    "sum": case("h = Mul (x, s) y = Sum (w, h, v)", (3, 4), s=(4,), w=(4,), v=(3, 1)),
    "sum_of_one": case("h = Mul (x, w) y = Sum (h)", (4,), w=(4,)),
    "sum_of_three": case("a = Mul (x, w) b = Mul (a, a) c = Add (a, b) y = Mul (a, c)", (4,), w=(4,)),
    "mean": case("h = Mul (x, s) y = Mean (h, w, v)", (3, 4), s=(4,), w=(4,), v=(3, 1)),
    "max": case("h = Mul (x, s) y = Max (h, w)", (3, 4), s=(4,), w=(3, 1)),
    "max_of_three": case("h = Mul (x, s) y = Max (w, h, v)", (3, 4), s=(4,), w=(4,), v=(3, 1)),
    "max_of_one": case("h = Mul (x, w) y = Max (h)", (4,), w=(4,)),
    "max_ties": case(
        "h = Mul (x, s) y = Max (w, h, v)", (3,), differences=False, s=(3,), w=[0.0, 1.0, 2.0], v=[0.0, 1.0, -1.0]
    ),
    "max_ties_of_two": case(
        "z = Mul (x, none) y = Max (w, z)", (3,), w=[0.0, 1.0, -1.0], constants={"none": np.float32(0)}
    ),
    "min": case("h = Mul (x, s) y = Min (h, w)", (3, 4), s=(4,), w=(3, 1)),
    "min_of_four": case("h = Mul (x, s) y = Min (w, h, v, x)", (3, 4), s=(4,), w=(4,), v=(3, 1)),
    "mod": case("h = Mul (x, s) y = Mod <fmod=1> (h, w)", (3, 4), between=(-5, 5), s=(4,), w=(3, 1)),
    "pow": case("h = Mul (x, s) y = Pow (h, w)", (3, 4), between=(0.2, 2), s=(4,), w=(3, 1)),
    "pow_of_equal_shapes": case("h = Mul (x, s) e = Add (x, w) y = Pow (h, e)", (4,), between=(0.2, 2), s=(4,), w=(4,)),
    "pow_of_zero": case(
        "r = Relu (x) h = Mul (r, s) y = Pow (h, w)", (4,), differences=False, s=(4,), w=[0.0, 1.0, 2.0, 3.0]
    ),
    "pow_2": case("h = Mul (x, w) y = Pow (h, p)", (4,), w=(4,), constants={"p": np.float32(2)}),
    "pow_3": case("h = Mul (x, w) y = Pow (h, p)", (4,), w=(4,), constants={"p": np.float32(3)}),
    "pow_half": case("h = Mul (x, w) y = Pow (h, p)", (4,), between=(0.1, 2), w=(4,), constants={"p": np.float32(0.5)}),
    "pow_inverse": case("h = Mul (x, w) y = Pow (h, p)", (4,), between=(0.5, 2), w=(4,), p=[-1]),
    "pow_integer_exponents": case("h = Add (x, w) y = Pow (h, p)", (4,), w=(4,), p=[0, 1, 2, 3]),
    "pow_fixed_of_zero": case(
        "r = Relu (x) h = Mul (r, w) y = Pow (h, p)",
        (4,),
        differences=False,
        w=(4,),
        constants={"p": np.float32([0, 1, 1.5, 4])},
    ),
    "pow_integer_from_the_graph": case("h = Mul (x, w) d = Shape <start=1> (h) y = Pow (h, d)", (2,), w=(2,)),
    "pow_of_fixed_base": case("h = Mul (x, w) y = Pow (p, h)", (4,), w=(4,), constants={"p": np.float32(1.5)}),
    "neg": case("h = Mul (x, w) y = Neg (h)", (3, 4), w=(3, 4)),
    "abs": case("h = Mul (x, w) y = Abs (h)", (3, 4), w=(3, 4)),
    "abs_of_zero": case("r = Relu (x) h = Mul (r, w) a = Abs (h) y = Sub (a, v)", (3, 4), w=(3, 4), v=(4,)),
    "exp": case("h = Mul (x, w) y = Exp (h)", (3, 4), w=(3, 4)),
    "log": case("h = Mul (x, w) y = Log (h)", (3, 4), between=(0.1, 3), w=(3, 4)),
    "sqrt": case("h = Mul (x, w) y = Sqrt (h)", (3, 4), between=(0.01, 3), w=(3, 4)),
    "reciprocal": case("h = Mul (x, w) y = Reciprocal (h)", (3, 4), between=(0.3, 3), w=(3, 4)),
    # onnx.reference computes it in float32
    "erf": case("h = Mul (x, w) y = Erf (h)", (3, 4), differences=False, w=(3, 4)),
    "sin": case("h = Mul (x, w) y = Sin (h)", (3, 4), w=(3, 4)),
    "cos": case("h = Mul (x, w) y = Cos (h)", (3, 4), w=(3, 4)),
    "tan": case("h = Mul (x, w) y = Tan (h)", (3, 4), between=(-1, 1), w=(3, 4)),
    "asin": case("h = Mul (x, w) y = Asin (h)", (3, 4), between=(-0.7, 0.7), w=(3, 4)),
    "acos": case("h = Mul (x, w) y = Acos (h)", (3, 4), between=(-0.7, 0.7), w=(3, 4)),
    "atan": case("h = Mul (x, w) y = Atan (h)", (3, 4), w=(3, 4)),
    "sinh": case("h = Mul (x, w) y = Sinh (h)", (3, 4), w=(3, 4)),
    "cosh": case("h = Mul (x, w) y = Cosh (h)", (3, 4), w=(3, 4)),
    "asinh": case("h = Mul (x, w) y = Asinh (h)", (3, 4), w=(3, 4)),
    "acosh": case("h = Mul (x, w) y = Acosh (h)", (3, 4), between=(4, 9), w=(3, 4)),
    "atanh": case("h = Mul (x, w) y = Atanh (h)", (3, 4), between=(-0.7, 0.7), w=(3, 4)),
    "float64_in_between": case(
        "h = Mul (x, w) d = Cast <to=11> (h) a = Abs (d) m = Max (d, a) r = Sqrt (m) y = Cast <to=1> (r)", (4,), w=(4,)
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_rule_gives_the_gradient(name: str) -> None:
    check(CASES[name])


@pytest.mark.parametrize("root", ["d = Sqrt (v)", "d = Pow (v, half)"])
def test_deviation_of_equal_numbers_has_no_slope(root, make_model):
    """As torch.std has none, where sqrt's is infinite and 0 x infinity is NaN."""
    centred = "h = Mul (x, w) m = ReduceMean <keepdims=1> (h, last) c = Sub (h, m)"
    body = f"{centred} s = Mul (c, c) v = ReduceMean <keepdims=1> (s, last) {root}"
    weights = {"w": np.ones(3, np.float32), "last": np.array([1])}
    if "half" in root:
        weights["half"] = np.float32(0.5)
    model = make_model(f"(float[N,3] x) => (float[N,1] d) {{ {body} }}", weights)
    session = TrainingSession(build_artifact(model, loss="mse", optimizer="gradient", trainable="w"))
    x = np.float32([[2, 2, 2], [1, 2, 3]])
    _, slope = session.step(x, np.zeros((2, 1), np.float32))
    weight = torch.ones(3, requires_grad=True)
    ((torch.from_numpy(x) * weight).std(dim=1, unbiased=False) ** 2).mean().backward()
    np.testing.assert_allclose(slope, weight.grad.numpy(), rtol=1e-5)
