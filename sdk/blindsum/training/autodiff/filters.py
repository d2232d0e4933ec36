"""Gradients of convolution kernels: for each tap, the sum over batch and positions of the image under it times dy."""

from __future__ import annotations

import itertools
import math

from .registry import Backward
from .window import Window, fitted

PRODUCTS_MIN = 32  # positions from which products of single images, added up, beat one product over all of them
TAPS_MAX = 64  # taps from which their own nodes would be too many
ROWS_MIN = 16  # channels below which the image is better off as the left matrix


def gradient(b: Backward, window: Window, groups: int, image: str, dy: str, weight: str) -> str:
    """The gradient for `weight` (M, C / groups, taps), from `image` (N, C, ...) and `dy` (N, M, ...)."""
    filters, channels = (size for size in b.shape(weight)[:2] if isinstance(size, int))
    positions = math.prod(window.outputs)
    if window.pointwise and groups == 1 and (positions == 1 or positions >= PRODUCTS_MIN):
        summed = _of_pixels(b, image, dy, positions, filters, channels)
    elif window.tiles and groups == 1:
        summed = _of_tiles(b, window, image, dy, filters, channels)
    elif math.prod(window.kernel) > TAPS_MAX:
        summed = _by_convolution(b, window, groups, image, dy, channels)
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


def _of_taps(b: Backward, window: Window, groups: int, image: str, dy: str, filters: int, channels: int) -> str:
    """One product a tap. The batch comes last, so that a tap's slice is made of long runs whatever the strides."""
    axes = range(2, 2 + window.rank)
    last = [1, *axes, 0]
    turned = fitted(b, b.op("Transpose", image, perm=last), window, first=1)
    d_rows = _matrix(b, b.op("Transpose", dy, perm=last), groups, filters // groups)
    swapped = groups == 1 and channels < ROWS_MIN
    products = []
    for tap in itertools.product(*map(range, window.kernel)):
        starts = [at * gap for at, gap in zip(tap, window.dilations, strict=True)]
        sizes = zip(starts, window.outputs, window.strides, strict=True)
        ends = [start + (count - 1) * step + 1 for start, count, step in sizes]
        taken = turned
        if (starts, ends) != ([0] * window.rank, [*window.span]) or set(window.strides) != {1}:
            lists = (starts, ends, range(1, 1 + window.rank), window.strides)
            taken = b.op("Slice", turned, *map(b.integers, lists))
        rows = _matrix(b, taken, groups, channels)
        left, right = (rows, d_rows) if swapped else (d_rows, rows)
        if groups == 1:
            product = b.op("Gemm", left, right, transB=1)
        else:
            product = b.op("MatMul", left, b.op("Transpose", right, perm=[0, 2, 1]))
        products.append(b.op("Unsqueeze", product, b.integers([-1])))
    joined = b.op("Concat", *products, axis=-1) if len(products) > 1 else products[0]
    return b.op("Transpose", joined, perm=[1, 0, 2]) if swapped else joined


def _of_tiles(b: Backward, window: Window, image: str, dy: str, filters: int, channels: int) -> str:
    """Windows side by side, each a row of one matrix."""
    sizes = [size for pair in zip(window.outputs, window.kernel, strict=True) for size in pair]
    split = b.op("Reshape", fitted(b, image, window), b.integers([0, channels, *sizes]))
    rank = window.rank
    turned = b.op("Transpose", split, perm=[1, *range(3, 3 + 2 * rank, 2), *range(2, 2 + 2 * rank, 2), 0])
    rows = b.op("Reshape", turned, b.integers([channels * math.prod(window.kernel), -1]))
    d_rows = b.op("Reshape", b.op("Transpose", dy, perm=[1, *range(2, 2 + rank), 0]), b.integers([filters, -1]))
    return b.op("Gemm", d_rows, rows, transB=1)


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
