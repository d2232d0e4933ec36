"""Shapes that follow the batch where ONNX's own inference loses it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from . import sizes
from .arithmetic import Vector
from .graph import attribute
from .sizes import Size

WHOLE = 1 << 24  # the end of a slice that takes all there is


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is known of a node's surroundings: the sizes of values, elements of integer vectors, constants."""

    sizes: Callable[[str], Sequence[Size] | None]
    vectors: Mapping[str, Vector]
    constants: Mapping[str, NDArray[np.generic]]

    def numbers(self, node: onnx.NodeProto, at: int) -> list[int] | None:
        """A constant operand as integers."""
        array = self.constants.get(node.input[at]) if len(node.input) > at else None
        return None if array is None else [int(item) for item in array.ravel()]


def shape(node: onnx.NodeProto, known: Known) -> Sequence[Size] | None:
    """The shape of the node's first output; None where this module knows nothing better than ONNX does."""
    function = _SHAPES.get(node.op_type)
    if function is None:
        return None
    given = known.sizes(node.input[0])
    return function(node, known, list(given or [])) if given is not None or node.op_type == "ConstantOfShape" else None


def _told(node: onnx.NodeProto, known: Known, at: int) -> Sequence[Size] | None:
    vector = known.vectors.get(node.input[at])
    return vector.items if vector is not None else None


def _constant_of_shape(node: onnx.NodeProto, known: Known, _given: list[Size]) -> Sequence[Size] | None:
    return _told(node, known, 0)


def _tile(node: onnx.NodeProto, known: Known, given: list[Size]) -> Sequence[Size] | None:
    wanted = _told(node, known, 1)
    return wanted and [sizes.times(a, b) for a, b in zip(given, wanted, strict=True)]


def _expand(node: onnx.NodeProto, known: Known, given: list[Size]) -> Sequence[Size] | None:
    wanted = _told(node, known, 1)
    if wanted is None:
        return None
    rank = max(len(given), len(wanted))
    ones: list[Size] = [1] * rank
    left, right = ((ones + list(items))[len(items) :] for items in (given, wanted))
    return [a if b in (1, a) else b if a == 1 else None for a, b in zip(left, right, strict=True)]


def _reshape(node: onnx.NodeProto, known: Known, given: list[Size]) -> Sequence[Size] | None:
    wanted = _told(node, known, 1)
    if wanted is None or attribute(node, "allowzero", 0):
        return None
    target = [given[at] if size == 0 and at < len(given) else size for at, size in enumerate(wanted)]
    if -1 in target:
        rest = sizes.product([size for size in target if size != -1])
        target[target.index(-1)] = sizes.over(sizes.product(given), rest)
    return target


def _flatten(node: onnx.NodeProto, _known: Known, given: list[Size]) -> Sequence[Size] | None:
    axis = attribute(node, "axis", 1)
    assert isinstance(axis, int)
    axis += len(given) if axis < 0 else 0
    return [sizes.product(given[:axis]), sizes.product(given[axis:])]


def _slice(node: onnx.NodeProto, known: Known, given: list[Size]) -> Sequence[Size] | None:
    after = known.sizes(node.output[0])
    start, end = known.numbers(node, 1), known.numbers(node, 2)
    if after is None or start is None or end is None:
        return None
    axes = known.numbers(node, 3) or range(len(start))
    steps = known.numbers(node, 4) or [1] * len(start)
    cut = {
        axis % len(given)
        for axis, first, last, step in zip(axes, start, end, steps, strict=True)
        if (first, step) != (0, 1) or last < WHOLE
    }
    return [size if at in cut else given[at] for at, size in enumerate(after)]


def _resize(node: onnx.NodeProto, known: Known, given: list[Size]) -> Sequence[Size] | None:
    after = known.sizes(node.output[0])
    if after is None:
        return None
    scales = known.constants.get(node.input[2]) if len(node.input) > 2 else None
    axes = attribute(node, "axes")
    if isinstance(axes, Sequence):
        kept = set(range(len(given))) - {axis % len(given) for axis in axes}
    else:
        kept = {at for at, scale in enumerate([] if scales is None else scales.tolist()) if scale == 1.0}
    return [given[at] if at in kept else size for at, size in enumerate(after)]


def _same(_node: onnx.NodeProto, _known: Known, given: list[Size]) -> Sequence[Size]:
    return given


_SHAPES: dict[str, Callable[[onnx.NodeProto, Known, list[Size]], Sequence[Size] | None]] = {
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Flatten": _flatten,
    "GroupNormalization": _same,
    "Reshape": _reshape,
    "Resize": _resize,
    "Slice": _slice,
    "Tile": _tile,
}
