"""One operator call seen by a rule: its attributes, and type, shape and (where known) value of its inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blindsum.protocol.errors import BlindsumError

from ..protobuf import Node

Shape = tuple[int, ...]
Rule = Callable[["Call"], Sequence[Shape]]
"""Gives the shape of each output; may raise ValueError, LookupError or ArithmeticError where the call makes no sense."""

RULES: dict[str, Rule] = {}


def rule(*operators: str) -> Callable[[Rule], Rule]:
    """Register the rule of some operators."""

    def register(function: Rule) -> Rule:
        RULES.update((operator, function) for operator in operators)
        return function

    return register


@dataclass(frozen=True, slots=True)
class Value:
    """`known`: the elements themselves, of small values that follow from constants and shapes."""

    dtype: str
    shape: Shape
    known: NDArray[Any] | None = field(default=None, repr=False)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.size * np.dtype(self.dtype).itemsize


@dataclass(slots=True)
class Call:
    """`work` is how many multiplications (or passes over an element) the call takes beside one for each element read
    and written."""

    node: Node
    opset: int
    inputs: list[Value | None]
    work: int = 0

    def given(self, at: int) -> bool:
        return at < len(self.inputs) and self.inputs[at] is not None

    def value(self, at: int) -> Value:
        value = self.inputs[at]
        if value is None:
            raise LookupError(f"input {at} is missing")
        return value

    def shape(self, at: int = 0) -> Shape:
        return self.value(at).shape

    def rank(self, at: int = 0) -> int:
        return len(self.shape(at))

    def shapes(self) -> list[Shape]:
        """Of the inputs that are given."""
        return [value.shape for value in self.inputs if value is not None]

    def integers(self, at: int) -> list[int]:
        """The elements of an input that states sizes, axes or indices."""
        return [int(item) for item in self.numbers(at)]

    def numbers(self, at: int) -> list[float]:
        known = self.value(at).known
        if known is None:
            detail = "a size that is computed from the data has no bound"
            raise BlindsumError("training-artifact-too-large", detail)
        items: list[float] = known.ravel().tolist()
        return items

    def integer(self, name: str, default: int | None = None) -> int:
        value = self.node.attributes.get(name, default)
        if not isinstance(value, int):
            raise LookupError(f"attribute {name}")
        return value

    def ints(self, name: str, default: Sequence[int] | None = None) -> list[int]:
        value = self.node.attributes.get(name, default)
        right = isinstance(value, Sequence) and all(isinstance(item, int) for item in value)
        wanted(right, name)
        return list(value)  # type: ignore[arg-type]

    def text(self, name: str, default: str) -> str:
        value = self.node.attributes.get(name, default.encode())
        wanted(isinstance(value, bytes), name)
        return bytes(value).decode("ascii")  # type: ignore[arg-type]

    def axis(self, value: int, rank: int) -> int:
        wanted(-rank <= value < rank, f"axis {value} of {rank}")
        return value % rank

    def axes(self, values: Sequence[int], rank: int) -> list[int]:
        axes = [self.axis(value, rank) for value in values]
        wanted(len(set(axes)) == len(axes), "axes twice")
        return axes


def wanted(holds: Any, what: str) -> Any:
    """`holds`, which must be true."""
    if not holds:
        raise ValueError(what)
    return holds


def broadcast(*shapes: Shape) -> Shape:
    """As numpy broadcasts."""
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    result = []
    for sizes in zip(*padded, strict=True):
        others = set(sizes) - {1}
        wanted(len(others) < 2, f"{shapes} do not broadcast")
        result.append(others.pop() if others else 1)
    return tuple(result)
