"""Gradients of convolution kernels: for each tap, the sum over batch and positions of the image under it times dy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np

from .registry import Backward
from .window import Window, fitted

PRODUCTS_MIN = 32  # positions from which products of single images, added up, beat one product over all of them
TAPS_MAX = 64  # taps from which their own nodes would be too many
ROWS_PER_TAP = 11  # height of a depthwise image, by that of its kernel, up to which products of whole rows win
ROWS_MIN = 16  # channels below which the image is better off as the left matrix
JOINED = (2, 3)  # channels of which onnxruntime multiplies all taps at once twice as fast as one after the other
JOINED_MAX = 1 << 18  # elements under all taps of an example that may be held for that


def gradient(b: Backward, window: Window, groups: int, image: str, dy: str, weight: str) -> str:
    """The gradient for `weight` (M, C / groups, taps), from `image` (N, C, ...) and `dy` (N, M, ...)."""
    filters, channels = (size for size in b.shape(weight)[:2] if isinstance(size, int))
    positions = math.prod(window.outputs)
    if window.pointwise and groups == 1 and (positions == 1 or positions >= PRODUCTS_MIN):
        summed = _of_pixels(b, image, dy, positions, filters, channels)
    elif window.pointwise and positions >= PRODUCTS_MIN and channels > 1:
        summed = _of_grouped_pixels(b, image, dy, positions, groups, filters // groups, channels)
    elif window.tiles and groups == 1:
        summed = _of_tiles(b, window, image, dy, filters, channels)
    elif math.prod(window.kernel) > TAPS_MAX:
        summed = _by_convolution(b, window, groups, image, dy, channels)
    elif (
        channels == 1 and filters == groups and window.rank > 1 and window.inputs[0] <= ROWS_PER_TAP * window.kernel[0]
    ):
        summed = _of_rows(b, window, image, dy, filters)
    elif groups == 1 and channels in JOINED and channels * math.prod(window.kernel) * positions <= JOINED_MAX:
        summed = _of_joined_taps(b, window, image, dy, filters, channels)
    else:
        summed = _of_taps(b, window, groups, image, dy, filters, channels)
    return b.op("Reshape", summed, b.integers([filters, channels, *window.kernel]))


def _of_pixels(b: Backward, image: str, dy: str, positions: int, filters: int, channels: int) -> str:
    """One tap on every position: a product for each image as it lies there. The larger side goes left."""
    if positions == 1:
        rows, d_rows = (
            b.op("Reshape", value, b.integers([-1, size])) for value, size in ((image, channels), (dy, filters))
        )
        return b.op("Gemm", d_rows, rows, transA=1)
    left, right = (
        b.op("Reshape", value, b.integers([0, size, positions])) for value, size in ((dy, filters), (image, channels))
    )
    if filters < channels:
        left, right = right, left
    products = b.op("MatMul", left, b.op("Transpose", right, perm=[0, 2, 1]))
    summed = b.op("ReduceSum", products, b.integers([0]), keepdims=0)
    return b.op("Transpose", summed, perm=[1, 0]) if filters < channels else summed


def _of_grouped_pixels(
    b: Backward, image: str, dy: str, positions: int, groups: int, filters: int, channels: int
) -> str:
    """As `_of_pixels`, a product for each image and group."""
    left, right = (
        b.op("Reshape", value, b.integers([0, groups, size, positions]))
        for value, size in ((dy, filters), (image, channels))
    )
    products = b.op("MatMul", left, b.op("Transpose", right, perm=[0, 1, 3, 2]))
    return b.op("ReduceSum", products, b.integers([0]), keepdims=0)


def _of_taps(b: Backward, window: Window, groups: int, image: str, dy: str, filters: int, channels: int) -> str:
    """One product a tap."""
    d_rows = _matrix(b, b.op("Transpose", dy, perm=_batch_last(window)), groups, filters // groups)
    swapped = groups == 1 and channels < ROWS_MIN
    products = []
    for taken in _under_taps(b, image, window, 0):
        rows = _matrix(b, taken, groups, channels)
        left, right = (rows, d_rows) if swapped else (d_rows, rows)
        if groups == 1:
            products.append(b.op("Gemm", left, right, transB=1))
        else:
            products.append(b.op("MatMul", left, b.op("Transpose", right, perm=[0, 2, 1])))
    if len(products) == 1:
        return b.op("Transpose", products[0], perm=[1, 0]) if swapped else products[0]
    sizes = (channels, filters) if swapped else (groups, filters // groups, channels)
    joined = b.op("Reshape", b.op("Concat", *products, axis=0), b.integers([-1, *sizes]))
    return b.op("Transpose", joined, perm=[2, 1, 0] if swapped else [1, 2, 3, 0])


def _of_joined_taps(b: Backward, window: Window, image: str, dy: str, filters: int, channels: int) -> str:
    """One product for all taps."""
    d_rows = _matrix(b, b.op("Transpose", dy, perm=_batch_last(window)), 1, filters)
    joined = b.op("Concat", *_under_taps(b, image, window, 0), axis=0)
    products = b.op("Gemm", _matrix(b, joined, 1, channels * math.prod(window.kernel)), d_rows, transB=1)
    return b.op("Transpose", b.op("Reshape", products, b.integers([-1, channels, filters])), perm=[2, 1, 0])


def _of_rows(b: Backward, window: Window, image: str, dy: str, channels: int) -> str:
    """Depthwise: rows of dy times rows of the image, all with all, one product for each tap along the other axes.

    Of the products only those count whose rows meet under a tap: more arithmetic, but fewer passes over the image.
    """
    table = window.table(0)
    taps, inputs, outputs = table.shape
    d_rows = b.op("Transpose", dy, perm=_batch_last(window))
    d_rows = b.op("Reshape", d_rows, b.integers([channels, outputs, -1]))
    products = []
    for taken in _under_taps(b, image, window, 1):
        rows = b.op("Reshape", taken, b.integers([channels, inputs, -1]))
        product = b.op("MatMul", d_rows, b.op("Transpose", rows, perm=[0, 2, 1]))
        products.append(product)
    joined = b.op("Concat", *products, axis=0) if len(products) > 1 else products[0]
    joined = b.op("Reshape", joined, b.integers([-1, outputs * inputs]))
    meeting = b.constant(np.ascontiguousarray(table.transpose(2, 1, 0)).reshape(-1, taps))
    summed = b.op("Reshape", b.op("MatMul", joined, meeting), b.integers([-1, channels, taps]))
    return b.op("Transpose", summed, perm=[1, 2, 0])


def _under_taps(b: Backward, image: str, window: Window, first: int) -> Iterator[str]:
    """What each tap along the spatial axes from `first` on covers, (channels, ..., batch), in the order of the taps.

    The batch comes last, so that slices are made of long runs whatever the strides.
    """
    axes = range(first, window.rank)
    ends = [max(size, 0) for size in window.end]
    turned = b.op("Transpose", image, perm=_batch_last(window))
    if any(window.begin[first:]) or any(ends[first:]):
        head = [0] * (1 + first)
        turned = b.op("Pad", turned, b.integers([*head, *window.begin[first:], 0, *head, *ends[first:], 0]))
    padded = [window.begin[axis] + window.inputs[axis] + ends[axis] for axis in axes]
    for tap in itertools.product(*(range(window.kernel[axis]) for axis in axes)):
        starts = [at * window.dilations[axis] for at, axis in zip(tap, axes, strict=True)]
        stops = [
            start + (window.outputs[axis] - 1) * window.strides[axis] + 1
            for start, axis in zip(starts, axes, strict=True)
        ]
        steps = [window.strides[axis] for axis in axes]
        if any(starts) or stops != padded or set(steps) != {1}:
            yield b.op("Slice", turned, *map(b.integers, (starts, stops, [1 + axis for axis in axes], steps)))
        else:
            yield turned


def _batch_last(window: Window) -> list[int]:
    return [1, *range(2, 2 + window.rank), 0]


def _of_tiles(b: Backward, window: Window, image: str, dy: str, filters: int, channels: int) -> str:
    """Windows side by side: each tap on every channel is a channel of its own, and the kernel is pointwise on those.

    Axis by axis, as onnxruntime moves one axis ten times faster than it turns them all at once.
    """
    apart = fitted(b, image, window)
    for axis in reversed(range(window.rank)):
        taps, inner = math.prod(window.kernel[axis:]), math.prod(window.outputs[axis + 1 :])
        split = b.op("Reshape", apart, b.integers([-1, window.outputs[axis], taps, inner]))
        apart = b.op("Transpose", split, perm=[0, 2, 1, 3])
    positions, rows = math.prod(window.outputs), channels * math.prod(window.kernel)
    if positions == 1 or positions >= PRODUCTS_MIN:
        return _of_pixels(b, b.op("Reshape", apart, b.integers([-1, rows, positions])), dy, positions, filters, rows)
    d_rows, rows_under = (_channels_first(b, value, size, positions) for value, size in ((dy, filters), (apart, rows)))
    return b.op("Gemm", d_rows, rows_under, transB=1)


def _channels_first(b: Backward, value: str, channels: int, positions: int) -> str:
    """(channels, batch x positions)"""
    turned = b.op("Transpose", b.op("Reshape", value, b.integers([-1, channels, positions])), perm=[1, 0, 2])
    return b.op("Reshape", turned, b.integers([channels, -1]))


def _by_convolution(b: Backward, window: Window, groups: int, image: str, dy: str, channels: int) -> str:
    """The gradient is a convolution itself: batch and channels change places, and dy is the kernel."""
    axes = range(2, 2 + window.rank)
    split = b.op("Reshape", fitted(b, image, window), b.integers([0, groups, channels, *window.span]))
    turned = b.op("Transpose", split, perm=[2, 1, 0, *(axis + 1 for axis in axes)])
    taps = b.op(
        "Conv",
        b.op("Reshape", turned, b.integers([channels, -1, *window.span])),
        b.op("Transpose", dy, perm=[1, 0, *axes]),
        group=groups,
        strides=window.dilations,
        dilations=window.strides,
    )
    return b.op("Transpose", taps, perm=[1, 0, *axes])


def _matrix(b: Backward, value: str, groups: int, rows: int) -> str:
    """Channels as rows, (groups, rows, the rest) or without the first axis where there is one group."""
    return b.op("Reshape", value, b.integers([rows, -1] if groups == 1 else [groups, rows, -1]))
