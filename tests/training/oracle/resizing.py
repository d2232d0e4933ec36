"""Operators that change the resolution of images."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch

from .interpreter import Node, Tensor, operator

ROUND: dict[str, Callable[[float], int]] = {
    "round_prefer_floor": lambda x: math.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: math.floor(x + 0.5),
    "floor": math.floor,
    "ceil": math.ceil,
}


def coordinate(mode: str, at: int, scale: float, before: int, after: int, roi: tuple[float, float]) -> float:
    """The position in the original of element `at` of the result."""
    if mode == "align_corners":
        return at * (before - 1) / (after - 1) if after > 1 else 0.0
    if mode == "asymmetric":
        return at / scale
    if mode == "pytorch_half_pixel":
        return (at + 0.5) / scale - 0.5 if after > 1 else 0.0
    if mode == "half_pixel_symmetric":
        centre = before / 2 * (1 - after / (scale * before))
        return centre + (at + 0.5) / scale - 0.5
    if mode == "tf_crop_and_resize":
        first, last = roi
        if after == 1:
            return 0.5 * (first + last) * (before - 1)
        return first * (before - 1) + at * (last - first) * (before - 1) / (after - 1)
    assert mode == "half_pixel"
    return (at + 0.5) / scale - 0.5


def taps(node: Node, x: float) -> list[tuple[int, float]]:
    """Which elements of an endless axis count for position x, and how much."""
    mode, low = node.get("mode", b"nearest").decode(), math.floor(x)
    if mode == "nearest":
        return [(ROUND[node.get("nearest_mode", b"round_prefer_floor").decode()](x), 1.0)]
    if mode == "linear":
        return [(low, low + 1 - x), (low + 1, x - low)]
    a = node.get("cubic_coeff_a", -0.75)
    weights = []
    for at in range(low - 1, low + 3):
        d = abs(x - at)
        near, far = (a + 2) * d**3 - (a + 3) * d**2 + 1, a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
        weights.append((at, near if d <= 1 else far))
    return weights


def matrix(node: Node, scale: float, before: int, after: int, roi: tuple[float, float]) -> Tensor:
    mode = node.get("coordinate_transformation_mode", b"half_pixel").decode()
    result = torch.zeros(after, before, dtype=torch.float64)
    for row in range(after):
        x = coordinate(mode, row, scale, before, after, roi)
        if mode == "tf_crop_and_resize" and not 0 <= x <= before - 1:
            continue  # extrapolation_value is 0 in all cases
        found = taps(node, x)
        if node.get("exclude_outside", 0):
            found = [(at, weight) for at, weight in found if 0 <= at < before]
            total = sum(weight for _, weight in found)
            found = [(at, weight / total) for at, weight in found]
        for at, weight in found:
            result[row, min(max(at, 0), before - 1)] += weight
    return result


@operator("Resize")
def resize(
    node: Node, x: Tensor, roi: Tensor | None = None, scales: Tensor | None = None, sizes: Tensor | None = None
) -> Tensor:
    axes = node.get("axes", range(x.ndim))
    shape = list(x.shape)
    for at, axis in enumerate(axes):
        if sizes is not None:
            after = int(sizes[at])
            scale = after / shape[axis]
        else:
            assert scales is not None
            scale = float(scales[at])
            after = math.floor(shape[axis] * scale)
        crop = (0.0, 1.0) if roi is None or not roi.numel() else (float(roi[at]), float(roi[at + len(axes)]))
        if axis == 0:
            assert after == shape[0]
            continue
        x = torch.tensordot(x, matrix(node, scale, shape[axis], after, crop), ([axis], [1])).movedim(-1, axis)
    return x


@operator("Upsample")
def upsample(node: Node, x: Tensor, scales: Tensor) -> Tensor:
    fixed = {"coordinate_transformation_mode": b"asymmetric", "nearest_mode": b"floor"}
    return resize(replace(node, attributes={**node.attributes, **fixed}), x, None, scales)


@operator("DepthToSpace")
def depth_to_space(node: Node, x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    block = node.get("blocksize")
    if node.get("mode", b"DCR") == b"DCR":
        split = x.reshape(batch, block, block, channels // block**2, height, width).permute(0, 3, 4, 1, 5, 2)
    else:
        split = x.reshape(batch, channels // block**2, block, block, height, width).permute(0, 1, 4, 2, 5, 3)
    return split.reshape(batch, channels // block**2, height * block, width * block)


@operator("SpaceToDepth")
def space_to_depth(node: Node, x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    block = node.get("blocksize")
    split = x.reshape(batch, channels, height // block, block, width // block, block).permute(0, 3, 5, 1, 2, 4)
    return split.reshape(batch, channels * block**2, height // block, width // block)
