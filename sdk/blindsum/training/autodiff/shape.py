"""Rules for operators that move, copy or drop elements without looking at an index tensor.

Sizes that the build knows become constants. Where it does not, the graph asks `Shape`, and in the last resort the
operator itself is run on the elements' positions, which says where each element of the gradient belongs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from .graph import Shape
from .registry import Backward, Gradients, rule, stop

_INT64_MIN = -(1 << 63)


@rule("Identity")
def identity(b: Backward) -> Gradients:
    return [b.dy]


@rule("Flatten", "Reshape", "Squeeze", "Unsqueeze", since=5)
def reshape(b: Backward) -> Gradients:
    return [b.graph.reshape_like(b.dy, b.x[0])]


@rule("Transpose")
def transpose(b: Backward) -> Gradients:
    rank = b.rank(b.x[0])
    forward = b.ints("perm", range(rank)[::-1])
    return [b.op("Transpose", b.dy, perm=[forward.index(axis) for axis in range(rank)])]


@rule("Concat", since=4)
def concat(b: Backward) -> Gradients:
    axis = b.integer("axis", 0) % b.rank(b.x[0])
    lengths = [b.shape(name)[axis] for name in b.x]
    if not all(isinstance(length, int) for length in lengths):
        sizes = b.op("Concat", *(b.op("Shape", name, start=axis, end=axis + 1) for name in b.x), axis=0)
        return b.ops("Split", b.dy, sizes, outputs=len(b.x), axis=axis)
    ends = np.cumsum(np.array(lengths, np.int64)).tolist()
    starts = [0, *ends[:-1]]
    axes = b.integers([axis])
    # One Slice each, not one Split: inputs that need no gradient cost nothing.
    return [
        b.op("Slice", b.dy, b.integers([start]), b.integers([end]), axes)
        for start, end in zip(starts, ends, strict=True)
    ]


@rule("Split", since=2)
def split(b: Backward) -> Gradients:
    parts = [dy if dy is not None else zeros(b, name) for dy, name in zip(b.dys, b.y, strict=True)]
    return [b.op("Concat", *parts, axis=b.integer("axis", 0))]


@rule("Slice", since=10)
def slice_(b: Backward) -> Gradients:
    shape = b.shape(b.x[0])
    spans = _spans(b, shape)
    if spans is None:
        return [returned(b, b.op("Slice", positions(b, b.x[0]), *b.x[1:]))]
    dx, now = b.dy, list(b.shape(b.y[0]))
    pads = np.zeros((2, len(shape)), np.int64)
    for axis, (span, size) in spans.items():
        if span.step < 0:
            backwards = [b.integers([item]) for item in (-1, _INT64_MIN, axis, -1)]
            dx, span = b.op("Slice", dx, *backwards), span[::-1]
        now[axis] = len(span)
        if span.step > 1 and len(span) > 1:
            dx = _interleaved(b, dx, now, axis, span.step)
            now[axis] = len(span) * span.step
        length = now[axis]
        assert isinstance(length, int)
        start = span.start if len(span) else 0
        pads[:, axis] = start, size - start - length  # the zeros after the last element may reach over the end
        now[axis] = size
    return [b.op("Pad", dx, b.integers(pads.ravel().tolist())) if pads.any() else dx]


@rule("Pad", since=11)
def pad(b: Backward) -> Gradients:
    mode = b.text("mode", "constant")
    if mode != "constant":
        dx = _folded(b, mode)
        return [returned(b, b.op("Pad", positions(b, b.x[0]), *b.x[1:], mode=mode)) if dx is None else dx]
    axes = ["", b.x[3]] if len(b.x) > 3 and b.x[3] else []
    dx = b.op("Pad", b.dy, b.op("Neg", b.x[1]), *axes)
    everything = b.op("ReduceSum", b.dy, keepdims=0)
    return [dx, None, b.op("Sub", everything, b.op("ReduceSum", dx, keepdims=0))]


@rule("Tile", since=6)
def tile(b: Backward) -> Gradients:
    shape, repeats = b.shape(b.x[0]), b.known(b.x[1])
    if repeats is None or sum(not isinstance(size, int) for size in shape) > 1:
        pairs = b.op("Concat", *(b.op("Unsqueeze", s, b.integers([1])) for s in (b.x[1], _sizes(b, b.x[0]))), axis=1)
        folded = b.op("Reshape", b.dy, b.op("Reshape", pairs, b.integers([-1])))
        return [b.op("ReduceSum", folded, b.integers(range(0, 2 * len(shape), 2)), keepdims=0)]
    target: list[int] = []
    axes = []
    for size, repeat in zip(shape, repeats.tolist(), strict=True):
        if repeat != 1:
            axes.append(len(target))
            target.append(repeat)
        target.append(size if isinstance(size, int) else -1)
    if not axes:
        return [b.dy]
    return [b.op("ReduceSum", b.op("Reshape", b.dy, b.integers(target)), b.integers(axes), keepdims=0)]


@rule("Expand", since=8, broadcast=True)
def expand(b: Backward) -> Gradients:
    return [b.dy]


@rule("Where", since=9, broadcast=True)
def where(b: Backward) -> Gradients:
    chosen = b.mask(b.x[0])
    taken = b.op("Mul", b.dy, chosen)
    return [None, taken, b.op("Mul", b.dy, b.op("Sub", b.scalar(1.0), chosen))]


@rule("Cast", "CastLike", since=6)
def cast(b: Backward) -> Gradients:
    """Between float types; `reverse` stops at a Cast to anything else."""
    return [b.op("CastLike", b.dy, b.x[0]), None]


@rule("Trilu", since=14)
def trilu(b: Backward) -> Gradients:
    return [b.op("Trilu", b.dy, *b.x[1:], upper=b.integer("upper", 1))]


@rule("CumSum", since=11)
def cumsum(b: Backward) -> Gradients:
    flipped = 1 - b.integer("reverse", 0)
    return [b.op("CumSum", b.dy, b.x[1], exclusive=b.integer("exclusive", 0), reverse=flipped)]


@rule("ReverseSequence", since=10)
def reverse_sequence(b: Backward) -> Gradients:
    axes = {"batch_axis": b.integer("batch_axis", 1), "time_axis": b.integer("time_axis", 0)}
    return [b.op("ReverseSequence", b.dy, b.x[1], **axes)]


@rule("Compress", since=9)
def compress(b: Backward) -> Gradients:
    axis = b.optional_integer("axis")
    kept = b.op("Compress", positions(b, b.x[0]), b.x[1], **({} if axis is None else {"axis": axis}))
    return [returned(b, kept)]


stop("And", "ArgMax", "ArgMin", "Ceil", "ConstantOfShape", "Equal", "EyeLike", "Floor", "Greater", "GreaterOrEqual")
stop("IsInf", "IsNaN", "Less", "LessOrEqual", "NonZero", "Not", "Or", "Round", "Shape", "Sign", "Size", "Xor")


def zeros(b: Backward, name: str) -> str:
    """Zeros in the shape of a value."""
    return b.op("ConstantOfShape", _sizes(b, name), value=zero(b))


def positions(b: Backward, name: str) -> str:
    """The row-major number of each element of a value, int64 in its shape."""
    first, step = b.constant(np.array(0)), b.constant(np.array(1))
    return b.op("Reshape", b.op("Range", first, b.op("Size", name), step), _sizes(b, name))


def returned(b: Backward, where: str) -> str:
    """The gradient summed into the shape of the first input: each element goes to the position that `where` holds."""
    return scattered(b, b.dy, where, b.x[0])


def scattered(b: Backward, value: str, where: str, reference: str) -> str:
    """`value` summed into the shape of `reference`: each element goes to the position that `where` holds."""
    flat = b.integers([-1])
    empty = b.op("ConstantOfShape", b.op("Reshape", b.op("Size", reference), flat), value=zero(b))
    pieces = b.op("Reshape", where, flat), b.op("Reshape", value, flat)
    total = b.op("ScatterElements", empty, *pieces, axis=0, reduction="add")
    return b.op("Reshape", total, _sizes(b, reference))


def _sizes(b: Backward, name: str) -> str:
    """The shape of a value as a 1-D int64 tensor."""
    shape = b.shape(name)
    sizes = [size for size in shape if isinstance(size, int)]
    return b.integers(sizes) if len(sizes) == len(shape) else b.op("Shape", name)


def zero(b: Backward) -> onnx.TensorProto:
    """What ConstantOfShape fills with."""
    return onnx.numpy_helper.from_array(np.zeros(1, b.dtype))


def _spans(b: Backward, shape: Shape) -> dict[int, tuple[range, int]] | None:
    """What Slice takes of each axis that it cuts, and that axis's size; None where only the graph will know."""
    known = [b.known(name) if name else None for name in b.x[1:]]
    if any(array is None and name for array, name in zip(known, b.x[1:], strict=True)):
        return None
    starts, ends, axes, steps = (None if array is None else array.tolist() for array in [*known, None, None][:4])
    assert starts is not None and ends is not None
    spans: dict[int, tuple[range, int]] = {}
    for at, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis = (axes[at] if axes else at) % len(shape)
        size, step = shape[axis], steps[at] if steps else 1
        if not isinstance(size, int):
            if (start, step) == (0, 1) and end > 1 << 30:  # all of the batch
                continue
            return None
        spans[axis] = range(size)[start:end:step], size
    strided = any(abs(span.step) > 1 for span, _ in spans.values())
    return None if strided and sum(not isinstance(size, int) for size in shape) > 1 else spans


