"""Operators that work element by element, along axes, or down to fewer elements."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .call import Call, Shape, broadcast, rule, wanted


@rule(
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cast", "CastLike", "Ceil", "Celu", "Cos", "Cosh", "Elu",
    "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Log",
    "MeanVarianceNormalization", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin",
    "Sinh", "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu",
)  # fmt: skip
def same(c: Call) -> Sequence[Shape]:
    return [c.shape()]


@rule("Clip")
def clip(c: Call) -> Sequence[Shape]:
    wanted(all(shape in ((), (1,)) for shape in c.shapes()[1:]), "limits")
    return [c.shape()]


@rule("PRelu")
def prelu(c: Call) -> Sequence[Shape]:
    wanted(broadcast(c.shape(), c.shape(1)) == c.shape(), "slope")
    return [c.shape()]


@rule("QuantizeLinear", "DequantizeLinear")
def quantise(c: Call) -> Sequence[Shape]:
    scale = c.shape(1)
    if len(scale) == 1 and scale != (1,) and c.rank():
        wanted(c.shape()[c.axis(c.integer("axis", 1), c.rank())] == scale[0], "scale")
    wanted((c.integer("block_size", 0) >= 0 and len(scale) <= c.rank()) or scale == (1,), "scale")
    wanted(not c.given(2) or c.shape(2) == scale, "zero point")
    return [c.shape()]


@rule("DynamicQuantizeLinear")
def dynamic_quantise(c: Call) -> Sequence[Shape]:
    return [c.shape(), (), ()]


@rule("CumSum")
def cumsum(c: Call) -> Sequence[Shape]:
    wanted(c.value(1).size == 1 and c.rank(), "axis")
    if c.value(1).known is not None:
        c.axis(c.integers(1)[0], c.rank())
    return [c.shape()]


@rule("Softmax", "LogSoftmax", "LpNormalization")
def along_axis(c: Call) -> Sequence[Shape]:
    c.axis(c.integer("axis", -1), max(c.rank(), 1))
    c.work = 4 * c.value(0).size
    return [c.shape()]


@rule("LRN")
def lrn(c: Call) -> Sequence[Shape]:
    size = c.integer("size")
    wanted(size >= 1 and c.rank() >= 3, "size")
    c.work = c.value(0).size * min(size, c.shape()[1])
    return [c.shape()]


@rule("InstanceNormalization", "GroupNormalization")
def groups(c: Call) -> Sequence[Shape]:
    wanted(c.rank() >= 3, "rank")
    channels = c.shape()[1]
    number = c.integer("num_groups", max(channels, 1))
    wanted(number >= 1 and channels % number == 0, "groups")
    wanted(all(shape in ((channels,), (number,)) for shape in c.shapes()[1:]), "scale or bias")
    c.work = 4 * c.value(0).size
    return [c.shape()]


@rule("LayerNormalization", "RMSNormalization")
def last_axes(c: Call) -> Sequence[Shape]:
    axis = c.axis(c.integer("axis", -1), c.rank())
    wanted(all(broadcast(c.shape(), shape) == c.shape() for shape in c.shapes()[1:]), "scale or bias")
    c.work = 4 * c.value(0).size
    kept = c.shape()[:axis] + (1,) * (c.rank() - axis)
    return [c.shape(), kept, kept][: 3 if c.node.operator == "LayerNormalization" else 1]


@rule("BatchNormalization")
def batch_normalisation(c: Call) -> Sequence[Shape]:
    wanted(c.rank() >= 2, "rank")
    channels = (c.shape()[1],)
    wanted(c.shapes()[1:] == [channels] * 4, "scale, bias, mean or variance")
    c.work = 4 * c.value(0).size
    return [c.shape(), channels, channels]


@rule(
    "Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul",
    "Or", "Pow", "Sub", "Sum", "Where", "Xor",
)  # fmt: skip
def broadcasting(c: Call) -> Sequence[Shape]:
    if c.node.operator in ("Div", "Mod") and "int" in c.value(0).dtype:
        divisors = c.value(1).known  # onnxruntime would end the process
        wanted(divisors is not None and (divisors > 0).all(), "a divisor that may be zero")
    return [broadcast(*c.shapes())]


@rule(
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSum", "ReduceSumSquare",
)  # fmt: skip
def reduce(c: Call) -> Sequence[Shape]:
    given = c.integers(1) if c.given(1) else c.ints("axes", ())
    if not given and c.integer("noop_with_empty_axes", 0):
        return [c.shape()]
    axes = c.axes(given, c.rank()) if given else range(c.rank())
    return [_without(c.shape(), axes, c.integer("keepdims", 1))]


@rule("ArgMax", "ArgMin")
def extremum(c: Call) -> Sequence[Shape]:
    axis = c.axis(c.integer("axis", 0), c.rank())
    wanted(c.shape()[axis], "an empty axis")
    return [_without(c.shape(), [axis], c.integer("keepdims", 1))]


@rule("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def pool_all(c: Call) -> Sequence[Shape]:
    wanted(c.rank() >= 3 and math.prod(c.shape()[2:]), "rank")
    return [c.shape()[:2] + (1,) * (c.rank() - 2)]


@rule("Shape")
def shape(c: Call) -> Sequence[Shape]:
    rank = c.rank()
    start, end = c.integer("start", 0), c.integer("end", rank)
    return [(len(range(rank)[start:end]),)]


@rule("Size")
def size(c: Call) -> Sequence[Shape]:
    return [()]


@rule("EyeLike", "Trilu")
def matrices(c: Call) -> Sequence[Shape]:
    wanted(c.rank() >= 2 and (c.node.operator == "Trilu" or c.rank() == 2), "rank")
    wanted(abs(c.integer("k", 0)) < 1 << 31, "k")
    return [c.shape()]


def _without(shape: Shape, axes: Sequence[int], keep: int) -> Shape:
    if keep:
        return tuple(1 if axis in axes else size for axis, size in enumerate(shape))
    return tuple(size for axis, size in enumerate(shape) if axis not in axes)
