"""Rules of poolings."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from blindsum.protocol.errors import BlindsumError
from blindsum.training import TrainingSession, build_artifact, decode
from tests.training.cases import Case, case, check, model_of


def _pool(operator: str, attributes: str, x: tuple[int, ...], **options: object) -> Case:
    node = f"{operator} <{attributes}>" if attributes else operator
    return case(f"h = Mul (x, w) y = {node} (h)", x, w=x, **options)


def _windows(kernel: str, attributes: str = "") -> str:
    return f"kernel_shape={kernel}{attributes and ', '}{attributes}"


HALVES = _windows("[2, 2]", "strides=[2, 2]")
OVERLAP = _windows("[3, 3]", "strides=[2, 2]")

CASES = {
    "max": _pool("MaxPool", HALVES, (2, 4, 6)),
    "max_uneven_tiles": _pool("MaxPool", _windows("[2, 3]", "strides=[2, 3]"), (2, 4, 6)),
    "max_with_remainder": _pool("MaxPool", HALVES, (2, 5, 7)),
    "max_1d": _pool("MaxPool", _windows("[2]", "strides=[2]"), (2, 7)),
    "max_3d": _pool("MaxPool", _windows("[2, 2, 1]", "strides=[2, 2, 1]"), (2, 4, 2, 3)),
    "max_3d_with_remainder": _pool("MaxPool", _windows("[3, 1, 2]", "strides=[3, 1, 2]"), (2, 7, 2, 5)),
    "max_overlapping": _pool("MaxPool", OVERLAP, (2, 7, 7)),
    "max_overlapping_padded": _pool("MaxPool", f"{OVERLAP}, pads=[1, 1, 1, 1]", (2, 6, 8)),
    "max_of_stride_1": _pool("MaxPool", _windows("[2, 2]"), (2, 4, 5)),
    "max_ceil": _pool("MaxPool", f"{OVERLAP}, ceil_mode=1", (2, 6, 8)),
    "max_tiles_ceil": _pool("MaxPool", f"{HALVES}, ceil_mode=1", (2, 5, 7)),
    "max_same": _pool("MaxPool", f'{OVERLAP}, auto_pad="SAME_UPPER"', (2, 6, 5)),
    "max_dilated": _pool("MaxPool", _windows("[2, 2]", "dilations=[2, 2]"), (2, 5, 6)),
    "max_overlapping_1d": _pool("MaxPool", _windows("[3]", "strides=[2], pads=[1, 1]"), (2, 9)),
    "max_overlapping_3d": _pool("MaxPool", _windows("[2, 3, 2]"), (2, 4, 4, 3)),
    "average": _pool("AveragePool", HALVES, (2, 4, 6)),
    "average_with_remainder": _pool("AveragePool", HALVES, (2, 5, 7)),
    "average_overlapping": _pool("AveragePool", OVERLAP, (2, 7, 8)),
    "average_of_stride_1": _pool("AveragePool", _windows("[3, 3]", "pads=[1, 1, 1, 1]"), (2, 4, 5)),
    "average_with_padding": _pool("AveragePool", f"{OVERLAP}, pads=[1, 0, 1, 1], count_include_pad=1", (2, 6, 8)),
    "average_ceil": _pool("AveragePool", f"{OVERLAP}, ceil_mode=1", (2, 6, 8)),
    "average_ceil_with_padding": _pool(
        "AveragePool", f"{OVERLAP}, pads=[1, 1, 1, 1], ceil_mode=1, count_include_pad=1", (2, 6, 8)
    ),
    "average_tiles_ceil": _pool("AveragePool", f"{HALVES}, ceil_mode=1", (2, 5, 7)),
    "average_same": _pool("AveragePool", f'{OVERLAP}, auto_pad="SAME_LOWER"', (2, 6, 5)),
    "average_dilated": _pool("AveragePool", _windows("[2, 2]", "dilations=[2, 1]"), (2, 5, 6), opset=19),
    "average_1d": _pool("AveragePool", _windows("[3]", "strides=[2]"), (2, 7)),
    "average_3d_with_remainder": _pool("AveragePool", _windows("[2, 3, 2]", "strides=[2, 3, 2]"), (2, 4, 5, 5)),
    "average_3d": _pool("AveragePool", _windows("[2, 1, 2]"), (2, 3, 2, 3)),
    "lp": _pool("LpPool", f"{OVERLAP}, p=2", (2, 7, 7)),
    "lp_1": _pool("LpPool", f"{HALVES}, p=1", (2, 4, 6)),
    "lp_3": _pool("LpPool", f"{OVERLAP}, p=3, pads=[1, 1, 1, 1]", (2, 6, 7)),
    "global_average": _pool("GlobalAveragePool", "", (3, 4, 5)),
    "global_average_1d": _pool("GlobalAveragePool", "", (3, 4)),
    "global_max": _pool("GlobalMaxPool", "", (3, 4, 5)),
    "global_lp": _pool("GlobalLpPool", "p=3", (3, 4, 5), differences=False),  # unknown to onnx.reference
    "global_lp_2": _pool("GlobalLpPool", "", (3, 4), differences=False),
}


for _name, _rising in (("Relu", "Relu (h)"), ("LeakyRelu", "LeakyRelu <alpha=0.1> (h)"), ("Sigmoid", "Sigmoid (h)")):
    CASES[f"max_of_{_name.lower()}"] = case(
        f"h = Mul (x, w) r = {_rising} y = MaxPool <{HALVES}> (r)", (2, 4, 6), w=(2, 4, 6)
    )
CASES["max_of_falling"] = case(
    f"h = Mul (x, w) r = LeakyRelu <alpha=-0.5> (h) y = MaxPool <{HALVES}> (r)", (2, 4, 6), w=(2, 4, 6)
)
CASES["max_of_shared"] = case(
    f"h = Mul (x, w) r = Relu (h) p = MaxPool <{HALVES}> (r) q = AveragePool <{HALVES}> (r) y = Add (p, q)",
    (2, 4, 6),
    w=(2, 4, 6),
)


@pytest.mark.parametrize("name", CASES)
def test_rule_gives_the_gradient(name: str) -> None:
    check(CASES[name])


@pytest.mark.parametrize(
    ("attributes", "wanted"),
    [
        (HALVES, [[0.25, 0.25], [0.25, 0.25]]),
        (_windows("[2, 2]"), [[1.0, 0.0], [0.0, 0.0]]),
    ],
)
def test_maxima_of_one_window_take_its_gradient_once(attributes: str, wanted: list[list[float]]) -> None:
    """Shared out where windows lie side by side, to the first otherwise: both are subgradients."""
    size = (1, 2, 2)
    proto = model_of(case(f"h = Add (x, w) y = MaxPool <{attributes}> (h)", size, w=np.zeros(size, np.float32)))
    session = TrainingSession(build_artifact(proto, loss="mse", optimizer="gradient"))
    _, gradient = session.step(np.full((1, *size), 3.0), np.full((1, 1, 1, 1), 2.5))
    np.testing.assert_allclose(gradient.reshape(2, 2), wanted)


def test_pooling_comes_before_a_rising_function() -> None:
    proto = model_of(CASES["max_of_relu"])
    train = onnx.load_model_from_string(decode(build_artifact(proto, loss="mse")).train)
    operators = [node.op_type for node in train.graph.node]
    assert operators.index("MaxPool") < operators.index("Relu")


def test_indices_in_the_order_of_columns_are_refused() -> None:
    item = _pool("MaxPool", f"{OVERLAP}, storage_order=1", (2, 7, 7))
    with pytest.raises(BlindsumError, match=r"MaxPool.*storage_order=1"):
        build_artifact(model_of(item), loss="mse")
