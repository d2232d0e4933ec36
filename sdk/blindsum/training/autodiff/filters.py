"""Gradients of convolution kernels: sums, over batch and positions, of the image under each tap times dy."""

from __future__ import annotations

from .registry import Backward
from .window import Window, fitted


def gradient(b: Backward, window: Window, groups: int, image: str, dy: str, weight: str) -> str:
    """The gradient for `weight` (M, C / groups, taps), from `image` (N, C, ...) and `dy` (N, M, ...).

    It is itself a convolution, with batch and channels in each other's place and dy as the kernel.
    """
    rank = window.rank
    axes = [*range(2, 2 + rank)]
    channels = b.shape(weight)[1]
    assert isinstance(channels, int)
    pads = [*window.begin, *window.end]
    if min(pads) < 0:
        image, pads = fitted(b, image, window), [0] * 2 * rank
    inputs = window.inputs if any(pads) else window.span
    if groups == 1:
        swapped = b.op("Transpose", image, perm=[1, 0, *axes])
    else:
        split = b.op("Reshape", image, b.integers([0, groups, channels, *inputs]))
        turned = b.op("Transpose", split, perm=[2, 1, 0, *(axis + 1 for axis in axes)])
        swapped = b.op("Reshape", turned, b.integers([channels, -1, *inputs]))
    taps = b.op(
        "Conv",
        swapped,
        b.op("Transpose", dy, perm=[1, 0, *axes]),
        group=groups,
        strides=window.dilations,
        dilations=window.strides,
        pads=pads,
    )
    return b.op("Transpose", taps, perm=[1, 0, *axes])
