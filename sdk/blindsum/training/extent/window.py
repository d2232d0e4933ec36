"""Operators that slide a window, and Resize."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .call import Call, Shape, rule, wanted

ATTRIBUTE_MAX = 1 << 20  # of strides, dilations, pads and window sizes


@rule("Conv", "ConvInteger", "QLinearConv")
def conv(c: Call) -> Sequence[Shape]:
    weight = c.shape(3 if c.node.operator == "QLinearConv" else 1)
    wanted(len(weight) == c.rank() >= 3, "rank")
    group = c.integer("group", 1)
    wanted(group >= 1 and weight[0] % group == 0 and c.shape()[1] == weight[1] * group, "groups or channels")
    window = _Window.of(c, c.ints("kernel_shape", weight[2:]))
    wanted(window.kernel == list(weight[2:]), "kernel_shape")
    result = (c.shape()[0], weight[0], *window.slide(c.shape()[2:]))
    c.work = math.prod(result) * math.prod(weight[1:])
    return [result]


@rule("MaxPool", "AveragePool", "LpPool")
def pool(c: Call) -> Sequence[Shape]:
    wanted(c.rank() >= 3, "rank")
    window = _Window.of(c, c.ints("kernel_shape"))
    shape = (*c.shape()[:2], *window.slide(c.shape()[2:]))
    c.work = math.prod(shape) * math.prod(window.kernel)
    return [shape, shape][: 2 if c.node.operator == "MaxPool" else 1]


@rule("ConvTranspose")
def conv_transpose(c: Call) -> Sequence[Shape]:
    weight, group = c.shape(1), c.integer("group", 1)
    wanted(len(weight) == c.rank() >= 3, "rank")
    wanted(group >= 1 and c.shape()[1] % group == 0 and weight[0] == c.shape()[1], "groups or channels")
    window = _Window.of(c, c.ints("kernel_shape", weight[2:]))
    wanted(window.kernel == list(weight[2:]), "kernel_shape")
    extra = c.ints("output_padding", [0] * len(window.kernel))
    wanted(len(extra) == len(window.kernel) and min(extra) >= 0 and max(extra) <= ATTRIBUTE_MAX, "output_padding")
    sizes = c.ints("output_shape", ())
    if sizes:
        sizes = sizes[-len(window.kernel) :]
    elif window.auto.startswith("SAME"):
        sizes = [size * stride for size, stride in zip(c.shape()[2:], window.strides, strict=True)]
    else:
        sizes = [
            stride * (size - 1) + more + reach - before - after
            for size, stride, more, reach, (before, after) in zip(
                c.shape()[2:], window.strides, extra, window.reach, window.pads, strict=True
            )
        ]
    wanted(len(sizes) == len(window.kernel) and min(sizes) >= 1, "sizes")
    c.work = math.prod(c.shape()) * math.prod(weight[1:])
    return [(c.shape()[0], weight[1] * group, *sizes)]


@rule("Resize")
def resize(c: Call) -> Sequence[Shape]:
    axes = c.axes(c.ints("axes", range(c.rank())), c.rank())
    result = list(c.shape())
    if c.given(3) and c.value(3).size:
        sizes = c.integers(3)
        wanted(len(sizes) == len(axes), "sizes")
        for axis, size in zip(axes, sizes, strict=True):
            result[axis] = size
        policy = c.text("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            ratios = [size / c.shape()[axis] for axis, size in zip(axes, sizes, strict=True)]
            ratio = min(ratios) if policy == "not_larger" else max(ratios)
            for axis in axes:
                result[axis] = math.floor(ratio * c.shape()[axis] + 0.5)
    else:
        scales = c.numbers(2)
        wanted(len(scales) == len(axes) and all(0.0 < scale < math.inf for scale in scales), "scales")
        for axis, scale in zip(axes, scales, strict=True):
            result[axis] = math.floor(c.shape()[axis] * scale)
    wanted(min(result) >= 1, "sizes")
    c.work = math.prod(result) * 4 * len(axes)
    return [tuple(result)]


@dataclass(frozen=True, slots=True)
class _Window:
    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    pads: list[tuple[int, int]]
    auto: str
    ceil: bool

    @classmethod
    def of(cls, c: Call, kernel: list[int]) -> _Window:
        number = c.rank() - 2
        strides, dilations = c.ints("strides", [1] * number), c.ints("dilations", [1] * number)
        pads = c.ints("pads", [0] * (2 * number))
        wanted(len(kernel) == len(strides) == len(dilations) == number and len(pads) == 2 * number, "lengths")
        wanted(min(*kernel, *strides, *dilations) >= 1 and min(pads) >= 0, "below one")
        wanted(max(*kernel, *strides, *dilations, *pads) <= ATTRIBUTE_MAX, "too large")
        auto = c.text("auto_pad", "NOTSET")
        wanted(auto in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"), "auto_pad")
        both = list(zip(pads[:number], pads[number:], strict=True)) if auto == "NOTSET" else [(0, 0)] * number
        if c.node.operator in ("MaxPool", "AveragePool", "LpPool"):
            reach = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
            wanted(all(max(pad) < size for pad, size in zip(both, reach, strict=True)), "pads beyond the window")
        return cls(kernel, strides, dilations, both, auto, bool(c.integer("ceil_mode", 0)))

    @property
    def reach(self) -> list[int]:
        """How far the window spans."""
        return [(size - 1) * step + 1 for size, step in zip(self.kernel, self.dilations, strict=True)]

    def slide(self, sizes: Sequence[int]) -> list[int]:
        """How often the window fits."""
        result = []
        for size, reach, stride, (before, after) in zip(sizes, self.reach, self.strides, self.pads, strict=True):
            if self.auto.startswith("SAME"):
                result.append(-(-size // stride))
                continue
            room = size + before + after - reach
            wanted(room >= 0, "a window larger than its input")
            steps = room // stride + 1
            if self.ceil and room % stride and steps * stride < size + before:
                steps += 1
            result.append(steps)
        return result
