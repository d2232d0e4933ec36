"""Rules for operators that read or write elements at the places that an index tensor names."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from .registry import Backward, Gradients, rule
from .shape import positions, returned, zeros


@rule("Gather")
def gather(b: Backward) -> Gradients:
    """Of an embedding table: rows added straight into zeros of the table's shape."""
    shape, indices = b.shape(b.x[0]), b.rank(b.x[1])
    axis = b.integer("axis", 0) % len(shape)
    dx = _block(b, axis)
    if dx is not None:
        return [dx, None]
    rest = [at for at in range(len(shape)) if at != axis]
    if axis == 0:
        return [_add_rows(b, zeros(b, b.x[0]), b.dy), None]
    first = [*range(axis, axis + indices), *range(axis), *range(axis + indices, len(shape) - 1 + indices)]
    empty = b.op("Transpose", zeros(b, b.x[0]), perm=[axis, *rest])
    total = _add_rows(b, empty, b.op("Transpose", b.dy, perm=first))
    return [b.op("Transpose", total, perm=np.argsort([axis, *rest]).tolist()), None]


@rule("GatherElements", since=11)
def gather_elements(b: Backward) -> Gradients:
    axis = b.integer("axis", 0)
    return [b.op("ScatterElements", zeros(b, b.x[0]), b.x[1], b.dy, axis=axis, reduction="add"), None]


@rule("GatherND", since=11)
def gather_nd(b: Backward) -> Gradients:
    batch_dims = b.integer("batch_dims", 0)
    if batch_dims:
        return [returned(b, b.op("GatherND", positions(b, b.x[0]), b.x[1], batch_dims=batch_dims)), None]
    return [b.op("ScatterND", zeros(b, b.x[0]), b.x[1], b.dy, reduction="add"), None]


@rule("OneHot", since=11)
def one_hot(b: Backward) -> Gradients:
    """What is written where: the second of `values` at the indices, the first everywhere else."""
    hot = b.op("Mul", b.dy, b.op("OneHot", b.x[0], b.x[1], b.array(np.array([0.0, 1.0])), axis=b.integer("axis", -1)))
    on = b.op("Reshape", b.op("ReduceSum", hot, keepdims=0), b.integers([1]))
    everything = b.op("Reshape", b.op("ReduceSum", b.dy, keepdims=0), b.integers([1]))
    return [None, None, b.op("Concat", b.op("Sub", everything, on), on, axis=0)]


@rule("TopK", since=10)
def top_k(b: Backward) -> Gradients:
    dy = b.dys[0]
    if dy is None:
        return [None]
    if not b.y[1]:
        b.node.output[1] = b.graph.fresh("TopK")
    axis = b.integer("axis", -1)
    return [b.op("ScatterElements", zeros(b, b.x[0]), b.y[1], dy, axis=axis, reduction="add")]


@rule("ScatterElements", "ScatterND", since=11)
def scatter(b: Backward) -> Gradients:
    """y = data with `updates` written, added, multiplied, or compared in where `indices` say."""
    reduction = b.text("reduction", "none")
    if reduction == "add":
        return [b.dy, None, _read(b, b.dy)]
    if reduction == "none":
        return [_write(b, b.dy, zeros(b, b.x[2])), None, _read(b, b.dy)]
    if reduction == "mul":
        return _scatter_product(b)
    return _scatter_extreme(b)


def _scatter_extreme(b: Backward) -> Gradients:
    """Equal ones share the gradient (torch.scatter_reduce, amax and amin)."""
    data, updates, y = b.x[0], b.x[2], b.y[0]
    mine = b.mask(b.op("Equal", data, y))
    theirs = b.mask(b.op("Equal", updates, _read(b, y)))
    share = b.op("Div", b.dy, _write(b, mine, theirs, reduction="add"))
    return [b.op("Mul", mine, share), None, b.op("Mul", theirs, _read(b, share))]


def _scatter_product(b: Backward) -> Gradients:
    """The product of all other factors, right also where factors are zero: those are counted instead of multiplied."""
    data, updates = b.x[0], b.x[2]
    data_zero, updates_zero = (b.mask(b.op("Equal", value, b.scalar(0.0))) for value in (data, updates))
    data_safe, updates_safe = b.op("Add", data, data_zero), b.op("Add", updates, updates_zero)
    zero_count = _write(b, data_zero, updates_zero, reduction="add")
    weighted = b.op("Mul", b.dy, _write(b, data_safe, updates_safe, reduction="mul"))

    def others(value: str, factor: str, zero: str, count: str) -> str:
        alone = b.mask(b.op("Equal", count, zero))  # no zero among the others
        return b.op("Mul", alone, b.op("Div", value, factor))

    d_data = others(weighted, data_safe, data_zero, zero_count)
    return [d_data, None, others(_read(b, weighted), updates_safe, updates_zero, _read(b, zero_count))]


def _write(b: Backward, data: str, updates: str, **reduction: str) -> str:
    """The node's own scatter with other data."""
    if b.node.op_type == "ScatterND":
        return b.op("ScatterND", data, b.x[1], updates, **reduction)
    return b.op("ScatterElements", data, b.x[1], updates, axis=b.integer("axis", 0), **reduction)


def _read(b: Backward, data: str) -> str:
    """The elements that the node's scatter would write."""
    if b.node.op_type == "ScatterND":
        return b.op("GatherND", data, b.x[1])
    return b.op("GatherElements", data, b.x[1], axis=b.integer("axis", 0))


def _add_rows(b: Backward, empty: str, rows: str) -> str:
    indices = b.op("Unsqueeze", b.op("Cast", b.x[1], to=TensorProto.INT64), b.integers([-1]))
    return b.op("ScatterND", empty, indices, rows, reduction="add")


def _block(b: Backward, axis: int) -> str | None:
    """Where Gather takes one row or neighbouring ones at a constant place, the gradient is zeros around them."""
    index, size = b.known(b.x[1]), b.shape(b.x[0])[axis]
    if index is None or index.size != max(index.shape, default=1) or not index.size or not isinstance(size, int):
        return None
    rows = index.ravel() % size
    if (np.diff(rows) != 1).any():
        return None
    pads = np.zeros((2, b.rank(b.x[0])), np.int64)
    pads[:, axis] = rows[0], size - 1 - rows[-1]
    if not index.ndim:
        dy = b.op("Unsqueeze", b.dy, b.integers([axis]))
    else:
        single = [at for at in range(index.ndim) if at != int(np.argmax(index.shape))]
        dy = b.op("Squeeze", b.dy, b.integers([axis + at for at in single])) if single else b.dy
    return b.op("Pad", dy, b.integers(pads.ravel().tolist())) if pads.any() else dy
