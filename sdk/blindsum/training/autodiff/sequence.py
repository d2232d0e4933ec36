"""Convolutions over short or dilated sequences by way of fewer products, as `winograd` does for images.

Four outputs of a kernel of five take 8 products of a filter with a channel instead of 20, of a kernel of three 6 instead
of 12 (Toom and Cook's method, with the points 0, 1, -1, 2, -2, 1/2, -1/2 and infinity). Dilated by d, a sequence is d
sequences, which lie side by side when positions are the first axis. With channels as the last one, nothing has to be moved
between the three products, whose first and last have one constant matrix for all tiles of an axis.

Milliseconds on [32, 64, 64], kernel 5, dilation 8, 64 filters, one thread of a server CPU, onnxruntime 1.32, Conv and this:
forward 0.92 and 0.63, gradient of the kernel 1.2 and 0.6; forward with a weight that never changes 0.71 and 0.60.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray

from .graph import Graph, attribute
from .registry import Backward
from .window import Window, of_conv
from .winograd import Writer

CHANNELS_MIN = 32  # on both sides, from which fewer products pay for what comes before and after them
FROZEN_CHANNELS_MIN = 64  # where weights never change, as onnxruntime then has faster convolutions
TILES_MAX = 4
OUTPUTS = 4  # of a tile

_POINTS = {3: (0.0, 1.0, -1.0, 2.0, -2.0), 5: (0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5)}  # by size of the kernel


def window_of(graph: Graph, node: onnx.NodeProto, channels_min: int) -> Window | None:
    """The node's window where it is such a convolution of so many channels, all its sizes known but the batch."""
    image, weight, result = (graph.shapes.get(name, ()) for name in (*node.input[:2], node.output[0]))
    fixed = [size for size in (*image[1:], *result[1:], *weight) if isinstance(size, int)]
    if len(weight) != 3 or weight[2] not in _POINTS or len(fixed) != 7 or min(fixed[0], fixed[2]) < channels_min:
        return None
    window = of_conv(Backward(graph=graph, node=node, dys=(None,)))
    (inputs,), (outputs,), (dilation,) = window.inputs, window.outputs, window.dilations
    if window.strides != (1,) or attribute(node, "group", 1) != 1:
        return None
    if inputs % dilation or outputs % dilation or window.begin[0] % dilation:
        return None
    count = outputs // dilation
    return window if _tiles(count) <= TILES_MAX and 2 * _tiles(count) * OUTPUTS <= 3 * count else None


def as_products(graph: Graph, node: onnx.NodeProto, window: Window) -> None:
    _Products(graph, node, window)


class _Products(Writer):
    def __init__(self, graph: Graph, node: onnx.NodeProto, window: Window) -> None:
        super().__init__(graph, node)
        x, weight = node.input[:2]
        filters, channels, taps = (int(size or 0) for size in graph.shape(weight))
        (inputs,), (outputs,), (dilation,) = window.inputs, window.outputs, window.dilations
        inward, outward, spread = _matrices(taps)
        points, tiles = len(inward), _tiles(outputs // dilation)

        kernel = self._reshaped(self._emit("Transpose", weight, perm=[2, 1, 0]), taps, channels * filters)
        kernel = self._reshaped(
            self._emit("MatMul", self._constant(spread.astype(np.float32)), kernel), points, channels, filters
        )

        x = self._emit("Transpose", self._emit("Transpose", x, perm=[0, 2, 1]), perm=[1, 0, 2])
        x = self._reshaped(x, inputs // dilation, 0)
        x = self._emit("MatMul", self._constant(_along(inward, window)), x)
        y = self._emit("MatMul", self._reshaped(x, points, 0, channels), kernel)
        y = self._reshaped(y, points * tiles, 0)
        y = self._emit("MatMul", self._constant(_back(outward, outputs // dilation)), y)
        y = self._reshaped(y, outputs, 0, filters)
        if len(node.input) > 2 and node.input[2]:
            y = self._emit("Add", y, node.input[2])
        y = self._reshaped(
            self._emit("Transpose", y, perm=[1, 0, 2]), 0, outputs, filters
        )  # see `winograd`: fast alone
        self._emit("Transpose", y, perm=[0, 2, 1], output=node.output[0])


def _tiles(outputs: int) -> int:
    return -(-outputs // OUTPUTS)


def _matrices(taps: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """B', A' and G of F(4, taps): y = A' [(G w) * (B' x)] for taps + 3 inputs."""
    places = np.array(_POINTS[taps])
    size = len(places) + 1

    def powers(count: int) -> NDArray[np.float64]:
        """Of each point; of infinity, the highest only."""
        return np.vstack([np.vander(places, count, increasing=True), np.eye(1, count, count - 1)])

    apart = np.array([*(np.prod([a - b for b in places if b != a]) for a in places), 1.0])
    inward: NDArray[np.float64] = apart[:, None] * np.linalg.inv(powers(size)).T
    return inward, powers(OUTPUTS).T, powers(taps) / apart[:, None]


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
