"""The registry of gradient rules, keyed by operator and the operator-set version since which the rule holds.

A rule is one function from a `Backward` (the forward node seen from behind) to one gradient for each input, None where
there is none:

    @rule("Tanh", since=13)
    def tanh(b: Backward) -> Gradients:
        return [b.op("Mul", b.dy, b.op("Sub", b.scalar(1.0), b.op("Mul", b.y[0], b.y[0])))]

Rules emit standard ai.onnx operators only. They may compute what nobody asked for: nodes without a reader are dropped
afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from blindsum.protocol.errors import BlindsumError

from .graph import Graph, Shape, attribute

Gradients = Sequence[str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Backward:
    """What a rule sees: the forward node, its values by name, the gradients of its outputs, a place to emit nodes."""

    graph: Graph
    node: onnx.NodeProto
    dys: tuple[str | None, ...]  # one for each output; at least one is not None
    active: Set[str] = frozenset()  # values that depend on what is trained

    @property
    def x(self) -> Sequence[str]:
        """Names of the node's inputs; '' for an absent one."""
        return tuple(self.node.input)

    @property
    def y(self) -> Sequence[str]:
        """Names of the node's outputs."""
        return tuple(self.node.output)

    @property
    def dy(self) -> str:
        """Gradient of the first output, for rules of operators that have one output that matters."""
        dy = self.dys[0]
        assert dy is not None
        return dy

    def op(self, operator: str, *inputs: str, **attributes: Any) -> str:
        return self.graph.op(operator, *inputs, **attributes)

    def ops(self, operator: str, *inputs: str, outputs: int, **attributes: object) -> list[str]:
        return self.graph.ops(operator, *inputs, outputs=outputs, **attributes)

    def constant(self, array: NDArray[np.generic]) -> str:
        return self.graph.constant(array)

    def known(self, name: str) -> NDArray[np.generic] | None:
        """The value of an input that is the same in every step; None for what only the running graph knows."""
        return None if name in self.active else self.graph.constants.get(name)

    @property
    def dtype(self) -> str:
        """Of the numbers that the node computes with: its first output's."""
        return self.graph.dtypes.get(self.y[0]) or "float32"

    def scalar(self, value: float) -> str:
        """A number of the node's dtype."""
        return self.constant(np.array(value, self.dtype))

    def array(self, values: NDArray[np.generic]) -> str:
        """A constant tensor of the node's dtype."""
        return self.constant(values.astype(self.dtype))

    def integers(self, values: Sequence[int]) -> str:
        return self.graph.integers(values)

    def mask(self, condition: str) -> str:
        """A bool tensor as 0.0 and 1.0. (Cast and Mul are faster than Where in onnxruntime.)"""
        return self.cast(condition)

    def cast(self, value: str) -> str:
        """`value` in the node's dtype."""
        return self.op("Cast", value, to=onnx.helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype)))

    def sum_to(self, value: str, at: int) -> str:
        """`value`, of the output's shape, summed over what input `at` was broadcast to."""
        return self.graph.sum_to(value, self.y[0], self.x[at])

    def expand(self, value: str, like: str) -> str:
        """`value` broadcast to the shape of `like`."""
        return self.op("Expand", value, self.op("Shape", like))

    def shape(self, name: str) -> Shape:
        return self.graph.shape(name)

    def rank(self, name: str) -> int:
        return len(self.graph.shape(name))

    def integer(self, name: str, default: int) -> int:
        """An integer attribute of the node."""
        value = attribute(self.node, name, default)
        assert isinstance(value, int)
        return value

    def optional_integer(self, name: str) -> int | None:
        """An integer attribute of the node, None where it is absent."""
        value = attribute(self.node, name)
        assert value is None or isinstance(value, int)
        return value

    def text(self, name: str, default: str) -> str:
        """A string attribute of the node."""
        value = attribute(self.node, name, default.encode())
        assert isinstance(value, bytes)
        return value.decode()

    def real(self, name: str, default: float) -> float:
        """A float attribute of the node."""
        value = attribute(self.node, name, default)
        assert isinstance(value, float)
        return value

    def ints(self, name: str, default: Sequence[int]) -> list[int]:
        """An attribute of the node that is a list of integers."""
        value = attribute(self.node, name, default)
        assert isinstance(value, Sequence)
        return [int(item) for item in value]

    def refused(self, what: str) -> BlindsumError:
        """The error for what a rule does not cover."""
        detail = f"node {self.node.name!r} ({self.node.op_type}): no gradient for {what}"
        return BlindsumError("training-operator-unsupported", detail)


Rule = Callable[[Backward], Gradients]


@dataclass(frozen=True, slots=True)
class Entry:
    rule: Rule
    broadcast: bool  # gradients come back in the output's shape; the engine sums them down to each input's
    covers: Callable[[onnx.NodeProto], bool] | None = None  # None: every node


_RULES: dict[str, dict[int, Entry]] = {}
_STOPS: set[str] = set()
_FLOATS = {onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}


def rule(
    *operators: str, since: int = 1, broadcast: bool = False, covers: Callable[[onnx.NodeProto], bool] | None = None
) -> Callable[[Rule], Rule]:
    """Register a gradient rule for operators of the standard domain, from operator set `since` on.

    `broadcast`: the operator broadcasts its inputs (numpy style) and the rule returns gradients in the shape of the
    output. `covers`: for which nodes the rule holds; others are trained through the operator's definition. None: all.
    Raises "training-request-invalid" where the operator already has a rule for that version.
    """

    def register(function: Rule) -> Rule:
        for operator in operators:
            versions = _RULES.setdefault(operator, {})
            if since in versions:
                raise BlindsumError(
                    "training-request-invalid", f"{operator} already has a rule since operator set {since}"
                )
            versions[since] = Entry(function, broadcast, covers)
        return function

    return register


def stop(*operators: str) -> None:
    """Register operators whose outputs are piecewise constant: their gradient is zero wherever there is one."""
    _STOPS.update(operators)


def stops(node: onnx.NodeProto) -> bool:
    """True where no gradient passes through the node, so that nothing before it is reached from behind."""
    return node.op_type in _STOPS or (node.op_type == "Cast" and attribute(node, "to") not in _FLOATS)


def find(operator: str, opset: int) -> Entry | None:
    """The rule for `operator` as operator set `opset` defines it."""
    versions = [since for since in _RULES.get(operator, {}) if since <= opset]
    return _RULES[operator][max(versions)] if versions else None


def covered(node: onnx.NodeProto, opset: int) -> bool:
    """True where a rule holds for the node."""
    entry = find(node.op_type, opset)
    return entry is not None and (entry.covers is None or entry.covers(node))


def differentiable() -> dict[str, list[int]]:
    """Operators that have a rule, with the versions since which each holds."""
    return {operator: sorted(versions) for operator, versions in sorted(_RULES.items())}
