"""Rules for normalisation. Statistics that the forward operator can give are taken from it instead of computed again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from blindsum.protocol.errors import BlindsumError

from .registry import Backward, Gradients, rule
from .unary import sign


@rule("BatchNormalization", since=15)
def batch_normalization(b: Backward) -> Gradients:
    """Frozen, an affine map of each channel; with training_mode=1, normalisation by the statistics of the batch."""
    _require_no_other_gradient(b)
    x, scale, _, mean, variance = b.x
    axes = b.integers([axis for axis in range(b.rank(x)) if axis != 1])
    training = b.integer("training_mode", 0) == 1
    if training:
        mean, variance = b.y[1:]  # those of the batch: its momentum is 0 (see batchnorm)
    inverse = _inverse_root(b, variance)
    wide = _channelwise(b, inverse)
    centred = b.op("Sub", x, _channelwise(b, mean))
    d_bias = b.op("ReduceSum", b.dy, axes, keepdims=0)
    product = b.op("ReduceSum", b.op("Mul", b.dy, centred), axes, keepdims=0)
    d_scale = b.op("Mul", product, inverse)
    if training:
        count = b.cast(b.op("Div", b.op("Size", x), b.op("Size", scale)))
        shift = _channelwise(b, b.op("Div", d_bias, count))
        tilt = _channelwise(b, b.op("Div", b.op("Mul", d_scale, inverse), count))
        rest = b.op("Sub", b.op("Sub", b.dy, shift), b.op("Mul", centred, tilt))
        return [b.op("Mul", rest, _channelwise(b, b.op("Mul", scale, inverse))), d_scale, d_bias, None, None]
    d_mean = b.op("Neg", b.op("Mul", d_bias, b.op("Mul", scale, inverse)))
    cube = b.op("Mul", b.op("Mul", inverse, inverse), inverse)
    d_variance = b.op("Mul", b.op("Mul", product, scale), b.op("Mul", cube, b.scalar(-0.5)))
    return [b.op("Mul", b.dy, b.op("Mul", wide, _channelwise(b, scale))), d_scale, d_bias, d_mean, d_variance]


@rule("LayerNormalization", since=17)
def layer_normalization(b: Backward) -> Gradients:
    _require_no_other_gradient(b)
    x, scale = b.x[:2]
    rank = b.rank(x)
    axes = list(range(b.integer("axis", -1) % rank, rank))
    fixed = b.known(scale)
    plain = fixed is not None and np.all(fixed == 1.0) and len(b.x) == 2
    if b.dtype == "float32":
        mean, inverse = _outputs(b, 3)[1:]
    else:  # the operator keeps its statistics in another precision
        mean = b.op("ReduceMean", x, b.integers(axes), keepdims=1)
        inverse = _inverse_root(b, _variance(b, b.op("Sub", x, mean), axes))
    if plain:
        return [_through(b, b.dy, b.y[0], inverse, axes), None]
    standard = b.op("Mul", b.op("Sub", x, mean), inverse)
    d_scale = b.sum_to(b.op("Mul", b.dy, standard), 1)
    d_bias = b.sum_to(b.dy, 2) if len(b.x) > 2 and b.x[2] else None
    return [_through(b, b.op("Mul", b.dy, scale), standard, inverse, axes), d_scale, d_bias]


@rule("InstanceNormalization", since=6)
def instance_normalization(b: Backward) -> Gradients:
    x, scale = b.x[:2]
    axes = list(range(2, b.rank(x)))
    others = b.integers([0, *axes])
    standard, inverse = _standardised(b, x, axes)
    d_scale = b.op("ReduceSum", b.op("Mul", b.dy, standard), others, keepdims=0)
    fixed = b.known(scale)
    plain = fixed is not None and np.all(fixed == 1.0)
    weighted = b.dy if plain else b.op("Mul", b.dy, _channelwise(b, scale))
    return [
        _through(b, weighted, standard, inverse, axes),
        d_scale,
        b.op("ReduceSum", b.dy, others, keepdims=0),
    ]


@rule("GroupNormalization", since=21)
def group_normalization(b: Backward) -> Gradients:
    """A group is one row. What is summed over it is summed by channel first, which scale and bias need anyway."""
    x, scale = b.x[:2]
    rank, groups = b.rank(x), b.integer("num_groups", 1)
    rows = b.integers([0, groups, -1])
    standard, inverse = _standardised(b, b.op("Reshape", x, rows), [2])
    product = b.op("Mul", b.dy, b.graph.reshape_like(standard, x))
    products, slopes = product, b.dy
    if rank > 2:
        inner = b.integers(range(2, rank))
        products, slopes = (b.op("ReduceSum", item, inner, keepdims=0) for item in (product, b.dy))
    count = b.cast(b.op("Div", b.op("Size", x), b.op("Size", inverse)))

    def mean(by_channel: str) -> str:
        """The mean over each group of what is given by channel, times the inverse deviation: [batch, group, 1]."""
        weighted = b.op("Reshape", b.op("Mul", by_channel, scale), rows)
        return b.op("Mul", b.op("Div", b.op("ReduceSum", weighted, b.integers([2]), keepdims=1), count), inverse)

    by_group = b.op("Mul", inverse, b.op("Reshape", scale, b.integers([1, groups, -1])))
    direct = b.op("Mul", b.dy, b.op("Reshape", by_group, b.integers([0, -1, *[1] * (rank - 2)])))
    rest = b.op("Add", b.op("Mul", standard, mean(products)), mean(slopes))
    return [
        b.op("Sub", direct, b.graph.reshape_like(rest, x)),
        b.op("ReduceSum", products, b.integers([0]), keepdims=0),
        b.op("ReduceSum", slopes, b.integers([0]), keepdims=0),
    ]


@rule("RMSNormalization", since=23)
def rms_normalization(b: Backward) -> Gradients:
    x, scale = b.x
    rank = b.rank(x)
    axes = list(range(b.integer("axis", -1) % rank, rank))
    inverse = _inverse_root(b, _variance(b, x, axes))
    standard = b.op("Mul", x, inverse)
    weighted = b.op("Mul", b.dy, scale)
    tilt = b.op("ReduceMean", b.op("Mul", weighted, standard), b.integers(axes), keepdims=1)
    dx = b.op("Mul", b.op("Sub", weighted, b.op("Mul", standard, tilt)), inverse)
    return [dx, b.sum_to(b.op("Mul", b.dy, standard), 1)]


@rule("LpNormalization")
def lp_normalization(b: Backward) -> Gradients:
    x, y = b.x[0], b.y[0]
    axis = b.integers([b.integer("axis", -1)])
    order = b.integer("p", 2)
    norm = b.op("ReduceL1" if order == 1 else "ReduceL2", x, axis, keepdims=1)
    norm = b.op("Add", norm, b.mask(b.op("Equal", norm, b.scalar(0.0))))
    along = b.op("ReduceSum", b.op("Mul", b.dy, y), axis, keepdims=1)
    direction = sign(b, x) if order == 1 else y
    return [b.op("Div", b.op("Sub", b.dy, b.op("Mul", direction, along)), norm)]


@rule("LRN")
def local_response_normalization(b: Backward) -> Gradients:
    """y = x s^-beta, s = bias + alpha / size * (sum of x^2 over `size` channels around, an odd number)."""
    x = b.x[0]
    size, alpha, beta = b.integer("size", 1), b.real("alpha", 1e-4), b.real("beta", 0.75)
    mean = _over_channels(b, b.op("Mul", x, x), size)
    root = b.op("Add", b.op("Mul", mean, b.scalar(alpha)), b.scalar(b.real("bias", 1.0)))
    direct = b.op("Mul", b.dy, b.op("Pow", root, b.scalar(-beta)))
    spread = _over_channels(b, b.op("Div", b.op("Mul", b.dy, b.y[0]), root), size)
    return [b.op("Sub", direct, b.op("Mul", b.op("Mul", x, b.scalar(2 * alpha * beta)), spread))]


def _through(b: Backward, weighted: str, standard: str, inverse: str, axes: Sequence[int]) -> str:
    """The gradient through standardisation over `axes`, from the one of its result, `weighted`."""
    over = b.integers(axes)
    shift = b.op("ReduceMean", weighted, over, keepdims=1)
    tilt = b.op("ReduceMean", b.op("Mul", weighted, standard), over, keepdims=1)
    return b.op("Mul", b.op("Sub", b.op("Sub", weighted, shift), b.op("Mul", standard, tilt)), inverse)


def _standardised(b: Backward, x: str, axes: Sequence[int]) -> tuple[str, str]:
    """`x` less its mean, divided by its deviation, and the inverse of that deviation."""
    centred = b.op("Sub", x, b.op("ReduceMean", x, b.integers(axes), keepdims=1))
    inverse = _inverse_root(b, _variance(b, centred, axes))
    return b.op("Mul", centred, inverse), inverse


def _variance(b: Backward, centred: str, axes: Sequence[int]) -> str:
    return b.op("ReduceMean", b.op("Mul", centred, centred), b.integers(axes), keepdims=1)


def _inverse_root(b: Backward, variance: str) -> str:
    return b.op("Reciprocal", b.op("Sqrt", b.op("Add", variance, b.scalar(b.real("epsilon", 1e-5)))))


def _channelwise(b: Backward, vector: str) -> str:
    """One number for each channel, shaped to broadcast along axis 1 of the first input."""
    return b.op("Reshape", vector, b.integers([-1, *[1] * (b.rank(b.x[0]) - 2)]))


def _require_no_other_gradient(b: Backward) -> None:
    if any(b.dys[1:]):
        node = f"node {b.node.name!r} ({b.node.op_type})"
        raise BlindsumError("training-operator-unsupported", f"{node}: the loss depends on its statistics themselves")


def _outputs(b: Backward, count: int) -> list[str]:
    """The first `count` outputs, asked of the forward node where it does not give them yet."""
    b.node.output.extend([""] * (count - len(b.node.output)))
    for at, name in enumerate(b.node.output[:count]):
        if not name:
            b.node.output[at] = b.graph.fresh(b.node.op_type)
    return list(b.node.output[:count])


def _over_channels(b: Backward, value: str, size: int) -> str:
    """The sum over a window of channels, divided by `size`: an average pool with zeros outside."""
    channels = b.shape(b.x[0])[1]
    assert isinstance(channels, int)
    rows = b.op("Reshape", value, b.integers([0, 1, channels, -1]))
    around = size // 2
    pooled = b.op("AveragePool", rows, kernel_shape=[size, 1], pads=[around, 0, around, 0], count_include_pad=1)
    return b.graph.reshape_like(pooled, b.x[0])
