"""Operators that have no rule of their own: they are trained through their definition."""

from __future__ import annotations

import numpy as np
import pytest

from blindsum.training import build_artifact, decode
from blindsum.training.autodiff import differentiable
from blindsum.training.operators import OPERATORS
from tests.training.cases import case, check, model_of

CASES = {
    "shrink": case("h = Mul (x, w) y = Shrink <bias=0.2, lambd=0.5> (h)", (3, 4), w=(3, 4)),
    "centre_crop": case(
        "h = Mul (x, w) c = CenterCropPad <axes=[1, 2]> (h, size) y = Mul (c, c)", (5, 4), w=(5, 4), size=[3, 2]
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_rule_gives_the_gradient(name: str) -> None:
    check(CASES[name])


@pytest.mark.parametrize("name", CASES)
def test_cases_have_no_rule(name: str) -> None:
    operators = {node.op_type for node in model_of(CASES[name]).graph.node}
    assert operators - set(differentiable())


def test_operator_that_devices_do_not_run_is_written_out_also_where_it_is_frozen() -> None:
    item = case("s = Shrink (x) y = Mul (s, w)", (4,), w=(4,))
    assert "Shrink" not in OPERATORS
    operators = decode(build_artifact(model_of(item), loss="mse")).manifest.operators
    assert "Shrink" not in operators
    assert operators["Less"]
    check(item)


def test_operator_with_a_rule_stays_whole() -> None:
    item = case("h = Mul (x, w) y = Elu (h)", (4,), w=np.float32([1, 2, 3, 4]))
    assert decode(build_artifact(model_of(item), loss="mse")).manifest.operators["Elu"] == 1
