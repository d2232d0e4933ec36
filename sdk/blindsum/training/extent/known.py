"""The values of small tensors that follow from constants and shapes: sizes for the operators that take them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..protobuf import DTYPES
from .call import Call

Array = NDArray[Any]
SIZE_MAX = 1 << 12  # elements of a value that is worth knowing


def known(call: Call, shape: tuple[int, ...], dtype: str) -> Array | None:
    """The value of the first output, of that shape and type; None where it is not known."""
    operator = call.node.operator
    if operator == "Shape":
        start, end = call.integer("start", 0), call.integer("end", call.rank())
        return np.array(call.shape()[start:end], np.int64)
    if operator == "Size":
        return np.array(call.value(0).size, np.int64)
    if operator not in _TABLE or np.prod(shape) > SIZE_MAX:
        return None
    inputs: list[Array] = []
    for value in call.inputs:
        if value is not None:
            if value.known is None:
                return None
            inputs.append(value.known)
    with np.errstate(all="ignore"):
        return np.asarray(_TABLE[operator](call, *inputs)).astype(dtype).reshape(shape)


def _divided(call: Call, left: Array, right: Array) -> Array:
    if left.dtype.kind == "f":
        return np.divide(left, right)
    return np.asarray(np.sign(left) * (np.abs(left) // np.abs(right)) * np.sign(right))


def _cast(call: Call, value: Array, *_: Array) -> Array:
    return value.astype(DTYPES[call.integer("to")]) if call.node.operator == "Cast" else value


def _filled(call: Call, shape: Array) -> Array:
    value = call.node.attributes.get("value")
    return np.full(shape.tolist(), value.ravel()[0] if isinstance(value, np.ndarray) else np.float32(0))


def _cut(call: Call, data: Array, starts: Array, ends: Array, *more: Array) -> Array:
    axes = more[0].tolist() if call.given(3) else list(range(len(starts)))
    steps = more[-1].tolist() if call.given(4) else [1] * len(starts)
    index: list[Any] = [slice(None)] * data.ndim
    for start, end, axis, step in zip(starts.tolist(), ends.tolist(), axes, steps, strict=True):
        beyond = step < 0 and end < -data.shape[axis]
        index[axis] = slice(start, None if beyond else end, step)
    return np.asarray(data[tuple(index)])


def _reduced(function: Callable[..., Any]) -> Callable[..., Array]:
    def reduce(call: Call, data: Array, *axes: Array) -> Array:
        given = axes[0].tolist() if axes else call.ints("axes", ())
        if not given and call.integer("noop_with_empty_axes", 0):
            return data
        return np.asarray(function(data, axis=tuple(given) or None))

    return reduce


def _folded(function: Callable[[Array, Array], Array]) -> Callable[..., Array]:
    def fold(_: Call, first: Array, *rest: Array) -> Array:
        for item in rest:
            first = function(first, item)
        return first

    return fold


def _same(_: Call, value: Array, *__: Array) -> Array:
    return value


_TABLE: dict[str, Callable[..., Any]] = {
    "Abs": lambda c, a: np.abs(a),
    "Add": lambda c, a, b: a + b,
    "And": lambda c, a, b: a & b,
    "Cast": _cast,
    "CastLike": _cast,
    "Ceil": lambda c, a: np.ceil(a),
    "Concat": lambda c, *a: np.concatenate(a, axis=c.integer("axis")),
    "ConstantOfShape": _filled,
    "Div": _divided,
    "Equal": lambda c, a, b: a == b,
    "Expand": lambda c, a, s: np.broadcast_to(a, np.broadcast_shapes(a.shape, tuple(s.tolist()))),
    "Floor": lambda c, a: np.floor(a),
    "Gather": lambda c, a, i: np.take(a, i, axis=c.integer("axis", 0)),
    "Greater": lambda c, a, b: a > b,
    "GreaterOrEqual": lambda c, a, b: a >= b,
    "Identity": _same,
    "Less": lambda c, a, b: a < b,
    "LessOrEqual": lambda c, a, b: a <= b,
    "Max": _folded(np.maximum),
    "Min": _folded(np.minimum),
    "Mod": lambda c, a, b: np.fmod(a, b) if c.integer("fmod", 0) else np.mod(a, b),
    "Mul": lambda c, a, b: a * b,
    "Neg": lambda c, a: -a,
    "NonZero": lambda c, a: np.stack(np.atleast_1d(a).nonzero()),
    "Not": lambda c, a: ~a,
    "Or": lambda c, a, b: a | b,
    "Range": lambda c, a, b, s: np.arange(a.item(), b.item(), s.item()),
    "ReduceMax": _reduced(np.max),
    "ReduceMin": _reduced(np.min),
    "ReduceProd": _reduced(np.prod),
    "ReduceSum": _reduced(np.sum),
    "Reshape": _same,
    "Flatten": _same,
    "Round": lambda c, a: np.round(a),
    "Slice": _cut,
    "Sqrt": lambda c, a: np.sqrt(a),
    "Squeeze": _same,
    "Sub": lambda c, a, b: a - b,
    "Transpose": lambda c, a: np.transpose(a, c.ints("perm", range(a.ndim)[::-1])),
    "Unsqueeze": _same,
    "Where": lambda c, k, a, b: np.where(k, a, b),
}
