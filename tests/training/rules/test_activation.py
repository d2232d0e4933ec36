"""Rules of activation functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.training.cases import Case, case, check


def _unary(operator: str, opset: int = 18, **more: Any) -> Case:
    return case(f"h = Mul (x, w) y = {operator} (h)", (3, 4), opset=opset, w=(3, 4), **more)


def _at(operator: str, *points: float, opset: int = 18) -> Case:
    """At points where the slope jumps: PyTorch's choice."""
    body = f"n = Mul (x, none) h = Add (n, w) y = {operator} (h)"
    return case(
        body, (len(points) + 1,), opset=opset, differences=False, w=[*points, 0.5], constants={"none": np.float32(0)}
    )


CASES = {
    "relu": case("h = Add (x, w) y = Relu (h)", (3, 4), w=(3, 4)),
    "relu_at_0": _at("Relu", 0.0),
    "leaky_relu": _unary("LeakyRelu"),
    "leaky_relu_at_0": _at("LeakyRelu", 0.0),
    "leaky_relu_alpha": _unary("LeakyRelu <alpha=0.3>"),
    "leaky_relu_negative": _unary("LeakyRelu <alpha=-0.3>"),
    "leaky_relu_steep": _unary("LeakyRelu <alpha=1.5>"),
    "p_relu": case("h = Mul (x, s) y = PRelu (h, w)", (3, 4), s=(4,), w=(3, 1)),
    "p_relu_scalar": case("h = Mul (x, s) y = PRelu (h, w)", (3, 4), s=(4,), w=(1,)),
    "p_relu_full": case("h = Mul (x, s) y = PRelu (h, w)", (4,), s=(4,), w=(4,)),
    "thresholded_relu": _unary("ThresholdedRelu <alpha=0.4>"),
    "thresholded_relu_default": _unary("ThresholdedRelu", between=(0, 4)),
    "elu": _unary("Elu"),
    "elu_alpha": _unary("Elu <alpha=0.5>"),
    "elu_negative": _unary("Elu <alpha=-0.5>"),
    "selu": _unary("Selu"),
    "selu_custom": _unary("Selu <alpha=0.7, gamma=1.3>"),
    "celu": _unary("Celu"),
    "celu_alpha": _unary("Celu <alpha=2.5>"),
    "softplus": _unary("Softplus", between=(-30, 30)),
    "softsign": _unary("Softsign"),
    "sigmoid": _unary("Sigmoid"),
    "hard_sigmoid": _unary("HardSigmoid", between=(-4, 4)),
    "hard_sigmoid_custom": _unary("HardSigmoid <alpha=0.4, beta=0.3>", between=(-3, 3)),
    "hard_swish": _unary("HardSwish", between=(-6, 6)),
    "hard_swish_22": _unary("HardSwish", 22, between=(-6, 6)),
    "tanh": _unary("Tanh"),
    # onnx.reference computes erf in float32
    "gelu": _unary("Gelu", 20, between=(-3, 3), differences=False),
    "gelu_tanh": _unary('Gelu <approximate="tanh">', 20, between=(-3, 3)),
    "mish": _unary("Mish", between=(-5, 5)),
    "swish": _unary("Swish", 24, between=(-5, 5)),
    "swish_alpha": _unary("Swish <alpha=1.7>", 24, between=(-5, 5)),
    "softmax": _unary("Softmax"),
    "softmax_axis": _unary("Softmax <axis=1>"),
    "softmax_over_the_batch": _unary("Softmax <axis=0>"),
    "log_softmax": _unary("LogSoftmax"),
    "log_softmax_axis": _unary("LogSoftmax <axis=-2>"),
    "clip": case("h = Mul (x, s) y = Clip (h, w, v)", (3, 4), s=(4,), w=np.float32(-0.5), v=np.float32(0.8)),
    "clip_below": case("h = Mul (x, s) y = Clip (h, w)", (3, 4), s=(4,), w=np.float32(-0.5)),
    "clip_above": case("h = Mul (x, s) y = Clip (h, , w)", (3, 4), s=(4,), w=np.float32(0.5)),
    "clip_nothing": case("h = Mul (x, s) y = Clip (h)", (3, 4), s=(4,)),
    "clip_at_its_bounds": case(
        "n = Mul (x, low) h = Add (n, w) y = Clip (h, low, high)",
        (3,),
        differences=False,
        w=[0.0, 1.0, 0.5],
        constants={"low": np.float32(0), "high": np.float32(1)},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_rule_gives_the_gradient(name: str) -> None:
    check(CASES[name])
