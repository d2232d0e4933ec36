"""Convolutions over narrow images with height and width exchanged.

onnxruntime gathers what a kernel covers row by row, and a row of a few elements takes as long as one of thirty. Keyword
spotting (49 x 10 coefficients and less) and time series written as images (length x 1) are of that kind. What works element by
element, pools or mixes channels between such layers takes values as they lie there.

Milliseconds at batch 32, 3 x 3, one thread of a server CPU, onnxruntime 1.32, Conv as it was and turned with both Transposes:
depthwise [64, 25, 5] 2.5 and 1.1, 16 filters on [16, 64, 4] 1.64 and 0.81; 5 x 1, 32 filters on [32, 128, 1] 2.5 and 0.77. From
a width of nine on it is the same.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx

from .graph import Graph
from .layout import Walk
from .registry import Backward
from .window import Window, of_conv
from .writer import Writer

WIDTH_MAX = 8
HEIGHT_MIN = 2  # times the width, from which images are turned

_TURNED = (0, 1, 3, 2)
_PAIRS = ("dilations", "kernel_shape", "strides")
_POOLS = frozenset({"AveragePool", "LpPool", "MaxPool"})


def as_wide(graph: Graph, output: str, parameters: Collection[str]) -> None:
    """Rewrite such convolutions of `graph`, which ends in `output`, where their weights are among `parameters`."""
    _Walk(graph, output, parameters)


class _Walk(Walk):
    """Values lie as (batch, channels, width, height)."""

    def __init__(self, graph: Graph, output: str, parameters: Collection[str]) -> None:
        self._parameters = parameters
        super().__init__(graph, output)

    def _written(self, node: onnx.NodeProto) -> bool:
        x = node.input[0] if node.input else ""
        if node.op_type == "Conv" and (window := _window_of(self._graph, node)) is not None:
            narrow = node.input[1] in self._parameters and _is_narrow(window)
            if not narrow and not (window.pointwise and x in self._only):
                return False
            self._convolve(node, window)
        elif x not in self._only:
            return False
        elif operands := self._operands(node):
            self._emit(node, operands)
        elif node.op_type in _POOLS and len(node.output) == 1:
            self._emit(node, [self._moved[x]])
        elif node.op_type == "GlobalAveragePool":
            self._graph.op("GlobalAveragePool", self._moved[x], output=node.output[0])
        else:
            return False
        return True

    def _convolve(self, node: onnx.NodeProto, window: Window) -> None:
        writer = Writer(self._graph, self._graph.shape(node.input[0])[0])
        x, weight, *bias = node.input
        x = self._moved.get(x) or writer.emit("Transpose", x, perm=_TURNED)
        if set(window.kernel) != {1}:
            weight = writer.emit("Transpose", weight, perm=_TURNED)
        self._emit(node, [x, weight, *bias], pads=(*window.begin, *(max(0, size) for size in window.end)))

    def _emit(self, node: onnx.NodeProto, given: list[str], pads: tuple[int, ...] = ()) -> None:
        """`node` on what is turned, with `pads` in place of its own kind of padding."""
        y = node.output[0]
        moved = self._graph.fresh("wide")
        made = onnx.helper.make_node(node.op_type, given, [moved], name=node.name)
        for item in node.attribute:
            if item.name in _PAIRS:
                made.attribute.append(onnx.helper.make_attribute(item.name, item.ints[::-1]))
            elif item.name == "pads" and not pads:
                made.attribute.append(onnx.helper.make_attribute("pads", _exchanged(item.ints)))
            elif item.name not in ("auto_pad", "pads") or not pads:
                made.attribute.append(item)
        if pads:
            made.attribute.append(onnx.helper.make_attribute("pads", _exchanged(pads)))
        self._graph.nodes.append(made)
        shape = self._graph.shape(y)
        self._graph.shapes[moved] = tuple(shape[axis] for axis in _TURNED)
        self._move(y, moved)

    def _back(self, moved: str, name: str) -> None:
        self._graph.op("Transpose", moved, perm=_TURNED, output=name)


def _window_of(graph: Graph, node: onnx.NodeProto) -> Window | None:
    """The window of a convolution over images of fixed sizes."""
    image, weight, result = (graph.shapes.get(name, ()) for name in (*node.input[:2], node.output[0]))
    fixed = [size for size in (*image[1:], *result[1:], *weight) if isinstance(size, int)]
    return of_conv(Backward(graph=graph, node=node, dys=(None,))) if len(weight) == 4 and len(fixed) == 10 else None


def _is_narrow(window: Window) -> bool:
    height, width = window.outputs
    return width <= WIDTH_MAX and height >= HEIGHT_MIN * width and not window.pointwise


def _exchanged(pads: Collection[int]) -> list[int]:
    """(top, left, bottom, right) as (left, top, right, bottom)."""
    top, left, bottom, right = pads
    return [left, top, right, bottom]
