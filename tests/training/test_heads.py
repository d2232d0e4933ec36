"""Attention heads cut out of turned sequences: the same gradient, with nothing moved but whole matrices."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from blindsum.training import build_artifact, decode
from tests.training.cases import case, check, model_of

LENGTH, HEADS, SIZE = 5, 3, 2
WIDTH = HEADS * SIZE
GENERATOR = np.random.default_rng(8)
WEIGHTS = {name: GENERATOR.normal(0.0, 0.5, (WIDTH, WIDTH)) for name in ("wq", "wk", "wv", "wo")}
CONSTANTS = {
    "cut": [0, LENGTH, HEADS, SIZE],
    "join": [0, LENGTH, WIDTH],
    "stack": [-1, LENGTH, SIZE],
    "unstack": [-1, HEADS, SIZE, LENGTH],
    "scale": np.float32(0.7),
}
PARTS = " ".join(f"{name} = MatMul (x, w{name}) {name}3 = Reshape ({name}, cut)" for name in "qkv")
CUT = f"{PARTS} {{}} v4 = Transpose <perm=[0, 2, 1, 3]> (v3)"
QUERIES = "q4 = Transpose <perm=[0, 2, 1, 3]> (q3)"
KEYS = {
    "positions last": "k4 = Transpose <perm=[0, 2, 3, 1]> (k3)",
    "flipped": "k5 = Transpose <perm=[0, 2, 1, 3]> (k3) k4 = Transpose <perm=[0, 1, 3, 2]> (k5)",
    "flipped in a stack": "k5 = Transpose <perm=[0, 2, 1, 3]> (k3) k6 = Reshape (k5, stack) "
    "k7 = Transpose <perm=[0, 2, 1]> (k6) k4 = Reshape (k7, unstack)",
}
MIX = "s = MatMul (q4, k4) c = Mul (s, scale) p = Softmax (c) m = MatMul (p, v4)"
JOIN = "t = Transpose <perm=[0, 2, 1, 3]> (m) j = Reshape (t, join) y = MatMul (j, wo)"


def item_of(*parts, **more):
    text = " ".join(parts)
    used = {name: value for name, value in CONSTANTS.items() if f"{name})" in text}
    return case(text, (LENGTH, WIDTH), constants=used, tolerance=1e-3, **WEIGHTS, **more)


def nodes_of(item, trainable=None):
    artifact = decode(build_artifact(model_of(item), loss="mse", trainable=trainable, optimizer="gradient"))
    return onnx.load_from_string(artifact.train).graph.node


def perms(nodes):
    return [list(node.attribute[0].ints) for node in nodes if node.op_type == "Transpose"]


@pytest.mark.parametrize("keys", KEYS.values(), ids=KEYS)
def test_heads_are_cut_and_joined_by_turns(keys):
    item = item_of(CUT.format(f"{QUERIES} {keys}"), MIX, JOIN)
    check(item)
    found = perms(nodes_of(item))
    assert {tuple(perm) for perm in found} == {(0, 2, 1), (0, 1, 3, 2)}
    assert found.count([0, 2, 1]) == 8  # three cut and one joined, each way


def test_sums_behind_the_softmax_are_of_short_rows():
    """Its gradient needs sums over the keys; those over the numbers of a head are the same."""
    item = item_of(CUT.format(f"{QUERIES} {KEYS['positions last']}"), MIX, JOIN)
    nodes = nodes_of(item)
    summed = [node.input[0] for node in nodes if node.op_type == "ReduceSum"]
    (product,) = [node for node in nodes if node.op_type == "Mul" and node.output[0] in summed]
    assert "m" in product.input


@pytest.mark.parametrize(
    "mix",
    [
        MIX.replace("m = MatMul (p, v4)", "d = Mul (p, p) m = MatMul (d, v4)"),  # something else stands between
        MIX.replace("m = MatMul (p, v4)", "n = MatMul (p, v4) o = MatMul (p, p) r = MatMul (o, v4) m = Add (n, r)"),
    ],
)
def test_other_uses_of_the_weights_have_the_gradient(mix):
    check(item_of(CUT.format(f"{QUERIES} {KEYS['positions last']}"), mix, JOIN))


def test_heads_that_something_else_reads_have_the_gradient():
    more = "u = Transpose <perm=[0, 2, 1, 3]> (q4) a = Reshape (u, join) z = Add (a, j) y = MatMul (z, wo)"
    join = JOIN.replace("y = MatMul (j, wo)", more)
    check(item_of(CUT.format(f"{QUERIES} {KEYS['flipped']}"), MIX, join))
    joined = JOIN.replace("y = MatMul (j, wo)", "b = MatMul (j, wo) g = Reshape (t, join) y = Add (b, g)")
    check(item_of(CUT.format(f"{QUERIES} {KEYS['flipped']}"), MIX, joined))


def test_other_orders_in_a_stack_have_the_gradient():
    keys = KEYS["flipped in a stack"].replace("perm=[0, 2, 1]> (k6)", "perm=[2, 0, 1]> (k6)")
    check(item_of(CUT.format(f"{QUERIES} {keys}"), MIX, JOIN))


def test_frozen_heads_stay():
    item = item_of(CUT.format(f"{QUERIES} {KEYS['positions last']}"), MIX, JOIN)
    assert [0, 2, 1] not in perms(nodes_of(item, ["wo"]))
