"""Operators that move, repeat and choose elements."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .call import Call, Shape, broadcast, rule, wanted


@rule("Reshape")
def reshape(c: Call) -> Sequence[Shape]:
    sizes, total = c.integers(1), c.value(0).size
    if not c.integer("allowzero", 0):
        sizes = [c.shape()[at] if size == 0 else size for at, size in enumerate(sizes)]
    wanted(sizes.count(-1) <= 1 and all(size >= -1 for size in sizes), "sizes")
    if -1 in sizes:
        rest = math.prod(size for size in sizes if size != -1)
        wanted(rest and total % rest == 0, f"{total} elements to {sizes}")
        sizes[sizes.index(-1)] = total // rest
    wanted(math.prod(sizes) == total, f"{total} elements to {sizes}")
    return [tuple(sizes)]


@rule("Flatten")
def flatten(c: Call) -> Sequence[Shape]:
    axis = c.integer("axis", 1)
    wanted(-c.rank() <= axis <= c.rank(), "axis")
    axis = axis + c.rank() if axis < 0 else axis
    return [(math.prod(c.shape()[:axis]), math.prod(c.shape()[axis:]))]


@rule("Transpose")
def transpose(c: Call) -> Sequence[Shape]:
    perm = c.ints("perm", range(c.rank())[::-1])
    wanted(sorted(perm) == list(range(c.rank())), "perm")
    return [tuple(c.shape()[axis] for axis in perm)]


@rule("Squeeze")
def squeeze(c: Call) -> Sequence[Shape]:
    ones = [axis for axis, size in enumerate(c.shape()) if size == 1]
    axes = c.axes(c.integers(1), c.rank()) if c.given(1) else ones
    wanted(set(axes) <= set(ones), "axes")
    return [tuple(size for axis, size in enumerate(c.shape()) if axis not in axes)]


@rule("Unsqueeze")
def unsqueeze(c: Call) -> Sequence[Shape]:
    given = c.integers(1)
    axes, sizes = c.axes(given, c.rank() + len(given)), iter(c.shape())
    return [tuple(1 if axis in axes else next(sizes) for axis in range(c.rank() + len(given)))]


@rule("Concat")
def concat(c: Call) -> Sequence[Shape]:
    axis = c.axis(c.integer("axis"), c.rank())
    wanted(len({shape[:axis] + shape[axis + 1 :] for shape in c.shapes()}) == 1, "shapes")
    wanted(len({len(shape) for shape in c.shapes()}) == 1, "ranks")
    return [(*c.shape()[:axis], sum(shape[axis] for shape in c.shapes()), *c.shape()[axis + 1 :])]


@rule("Split")
def split(c: Call) -> Sequence[Shape]:
    axis = c.axis(c.integer("axis", 0), c.rank())
    size, number = c.shape()[axis], len(c.node.outputs)
    if c.given(1):
        parts = c.integers(1)
        wanted("num_outputs" not in c.node.attributes, "num_outputs and sizes")
    else:
        wanted(c.integer("num_outputs", number) == number, "num_outputs")
        step = -(-size // number)
        parts = [max(min(step, size - step * at), 0) for at in range(number)]
        wanted(parts[-1] or not size, "more parts than there is")
    wanted(len(parts) == number and min(parts) >= 0 and sum(parts) == size, "sizes")
    return [(*c.shape()[:axis], part, *c.shape()[axis + 1 :]) for part in parts]


@rule("Slice")
def cut(c: Call) -> Sequence[Shape]:
    starts, ends = c.integers(1), c.integers(2)
    axes = c.axes(c.integers(3), c.rank()) if c.given(3) else list(range(len(starts)))
    steps = c.integers(4) if c.given(4) else [1] * len(starts)
    wanted(len(starts) == len(ends) == len(axes) == len(steps) <= c.rank() and all(steps), "lengths or steps")
    sizes = list(c.shape())
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        sizes[axis] = len(range(*slice(start, end, step).indices(sizes[axis])))
        if step < 0 and end < 0 and end + c.shape()[axis] < 0:
            sizes[axis] = len(range(*slice(start, None, step).indices(c.shape()[axis])))
    return [tuple(sizes)]


@rule("Pad")
def pad(c: Call) -> Sequence[Shape]:
    axes = c.axes(c.integers(3), c.rank()) if c.given(3) else list(range(c.rank()))
    pads, sizes = c.integers(1), list(c.shape())
    wanted(len(pads) == 2 * len(axes), "pads")
    for at, axis in enumerate(axes):
        before, after, size = pads[at], pads[at + len(axes)], sizes[axis]
        sizes[axis] = size + before + after
        reach = {"reflect": size - 1, "edge": size and 1 << 62, "wrap": size}.get(c.text("mode", "constant"), 1 << 62)
        wanted(sizes[axis] >= 0 and max(before, after, 0) <= max(reach, 0), "pads")
        wanted(before + size >= 0 and after + size >= 0, "pads")
    return [tuple(sizes)]


@rule("Tile")
def tile(c: Call) -> Sequence[Shape]:
    repeats = c.integers(1)
    wanted(len(repeats) == c.rank() and min(repeats, default=0) >= 0, "repeats")
    return [tuple(size * times for size, times in zip(c.shape(), repeats, strict=True))]


@rule("Expand")
def expand(c: Call) -> Sequence[Shape]:
    sizes = c.integers(1)
    wanted(min(sizes, default=0) >= 0, "sizes")
    return [broadcast(c.shape(), tuple(sizes)) if sizes or c.rank() else ()]


@rule("Gather")
def gather(c: Call) -> Sequence[Shape]:
    axis = c.axis(c.integer("axis", 0), c.rank())
    return [c.shape()[:axis] + c.shape(1) + c.shape()[axis + 1 :]]


@rule("GatherElements")
def gather_elements(c: Call) -> Sequence[Shape]:
    axis = c.axis(c.integer("axis", 0), c.rank())
    _require_within(c.shape(1), c.shape(), axis)
    return [c.shape(1)]


@rule("GatherND")
def gather_nd(c: Call) -> Sequence[Shape]:
    batch, depth = c.integer("batch_dims", 0), c.shape(1)[-1]
    wanted(0 <= batch < min(c.rank(), c.rank(1)) and 1 <= depth <= c.rank() - batch, "indices")
    wanted(c.shape()[:batch] == c.shape(1)[:batch], "batch_dims")
    return [c.shape(1)[:-1] + c.shape()[batch + depth :]]


@rule("ScatterElements")
def scatter_elements(c: Call) -> Sequence[Shape]:
    axis = c.axis(c.integer("axis", 0), c.rank())
    wanted(c.shape(1) == c.shape(2), "updates")
    _require_within(c.shape(1), c.shape(), axis)
    return [c.shape()]


@rule("ScatterND")
def scatter_nd(c: Call) -> Sequence[Shape]:
    depth = c.shape(1)[-1]
    wanted(1 <= depth <= c.rank() and c.shape(2) == c.shape(1)[:-1] + c.shape()[depth:], "indices or updates")
    return [c.shape()]


@rule("ReverseSequence")
def reverse_sequence(c: Call) -> Sequence[Shape]:
    axes = {c.integer("batch_axis", 1), c.integer("time_axis", 0)}
    wanted(axes == {0, 1} and c.rank() >= 2, "axes")
    wanted(c.shape(1) == (c.shape()[c.integer("batch_axis", 1)],), "lengths")
    return [c.shape()]


@rule("OneHot")
def one_hot(c: Call) -> Sequence[Shape]:
    depth, axis = c.integers(1), c.axis(c.integer("axis", -1), c.rank() + 1)
    wanted(len(depth) == 1 and depth[0] > 0 and c.shape(2) == (2,), "depth or values")
    return [(*c.shape()[:axis], depth[0], *c.shape()[axis:])]


@rule("TopK")
def top_k(c: Call) -> Sequence[Shape]:
    axis, number = c.axis(c.integer("axis", -1), c.rank()), c.integers(1)
    wanted(len(number) == 1 and 0 <= number[0] <= c.shape()[axis], "k")
    c.work = c.value(0).size * 32
    return [(*c.shape()[:axis], number[0], *c.shape()[axis + 1 :])] * 2


@rule("NonZero")
def non_zero(c: Call) -> Sequence[Shape]:
    """At most, where the data say how many there are."""
    value = c.value(0).known
    return [(max(c.rank(), 1), c.value(0).size if value is None else int(np.count_nonzero(value)))]


@rule("Compress")
def compress(c: Call) -> Sequence[Shape]:
    """At most, as for `NonZero`."""
    axis = c.axis(c.integer("axis"), c.rank()) if "axis" in c.node.attributes else None
    length = c.value(0).size if axis is None else c.shape()[axis]
    chosen = c.value(1).known
    wanted(c.rank(1) == 1 and c.shape(1)[0] <= length, "condition")
    number = length if chosen is None else int(np.count_nonzero(chosen))
    return [(number,) if axis is None else (*c.shape()[:axis], number, *c.shape()[axis + 1 :])]


@rule("ConstantOfShape")
def constant_of_shape(c: Call) -> Sequence[Shape]:
    sizes = c.integers(0)
    wanted(min(sizes, default=0) >= 0, "sizes")
    return [tuple(sizes)]


@rule("Range")
def count(c: Call) -> Sequence[Shape]:
    (start,), (limit,), (delta,) = c.numbers(0), c.numbers(1), c.numbers(2)
    wanted(delta and all(map(math.isfinite, (start, limit, delta))), "delta")
    return [(max(math.ceil((limit - start) / delta), 0),)]


@rule("DepthToSpace", "SpaceToDepth")
def blocks(c: Call) -> Sequence[Shape]:
    size, (rows, channels, height, width) = c.integer("blocksize"), c.shape()
    wanted(size >= 1, "blocksize")
    if c.node.operator == "DepthToSpace":
        wanted(channels % (size * size) == 0, "channels")
        return [(rows, channels // (size * size), height * size, width * size)]
    wanted(height % size == 0 and width % size == 0, "sizes")
    return [(rows, channels * size * size, height // size, width // size)]


def _require_within(inner: Shape, outer: Shape, axis: int) -> None:
    right = len(inner) == len(outer) and all(
        at == axis or mine <= theirs for at, (mine, theirs) in enumerate(zip(inner, outer, strict=True))
    )
    wanted(right, "indices")
