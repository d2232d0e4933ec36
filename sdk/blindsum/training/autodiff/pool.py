"""Rules for pooling over windows and over all positions."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from blindsum.protocol.errors import BlindsumError

from .registry import Backward, Gradients, rule
from .window import Window, fitted, of_pool


@rule("MaxPool", since=12)
def max_pool(b: Backward) -> Gradients:
    """Side by side, windows share dy out among their maxima; elsewhere the first maximum takes it."""
    window = of_pool(b)
    (dy, *_) = b.dys
    assert dy is not None  # the indices are integers
    return [_by_comparison(b, window, dy) if window.tiles else _by_index(b, dy)]


@rule("AveragePool", since=7)
def average_pool(b: Backward) -> Gradients:
    window = of_pool(b)
    return [_spread(b, b.op("Mul", b.dy, b.constant(1.0 / _counts(b, window))), window)]


@rule("LpPool", since=18)
def lp_pool(b: Backward) -> Gradients:
    """y = (sum |x|^p)^(1/p): dx = sign(x) |x|^(p-1) y^(1-p) dy, and 0 where y is."""
    window, power = of_pool(b), b.integer("p", 2)
    return [b.op("Mul", _slope(b, power), _spread(b, _share(b, power), window))]


@rule("GlobalAveragePool")
def global_average_pool(b: Backward) -> Gradients:
    sizes = tuple(size for size in b.shape(b.x[0])[2:] if isinstance(size, int))
    if len(sizes) == b.rank(b.x[0]) - 2:
        return [b.op("Mul", b.dy, b.constant(np.full((1, 1, *sizes), 1.0 / np.prod(sizes), np.float32)))]
    count = b.op("ReduceProd", b.op("Shape", b.x[0], start=2), keepdims=0)
    share = b.op("Div", b.dy, b.op("Cast", count, to=TensorProto.FLOAT))
    return [b.op("Expand", share, b.op("Shape", b.x[0]))]


@rule("GlobalMaxPool")
def global_max_pool(b: Backward) -> Gradients:
    """All maxima of one channel share dy out."""
    chosen = b.mask(b.op("Equal", b.x[0], b.y[0]))
    count = b.op("ReduceSum", chosen, b.integers(range(2, b.rank(b.x[0]))), keepdims=1)
    return [b.op("Mul", chosen, b.op("Div", b.dy, count))]


@rule("GlobalLpPool", since=2)
def global_lp_pool(b: Backward) -> Gradients:
    power = b.integer("p", 2)
    return [b.op("Mul", _slope(b, power), _share(b, power))]


def _by_comparison(b: Backward, window: Window, dy: str) -> str:
    """No Indices output: it makes onnxruntime's forward pass 20 times slower."""
    image = fitted(b, b.x[0], window)
    chosen = b.mask(b.op("Equal", image, _enlarged(b, b.y[0], window)))
    mean = b.op("AveragePool", chosen, kernel_shape=window.kernel, strides=window.strides)
    share = b.op("Div", dy, b.op("Mul", mean, b.scalar(float(np.prod(window.kernel)))))
    return _restored(b, b.op("Mul", chosen, _enlarged(b, share, window)), window)


def _by_index(b: Backward, dy: str) -> str:
    """The forward node gives Indices: positions in the flattened input."""
    if b.integer("storage_order", 0):
        title = f"node {b.node.name!r} (MaxPool)"
        raise BlindsumError("training-model-invalid", f"{title}: storage_order=1; leave Indices in the order of rows")
    if len(b.node.output) < 2:
        b.node.output.append(b.graph.fresh("Indices"))
        b.graph.shapes[b.node.output[1]] = b.shape(b.node.output[0])
    flat = b.integers([-1])
    zeros = b.op("ConstantOfShape", b.op("Reshape", b.op("Size", b.x[0]), b.integers([1])))
    indices, values = b.op("Reshape", b.node.output[1], flat), b.op("Reshape", dy, flat)
    scattered = b.op("ScatterElements", zeros, indices, values, axis=0, reduction="add")
    return b.graph.reshape_like(scattered, b.x[0])


