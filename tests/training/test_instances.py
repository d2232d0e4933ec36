"""Normalised instances and groups: as rows, whose kernel gives the statistics away, and the same gradient."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from blindsum.training import build_artifact, decode
from blindsum.training.autodiff import instances
from tests.training.cases import case, check, model_of

ONES, ZEROS = np.ones(3, np.float32), np.zeros(3, np.float32)


def operators(item, trainable=None):
    artifact = decode(build_artifact(model_of(item), loss="mse", trainable=trainable, optimizer="gradient"))
    return [node.op_type for node in onnx.load_from_string(artifact.train).graph.node]


def below(body="y = InstanceNormalization (h, w, b)", x=(3, 4, 5), **weights):
    return case(f"h = Mul (x, s) {body}", x, s=x, **weights)


ROWS = {
    "an image": below(w=(3,), b=(3,)),
    "a sequence": below(x=(3, 7), w=(3,), b=(3,)),
    "a volume": below(x=(3, 2, 3, 4), w=(3,), b=(3,)),
    "another epsilon": below("y = InstanceNormalization <epsilon=0.3> (h, w, b)", w=(3,), b=(3,)),
    "trained, and neutral still": below(w=ONES, b=ZEROS),
    "groups as exporters write them": below(
        "r = Reshape (h, to) n = InstanceNormalization (r, one, zero) sizes = Shape (h) i = Reshape (n, sizes)"
        " m = Mul (i, w) y = Add (m, b)",
        (6, 4, 5),
        w=(6, 1, 1),
        b=(6, 1, 1),
        to=[0, 3, -1],
        constants={"one": ONES, "zero": ZEROS},
    ),
}


@pytest.mark.parametrize("item", ROWS.values(), ids=ROWS)
def test_rows_are_normalised(item):
    check(item)
    assert "LayerNormalization" in operators(item) and "InstanceNormalization" not in operators(item)


def test_scale_and_bias_that_change_nothing_take_no_pass():
    plain = below("y = InstanceNormalization (h, one, zero)", constants={"one": ONES, "zero": ZEROS})
    other = below("y = InstanceNormalization (h, one, zero)", constants={"one": 2 * ONES, "zero": ONES})
    for item in (plain, other):
        check(item)
    assert len(operators(plain, ["s"])) < len(operators(other, ["s"]))


def test_nothing_is_rewritten_where_only_scale_and_bias_are_trained():
    item = below(w=(3,), b=(3,))
    assert "InstanceNormalization" in operators(item, ["w", "b"])


def test_large_rows_stay(monkeypatch):
    monkeypatch.setattr(instances, "ROW_MAX", 4 * 5 - 1)
    item = below(w=(3,), b=(3,))
    check(item)
    assert "InstanceNormalization" in operators(item)
