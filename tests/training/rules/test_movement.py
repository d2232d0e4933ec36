"""Rules of operators that move elements."""

from __future__ import annotations

import pytest

from tests.training.cases import case, check

CASES = {
    "identity": case("h = Mul (x, w) y = Identity (h)", (3, 4), w=(3, 4)),
    "flatten": case("h = Mul (x, w) y = Flatten (h)", (3, 4), w=(3, 4)),
    "flatten_axis_2": case(
        "h = Mul (x, w) f = Flatten <axis=2> (h) y = Reshape (f, shape)", (3, 4), w=(3, 4), shape=[-1, 2, 6]
    ),
    "reshape": case("h = Mul (x, w) y = Reshape (h, shape)", (3, 4), w=(3, 4), shape=[-1, 2, 6]),
    "reshape_then_add": case(
        "h = Mul (x, w) r = Reshape (h, rows) s = Reshape (r, shape) y = Add (s, b)",
        (3, 4),
        w=(3, 4),
        b=(2, 6),
        shape=[-1, 2, 6],
        rows=[-1, 12],
    ),
    "reshape_with_zero": case(
        "h = Mul (x, w) r = Reshape (h, keep) y = Mul (r, r)", (3, 4), w=(3, 4), keep=[-1, 0, 2, 2]
    ),
    "flatten_then_mul": case("h = Mul (x, w) f = Flatten (h) y = Mul (f, v)", (3, 4), w=(3, 4), v=(12,)),
    "reshape_of_weight": case("f = Reshape (w, flat) y = Mul (x, f)", (6,), w=(2, 3), flat=[6]),
    "transpose": case("h = Mul (x, w) y = Transpose <perm=[0, 2, 1]> (h)", (3, 4), w=(3, 4)),
    "transpose_of_weight": case("t = Transpose (w) y = MatMul (x, t)", (3,), w=(4, 3)),
}


@pytest.mark.parametrize("name", CASES)
def test_rule_gives_the_gradient(name: str) -> None:
    check(CASES[name])
