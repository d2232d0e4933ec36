"""3 x 3 convolutions by way of fewer products (Lavin and Gray, arXiv 1509.09308).

Four by four outputs take 36 products of a filter with a channel instead of 144, two by two 16 instead of 36 (Toom and
Cook's method along either axis). With x cut into tiles that overlap by two,

    y = A' [(G w G') * (B' x B)] A    for each tile, * element by element, summed over channels

B and A are applied along one axis after the other, as products with one constant matrix. Values lie with positions first
and channels last, so that all moves are of long runs, and stay like that between such layers and what works element by
element. The gradient for x and w follows from the rules of these products, and takes as few of them.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np
import onnx
from numpy.typing import NDArray

from .graph import Graph, attribute
from .layout import OF_TWO, Walk
from .registry import Backward
from .window import Window, of_conv
from .writer import Writer

CHANNELS_MIN = 16  # on both sides, from which fewer products pay for what comes before and after them
POSITIONS_MAX = 64 * 64  # the constant matrices grow with them
LARGE_MIN = 8 * 8  # positions from which tiles of four pay for weights spread to four times their size
TAPS = 3
WASTE_MAX = 1.5  # outputs that tiles hold, by those that are wanted

_POINTS = {  # and infinity; those of four outputs round half as much as 0, 1, -1, 2, -2 do
    3: (0.0, 1.0, -1.0),
    5: (0.0, 2 / 3, -2 / 3, 3 / 2, -3 / 2),
    7: (0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5),
}


def as_products(graph: Graph, output: str, parameters: Collection[str]) -> None:
    """Rewrite such convolutions of `graph`, and what lies between them and behind them."""
    _Walk(graph, output, parameters)


def matrices(outputs: int, taps: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """B', A' and G of F(outputs, taps): y = A' [(G w) * (B' x)] for taps + outputs - 1 inputs."""
    places = np.array(_POINTS[outputs + taps - 2])
    size = len(places) + 1

    def powers(count: int) -> NDArray[np.float64]:
        """Of each point; of infinity, the highest only."""
        return np.vstack([np.vander(places, count, increasing=True), np.eye(1, count, count - 1)])

    apart = np.array([*(np.prod([a - b for b in places if b != a]) for a in places), 1.0])
    inward: NDArray[np.float64] = apart[:, None] * np.linalg.inv(powers(size)).T
    return inward, powers(outputs).T, powers(taps) / apart[:, None]


class _Walk(Walk):
    """Values (batch, channels, height, width) lie as (height, width, batch, channels)."""

    def __init__(self, graph: Graph, output: str, parameters: Collection[str]) -> None:
        self._parameters = parameters
        super().__init__(graph, output)

    def _written(self, node: onnx.NodeProto) -> bool:
        graph, y = self._graph, node.output[0]
        x = node.input[0] if node.input else ""
        if node.op_type == "Conv":
            window = _window_of(graph, node) if node.input[1] in self._parameters else None
            if window is None:
                return False
            self._move(y, _Products(graph, node, window, self._turned(x)).result)
        elif operands := self._operands(node):
            moved = graph.fresh("turned")
            made = onnx.helper.make_node(node.op_type, operands, [moved], name=node.name)
            made.attribute.extend(node.attribute)
            graph.nodes.append(made)
            graph.shapes[moved] = graph.shape(operands[0])
            self._move(y, moved)
        elif x in self._only and self._is_mean(node):
            self._mean(x, y)
        else:
            return False
        return True

    def _operands(self, node: onnx.NodeProto) -> list[str]:
        """Of two values of which one lies in this layout the other is brought into it: more often a layer follows."""
        if node.op_type in OF_TWO and any(name in self._only for name in node.input):
            shapes = [self._graph.shapes.get(name) for name in node.input]
            if shapes[0] == shapes[1]:
                for name in node.input:
                    self._turned(name)
        return super()._operands(node)

    def _turned(self, name: str) -> str:
        """A value in this layout; in two steps, for which onnxruntime has fast ones."""
        if name not in self._moved:
            batch, channels, height, width = self._graph.shape(name)
            assert isinstance(channels, int) and isinstance(height, int) and isinstance(width, int)
            writer = Writer(self._graph, batch)
            rows = writer.emit("Transpose", writer.reshaped(name, 0, channels, height * width), perm=[0, 2, 1])
            turned = writer.emit("Transpose", rows, perm=[1, 0, 2])
            self._moved[name] = writer.reshaped(turned, height, width, 0, channels)
        return self._moved[name]

    def _back(self, moved: str, name: str) -> None:
        batch, channels, height, width = self._graph.shape(name)
        assert isinstance(channels, int) and isinstance(height, int) and isinstance(width, int)
        writer = Writer(self._graph, batch)
        rows = writer.emit("Transpose", writer.reshaped(moved, height * width, 0, channels), perm=[1, 0, 2])
        rows = writer.emit("Transpose", rows, perm=[0, 2, 1])
        self._graph.op("Reshape", rows, self._graph.integers([-1, channels, height, width]), output=name)

    def _is_mean(self, node: onnx.NodeProto) -> bool:
        """Over the positions alone."""
        if node.op_type == "ReduceMean":
            axes = self._graph.constants.get(node.input[1]) if len(node.input) == 2 else None
            return axes is not None and sorted(int(axis) % 4 for axis in axes.ravel()) == [2, 3]
        return node.op_type == "GlobalAveragePool"

    def _mean(self, x: str, y: str) -> None:
        writer, (batch, channels, *kept) = Writer(self._graph, self._graph.shape(x)[0]), self._graph.shape(y)
        height, width = (int(size or 0) for size in self._graph.shape(x)[2:])
        assert isinstance(channels, int)
        rows = writer.reshaped(self._moved[x], height * width, 0, channels)
        mean = writer.emit("ReduceMean", rows, self._graph.integers([0]), keepdims=0, shape=(batch, channels))
        last = [self._graph.integers([2, 3])] if kept else []
        self._graph.op("Unsqueeze" if last else "Identity", mean, *last, output=y)


def _window_of(graph: Graph, node: onnx.NodeProto) -> Window | None:
    """The node's window where it is such a convolution, all its sizes known but the batch."""
    image, weight, result = (graph.shapes.get(name, ()) for name in (*node.input[:2], node.output[0]))
    fixed = [size for size in (*image[1:], *result[1:], *weight) if isinstance(size, int)]
    if len(weight) != 4 or weight[2:] != (TAPS, TAPS) or len(fixed) != 10 or isinstance(image[0], int):
        return None
    if min(fixed[0], fixed[3]) < CHANNELS_MIN:
        return None
    window = of_conv(Backward(graph=graph, node=node, dys=(None,)))
    plain = {*window.strides, *window.dilations, attribute(node, "group", 1)} == {1}
    positions = math.prod(window.outputs)
    held = math.prod(_tile(window, axis) * _tiles(window, axis) for axis in range(2))
    return window if plain and positions <= POSITIONS_MAX and held <= WASTE_MAX * positions else None


