"""Rules of normalisation."""

from __future__ import annotations

import numpy as np
import pytest

from tests.training.cases import Case, case, check

STATISTICS = {"m": np.float32([0.1, -0.2, 0.3]), "v": np.float32([0.5, 1.0, 2.0])}


def _batch(node: str, x: tuple[int, ...] = (3, 2, 2), **more: object) -> Case:
    wide = (3, *[1] * (len(x) - 1))
    body = f"h = Mul (x, s) {node} y = Mul (n, n)"
    return case(body, x, s=wide, w=(3,), b=(3,), constants=STATISTICS, tolerance=3e-4, **more)


CASES = {
    "batch_frozen": _batch("n = BatchNormalization (h, w, b, m, v)"),
    "batch_frozen_epsilon": _batch("n = BatchNormalization <epsilon=0.1> (h, w, b, m, v)"),
    "batch_frozen_of_vectors": _batch("n = BatchNormalization (h, w, b, m, v)", (3,)),
    "batch_statistics_trained": case(
        "n = BatchNormalization (x, w, b, m, v) y = Mul (n, n)", (3, 2), w=(3,), b=(3,), m=(3,), v=(3,)
    ),
    "layer": case("h = Mul (x, s) n = LayerNormalization (h, w, b) y = Mul (n, n)", (3, 4), s=(4,), w=(4,), b=(4,)),
    "layer_without_bias": case("h = Mul (x, s) n = LayerNormalization (h, w) y = Mul (n, n)", (3, 4), s=(4,), w=(4,)),
    "layer_axis": case(
        "h = Mul (x, s) n = LayerNormalization <axis=1, epsilon=0.1> (h, w, b) y = Mul (n, n)",
        (3, 4),
        s=(4,),
        w=(3, 4),
        b=(3, 4),
    ),
    "layer_scale_broadcast": case(
        "h = Mul (x, s) n = LayerNormalization <axis=-2> (h, w, b) y = Mul (n, n)", (3, 4), s=(4,), w=(4,), b=(3, 1)
    ),
    "layer_with_statistics": case(
        "h = Mul (x, s) n, p, q = LayerNormalization (h, w, b) y = Mul (n, n)", (3, 4), s=(4,), w=(4,), b=(4,)
    ),
    "layer_float64": case(
        "d = Cast <to=11> (x) e = Cast <to=11> (w) n = LayerNormalization (d, e) c = Cast <to=1> (n) y = Mul (c, c)",
        (3, 4),
        w=(4,),
    ),
    "instance": case(
        "h = Mul (x, s) n = InstanceNormalization (h, w, b) y = Mul (n, n)", (3, 2, 3), s=(3,), w=(3,), b=(3,)
    ),
    "instance_1d": case(
        "h = Mul (x, s) n = InstanceNormalization <epsilon=0.1> (h, w, b) y = Mul (n, n)",
        (3, 4),
        s=(4,),
        w=(3,),
        b=(3,),
    ),
    # onnx infers no shape for it; onnx.reference computes it in float32
    "group": case(
        "h = Mul (x, s) n = GroupNormalization <num_groups=2> (h, w, b) y = Mul (n, n)",
        (4, 2, 3),
        opset=21,
        differences=False,
        s=(3,),
        w=(4,),
        b=(4,),
    ),
    "group_of_vectors": case(
        "h = Mul (x, s) n = GroupNormalization <num_groups=2, epsilon=0.1> (h, w, b) y = Mul (n, n)",
        (6,),
        opset=21,
        differences=False,
        s=(6,),
        w=(6,),
        b=(6,),
    ),
    # onnx.reference mixes float32 into it
    "mean_variance": case(
        "h = Mul (x, w) n = MeanVarianceNormalization (h) y = Mul (n, v)",
        (3, 2, 2),
        w=(3, 2, 2),
        v=(3, 2, 2),
        differences=False,
    ),
    "mean_variance_axes": case(
        "h = Mul (x, w) n = MeanVarianceNormalization <axes=[2, 3]> (h) y = Mul (n, v)",
        (3, 2, 3),
        w=(3, 2, 3),
        v=(3, 1, 1),
        differences=False,
    ),
    "rms": case("h = Mul (x, s) n = RMSNormalization (h, w) y = Mul (n, n)", (3, 4), opset=23, s=(4,), w=(4,)),
    "rms_axis": case(
        "h = Mul (x, s) n = RMSNormalization <axis=1, epsilon=0.1> (h, w) y = Mul (n, n)",
        (3, 4),
        opset=23,
        s=(4,),
        w=(3, 1),
    ),
    "lp_2": case("h = Mul (x, w) n = LpNormalization (h) y = Mul (n, v)", (3, 4), w=(3, 4), v=(4,)),
    # onnx.reference sums without taking absolute values
    "lp_1": case(
        "h = Mul (x, w) n = LpNormalization <p=1, axis=1> (h) y = Mul (n, v)",
        (3, 4),
        differences=False,
        w=(3, 4),
        v=(4,),
    ),
    "lrn": case("h = Mul (x, w) n = LRN <size=3, alpha=0.5> (h) y = Mul (n, n)", (5, 2, 2), w=(5, 1, 1)),
    "lrn_custom": case(
        "h = Mul (x, w) n = LRN <size=5, alpha=0.9, beta=0.5, bias=2.0> (h) y = Mul (n, n)", (5, 2, 2), w=(5, 1, 1)
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_rule_gives_the_gradient(name: str) -> None:
    check(CASES[name])
