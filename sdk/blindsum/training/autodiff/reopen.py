"""Make a batch dynamic that an exporter wrote into the nodes of a model: as sizes to expand to, as rows beside those of
the batch, as the initial states of recurrent layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from .graph import Graph, attribute
from .shapes import Known
from .sizes import Rows, Size

RECURRENT = ("GRU", "LSTM", "RNN")
_STATES = (5, 6)  # inputs of recurrent operators
_MOVING = {"Expand", "Reshape", "Slice", "Squeeze", "Tile", "Transpose", "Unsqueeze"}


class Reopening:
    """`batch`: what the model holds in the place of the batch, 0 where that is open. `frozen`: whether a constant stays
    as it is. `constant`: makes one.
    """

    def __init__(
        self,
        graph: Graph,
        known: Known,
        batch: int,
        *,
        frozen: Callable[[str], bool],
        constant: Callable[[NDArray[np.generic]], str],
    ) -> None:
        self._graph, self._known, self._batch = graph, known, batch
        self._frozen, self._constant = frozen, constant
        self._zeros: set[str] = set()
        self._rows: dict[str, str] = {}  # what was expanded to the fixed batch -> the single row that it came from

    def rewritten(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Nodes to go before this one, which is changed in place."""
        before: list[onnx.NodeProto] = []
        if node.op_type in RECURRENT:
            before = self._recurrent(node)
        elif node.op_type == "Expand":
            self._expand(node)
        elif node.op_type == "Concat" and self._batch and attribute(node, "axis") != 0:
            before = self._concat(node)
        if node.op_type == "ConstantOfShape":
            value = attribute(node, "value")
            if not isinstance(value, onnx.TensorProto) or not onnx.numpy_helper.to_array(value).any():
                self._zeros.add(node.output[0])
        elif node.op_type in _MOVING and self._is_zero(node.input[0]):
            self._zeros.add(node.output[0])
        return before

    def _is_zero(self, name: str) -> bool:
        array = self._known.constants.get(name)
        return name in self._zeros or (array is not None and self._frozen(name) and not array.any())

    def _recurrent(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Initial states of zeros are what the operator takes without any; a single row serves the whole batch."""
        before: list[onnx.NodeProto] = []
        given = self._known.sizes(node.input[0])
        axis = 0 if attribute(node, "layout", 0) else 1
        for at in _STATES[: max(0, len(node.input) - _STATES[0])]:
            name = node.input[at]
            state = self._known.sizes(name) if name else None
            if name and self._is_zero(name):
                node.input[at] = ""
            elif state and given and len(state) == 3 and given[axis] == Rows(1) and state[axis] == 1:
                made, node.input[at] = self._spread(name, node.input[0], axis, state)
                before += made
        while node.input and not node.input[-1]:
            node.input.pop()
        return before

    def _expand(self, node: onnx.NodeProto) -> None:
        given, wanted = self._known.sizes(node.input[0]), self._known.numbers(node, 1)
        if not self._batch or not given or not wanted or len(wanted) < len(given):
            return
        extra = len(wanted) - len(given)
        kept = [1 if at >= extra and isinstance(given[at - extra], Rows) else size for at, size in enumerate(wanted)]
        if kept != wanted:
            node.input[1] = self._constant(np.array(kept))
        elif not extra and given[0] == 1 and wanted[0] == self._batch:
            self._rows[node.output[0]] = node.input[0]

    def _concat(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        shapes: Mapping[str, Sequence[Size] | None] = {name: self._known.sizes(name) for name in node.input}
        whole = next((name for name, shape in shapes.items() if shape and shape[0] == Rows(1)), None)
        before: list[onnx.NodeProto] = []
        for at, name in enumerate(node.input):
            shape = shapes[name]
            if whole is None or not shape or shape[0] != self._batch:
                continue
            row = name if self._batch == 1 else self._rows.get(name) or self._single(name)
            if row:
                made, node.input[at] = self._spread(row, whole, 0, shape)
                before += made
        return before

    def _single(self, name: str) -> str:
        """The row of a constant whose rows are all the same, '' where there is none."""
        array = self._known.constants.get(name)
        if array is None or not self._frozen(name) or not (array == array[:1]).all():
            return ""
        return self._constant(np.ascontiguousarray(array[:1]))

    def _spread(self, row: str, like: str, axis: int, shape: Sequence[Size]) -> tuple[list[onnx.NodeProto], str]:
        """Nodes that repeat `row` along `axis` for each row of `like`, and the name of the outcome."""
        size, target, output = (self._graph.fresh(stem) for stem in ("size", "target", "spread"))
        ones = [self._constant(np.ones(count, np.int64)) if count else "" for count in (axis, len(shape) - axis - 1)]
        parts = [part for part in (ones[0], size, ones[1]) if part]
        nodes = [
            helper.make_node("Shape", [like], [size], start=axis, end=axis + 1),
            helper.make_node("Concat", parts, [target], axis=0),
            helper.make_node("Expand", [row, target], [output]),
        ]
        return nodes, output
