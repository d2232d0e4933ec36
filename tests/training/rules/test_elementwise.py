"""Rules of arithmetic."""

from __future__ import annotations

import pytest

from tests.training.cases import case, check

CASES = {
    "add": case("h = Mul (x, s) y = Add (h, w)", (3, 4), s=(4,), w=(3, 4)),
    "add_broadcast_row": case("h = Mul (x, s) y = Add (w, h)", (3, 4), s=(1, 3, 1), w=(4,)),
    "add_to_itself": case("h = Mul (x, w) y = Add (h, h)", (3, 4), w=(4,)),
    "sub": case("h = Mul (x, s) y = Sub (w, h)", (3, 4), s=(4,), w=(3, 1)),
    "mul_broadcast_up": case("h = Mul (x, s) y = Mul (h, w)", (4,), s=(4,), w=(1, 4)),
    "mul_square": case("h = Mul (x, w) y = Mul (h, h)", (3, 4), w=(3, 4)),
    "div": case("h = Mul (x, s) y = Div (h, w)", (3, 4), s=(4,), w=(3, 1)),
    "div_by_features": case("h = Mul (x, s) e = Add (h, w) y = Div (w, e)", (3, 4), s=(4,), w=(4,)),
    "neg": case("h = Mul (x, w) y = Neg (h)", (3, 4), w=(3, 4)),
    "sum_of_three": case("a = Mul (x, w) b = Mul (a, a) c = Add (a, b) y = Mul (a, c)", (4,), w=(4,)),
}


@pytest.mark.parametrize("name", CASES)
def test_rule_gives_the_gradient(name: str) -> None:
    check(CASES[name])
