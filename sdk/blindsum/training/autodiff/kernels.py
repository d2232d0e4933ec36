"""Operators for which onnxruntime's CPU kernel is slow or missing, written as ones for which it is fast.

The last thing that happens to a graph, so that gradient rules see the operators as the author wrote them. Milliseconds of
CPU time on [32, 96, 32, 32], one thread of a server CPU, onnxruntime 1.32:

    operator                     kernel   written out
    Softplus                         35            16
    Mish                             37             8
    Softmax, not the last axis       29             6
    LogSoftmax, not the last axis    29             6
    ReduceMean, of [8, 16384]       .08           .01

It has no kernel for GroupNormalization and Swish, nor for GlobalLpPool from operator set 22 on.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from . import lstm
from .graph import Graph, attribute

SATURATED = 20.0
"""Beyond it tanh(softplus(x)) is 1 in float32, while exp(x)^2 would soon overflow."""


def write_out(graph: Graph) -> None:
    """Replace such operators of `graph`; results differ by rounding only."""
    graph.substitute(_FASTER)


def softplus_tanh(graph: Graph, x: str, scalar: Callable[[float], str]) -> str:
    """tanh(log(1 + e^x)): m / (m + 2) with m = e^x (e^x + 2). `scalar` makes constants of x's type."""
    power = graph.op("Exp", graph.op("Min", x, scalar(SATURATED)))
    product = graph.op("Mul", power, graph.op("Add", power, scalar(2.0)))
    return graph.op("Div", product, graph.op("Add", product, scalar(2.0)))


def _softplus(graph: Graph, node: onnx.NodeProto) -> bool:
    """max(x, 0) + log(1 + u) with u = e^-|x|; what is lost of u in w = 1 + u comes back as (u - (w - 1)) / w."""
    (x,), (y,) = node.input, node.output
    if not _single(graph, y):
        return False
    one = graph.scalar(1.0)
    small = graph.op("Exp", graph.op("Neg", graph.op("Abs", x)))
    whole = graph.op("Add", small, one)
    lost = graph.op("Div", graph.op("Sub", small, graph.op("Sub", whole, one)), whole)
    graph.op("Add", graph.op("Relu", x), graph.op("Add", graph.op("Log", whole), lost), output=y)
    return True


def _mish(graph: Graph, node: onnx.NodeProto) -> bool:
    (x,), (y,) = node.input, node.output
    if not _single(graph, y):
        return False
    graph.op("Mul", x, softplus_tanh(graph, x, graph.scalar), output=y)
    return True


def _softmax(graph: Graph, node: onnx.NodeProto) -> bool:
    (x,), (y,) = node.input, node.output
    axis = attribute(node, "axis", -1)
    if not isinstance(axis, int) or axis in (-1, len(graph.shapes.get(x, ())) - 1) or x not in graph.shapes:
        return False
    axes = graph.integers([axis])
    shifted = graph.op("Sub", x, graph.op("ReduceMax", x, axes, keepdims=1))
    powers = graph.op("Exp", shifted)
    total = graph.op("ReduceSum", powers, axes, keepdims=1)
    if node.op_type == "Softmax":
        graph.op("Div", powers, total, output=y)
    else:
        graph.op("Sub", shifted, graph.op("Log", total), output=y)
    return True


def _mean(graph: Graph, node: onnx.NodeProto) -> bool:
    """Over the first axis, of a fixed size: a product with a row."""
    (x, *_), (y,) = node.input, node.output
    axes = graph.constants.get(node.input[1]) if len(node.input) > 1 else None
    shape, left = graph.shapes.get(x, (None,)), graph.shapes.get(y, (None,))
    count, many = shape[0], [size for size in left if not isinstance(size, int)]
    if axes is None or axes.tolist() != [0] or not isinstance(count, int) or len(many) > 1 or not _single(graph, y):
        return False
    share = graph.constant(np.full((1, count), 1.0 / count, np.float32))
    mean = graph.op("MatMul", share, graph.op("Reshape", x, graph.integers([count, -1])))
    sizes = [size if isinstance(size, int) else -1 for size in left]
    graph.op("Reshape", mean, graph.integers(sizes), output=y)
    return True


def _swish(graph: Graph, node: onnx.NodeProto) -> bool:
    """x sigmoid(alpha x)"""
    (x,), (y,) = node.input, node.output
    alpha = attribute(node, "alpha", 1.0)
    scaled = x if alpha == 1.0 else graph.op("Mul", x, graph.constant(np.array(alpha, graph.dtypes.get(y, "float32"))))
    graph.op("Mul", x, graph.op("Sigmoid", scaled), output=y)
    return True


def _global_lp_pool(graph: Graph, node: onnx.NodeProto) -> bool:
    (x,), (y,) = node.input, node.output
    power = attribute(node, "p", 2)
    assert isinstance(power, int)
    if x not in graph.shapes or not _single(graph, y):
        return False
    axes = graph.integers(range(2, len(graph.shapes[x])))
    if power in (1, 2):
        graph.op(f"ReduceL{power}", x, axes, keepdims=1, output=y)
    else:
        powers = graph.op("Pow", graph.op("Abs", x), graph.scalar(float(power)))
        graph.op("Pow", graph.op("ReduceSum", powers, axes, keepdims=1), graph.scalar(1 / power), output=y)
    return True


def _group_normalization(graph: Graph, node: onnx.NodeProto) -> bool:
    """Each group normalised as one channel; then scale and bias by channel."""
    (x, scale, bias), (y,) = node.input, node.output
    groups = attribute(node, "num_groups")
    assert isinstance(groups, int)
    ones, zeros = (graph.constant(np.full(groups, value, np.float32)) for value in (1.0, 0.0))
    wide = graph.integers([-1, *[1] * (len(graph.shape(x)) - 2)])
    rows = graph.op("Reshape", x, graph.integers([0, groups, -1]))
    epsilon = attribute(node, "epsilon", 1e-5)
    standard = graph.reshape_like(graph.op("InstanceNormalization", rows, ones, zeros, epsilon=epsilon), x)
    graph.op(
        "Add",
        graph.op("Mul", standard, graph.op("Reshape", scale, wide)),
        graph.op("Reshape", bias, wide),
        output=y,
    )
    return True


def _single(graph: Graph, name: str) -> bool:
    """True where a value is float32. What rules make of other types is not known here, but they make none of these."""
    return graph.dtypes.get(name, "float32") == "float32"


_FASTER = {
    "GlobalLpPool": _global_lp_pool,
    "GroupNormalization": _group_normalization,
    "LSTM": lstm.write_out,
    "LogSoftmax": _softmax,
    "Mish": _mish,
    "ReduceMean": _mean,
    "Softmax": _softmax,
    "Softplus": _softplus,
    "Swish": _swish,
}
