"""3 x 3 convolutions of many channels on small images by way of fewer products (Lavin and Gray, arXiv 1509.09308).

Two by two outputs take 16 products of a filter with a channel instead of 36: F(2 x 2, 3 x 3). With x cut into tiles of
4 x 4 that overlap by two,

    y = A' [(G w G') * (B' x B)] A    for each tile, * element by element, summed over channels

where B and A are sums and differences. Both are applied to all tiles of one axis at once, as a product with one constant
matrix, which is cheap as long as images are small. The gradient for x and w follows from the rules of these products, and
has 16 instead of 36 of them as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from . import sizes
from .graph import Dimension, Graph, attribute
from .registry import Backward
from .window import Window, of_conv

CHANNELS_MIN = 64  # on both sides, from which fewer products pay for what comes before and after them
POSITIONS_MAX = 8 * 8
OUTPUTS, POINTS = 2, 4  # of a tile along one axis

_B = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], np.float32)
_A = np.array([[1, 1, 1, 0], [0, 1, -1, -1]], np.float32)
_G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)


def window_of(graph: Graph, node: onnx.NodeProto) -> Window | None:
    """The node's window where it is such a convolution, all its sizes known but the batch."""
    image, weight, result = (graph.shapes.get(name, ()) for name in (*node.input[:2], node.output[0]))
    fixed = [size for size in (*image[1:], *result[1:], *weight) if isinstance(size, int)]
    if len(weight) != 4 or weight[2:] != (3, 3) or len(fixed) != 10 or min(fixed[3], fixed[6], fixed[7]) < CHANNELS_MIN:
        return None
    window = of_conv(Backward(graph=graph, node=node, dys=(None,)))
    plain = {*window.strides, *window.dilations, attribute(node, "group", 1)} == {1}
    positions = math.prod(window.outputs)
    wasted = math.prod(map(_tiles, window.outputs)) * OUTPUTS**2 > 1.5 * positions
    return window if plain and positions <= POSITIONS_MAX and not wasted else None


def as_products(graph: Graph, node: onnx.NodeProto, window: Window) -> None:
    """Values lie with the batch last, so that all moves are of long runs."""
    _Products(graph, node, window)


class Writer:
    """Emits nodes that write a convolution out, with their shapes."""

    def __init__(self, graph: Graph, batch: Dimension) -> None:
        self._graph, self._batch = graph, batch

    def _constant(self, matrix: NDArray[np.float32]) -> str:
        name = self._graph.constant(matrix)
        self._graph.shapes[name] = matrix.shape
        return name

    def reshaped(self, value: str, *wanted: int) -> str:
        """0 stands for the dimension that holds the batch, with what is left of the others."""
        given = self._graph.shape(value)
        if 0 not in wanted:
            return self.emit("Reshape", value, self._graph.integers(wanted), shape=wanted)
        left = math.prod(_factor(size) for size in given) // math.prod(size for size in wanted if size)
        last = sizes.dimension(sizes.times(left, sizes.of(self._batch)))
        shape = [size or last for size in wanted]
        return self.emit("Reshape", value, self._graph.integers([size or -1 for size in wanted]), shape=shape)

    def emit(
        self, operator: str, *given: str, shape: Sequence[Dimension] = (), output: str | None = None, **options: Any
    ) -> str:
        name = self._graph.op(operator, *given, output=output, **options)
        first = self._graph.shape(given[0])
        if operator == "MatMul":
            shape = (*self._graph.shape(given[1])[:-2], first[-2], self._graph.shape(given[1])[-1])
        elif operator == "Transpose":
            shape = [first[axis] for axis in options["perm"]]
        self._graph.shapes[name] = tuple(shape) or first
        return name


class _Products(Writer):
    def __init__(self, graph: Graph, node: onnx.NodeProto, window: Window) -> None:
        super().__init__(graph, graph.shape(node.input[0])[0])
        x, weight = node.input[:2]
        filters, channels = (int(size or 0) for size in graph.shape(weight)[:2])
        rows, columns = map(_tiles, window.outputs)

        kernel = self.emit("Transpose", self.reshaped(weight, filters * channels, 9), perm=[1, 0])
        spread = self.emit("MatMul", self._constant(np.kron(_G, _G)), kernel)
        spread = self.reshaped(spread, POINTS**2, filters, channels)

        # in two steps each, with a Reshape between so that they stay two: onnxruntime has fast ones for these alone
        x = self.reshaped(self.emit("Transpose", x, perm=[1, 2, 3, 0]), channels, math.prod(window.inputs), 0)
        x = self.emit("Transpose", x, perm=[1, 0, 2])
        x = self._along_both(x, [_inputs(window, axis) for axis in range(2)], channels)
        x = self.reshaped(x, POINTS, rows, POINTS, columns, channels, 0)
        x = self.emit("Transpose", x, perm=[0, 2, 4, 1, 3, 5])
        y = self.emit("MatMul", spread, self.reshaped(x, POINTS**2, channels, 0))
        y = self.reshaped(y, POINTS, POINTS, filters, rows, columns, 0)
        y = self.emit("Transpose", y, perm=[0, 3, 1, 4, 2, 5])
        y = self.reshaped(y, POINTS * rows, POINTS * columns, filters, 0)
        y = self._along_both(y, [_outputs(window, axis) for axis in range(2)], filters)
        if len(node.input) > 2 and node.input[2]:
            y = self.emit("Add", y, self.reshaped(node.input[2], filters, 1))
        y = self.emit("Transpose", self.reshaped(y, math.prod(window.outputs), filters, 0), perm=[1, 0, 2])
        y = self.reshaped(y, filters, *window.outputs, 0)
        self.emit("Transpose", y, perm=[3, 0, 1, 2], output=node.output[0])

    def _along_both(self, value: str, matrices: Sequence[NDArray[np.float32]], depth: int) -> str:
        """The products of a value (height, width, depth, batch) with a matrix along either axis."""
        (tall, high), (wide, broad) = (matrix.shape for matrix in matrices)
        value = self.reshaped(value, high, 0)
        value = self.emit("MatMul", self._constant(matrices[0]), value)
        value = self.reshaped(value, tall, broad, 0)
        value = self.emit("MatMul", self._constant(matrices[1]), value)
        return self.reshaped(value, tall, wide, depth, 0)


def _tiles(outputs: int) -> int:
    return -(-outputs // OUTPUTS)


def _factor(size: Dimension) -> int:
    """Of the batch, or the size itself."""
    known = sizes.of(size)
    return known.factor if isinstance(known, sizes.Rows) else known or 0


def _inputs(window: Window, axis: int) -> NDArray[np.float32]:
    """B' for all tiles of an axis, (points x tiles, inputs); what lies in the padding is left out."""
    tiles = _tiles(window.outputs[axis])
    matrix = np.zeros((POINTS, tiles, window.inputs[axis]), np.float32)
    for tile in range(tiles):
        for tap in range(POINTS):
            at = OUTPUTS * tile + tap - window.begin[axis]
            if 0 <= at < window.inputs[axis]:
                matrix[:, tile, at] = _B[:, tap]
    return matrix.reshape(POINTS * tiles, -1)


def _outputs(window: Window, axis: int) -> NDArray[np.float32]:
    """A' for all tiles of an axis, (outputs, points x tiles)."""
    tiles = _tiles(window.outputs[axis])
    matrix = np.einsum("op,st->sopt", _A, np.eye(tiles, dtype=np.float32))
    return np.ascontiguousarray(matrix.reshape(OUTPUTS * tiles, POINTS * tiles)[: window.outputs[axis]])