def _interleaved(b: Backward, value: str, shape: Sequence[object], axis: int, step: int) -> str:
    """`value` of `shape` with `step` - 1 zeros after each element of `axis`."""
    rank, length = len(shape), shape[axis]
    assert isinstance(length, int)
    pads = np.zeros((2, rank + 1), np.int64)
    pads[1, axis + 1] = step - 1
    apart = b.op("Pad", b.op("Unsqueeze", value, b.integers([axis + 1])), b.integers(pads.ravel().tolist()))
    after = [size if isinstance(size, int) else -1 for size in shape[axis + 1 :]]
    return b.op("Reshape", apart, b.integers([*[0] * axis, length * step, *after]))


def _folded(b: Backward, mode: str) -> str | None:
    """The gradient of a mirrored, repeated or wrapped border, folded back axis by axis; None where sizes are unknown."""
    shape, pads, given = b.shape(b.x[0]), b.known(b.x[1]), b.x[3] if len(b.x) > 3 else ""
    axes = b.known(given) if given else np.arange(len(shape))
    if pads is None or axes is None or min(pads.tolist(), default=0) < 0:
        return None
    dx = b.dy
    for axis, before, after in zip((axes % len(shape)).tolist(), *pads.reshape(2, -1).tolist(), strict=True):
        size = shape[axis]
        if not before and not after:
            continue
        if not isinstance(size, int) or (mode != "edge" and max(before, after) >= size):
            return None
        dx = _fold(b, dx, len(shape), axis, size, (before, after), mode)
    return dx


