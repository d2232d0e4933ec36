"""Recurrent nodes over sequences of unequal lengths, written out as nodes that take every step.

A node over all steps, padding included, computes the same states up to each sequence's end, and what it makes of the
padding is multiplied by zero. Backwards it goes over sequences that ReverseSequence has turned. The last cell of an LSTM
would be lost in the padding; one more feature, which is 1 there, opens its forget gates and shuts its input gates, and
it stays as it was.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any

import numpy as np
import onnx

from .graph import Graph, Shape, attribute
from .recurrent import DIRECTIONS, hidden_size, shortest
from .registry import Backward

RECURRENT = ("GRU", "LSTM", "RNN")

_SHUT = 1e4  # added to what a gate's activation takes; 1 - sigmoid is then 0, or 2e-8 where a kernel clips


def write_out(graph: Graph, changing: Collection[str]) -> None:
    """Write out the nodes of `graph` that pass gradients on to `changing`; what this cannot do is left as it is."""
    graph.substitute(dict.fromkeys(RECURRENT, partial(_written, changing=changing)))


def _written(graph: Graph, node: onnx.NodeProto, *, changing: Collection[str]) -> bool:
    lengths = node.input[4] if len(node.input) > 4 else ""
    if not lengths or not set(changing).intersection(node.input) or any(node.input[7:]):
        return False
    steps, batch, _ = graph.shape(node.input[0])
    ways = DIRECTIONS[_direction(node)]
    if not isinstance(steps, int) or shortest(Backward(graph=graph, node=node, dys=(None,)), lengths) >= steps:
        return False
    if len(ways) > 1 and (attribute(node, "activation_alpha") or attribute(node, "activation_beta")):
        return False  # the lists do not tell which numbers are whose
    if any(node.output[2:]) and not _can_hold(node, len(ways)):
        return False
    _Written(graph, node, steps, batch, ways)
    return True


def _can_hold(node: onnx.NodeProto, ways: int) -> bool:
    """Whether gates of an LSTM can be shut and opened altogether."""
    names = attribute(node, "activations", [b"Sigmoid", b"Tanh", b"Tanh"] * ways)
    assert isinstance(names, list)
    return {name.lower() for name in names[::3]} <= {b"sigmoid", b"hardsigmoid"}


def _direction(node: onnx.NodeProto) -> str:
    name = attribute(node, "direction", b"forward")
    assert isinstance(name, bytes)
    return name.decode()


class _Written:
    """The node's outputs, made by nodes of one direction each that run forwards."""

    def __init__(
        self, graph: Graph, node: onnx.NodeProto, steps: int, batch: int | str | None, ways: tuple[bool, ...]
    ) -> None:
        self._graph, self._node, self._steps, self._batch = graph, node, steps, batch
        self._cells = any(node.output[2:])
        self._lengths = self._emit((batch,), "Cast", node.input[4], to=onnx.TensorProto.INT64)
        places = graph.constant(np.arange(steps).reshape(-1, 1))
        last = self._emit((batch,), "Sub", self._lengths, graph.constant(np.array(1)))
        self._inside = self._mask(self._emit((steps, batch), "Less", places, self._lengths))
        self._at_end = self._mask(self._emit((steps, batch), "Equal", places, last))
        given = self._given(len(ways))
        made = [self._direction(at, backwards, given[at]) for at, backwards in enumerate(ways)]
        for at, name in enumerate(node.output):
            if name:
                graph.op("Concat", *(each[at] for each in made), axis=0 if at else 1, output=name)

    def _emit(self, shape: Shape, operator: str, *given: str, **options: Any) -> str:
        name = self._graph.op(operator, *given, **options)
        self._graph.shapes[name] = shape
        return name

    def _mask(self, condition: str) -> str:
        """Of steps and batch: 0.0 and 1.0 for all features."""
        shape = (self._steps, self._batch)
        numbers = self._emit(shape, "Cast", condition, to=onnx.TensorProto.FLOAT)
        return self._emit((*shape, 1), "Unsqueeze", numbers, self._graph.integers([2]))

    def _given(self, ways: int) -> list[list[str]]:
        """The inputs of each direction, without the lengths."""
        inputs = [list(self._node.input) for _ in range(ways)]
        for at, name in enumerate(self._node.input):
            parts = [""] * ways if at == 4 else [name] * ways
            if name and ways > 1 and at not in (0, 4):
                parts = self._graph.ops("Split", name, outputs=ways, axis=0, num_outputs=ways)
                self._graph.shapes.update(dict.fromkeys(parts, (1, *self._graph.shape(name)[1:])))
            for own, part in zip(inputs, parts, strict=True):
                own[at] = part
        return inputs

    def _turned(self, sequence: str) -> str:
        shape = self._graph.shape(sequence)
        return self._emit(shape, "ReverseSequence", sequence, self._lengths, time_axis=0, batch_axis=1)

    def _direction(self, at: int, backwards: bool, given: list[str]) -> list[str]:
        """States (steps, 1, batch, hidden), last state and last cell (1, batch, hidden) of one direction."""
        graph, hidden = self._graph, hidden_size(Backward(graph=self._graph, node=self._node, dys=(None,)))
        if backwards:
            given[0] = self._turned(given[0])
        if self._cells:
            given[:2] = self._marked(*given[:2])
        state, sequence = (1, self._batch, hidden), (self._steps, self._batch, hidden)
        y, cell = graph.fresh("states"), graph.fresh("cell") if self._cells else ""
        graph.shapes.update({y: (self._steps, *state), cell: state} if cell else {y: (self._steps, *state)})
        graph.nodes.append(self._of_one_direction(at, given, [y, "", cell] if cell else [y]))

        states = self._emit(sequence, "Squeeze", y, graph.integers([1]))
        last = self._emit(sequence, "Mul", states, self._at_end)
        last = self._emit(state, "ReduceSum", last, graph.integers([0]), keepdims=1)
        states = self._emit(sequence, "Mul", states, self._inside)
        states = self._turned(states) if backwards else states
        return [self._emit((self._steps, *state), "Unsqueeze", states, graph.integers([1])), last, cell]

    def _marked(self, x: str, w: str) -> tuple[str, str]:
        """Sequences with one more feature, which is 1 in the padding, and the weights that hold the cell there."""
        graph, (_, gates, features) = self._graph, self._graph.shape(w)
        assert isinstance(features, int) and isinstance(gates, int)
        outside = self._emit((self._steps, self._batch, 1), "Sub", graph.scalar(1.0), self._inside)
        column = graph.constant(
            np.repeat(np.array([-_SHUT, 0.0, _SHUT, 0.0], np.float32), gates // 4).reshape(1, -1, 1)
        )
        graph.shapes[column] = (1, gates, 1)
        x = self._emit((self._steps, self._batch, features + 1), "Concat", x, outside, axis=2)
        return x, self._emit((1, gates, features + 1), "Concat", w, column, axis=2)

    def _of_one_direction(self, at: int, given: list[str], made: list[str]) -> onnx.NodeProto:
        name = self._node.name and f"{self._node.name}/{at}"
        node = onnx.helper.make_node(self._node.op_type, given, made, name=name)
        for item in self._node.attribute:
            if item.name == "activations":
                each = len(item.strings) // len(DIRECTIONS[_direction(self._node)])
                node.attribute.append(onnx.helper.make_attribute(item.name, item.strings[at * each : (at + 1) * each]))
            elif item.name != "direction":
                node.attribute.append(item)
        return node
