"""Rules for convolutions of any number of spatial axes, with groups, strides, dilations and any padding.

With x (N, C, ...) and weight (M, C / groups, ...), Conv and ConvTranspose over one window are each other's adjoint.
"""

from __future__ import annotations

from . import filters
from .registry import Backward, Gradients, rule
from .window import Window, fitted, of_conv, of_conv_transpose


@rule("Conv")
def conv(b: Backward) -> Gradients:
    window, groups = of_conv(b), b.integer("group", 1)
    return [_adjoint(b, window, groups), filters.gradient(b, window, groups, b.x[0], b.dy, b.x[1]), _bias(b)]


@rule("ConvTranspose")
def conv_transpose(b: Backward) -> Gradients:
    window, groups = of_conv_transpose(b), b.integer("group", 1)
    d_x = b.op(
        "Conv",
        fitted(b, b.dy, window),
        b.x[1],
        group=groups,
        strides=window.strides,
        dilations=window.dilations,
    )
    return [d_x, filters.gradient(b, window, groups, b.dy, b.x[0], b.x[1]), _bias(b)]


def _adjoint(b: Backward, window: Window, groups: int) -> str:
    """Gradient of Conv for its input."""
    if window.pointwise and groups == 1:
        weight = b.op("Transpose", b.x[1], perm=[1, 0, *range(2, 2 + window.rank)])
        return b.op("Conv", b.dy, weight)
    return b.op(
        "ConvTranspose",
        b.dy,
        b.x[1],
        group=groups,
        strides=window.strides,
        dilations=window.dilations,
        pads=[*window.begin, *(max(0, size) for size in window.end)],
        output_padding=[max(0, -size) for size in window.end],
    )


def _bias(b: Backward) -> str:
    return b.op("ReduceSum", b.dy, b.integers([0, *range(2, b.rank(b.y[0]))]), keepdims=0)
