"""Rules of quantisation: PyTorch's straight-through gradient is the only oracle, as the true slope is zero."""

from __future__ import annotations

import numpy as np
import pytest

from blindsum.protocol.errors import BlindsumError
from blindsum.training import build_artifact
from tests.training.cases import case, check, model_of

BODY = "h = Mul (x, w) q = QuantizeLinear {axis} (h, s, z) y = DequantizeLinear {axis} (q, s, z)"
SCALES = np.float32([0.05, 0.01, 0.02])
CASES = {
    "one_scale": case(
        BODY.format(axis=""),
        (4, 3),
        w=(4, 3),
        differences=False,
        constants={"s": np.float32(0.01), "z": np.int8(10)},
    ),
    "a_scale_for_each_channel": case(
        BODY.format(axis="<axis=1>"),
        (3, 4),
        w=(3, 4),
        differences=False,
        constants={"s": SCALES, "z": np.uint8([128, 100, 90])},
    ),
    "weight_for_each_column": case(
        "q = QuantizeLinear <axis=-1> (w, s, z) d = DequantizeLinear <axis=-1> (q, s, z) y = MatMul (x, d)",
        (4,),
        w=(4, 3),
        differences=False,
        constants={"s": SCALES, "z": np.zeros(3, np.int8)},
    ),
    "moved_while_quantised": case(
        "h = Mul (x, w) q = QuantizeLinear (h, s) r = Reshape (q, shape) y = DequantizeLinear (r, s)",
        (4, 3),
        w=(4, 3),
        between=(0.0, 1.0),
        shape=[-1, 12],
        differences=False,
        constants={"s": np.float32(0.002)},
    ),
    "frozen_int8_weight": case(
        "d = DequantizeLinear <axis=1> (q, s) h = Mul (x, w) y = MatMul (h, d)",
        (4,),
        opset=19,
        w=(4,),
        constants={"s": SCALES, "q": np.arange(-6, 6, dtype=np.int8).reshape(4, 3)},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_rule_gives_the_gradient(name: str) -> None:
    check(CASES[name])


def test_blocked_quantisation_is_named() -> None:
    item = case(
        "q = QuantizeLinear <axis=0, block_size=2> (w, s) d = DequantizeLinear <axis=0, block_size=2> (q, s)"
        " y = MatMul (x, d)",
        (4,),
        w=(4, 3),
        opset=21,
        constants={"s": np.full((2, 3), 0.1, np.float32)},
    )
    with pytest.raises(BlindsumError, match=r"\(DequantizeLinear\): no gradient for blocked quantisation"):
        build_artifact(model_of(item), loss="mse", trainable=["w"])