def _fold(b: Backward, dy: str, rank: int, axis: int, size: int, borders: tuple[int, int], mode: str) -> str:
    """Fold the borders of one axis onto its `size` inner elements."""
    before, after = borders
    at = b.integers([axis])

    def taken(start: int, length: int, *, mirrored: bool) -> str:
        piece = b.op("Slice", dy, b.integers([start]), b.integers([start + length]), at)
        if not mirrored:
            return piece
        return b.op("Slice", piece, b.integers([-1]), b.integers([_INT64_MIN]), at, b.integers([-1]))

    def placed(piece: str, start: int, length: int) -> str:
        pads = np.zeros((2, rank), np.int64)
        pads[:, axis] = start, size - start - length
        return b.op("Pad", piece, b.integers(pads.ravel().tolist()))

    parts = [taken(before, size, mirrored=False)]
    for start, length, first in ((0, before, True), (before + size, after, False)):
        if not length:
            continue
        if mode == "edge":
            border = b.op("ReduceSum", taken(start, length, mirrored=False), at, keepdims=1)
            parts.append(placed(border, 0 if first else size - 1, 1))
        elif mode == "reflect":
            target = 1 if first else size - 1 - length
            parts.append(placed(taken(start, length, mirrored=True), target, length))
        else:
            parts.append(placed(taken(start, length, mirrored=False), size - length if first else 0, length))
    return b.op("Sum", *parts)
