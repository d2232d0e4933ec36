"""Convolutions over short or dilated sequences by way of fewer products, as `winograd` does for images.

Four outputs of a kernel of five take 8 products of a filter with a channel instead of 20, of a kernel of three 6 instead
of 12 (Toom and Cook's method, with the points 0, 1, -1, 2, -2, 1/2, -1/2 and infinity). Dilated by d, a sequence is d
sequences, which lie side by side when positions are the first axis. With channels as the last one, nothing has to be moved
between the three products, whose first and last have one constant matrix for all tiles of an axis. Layers of the same
dilation, and what works element by element between and behind them, pass values on as they lie there.

Milliseconds on [32, 64, 64], kernel 5, dilation 8, 64 filters, one thread of a server CPU, onnxruntime 1.32, Conv and this:
forward 0.92 and 0.63, gradient of the kernel 1.2 and 0.6; forward with a weight that never changes 0.71 and 0.60.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from numpy.typing import NDArray

from .graph import Graph, attribute
from .layout import Walk
from .registry import Backward
from .window import Window, of_conv
from .winograd import matrices
from .writer import Writer

CHANNELS_MIN = 32  # on both sides, from which fewer products pay for what comes before and after them
FROZEN_CHANNELS_MIN = 64  # where weights never change, as onnxruntime then has faster convolutions
TILES_MAX = 4
OUTPUTS = 4  # of a tile

_TAPS = (3, 5)


def as_products(graph: Graph, output: str, parameters: Collection[str]) -> None:
    """Rewrite such convolutions of `graph`, and what lies between them and behind them, for channels as the last axis."""
    _Walk(graph, output, parameters)


class _Walk(Walk):
    """Values lie as the sequences that a dilation takes apart: (length / dilation, batch, dilation x channels)."""

    def __init__(self, graph: Graph, output: str, parameters: Collection[str]) -> None:
        self._parameters = parameters
        self._dilations: dict[str, int] = {}
        super().__init__(graph, output)

    def _written(self, node: onnx.NodeProto) -> bool:
        graph, y = self._graph, node.output[0]
        x = node.input[0] if node.input else ""
        if node.op_type == "Conv":
            least = CHANNELS_MIN if node.input[1] in self._parameters else FROZEN_CHANNELS_MIN
            if (window := _window_of(graph, node, least)) is None:
                return False
            apart = self._apart(x, window.dilations[0])
            self._take(y, _Products(graph, node, window, apart).result, window.dilations[0])
        elif x not in self._moved:
            return False
        elif len({self._dilations.get(name) for name in node.input}) == 1 and (operands := self._operands(node)):
            moved = graph.fresh("apart")
            made = onnx.helper.make_node(node.op_type, operands, [moved], name=node.name)
            made.attribute.extend(node.attribute)
            graph.nodes.append(made)
            graph.shapes[moved] = graph.shape(operands[0])
            self._take(y, moved, self._dilations[x])
        elif node.op_type == "Reshape" and graph.shapes.get(y) == graph.shape(x):
            self._take(y, self._moved[x], self._dilations[x])
        elif self._is_mean(node):
            self._mean(x, y)
        else:
            return False
        return True

    def _take(self, name: str, moved: str, dilation: int) -> None:
        self._move(name, moved)
        self._dilations[name] = dilation

    def _apart(self, name: str, dilation: int) -> str:
        """A value as it is taken apart by that dilation."""
        if self._dilations.get(name) == dilation:
            return self._moved[name]
        writer, (_, channels, length) = Writer(self._graph, self._graph.shape(name)[0]), self._graph.shape(name)
        assert isinstance(channels, int) and isinstance(length, int)
        turned = self._turned(name) if name in self._only else writer.emit("Transpose", name, perm=[0, 2, 1])
        rows = writer.reshaped(turned, 0, length // dilation, dilation * channels)
        return writer.emit("Transpose", rows, perm=[1, 0, 2])

    def _turned(self, name: str) -> str:
        """A value that was taken apart, with channels last."""
        writer, (_, channels, length) = Writer(self._graph, self._graph.shape(name)[0]), self._graph.shape(name)
        assert isinstance(channels, int) and isinstance(length, int)
        return writer.reshaped(writer.emit("Transpose", self._moved[name], perm=[1, 0, 2]), 0, length, channels)

    def _back(self, moved: str, name: str) -> None:
        self._graph.op("Transpose", self._turned(name), perm=[0, 2, 1], output=name)

    def _is_mean(self, node: onnx.NodeProto) -> bool:
        """Over the positions alone."""
        if node.op_type == "ReduceMean":
            axes = self._graph.constants.get(node.input[1]) if len(node.input) == 2 else None
            return axes is not None and axes.tolist() in ([2], [-1])
        return node.op_type == "GlobalAveragePool"

    def _mean(self, x: str, y: str) -> None:
        """First of each sequence, then of their means."""
        writer, (batch, channels, *kept) = Writer(self._graph, self._graph.shape(x)[0]), self._graph.shape(y)
        assert isinstance(channels, int)
        axis, dilation = self._graph.integers([0]), self._dilations[x]
        means = writer.emit("ReduceMean", self._moved[x], axis, keepdims=0, shape=(batch, dilation * channels))
        means = writer.reshaped(means, 0, dilation, channels)
        axis = self._graph.integers([1])
        mean = writer.emit("ReduceMean", means, axis, keepdims=0, shape=(batch, channels))
        last = [self._graph.integers([2])] if kept else []
        self._graph.op("Unsqueeze" if last else "Identity", mean, *last, output=y)


def _window_of(graph: Graph, node: onnx.NodeProto, channels_min: int) -> Window | None:
    """The node's window where it is such a convolution of so many channels, all its sizes known but the batch."""
    image, weight, result = (graph.shapes.get(name, ()) for name in (*node.input[:2], node.output[0]))
    fixed = [size for size in (*image[1:], *result[1:], *weight) if isinstance(size, int)]
    if len(weight) != 3 or weight[2] not in _TAPS or len(fixed) != 7 or min(fixed[0], fixed[2]) < channels_min:
        return None
    window = of_conv(Backward(graph=graph, node=node, dys=(None,)))
    (inputs,), (outputs,), (dilation,) = window.inputs, window.outputs, window.dilations
    if window.strides != (1,) or attribute(node, "group", 1) != 1:
        return None
    if inputs % dilation or outputs % dilation or window.begin[0] % dilation:
        return None
    count = outputs // dilation
    return window if _tiles(count) <= TILES_MAX and 2 * _tiles(count) * OUTPUTS <= 3 * count else None


