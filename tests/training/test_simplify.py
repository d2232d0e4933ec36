"""Simplifications of graphs: what they compute stays the same, and so do the names of outputs."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from blindsum.training.autodiff.graph import Graph
from blindsum.training.autodiff.simplify import simplify

GENERATOR = np.random.default_rng(11)
VALUES = {name: GENERATOR.normal(size=(2, 3, 4, 4)).astype(np.float32) for name in "pqrs"} | {
    "a": GENERATOR.normal(size=(2, 3, 4, 2)).astype(np.float32),
    "v": GENERATOR.normal(size=(2, 3, 4, 2)).astype(np.float32),
    "row": GENERATOR.normal(size=4).astype(np.float32),
    "matrix": GENERATOR.normal(size=(4, 5)).astype(np.float32),
    "two": np.float32(2.0),
    "last": np.array([-1]),
    "first": np.array([0]),
}
FLIP = "Transpose <perm=[0, 1, 3, 2]>"


def run(graph):
    inputs = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in VALUES.items()
    ]
    outputs = [onnx.helper.make_empty_tensor_value_info(name) for name in ("y", "z")]
    outputs = [item for item in outputs if any(item.name in node.output for node in graph.nodes)]
    body = onnx.helper.make_graph(graph.nodes, "graph", inputs, outputs)
    model = onnx.helper.make_model(body, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
    return ReferenceEvaluator(model).run(None, VALUES)


def simplified(text):
    """The kinds of nodes that are left."""
    nodes = onnx.parser.parse_graph(f"g () => (float y) {{ {text} }}").node
    constants = {name: VALUES[name] for name in ("two", "last", "first")}
    shapes = {name: array.shape for name, array in VALUES.items()} | {"m": (2, 3, 4, 2)}
    graph = Graph(nodes=nodes, constants=constants, shapes=shapes, opset=18)
    expected = run(graph)
    simplify(graph, ["y", "z"])
    for one, other in zip(run(graph), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    return Counter(node.op_type for node in graph.nodes)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f"b = {FLIP} (p) c = {FLIP} (b) y = Neg (c)", {"Transpose": 1, "Neg": 1}),
        (f"b = {FLIP} (p) c = {FLIP} (b) d = {FLIP} (c) e = {FLIP} (d) y = Neg (e)", {"Transpose": 2, "Neg": 1}),
        (f"b = {FLIP} (p) c = {FLIP} (q) d = MatMul (b, c) y = {FLIP} (d)", {"MatMul": 1, "Transpose": 2}),
        (
            f"b = MatMul (p, q) c = Mul (b, two) d = {FLIP} (c) y = Neg (d)",
            {"MatMul": 1, "Transpose": 2, "Mul": 1, "Neg": 1},
        ),
        (f"b = Exp (q) c = MatMul (p, b) y = {FLIP} (c)", {"Exp": 1, "MatMul": 1, "Transpose": 2}),
        ("b = Mul (p, q) c = Mul (r, p) d = Mul (c, s) y = Add (b, d)", {"Mul": 2, "Add": 1}),
        ("b = Mul (q, row) c = Mul (row, r) d = Mul (s, c) y = Add (d, b)", {"Mul": 2, "Add": 1}),
        ("b = Mul (p, q) c = Mul (r, p) y = Sub (b, c)", {"Sub": 1, "Mul": 1}),
        (
            f"m = MatMul (p, v) b = {FLIP} (v) c = MatMul (a, b) d = Mul (c, p) e = ReduceSum (d, last) f = Mul (p, e) "
            "g = Sub (d, f) y = Add (g, p) z = Neg (m)",
            {"MatMul": 2, "Transpose": 1, "Mul": 2, "ReduceSum": 1, "Sub": 1, "Add": 1, "Neg": 1},
        ),
    ],
)
def test_is_simpler(text, left):
    assert simplified(text) == left


@pytest.mark.parametrize(
    "text",
    [
        f"z = {FLIP} (p) y = {FLIP} (z)",  # both are asked for
        f"b = MatMul (p, q) y = {FLIP} (b) z = Neg (b)",  # the product is read elsewhere
        f"b = MatMul (p, matrix) y = {FLIP} (b)",  # a matrix for all of the stack
        f"b = Mul (p, row) y = {FLIP} (b)",  # not a number
        "b = Transpose <perm=[1, 0, 3, 2]> (p) y = Transpose <perm=[1, 0, 3, 2]> (b)",
        "b = Mul (p, q) c = Mul (p, r) d = Mul (c, c) y = Add (b, d)",  # a square
        "b = Mul (p, q) y = Add (b, b)",
        "b = Mul (p, r) c = Mul (p, b) y = Add (c, c)",
        "b = Mul (p, q) c = Mul (r, s) y = Sub (b, c)",  # nothing in common
        "b = Mul (p, q) c = Mul (p, r) y = Sub (b, c) z = Neg (c)",
        "b = Mul (p, q) c = Mul (p, r) d = Mul (c, s) e = Add (b, d) y = Add (e, c)",
        f"m = MatMul (p, v) b = {FLIP} (v) c = MatMul (a, b) d = Mul (c, p) y = ReduceSum (d, first) z = Neg (m)",
        f"m = MatMul (q, v) b = {FLIP} (v) c = MatMul (a, b) d = Mul (c, p) y = ReduceSum (d, last) z = Neg (m)",
        f"m = MatMul (p, v) b = {FLIP} (a) c = MatMul (a, b) d = Mul (c, p) y = ReduceSum (d, last) z = Neg (m)",
        f"n = MatMul (p, q) b = {FLIP} (q) c = MatMul (r, b) d = Mul (c, p) y = ReduceSum (d, last) z = Neg (n)",  # as long
    ],
)
def test_stays(text):
    before = Counter(node.op_type for node in onnx.parser.parse_graph(f"g () => (float y) {{ {text} }}").node)
    assert simplified(text) == before


def test_same_operand_twice_is_one():
    assert simplified("b = Mul (p, p) c = Mul (p, r) d = Mul (c, s) y = Add (b, d)") == {"Mul": 2, "Add": 1}
