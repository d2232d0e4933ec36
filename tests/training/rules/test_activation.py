"""Rules of activation functions."""

from __future__ import annotations

import pytest

from tests.training.cases import case, check

CASES = {
    "relu": case("h = Add (x, w) y = Relu (h)", (3, 4), w=(3, 4)),
    "sigmoid": case("h = Mul (x, w) y = Sigmoid (h)", (3, 4), w=(3, 4)),
    "tanh": case("h = Mul (x, w) y = Tanh (h)", (3, 4), w=(3, 4)),
    "softmax": case("h = Mul (x, w) y = Softmax (h)", (3, 4), w=(3, 4)),
    "softmax_axis": case("h = Mul (x, w) y = Softmax <axis=1> (h)", (3, 4), w=(3, 4)),
    "log_softmax": case("h = Mul (x, w) y = LogSoftmax (h)", (3, 4), w=(3, 4)),
    "log_softmax_axis": case("h = Mul (x, w) y = LogSoftmax <axis=-2> (h)", (3, 4), w=(3, 4)),
}


@pytest.mark.parametrize("name", CASES)
def test_rule_gives_the_gradient(name: str) -> None:
    check(CASES[name])