class _Products(Writer):
    """`result`: the convolution of x, both taken apart."""

    def __init__(self, graph: Graph, node: onnx.NodeProto, window: Window, x: str) -> None:
        super().__init__(graph, graph.shape(node.input[0])[0])
        weight = node.input[1]
        filters, channels, taps = (int(size or 0) for size in graph.shape(weight))
        (inputs,), (outputs,), (dilation,) = window.inputs, window.outputs, window.dilations
        inward, outward, spread = matrices(OUTPUTS, taps)
        points, tiles = len(inward), _tiles(outputs // dilation)

        kernel = self.reshaped(weight, filters * channels, taps)
        size = (points, filters * channels)
        kernel = self.emit("Gemm", self.constant(spread), kernel, transB=1, shape=size)
        kernel = self.emit("Transpose", self.reshaped(kernel, points, filters, channels), perm=[0, 2, 1])

        x = self.emit("MatMul", self.constant(_along(inward, window)), self.reshaped(x, inputs // dilation, 0))
        y = self.emit("MatMul", self.reshaped(x, points, 0, channels), kernel)
        y = self.reshaped(y, points * tiles, 0)
        y = self.emit("MatMul", self.constant(_back(outward, outputs // dilation)), y)
        self.result = self.reshaped(y, outputs // dilation, 0, dilation * filters)
        if len(node.input) > 2 and node.input[2]:
            self.result = self.emit("Add", self.result, self.repeated(node.input[2], dilation))


def _tiles(outputs: int) -> int:
    return -(-outputs // OUTPUTS)


def _along(inward: NDArray[np.float64], window: Window) -> NDArray[np.float32]:
    """B' for all tiles, (points x tiles, inputs of one of the sequences); what lies in the padding is left out."""
    (dilation,) = window.dilations
    inputs, tiles = window.inputs[0] // dilation, _tiles(window.outputs[0] // dilation)
    matrix = np.zeros((len(inward), tiles, inputs), np.float32)
    for tile in range(tiles):
        for tap in range(len(inward)):
            at = OUTPUTS * tile + tap - window.begin[0] // dilation
            if 0 <= at < inputs:
                matrix[:, tile, at] = inward[:, tap]
    return matrix.reshape(-1, inputs)


def _back(outward: NDArray[np.float64], outputs: int) -> NDArray[np.float32]:
    """A' for all tiles, (outputs, points x tiles)."""
    tiles = _tiles(outputs)
    matrix = np.einsum("op,st->sopt", outward, np.eye(tiles))
    return np.ascontiguousarray(matrix.reshape(OUTPUTS * tiles, -1)[:outputs], np.float32)
