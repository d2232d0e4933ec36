"""Values that lie in another layout for as long as what reads them can take it."""

from __future__ import annotations

import onnx

from .graph import Graph, reads

POINTWISE = frozenset({"Clip", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Relu", "Sigmoid", "Tanh"})
OF_TWO = frozenset({"Add", "Mul", "Sub"})


class Walk:
    """Goes over the nodes of a graph once and lets a subclass write them for values in its layout.

    A value is brought back where a node that stays as it was reads it, or the graph ends.
    """

    def __init__(self, graph: Graph, output: str) -> None:
        self._graph = graph
        self._moved: dict[str, str] = {}  # a value in the other layout
        self._only: set[str] = set()  # those of them that are not there in their own
        nodes, graph.nodes = graph.nodes, []
        for node in nodes:
            if not self._written(node):
                for name in reads(node):
                    self._restore(name)
                graph.nodes.append(node)
        self._restore(output)

    def _written(self, node: onnx.NodeProto) -> bool:
        """True where the node is emitted for the other layout."""
        raise NotImplementedError

    def _back(self, moved: str, name: str) -> None:
        """Emit `name` from what it is in the other layout."""
        raise NotImplementedError

    def _operands(self, node: onnx.NodeProto) -> list[str]:
        """What a node that works element by element reads in the other layout; empty where it is none or cannot."""
        x = node.input[0]
        if x not in self._moved or len(node.output) > 1:
            return []
        if node.op_type in POINTWISE:
            return [self._moved[x], *node.input[1:]]
        same = all(name in self._moved and self._graph.shape(name) == self._graph.shape(x) for name in node.input)
        return [self._moved[name] for name in node.input] if node.op_type in OF_TWO and same else []

    def _move(self, name: str, moved: str) -> None:
        self._moved[name] = moved
        self._only.add(name)

    def _restore(self, name: str) -> None:
        if name in self._only:
            self._only.remove(name)
            self._back(self._moved[name], name)
