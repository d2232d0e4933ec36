"""Convolutions over narrow images, height and width exchanged: the same forward pass and gradient, and nothing turned between."""

from __future__ import annotations

from itertools import takewhile

import numpy as np
import onnx
import pytest

from blindsum.training import build_artifact, decode
from tests.training.cases import case, check, model_of

PADDED = "pads=[1, 1, 1, 1]"


def turns(item, trainable=None):
    """How often the forward pass exchanges height and width of an image."""
    artifact = decode(build_artifact(model_of(item), loss="mse", trainable=trainable, optimizer="gradient"))
    nodes = onnx.load_from_string(artifact.train).graph.node
    forward = takewhile(lambda node: "@targets" not in node.input, nodes)
    moves = [node for node in forward if node.op_type == "Transpose" and node.input[0] not in item.weights]
    return sum(list(node.attribute[0].ints) == [0, 1, 3, 2] for node in moves)


TURNED = {
    "depthwise": case(
        f"h = Mul (x, s) y = Conv <group=3, {PADDED}> (h, w, b)", (3, 14, 5), s=(14, 5), w=(3, 1, 3, 3), b=(3,)
    ),
    "of one column": case("y = Conv <pads=[2, 0, 2, 0]> (x, w)", (2, 9, 1), w=(3, 2, 5, 1)),
    "padded unevenly": case("y = Conv <pads=[1, 0, 2, 1]> (x, w)", (2, 9, 3), w=(3, 2, 4, 2)),
    "strided and dilated": case(
        "y = Conv <strides=[2, 1], dilations=[1, 2], pads=[0, 2, 1, 2]> (x, w)", (2, 12, 3), w=(3, 2, 3, 3)
    ),
    "with a rest": case("y = Conv <strides=[2, 3]> (x, w)", (2, 12, 7), w=(3, 2, 3, 2)),
    "padded by the operator": case(
        'y = Conv <auto_pad="SAME_LOWER", strides=[1, 2]> (x, w)', (2, 11, 6), w=(3, 2, 2, 4)
    ),
    "in groups": case(f"y = Conv <group=2, {PADDED}> (x, w, b)", (4, 8, 4), w=(6, 2, 3, 3), b=(6,)),
}


@pytest.mark.parametrize("item", TURNED.values(), ids=TURNED)
def test_narrow_images_are_turned(item):
    check(item)
    assert turns(item) == 2, "in and back"


CHAINS = {
    "separable": (
        case(
            f"a = Conv <{PADDED}> (x, v, b) r = Relu (a) d = Conv <group=3, {PADDED}> (r, w) q = Clip (d, low)"
            " p = Conv (q, u) h = HardSwish (p) y = Conv <strides=[2, 1], pads=[0, 1, 0, 1]> (h, v2)",
            (2, 24, 5),
            v=(3, 2, 3, 3),
            b=(3,),
            w=(3, 1, 3, 3),
            u=(4, 3, 1, 1),
            v2=(2, 4, 2, 3),
            constants={"low": np.float32(-0.5)},
            tolerance=3e-4,
        ),
        2,
    ),
    "of sums": (
        case(
            f"a = Conv <{PADDED}> (x, v) c = Conv <{PADDED}> (a, w) s = Add (a, c) y = GlobalAveragePool (s)",
            (2, 9, 3),
            v=(3, 2, 3, 3),
            w=(3, 3, 3, 3),
        ),
        1,
    ),
    "pooled": (
        case(
            f"a = Conv <{PADDED}> (x, v) m = MaxPool <kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 0, 1]> (a)"
            " g = AveragePool <kernel_shape=[2, 1], strides=[2, 1]> (m) y = Conv <pads=[1, 0, 1, 0]> (g, w)",
            (2, 24, 4),
            v=(3, 2, 3, 3),
            w=(2, 3, 3, 2),
            differences=False,  # maxima change places
        ),
        2,
    ),
}


@pytest.mark.parametrize(("item", "wanted"), CHAINS.values(), ids=CHAINS)
def test_images_stay_turned_from_layer_to_layer(item, wanted):
    check(item)
    assert turns(item) == wanted


STAYING = {
    "wide": case(f"y = Conv <{PADDED}> (x, w)", (2, 5, 14), w=(3, 2, 3, 3)),
    "square": case(f"y = Conv <{PADDED}> (x, w)", (2, 6, 6), w=(3, 2, 3, 3)),
    "not so narrow": case(f"y = Conv <{PADDED}> (x, w)", (2, 18, 9), w=(3, 2, 3, 3)),
    "pointwise": case("h = Mul (x, s) y = Conv (h, w)", (2, 14, 5), s=(14, 5), w=(3, 2, 1, 1)),
    "of one axis": case("y = Conv (x, w)", (2, 14), w=(3, 2, 3)),
}


@pytest.mark.parametrize("item", STAYING.values(), ids=STAYING)
def test_other_images_stay(item):
    check(item)
    assert not turns(item)


def test_frozen_convolution_stays():
    item = case(f"c = Conv <{PADDED}> (x, w) y = Mul (c, s)", (2, 9, 3), w=(3, 2, 3, 3), s=(9, 3))
    assert not turns(item, ["s"])
    assert turns(item) == 2
