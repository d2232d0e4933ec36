"""Operators that pass no gradient on: what depends on them alone has none, the rest of the model does."""

from __future__ import annotations

import numpy as np
import pytest

from blindsum.protocol.errors import BlindsumError
from blindsum.training import build_artifact
from blindsum.training.autodiff import registry
from tests.training.cases import Case, case, check, model_of

HALVES = {"zero": np.float32(0), "one": np.float32(1)}


def _factor(body: str) -> Case:
    """`body` leads from h to f, which y = h f takes as a factor. (Not to a constant: f differs between elements.)"""
    return case(f"h = Mul (x, w) {body} y = Mul (h, f)", (4,), w=(4,), constants=HALVES)


CASES = {
    "shape": case("h = Mul (x, w) d = Shape (h) y = Reshape (h, d)", (3, 4), w=(3, 4)),
    "size": _factor("s = Size (h) f = Cast <to=1> (s)"),
    "non_zero": _factor("n = NonZero (h) s = Shape <start=1> (n) f = Cast <to=1> (s)"),
    "constant_of_shape": _factor("s = Shape (h) c = ConstantOfShape <value = int64[1] {2}> (s) f = Cast <to=1> (c)"),
    "eye_like": _factor("e = EyeLike (h) f = Add (e, one)"),
    "not": _factor("a = Greater (h, zero) b = Not (a) f = Cast <to=1> (b)"),
    "is_nan": _factor("a = IsNaN (h) b = Not (a) f = Cast <to=1> (b)"),
    "is_inf": _factor("a = IsInf (h) b = Not (a) f = Cast <to=1> (b)"),
}
for _name in ("Ceil", "Floor", "Round", "Sign"):
    CASES[_name] = _factor(f"f = {_name} (h)")
for _name in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"):
    CASES[_name] = _factor(f"r = Relu (h) c = {_name} (r, zero) m = Cast <to=1> (c) f = Add (m, one)")
for _name in ("And", "Or", "Xor"):
    CASES[_name] = _factor(f"a = Greater (h, zero) b = Less (h, one) c = {_name} (a, b) f = Cast <to=1> (c)")
for _name in ("ArgMax", "ArgMin"):
    CASES[_name] = _factor(f"a = {_name} <axis=1> (h) b = Cast <to=1> (a) f = Add (b, one)")


@pytest.mark.parametrize("name", CASES)
def test_rule_gives_the_gradient(name: str) -> None:
    check(CASES[name])


def test_every_stop_has_a_case() -> None:
    seen = {node.op_type for item in CASES.values() for node in model_of(item).graph.node}
    assert seen >= registry._STOPS


def test_parameter_that_reaches_the_loss_through_stops_alone_is_refused() -> None:
    item = case("h = Mul (x, w) y = Sign (h)", (4,), w=(4,))
    with pytest.raises(BlindsumError, match="training-model-invalid: the loss depends smoothly on none"):
        build_artifact(model_of(item), loss="mse")
