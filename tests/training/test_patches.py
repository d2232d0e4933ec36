"""Convolutions that make sequences of windows side by side: one product, and the same gradient."""

from __future__ import annotations

import onnx
import pytest

from blindsum.training import build_artifact, decode
from tests.training.cases import case, check, model_of

TURN = "Transpose <perm=[0, 2, 1]> (r)"


def plane(conv, *rest, x=(3, 4, 12), to=(0, 5, -1), w=(5, 3, 2, 4), **more):
    body = " ".join((f"{conv} r = Reshape (c, to)", *(rest or (f"y = {TURN}",))))
    bias = {"b": w[:1]} if "w, b)" in body else {}
    return case(body, x, w=w, to=list(to), **bias, **more)


def operators(item, trainable=None):
    artifact = decode(build_artifact(model_of(item), loss="mse", trainable=trainable, optimizer="gradient"))
    return [node.op_type for node in onnx.load_from_string(artifact.train).graph.node]


ROWS = {
    "below something trained": plane("h = Mul (x, s) c = Conv <strides=[2, 4]> (h, w, b)", s=(12,)),
    "without a bias": plane('c = Conv <strides=[2, 4], auto_pad="VALID"> (x, w)', to=(0, 5, 6)),
    "of one axis": case(f"r = Conv <strides=[3]> (x, w, b) y = {TURN}", (2, 12), w=(4, 2, 3), b=(4,)),
    "of three axes": plane("c = Conv <strides=[2, 2, 1]> (x, w, b)", x=(1, 4, 2, 3), to=(0, 2, -1), w=(2, 1, 2, 2, 1)),
}


@pytest.mark.parametrize("item", ROWS.values(), ids=ROWS)
def test_windows_become_rows(item):
    check(item)
    assert "Conv" not in operators(item)
    assert operators(item).count("Transpose") == (2 if "s" in item.weights else 1)


OTHERS = {
    "they overlap": plane("c = Conv <strides=[2, 3]> (x, w, b)"),
    "a rest is left": plane("c = Conv <strides=[2, 4]> (x, w, b)", x=(3, 4, 13)),
    "groups": plane("c = Conv <strides=[2, 4], group=3> (x, w, b)", to=(0, 6, -1), w=(6, 1, 2, 4)),
    "planes are read too": plane(
        "c = Conv <strides=[2, 4]> (x, w, b)", f"t = {TURN} u = Reshape (t, to) y = Add (r, u)"
    ),
    "no sequence": plane("c = Conv <strides=[2, 4]> (x, w, b)", "y = Relu (r)"),
    "a window is one number": plane("c = Conv (x, w, b)", to=(0, 5, -1), w=(5, 3, 1, 1)),
    "turned otherwise": plane("c = Conv <strides=[2, 4]> (x, w, b)", "y = Transpose <perm=[0, 1, 2]> (r)"),
    "cut otherwise": plane("c = Conv <strides=[2, 4]> (x, w, b)", f"y = {TURN}", to=(0, 6, -1)),
}


@pytest.mark.parametrize("item", OTHERS.values(), ids=OTHERS)
def test_other_convolutions_stay(item):
    check(item)
    assert "Conv" in operators(item)


def test_frozen_convolution_stays():
    item = plane("c = Conv <strides=[2, 4]> (x, w, b)", f"t = {TURN} y = Mul (t, s)", s=(5,))
    assert "Conv" in operators(item, ["s"])
    assert "Conv" not in operators(item)
