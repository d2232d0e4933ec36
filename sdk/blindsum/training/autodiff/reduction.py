"""Rules for reductions. With `noop_with_empty_axes` and no axes they work on each element by itself."""

from __future__ import annotations

import math

import numpy as np

from .registry import Backward, Gradients, rule
from .unary import sign

ELEMENTS_MAX = 1 << 16  # of a constant that spreads a mean


@rule("ReduceSum", since=13)
def reduce_sum(b: Backward) -> Gradients:
    return [b.expand(_spread(b, b.dy), b.x[0]), None]


@rule("ReduceMean", since=18)
def reduce_mean(b: Backward) -> Gradients:
    sizes = _sizes(b)
    if 1 < math.prod(sizes) <= ELEMENTS_MAX:  # four times as fast as Expand, where the last axis is reduced
        shares = b.constant(np.full(sizes, 1.0 / math.prod(sizes), b.dtype))
        return [b.op("Mul", _spread(b, b.dy), shares), None]
    return [b.expand(_spread(b, _share(b)), b.x[0]), None]


@rule("ReduceMax", "ReduceMin", since=18)
def reduce_extreme(b: Backward) -> Gradients:
    """Elements that tie share the gradient evenly, as in torch.amax."""
    hits = b.mask(b.op("Equal", b.x[0], _spread(b, b.y[0])))
    return [b.op("Mul", hits, b.op("Div", _spread(b, b.dy), _reduced(b, "ReduceSum", hits))), None]


@rule("ReduceProd", since=18)
def reduce_prod(b: Backward) -> Gradients:
    """The product of all others, also where one of them is zero: that one alone has a slope then."""
    x = b.x[0]
    zeros = b.mask(b.op("Equal", x, b.scalar(0.0)))
    filled = b.op("Add", x, zeros)
    others = b.op("Div", b.op("Mul", _spread(b, b.dy), _reduced(b, "ReduceProd", filled)), filled)
    return [b.op("Mul", others, b.mask(b.op("Equal", zeros, _reduced(b, "ReduceSum", zeros)))), None]


@rule("ReduceL1", since=18)
def reduce_l1(b: Backward) -> Gradients:
    return [b.op("Mul", sign(b, b.x[0]), _spread(b, b.dy)), None]


@rule("ReduceL2", since=18)
def reduce_l2(b: Backward) -> Gradients:
    """x / y, and nothing for a norm of zero."""
    norm = b.op("Add", b.y[0], b.mask(b.op("Equal", b.y[0], b.scalar(0.0))))
    return [b.op("Mul", b.x[0], _spread(b, b.op("Div", b.dy, norm))), None]


@rule("ReduceSumSquare", since=18)
def reduce_sum_square(b: Backward) -> Gradients:
    return [b.op("Mul", b.x[0], _spread(b, b.op("Mul", b.dy, b.scalar(2.0)))), None]


@rule("ReduceLogSum", since=18)
def reduce_log_sum(b: Backward) -> Gradients:
    """1 / sum, which is exp(-y)."""
    return [b.expand(_spread(b, b.op("Mul", b.dy, b.op("Exp", b.op("Neg", b.y[0])))), b.x[0]), None]


@rule("ReduceLogSumExp", since=18)
def reduce_log_sum_exp(b: Backward) -> Gradients:
    return [b.op("Mul", b.op("Exp", b.op("Sub", b.x[0], _spread(b, b.y[0]))), _spread(b, b.dy)), None]


def _spread(b: Backward, value: str) -> str:
    """A tensor of the output's shape with the dimensions back that were reduced away, of size 1."""
    if b.integer("keepdims", 1) or not _axes(b):
        return value  # without axes it is a scalar, or nothing was reduced
    return b.op("Unsqueeze", value, _axes(b))


def _reduced(b: Backward, operator: str, value: str) -> str:
    """`value` of the input's shape reduced as the node reduces its input, but dimensions are kept."""
    inputs = [value, _axes(b)] if _axes(b) else [value]
    return b.op(operator, *inputs, keepdims=1, noop_with_empty_axes=b.integer("noop_with_empty_axes", 0))


def _axes(b: Backward) -> str:
    """Name of the axes; '' where the node states none."""
    if len(b.x) < 2:
        return ""
    fixed = b.known(b.x[1])
    return "" if fixed is not None and not fixed.size else b.x[1]


def _sizes(b: Backward) -> list[int]:
    """The input's dimensions that are reduced, 1 for each other; empty where they are not known."""
    fixed, shape = b.known(_axes(b)) if _axes(b) else None, b.graph.shapes.get(b.x[0], ())
    axes = [] if fixed is None else [int(axis) % len(shape) for axis in fixed.ravel()]
    sizes = [size for axis in axes if isinstance(size := shape[axis], int)]
    if not axes or len(sizes) < len(axes):
        return []
    return [size if axis in axes and isinstance(size, int) else 1 for axis, size in enumerate(shape)]


def _share(b: Backward) -> str:
    """dy divided by the number of elements in each mean."""
    sizes: list[int] = []
    symbols: list[list[str]] = []
    for name in (b.x[0], b.y[0]):
        shape = b.graph.shapes.get(name, (None,))
        sizes.append(math.prod(size for size in shape if isinstance(size, int)))
        symbols.append(sorted(str(size) for size in shape if not isinstance(size, int)))
    if symbols[0] == symbols[1] and "None" not in symbols[0] and sizes[0]:  # the same symbols cancel out
        return b.op("Mul", b.dy, b.scalar(sizes[1] / sizes[0]))
    return b.op("Div", b.dy, b.cast(b.op("Div", b.op("Size", b.x[0]), b.op("Size", b.y[0]))))
