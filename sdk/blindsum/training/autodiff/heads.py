"""Attention heads with the positions last, [batch, heads, size, length]: cut out of [batch, heads x size, length].

Exporters cut [batch, length, heads x size] and bring the heads to the front, which moves runs of `size` numbers. Turned
first, it is cut without moving anything, and onnxruntime turns matrices fast. Products read what lies flipped as it is,
once `simplify` has brought together what rules make of it.

Microseconds on [16, 64, 64], 4 heads, one thread of a server CPU, onnxruntime 1.32: 105 to bring the heads to the front,
25 to turn. A step of a small ViT takes 8 % less; with heads of 64 there is no difference.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx

from .graph import Dimension, Graph, Uses, attribute
from .writer import Writer

_HEADS_FIRST, _POSITIONS_LAST = [0, 2, 1, 3], [0, 2, 3, 1]
_TURN, _FLIP = [0, 2, 1], [0, 1, 3, 2]


def as_columns(graph: Graph, changing: Collection[str]) -> None:
    """Rewrite how `graph` cuts and joins heads of what is `changing` while it trains."""
    uses = Uses(graph)
    nodes, graph.nodes = graph.nodes, []
    for node in nodes:
        source = uses.maker.get(node.input[0]) if node.input else None
        if source is None or node.output[0] not in changing:
            graph.nodes.append(node)
        elif _cuts(graph, source, node):
            _cut(graph, source, node)
        elif _joins(graph, source, node):
            _join(graph, source.input[0], node)
        elif (whole := _flipped(graph, uses, source, node)) is not None:
            graph.op("Transpose", whole, perm=_FLIP, output=node.output[0])
        else:
            graph.nodes.append(node)


def _cuts(graph: Graph, reshape: onnx.NodeProto, node: onnx.NodeProto) -> bool:
    """[batch, length, heads x size] to [batch, length, heads, size], and the heads to the front."""
    if node.op_type != "Transpose" or attribute(node, "perm") not in (_HEADS_FIRST, _POSITIONS_LAST):
        return False
    return reshape.op_type == "Reshape" and _is_split(graph, reshape.input[0], reshape.output[0])


def _joins(graph: Graph, transpose: onnx.NodeProto, node: onnx.NodeProto) -> bool:
    """The inverse."""
    if transpose.op_type != "Transpose" or attribute(transpose, "perm") != _HEADS_FIRST:
        return False
    return node.op_type == "Reshape" and _is_split(graph, node.output[0], node.input[0])


def _is_split(graph: Graph, whole: str, parts: str) -> bool:
    one, other = graph.shapes.get(whole, ()), graph.shapes.get(parts, ())
    return (
        len(one) == 3 and len(other) == 4 and one[:2] == other[:2] and all(isinstance(size, int) for size in other[1:])
    )


def _flipped(graph: Graph, uses: Uses, transpose: onnx.NodeProto, node: onnx.NodeProto) -> str | None:
    """What is flipped by way of [batch x heads, length, size]: PyTorch's newer exporter writes keys so."""
    if node.op_type != "Reshape" or transpose.op_type != "Transpose" or attribute(transpose, "perm") != _TURN:
        return None
    reshape = uses.maker.get(transpose.input[0])
    whole = graph.shapes.get(reshape.input[0], ()) if reshape is not None and reshape.op_type == "Reshape" else ()
    if reshape is None or len(whole) != 4 or graph.shapes.get(transpose.input[0], ())[1:] != whole[2:]:
        return None
    return str(reshape.input[0]) if graph.shapes.get(node.output[0]) == (*whole[:2], whole[3], whole[2]) else None


def _sizes(graph: Graph, parts: str) -> tuple[Dimension, int, int, int]:
    batch, *rest = graph.shape(parts)
    one, two, three = (int(size or 0) for size in rest)
    return batch, one, two, three


def _cut(graph: Graph, reshape: onnx.NodeProto, node: onnx.NodeProto) -> None:
    batch, length, heads, size = _sizes(graph, reshape.output[0])
    flipped = attribute(node, "perm") == _HEADS_FIRST
    write, y = Writer(graph, batch), node.output[0]
    turned = write.emit("Transpose", reshape.input[0], perm=_TURN)
    target, shape = graph.integers([0, heads, size, length]), (batch, heads, size, length)
    columns = write.emit("Reshape", turned, target, shape=shape, output=None if flipped else y)
    if flipped:
        graph.op("Transpose", columns, perm=_FLIP, output=y)


def _join(graph: Graph, parts: str, node: onnx.NodeProto) -> None:
    batch, heads, length, size = _sizes(graph, parts)
    write = Writer(graph, batch)
    columns = write.emit("Transpose", parts, perm=_FLIP)
    target, shape = graph.integers([0, heads * size, length]), (batch, heads * size, length)
    graph.op("Transpose", write.emit("Reshape", columns, target, shape=shape), perm=_TURN, output=node.output[0])
