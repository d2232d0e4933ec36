"""Convolutions and poolings of any number of spatial axes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch.nn import functional

from .interpreter import Node, Tensor, operator

CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
CONV_TRANSPOSE = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}


def shared(total: int, mode: str) -> tuple[int, int]:
    """Automatic padding before and after an axis."""
    small, large = total // 2, total - total // 2
    return (small, large) if mode == "SAME_UPPER" else (large, small)


def pads_of(node: Node, sizes: Sequence[int], kernel: Sequence[int]) -> list[tuple[int, int]]:
    rank, mode = len(kernel), node.get("auto_pad", b"NOTSET").decode()
    if mode.startswith("SAME"):
        strides, dilations = node.get("strides", [1] * rank), node.get("dilations", [1] * rank)
        axes = zip(sizes, kernel, strides, dilations, strict=True)
        return [
            shared(max(0, (math.ceil(n / step) - 1) * step + (k - 1) * gap + 1 - n), mode) for n, k, step, gap in axes
        ]
    pads = node.get("pads", [0] * 2 * rank) if mode == "NOTSET" else [0] * 2 * rank
    return list(zip(pads[:rank], pads[rank:], strict=True))


def padded(x: Tensor, pads: Sequence[tuple[int, int]], fill: float = 0.0) -> Tensor:
    """Negative numbers crop."""
    return functional.pad(x, [number for pair in reversed(pads) for number in pair], value=fill)


@operator("Conv")
def conv(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rank = x.ndim - 2
    x = padded(x, pads_of(node, x.shape[2:], weight.shape[2:]))
    strides, dilations = node.get("strides", [1] * rank), node.get("dilations", [1] * rank)
    return CONV[rank](x, weight, bias, strides, 0, dilations, node.get("group", 1))


@operator("ConvTranspose")
def conv_transpose(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rank, mode = x.ndim - 2, node.get("auto_pad", b"NOTSET").decode()
    strides, dilations = node.get("strides", [1] * rank), node.get("dilations", [1] * rank)
    whole = CONV_TRANSPOSE[rank](x, weight, None, strides, 0, 0, node.get("group", 1), dilations)
    extra = node.get("output_padding", [0] * rank)
    wanted = node.get("output_shape")
    if wanted is None and mode.startswith("SAME"):
        wanted = [size * step for size, step in zip(x.shape[2:], strides, strict=True)]
    if wanted is None:
        pads = pads_of(node, x.shape[2:], weight.shape[2:])
        crops = [(-first, more - last) for (first, last), more in zip(pads, extra, strict=True)]
    else:
        crops = []
        for size, more, want in zip(whole.shape[2:], extra, wanted[-rank:], strict=True):
            first, _ = shared(max(0, size + more - want), mode)
            crops.append((-first, want - size + first))
    y = padded(whole, crops)
    return y if bias is None else y + bias.reshape(-1, *[1] * rank)