class _Products(Writer):
    """`result`: the convolution of x, both turned."""

    def __init__(self, graph: Graph, node: onnx.NodeProto, window: Window, x: str) -> None:
        super().__init__(graph, graph.shape(node.input[0])[0])
        weight = node.input[1]
        filters, channels = (int(size or 0) for size in graph.shape(weight)[:2])
        (high, tall), (wide, broad) = ((_tile(window, axis), _tiles(window, axis)) for axis in range(2))
        points = [tile + TAPS - 1 for tile in (high, wide)]
        (inward_h, outward_h, spread_h), (inward_w, outward_w, spread_w) = matrices(high, TAPS), matrices(wide, TAPS)

        size = (math.prod(points), filters * channels)
        kernel = self.reshaped(weight, filters * channels, TAPS**2)
        kernel = self.emit("Gemm", self.constant(np.kron(spread_h, spread_w)), kernel, transB=1, shape=size)
        kernel = self.emit("Transpose", self.reshaped(kernel, math.prod(points), filters, channels), perm=[0, 2, 1])

        x = self._along_both(x, _all_tiles(inward_h, window, 0), _all_tiles(inward_w, window, 1))
        x = self.emit("Transpose", self.reshaped(x, points[0], tall, points[1], 0), perm=[0, 2, 1, 3])
        y = self.emit("MatMul", self.reshaped(x, math.prod(points), 0, channels), kernel)
        y = self._along_both(self.reshaped(y, *points, 0), outward_h, outward_w)
        y = self.emit("Transpose", self.reshaped(y, high, wide, tall, broad, 0), perm=[2, 0, 3, 1, 4])
        y = self.reshaped(y, high * tall, wide * broad, 0, filters)
        if (high * tall, wide * broad) != window.outputs:
            bounds = ([0, 0], window.outputs, [0, 1])
            shape = (*window.outputs, self._batch, filters)
            y = self.emit("Slice", y, *map(graph.integers, bounds), shape=shape)
        if len(node.input) > 2 and node.input[2]:
            width = window.outputs[1]
            y = self.emit("Add", self.reshaped(y, 0, width * filters), self.repeated(node.input[2], width))
            y = self.reshaped(y, *window.outputs, 0, filters)
        self.result = y

    def _along_both(self, value: str, first: NDArray[np.float64], second: NDArray[np.float64]) -> str:
        """The products of a value (height, width, ...) with a matrix along either axis.

        In two steps each, with a Reshape between so that they stay two: onnxruntime has fast ones for these alone.
        """
        (tall, high), (wide, broad) = first.shape, second.shape
        value = self.emit("MatMul", self.constant(first), self.reshaped(value, high, 0))
        value = self.emit("MatMul", self.constant(second), self.reshaped(value, tall, broad, 0))
        return self.reshaped(value, tall, wide, 0)


def _tile(window: Window, axis: int) -> int:
    """How many outputs along an axis are worked out together."""
    small, large = (-(-window.outputs[axis] // size) * (size + TAPS - 1) for size in (2, 4))
    return 4 if math.prod(window.outputs) >= LARGE_MIN and large < small else 2


def _tiles(window: Window, axis: int) -> int:
    return -(-window.outputs[axis] // _tile(window, axis))


def _all_tiles(inward: NDArray[np.float64], window: Window, axis: int) -> NDArray[np.float64]:
    """B' for all tiles of an axis, (points x tiles, inputs); what lies in the padding is left out."""
    tiles, inputs = _tiles(window, axis), window.inputs[axis]
    matrix = np.zeros((len(inward), tiles, inputs))
    for tile in range(tiles):
        for tap in range(len(inward)):
            at = _tile(window, axis) * tile + tap - window.begin[axis]
            if 0 <= at < inputs:
                matrix[:, tile, at] = inward[:, tap]
    return matrix.reshape(-1, inputs)
