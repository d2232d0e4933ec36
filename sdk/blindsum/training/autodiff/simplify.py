"""What rules emit one by one, made simpler where two of them meet. Flipped: the last two axes have changed places.

    flip(flip(x))               x
    flip(a b)                   flip(b) flip(a)     onnxruntime reads operands flipped, but makes no flipped product
    flip(c x)                   c flip(x)           c is one number
    p * q + (p * r) * s         p * (q + r * s)     * element by element: as behind x f(x), one pass less
    p * q - p * r               p * (q - r)
    sums of (a flip(v)) * p     sums of a * (p v)   of each row, where p v is there already: behind the weights of attention

They hold for real numbers; results differ by rounding.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx

from .graph import Graph, Uses, attribute

_KEEP_AXES = {"Add", "Cast", "Div", "Exp", "Mul", "Neg", "Sub"}  # the result has those of the operand of most axes


def simplify(graph: Graph, outputs: Collection[str]) -> None:
    """Rewrite such nodes of `graph`; `outputs`, and all else that is still read, keep their names."""
    while _Pass(graph, outputs).changed:
        pass


class _Pass:
    """Over all nodes once. Each is part of one change at the most."""

    def __init__(self, graph: Graph, outputs: Collection[str]) -> None:
        self._graph, self._outputs, self._uses = graph, outputs, Uses(graph, outputs)
        self._touched: set[int] = set()
        self._dropped: set[int] = set()
        self._renamed: dict[str, str] = {}
        graph.substitute(
            {"Add": self._add, "ReduceSum": self._reduce_sum, "Sub": self._subtract, "Transpose": self._transpose}
        )
        graph.nodes = [node for node in graph.nodes if id(node) not in self._dropped]
        graph.rename_all(self._renamed)
        self.changed = bool(self._touched)

    def _take(self, *nodes: onnx.NodeProto) -> bool:
        """Whether none of the nodes is part of a change; they are then."""
        if any(id(node) in self._touched for node in nodes):
            return False
        self._touched.update(map(id, nodes))
        return True

    def _own(self, name: str, reader: onnx.NodeProto, operator: str) -> onnx.NodeProto | None:
        """The node of that operator that makes a value which `reader` alone reads."""
        maker = self._uses.maker.get(name)
        alone = maker is not None and maker.op_type == operator and self._uses.only_reader(name) is reader
        return maker if alone else None

    def _transpose(self, graph: Graph, node: onnx.NodeProto) -> bool:
        if not _flips(node):
            return False
        (x,), (y,), perm = node.input, node.output, _perm(node)
        source = self._uses.maker.get(x)
        if source is not None and _flips(source) and y not in self._outputs and self._take(node, source):
            self._renamed[y] = self._renamed.get(source.input[0], source.input[0])
        elif (product := self._own(x, node, "MatMul")) is not None and self._flippable(product, len(perm), node):
            left, right = (graph.op("Transpose", name, perm=perm) for name in product.input)
            graph.op("MatMul", right, left, output=y)
            self._dropped.add(id(product))
        elif (scaled := self._own(x, node, "Mul")) is not None and self._is_number(scaled) and self._take(node, scaled):
            graph.op("Mul", graph.op("Transpose", scaled.input[0], perm=perm), scaled.input[1], output=y)
            self._dropped.add(id(scaled))
        else:
            return False
        return True

    def _flippable(self, product: onnx.NodeProto, rank: int, node: onnx.NodeProto) -> bool:
        """Whether both operands have as many axes as their product."""
        return all(self._has_axes(name, rank) for name in product.input) and self._take(node, product)

    def _has_axes(self, name: str, rank: int) -> bool:
        """Whether a value is known to have so many axes, or more; what rules make of others has no known shape."""
        if name in self._graph.shapes:
            return len(self._graph.shapes[name]) >= rank
        maker = self._uses.maker.get(name)
        if maker is None:
            return False
        if maker.op_type == "Transpose":
            return len(_perm(maker)) >= rank
        if maker.op_type == "Reshape":
            return self._graph.constants.get(maker.input[1], np.zeros(0)).size >= rank
        wide = [self._has_axes(operand, rank) for operand in maker.input]
        return all(wide) if maker.op_type == "MatMul" else maker.op_type in _KEEP_AXES and any(wide)

    def _is_number(self, product: onnx.NodeProto) -> bool:
        number = self._graph.constants.get(product.input[1])
        return number is not None and number.size == 1

    def _add(self, graph: Graph, node: onnx.NodeProto) -> bool:
        for one, other in (node.input, node.input[::-1]):
            direct, outer = self._own(one, node, "Mul"), self._own(other, node, "Mul")
            if direct is None or outer is None or one == other:
                return False
            for product, s in (outer.input, outer.input[::-1]):
                inner = self._own(product, outer, "Mul") if product != s else None
                shared = _shared(direct, inner) if inner is not None else ""
                if inner is not None and shared and self._take(node, direct, outer, inner):
                    rest = graph.op("Add", _other(direct, shared), graph.op("Mul", _other(inner, shared), s))
                    graph.op("Mul", shared, rest, output=node.output[0])
                    self._dropped.update(map(id, (direct, outer, inner)))
                    return True
        return False

    def _subtract(self, graph: Graph, node: onnx.NodeProto) -> bool:
        one, other = (self._own(name, node, "Mul") for name in node.input)
        if one is None or other is None or not (shared := _shared(one, other)) or not self._take(node, one, other):
            return False
        rest = graph.op("Sub", _other(one, shared), _other(other, shared))
        graph.op("Mul", shared, rest, output=node.output[0])
        self._dropped.update(map(id, (one, other)))
        return True

    def _reduce_sum(self, graph: Graph, node: onnx.NodeProto) -> bool:
        """Where rows of v are shorter than those of p, and no more than a subtraction reads the products beside it."""
        axes = graph.constants.get(node.input[1]) if len(node.input) > 1 else None
        weighted = self._uses.maker.get(node.input[0])
        if axes is None or axes.tolist() != [-1] or weighted is None or weighted.op_type != "Mul":
            return False
        if len(self._uses.readers[node.input[0]]) > 2:
            return False
        for product, p in (weighted.input, weighted.input[::-1]):
            maker = self._uses.maker.get(product)
            if maker is None or maker.op_type != "MatMul":
                continue
            for forward in self._uses.readers.get(p, []):
                if forward.op_type != "MatMul" or forward.input[0] != p or forward is maker:
                    continue
                v, y = forward.input[1], forward.output[0]
                shorter = y in graph.shapes and _is_less(graph.shapes[y][-1], graph.shapes.get(p, (None,))[-1])
                if shorter and self._is_flipped(maker.input[1], v) and self._take(node):
                    sums = graph.op("Mul", maker.input[0], y)
                    kept = {item.name: attribute(node, item.name) for item in node.attribute}
                    graph.op("ReduceSum", sums, node.input[1], output=node.output[0], **kept)
                    return True
        return False

    def _is_flipped(self, one: str, other: str) -> bool:
        """Whether one value is the other, flipped."""
        return any(
            (maker := self._uses.maker.get(a)) is not None and _flips(maker) and maker.input[0] == b
            for a, b in ((one, other), (other, one))
        )


def _is_less(one: object, other: object) -> bool:
    return isinstance(one, int) and isinstance(other, int) and one < other


def _shared(one: onnx.NodeProto, other: onnx.NodeProto) -> str:
    """An operand of both products, '' where there is none."""
    return next((name for name in one.input if name in other.input), "")


def _other(product: onnx.NodeProto, operand: str) -> str:
    return str(product.input[1 - list(product.input).index(operand)])


def _perm(transpose: onnx.NodeProto) -> list[int]:
    perm = attribute(transpose, "perm", [])
    assert isinstance(perm, list)
    return perm


def _flips(node: onnx.NodeProto) -> bool:
    """Of stacks of matrices."""
    if node.op_type != "Transpose" or len(perm := _perm(node)) < 3:
        return False
    return perm == [*range(len(perm) - 2), len(perm) - 1, len(perm) - 2]
