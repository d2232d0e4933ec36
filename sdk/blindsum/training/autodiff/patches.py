"""Convolutions whose windows lie side by side and whose results become a sequence, as one product.

A vision transformer begins like this: [batch, channels, height, width] to [batch, windows, filters]. The windows become the
rows of a matrix, and nothing is turned behind them, nor in the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import onnx

from .graph import Graph, Uses, attribute
from .registry import Backward
from .window import Window, of_conv
from .writer import Writer


def as_products(graph: Graph, parameters: Collection[str]) -> None:
    """Rewrite such convolutions of `graph` where their weights are among `parameters`."""
    uses, found = Uses(graph), {}
    gone: set[int] = set()
    for node in graph.nodes:
        if node.op_type == "Conv" and node.input[1] in parameters and (parts := _followers(graph, uses, node)):
            found[parts[-1].output[0]] = node
            gone.update(map(id, (node, *parts)))
    nodes, graph.nodes = graph.nodes, []
    for node in nodes:
        y = node.output[0]
        if y in found:
            _write(graph, found[y], y)
        elif id(node) not in gone:
            graph.nodes.append(node)


def _followers(graph: Graph, uses: Uses, conv: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The nodes that make its result a sequence, [] where they do something else, or its windows lie otherwise."""
    image, result = (graph.shapes.get(name, ()) for name in (conv.input[0], conv.output[0]))
    if any(not isinstance(size, int) for size in (*image[1:], *result[1:])) or attribute(conv, "group", 1) != 1:
        return []
    window = _window(graph, conv)
    parts, sequence = [], (result[0], result[1], math.prod(window.outputs))
    last = uses.only_reader(conv.output[0])
    if last is not None and last.op_type in ("Flatten", "Reshape") and graph.shapes.get(last.output[0]) == sequence:
        parts.append(last)
        last = uses.only_reader(last.output[0])
    if last is None or last.op_type != "Transpose" or attribute(last, "perm") != [0, 2, 1]:
        return []
    return [*parts, last] if window.tiles and not window.padded and not window.pointwise else []


def _write(graph: Graph, conv: onnx.NodeProto, y: str) -> None:
    image, weight, *bias = filter(None, conv.input)
    batch, channels, *_ = graph.shape(image)
    window, filters = _window(graph, conv), graph.shape(weight)[0]
    assert isinstance(channels, int) and isinstance(filters, int)
    write, rank, taps = Writer(graph, batch), window.rank, math.prod(window.kernel)
    pairs = [size for pair in zip(window.outputs, window.kernel, strict=True) for size in pair]
    apart = graph.op("Reshape", image, graph.integers([0, channels, *pairs]))
    graph.shapes[apart] = (batch, channels, *pairs)
    order = [0, *range(2, 2 + 2 * rank, 2), 1, *range(3, 3 + 2 * rank, 2)]
    rows = write.reshaped(write.emit("Transpose", apart, perm=order), 0, channels * taps)
    matrix = write.reshaped(weight, filters, channels * taps)
    size = (graph.shape(rows)[0], filters)
    made = write.emit("Gemm", rows, matrix, *bias, transB=1, shape=size)
    graph.op("Reshape", made, graph.integers([-1, math.prod(window.outputs), filters]), output=y)


def _window(graph: Graph, conv: onnx.NodeProto) -> Window:
    return of_conv(Backward(graph=graph, node=conv, dys=(None,)))
