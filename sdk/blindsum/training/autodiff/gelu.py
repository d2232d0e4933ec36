"""GELU with its factors at both ends, where layers can take them over.

    x (1 + erf(x / sqrt(2))) / 2  =  z (1 + erf(z)) r    with z = r x, r = sqrt(1/2)

The operator Gelu is one pass, but its gradient has to compute three again that it does not hand out.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import onnx

from .graph import Graph, Uses, attribute, factor_of
from .writer import Writer

ROOT = math.sqrt(0.5)


def write_out(graph: Graph, changing: Collection[str]) -> None:
    """Rewrite GELU, written out or as an operator, where its gradient is asked for: in `changing`."""
    uses, found = Uses(graph), {}
    gone: set[int] = set()
    for node in graph.nodes:
        if node.output[0] not in changing or graph.dtypes.get(node.output[0], "float32") != "float32":
            continue
        x, parts = "", [node]
        if node.op_type == "Erf":
            x, parts = _parts(graph, uses, node, changing)
        elif node.op_type == "Gelu" and attribute(node, "approximate", b"none") == b"none":
            x = node.input[0]
        if x:
            found[parts[-1].output[0]] = x
            gone.update(map(id, parts))
    nodes, graph.nodes = graph.nodes, []
    for node in nodes:
        y = node.output[0]
        if y in found:
            write, root = Writer(graph, None), graph.scalar(ROOT)
            z = write.emit("Mul", found[y], root)
            whole = write.emit("Add", write.emit("Erf", z), graph.scalar(1.0))
            write.emit("Mul", write.emit("Mul", z, whole), root, output=y)
        elif id(node) not in gone:
            graph.nodes.append(node)


def _parts(
    graph: Graph, uses: Uses, erf: onnx.NodeProto, changing: Collection[str]
) -> tuple[str, list[onnx.NodeProto]]:
    """x and the nodes of x (1 + erf(x / sqrt(2))) / 2 around its Erf, last the one that makes it; '' where it is another."""
    inner, whole = uses.maker.get(erf.input[0]), uses.only_reader(erf.output[0])
    if inner is None or whole is None or not _is_one_more(graph, whole, changing):
        return "", []
    x = next(
        (name for name in inner.input if math.isclose(factor_of(graph, inner, name, changing), ROOT, rel_tol=1e-6)), ""
    )
    parts, wanted, value = [erf, whole], {"x", "half"}, whole.output[0]
    if uses.only_reader(inner.output[0]) is erf:
        parts.append(inner)
    while x and wanted:
        node = uses.only_reader(value)
        if node is None or node.op_type not in ("Div", "Mul"):
            return "", []
        other = next((name for name in node.input if name != value), value)
        source = uses.maker.get(other)
        if "half" in wanted and factor_of(graph, node, value, changing) == 0.5:
            wanted.remove("half")
        elif node.op_type == "Mul" and "x" in wanted and other == x:
            wanted.remove("x")
        elif (
            wanted == {"x", "half"}
            and node.op_type == "Mul"
            and source is not None
            and factor_of(graph, source, x, changing) == 0.5
        ):
            wanted.clear()
            if uses.only_reader(other) is node:
                parts.append(source)
        else:
            return "", []
        parts.append(node)
        value = node.output[0]
    return x, parts


def _is_one_more(graph: Graph, node: onnx.NodeProto, changing: Collection[str]) -> bool:
    """Whether a node adds 1."""
    ones = [graph.constants[name] for name in node.input if name in graph.constants and name not in changing]
    return node.op_type == "Add" and len(ones) == 1 and ones[0].size == 1 and float(ones[0].item()) == 1.0
