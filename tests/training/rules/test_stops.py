"""Operators that pass no gradient on."""

from __future__ import annotations

import numpy as np
import pytest

from tests.training.cases import case, check

CASES = {
    "shape_stops": case("h = Mul (x, w) d = Shape (h) y = Reshape (h, d)", (3, 4), w=(3, 4)),
    "comparison_stops": case(
        "h = Mul (x, w) c = Greater (h, zero) m = Cast <to=1> (c) y = Mul (h, m)",
        (4,),
        w=(4,),
        constants={"zero": np.float32(0)},
    ),
    "ceil_stops": case("h = Mul (x, w) f = Ceil (h) y = Mul (h, f)", (4,), w=(4,)),
    "floor_stops": case("h = Mul (x, w) f = Floor (h) y = Mul (h, f)", (4,), w=(4,)),
    "round_stops": case("h = Mul (x, w) f = Round (h) y = Mul (h, f)", (4,), w=(4,)),
    "sign_stops": case("h = Mul (x, w) f = Sign (h) y = Mul (h, f)", (4,), w=(4,)),
}


@pytest.mark.parametrize("name", CASES)
def test_rule_gives_the_gradient(name: str) -> None:
    check(CASES[name])