def _counts(b: Backward, window: Window) -> NDArray[np.float32]:
    """The number of elements that each window averages, (1, 1, ...). Overhang of `ceil_mode` never counts."""
    counts = np.ones((1, 1), np.float32)
    pads = b.ints("pads", [0] * 2 * window.rank)
    for axis in range(window.rank):
        start = np.arange(window.outputs[axis]) * window.strides[axis] - window.begin[axis]
        taps = start[:, None] + np.arange(window.kernel[axis]) * window.dilations[axis]
        low, high = 0, window.inputs[axis]
        if b.integer("count_include_pad", 0):
            low = -window.begin[axis]
            high += max(window.end[axis], 0) if b.text("auto_pad", "NOTSET") != "NOTSET" else pads[window.rank + axis]
        counts = np.multiply.outer(counts, ((taps >= low) & (taps < high)).sum(1).astype(np.float32))
    return counts


def _spread(b: Backward, dy: str, window: Window) -> str:
    """Every input gets the sum of dy over the windows that hold it."""
    if window.tiles:
        return _restored(b, _enlarged(b, dy, window), window)
    # one channel at a time, so that the kernel of ones is the same for any number of them
    planes = b.op("Reshape", dy, b.integers([-1, 1, *window.outputs]))
    summed = b.op(
        "ConvTranspose",
        planes,
        b.constant(np.ones((1, 1, *window.kernel), np.float32)),
        strides=window.strides,
        dilations=window.dilations,
        pads=[*window.begin, *(max(0, size) for size in window.end)],
        output_padding=[max(0, -size) for size in window.end],
    )
    return b.graph.reshape_like(summed, b.x[0])


def _enlarged(b: Backward, value: str, window: Window) -> str:
    """Each element repeated over its window; windows lie side by side."""
    channels = b.shape(b.y[0])[1]
    if window.rank != 3 or not isinstance(channels, int):
        return _resized(b, value, (1, 1, *window.kernel))
    # onnxruntime takes thirteen times as long to repeat along three axes as for planes and copies of them
    depth, *plane = window.outputs
    planes = _resized(b, b.op("Reshape", value, b.integers([-1, depth, *plane])), (1, 1, *window.kernel[1:]))
    plane = [size * taps for size, taps in zip(plane, window.kernel[1:], strict=True)]
    each = b.op("Reshape", planes, b.integers([-1, 1, math.prod(plane)]))
    copies = b.op("Concat", *[each] * window.kernel[0], axis=1)
    return b.op("Reshape", copies, b.integers([-1, channels, depth * window.kernel[0], *plane]))


def _resized(b: Backward, value: str, scales: tuple[int, ...]) -> str:
    return b.op(
        "Resize",
        value,
        "",
        b.constant(np.array(scales, np.float32)),
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


def _restored(b: Backward, value: str, window: Window) -> str:
    """Zeros where the image was cropped."""
    if not window.padded:
        return value
    return b.op("Pad", value, b.integers([0, 0, *(0 for _ in window.end), 0, 0, *(-size for size in window.end)]))


def _slope(b: Backward, power: int) -> str:
    """sign(x) |x|^(p-1)"""
    if power == 2:
        return b.x[0]
    sign = b.op("Sign", b.x[0])
    if power == 1:
        return sign
    return b.op("Mul", sign, b.op("Pow", b.op("Abs", b.x[0]), b.scalar(power - 1.0)))


def _share(b: Backward, power: int) -> str:
    """dy y^(1-p), and 0 where y is."""
    if power == 1:
        return b.dy
    divisor = b.y[0] if power == 2 else b.op("Pow", b.y[0], b.scalar(power - 1.0))
    # y + 1 where y is 0
    safe = b.op("Add", divisor, b.mask(b.op("Equal", divisor, b.scalar(0.0))))
    return b.op("Div", b.dy, safe)
