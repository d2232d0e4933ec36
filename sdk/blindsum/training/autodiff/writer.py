"""Nodes that take the place of forward ones, emitted together with the shapes of what they make."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import sizes
from .graph import Dimension, Graph


class Writer:
    """Emits nodes with the shapes of what they make, for rules to see."""

    def __init__(self, graph: Graph, batch: Dimension) -> None:
        self._graph, self._batch = graph, batch

    def constant(self, matrix: NDArray[np.floating[Any]]) -> str:
        name = self._graph.constant(np.ascontiguousarray(matrix, np.float32))
        self._graph.shapes[name] = matrix.shape
        return name

    def reshaped(self, value: str, *wanted: int) -> str:
        """0 stands for the dimension that holds the batch, with what is left of the others."""
        given = self._graph.shape(value)
        if 0 not in wanted:
            return self.emit("Reshape", value, self._graph.integers(wanted), shape=wanted)
        left = math.prod(_factor(size) for size in given) // math.prod(size for size in wanted if size)
        last = sizes.dimension(sizes.times(left, sizes.of(self._batch)))
        shape = [size or last for size in wanted]
        return self.emit("Reshape", value, self._graph.integers([size or -1 for size in wanted]), shape=shape)

    def repeated(self, bias: str, count: int) -> str:
        """A vector so many times, one after the other: onnxruntime adds long rows faster."""
        (size,) = self._graph.shape(bias)
        assert isinstance(size, int)
        rows = self.emit("Expand", bias, self._graph.integers([count, size]), shape=(count, size))
        return self.reshaped(rows, count * size)

    def emit(
        self, operator: str, *given: str, shape: Sequence[Dimension] = (), output: str | None = None, **options: Any
    ) -> str:
        name = self._graph.op(operator, *given, output=output, **options)
        first = self._graph.shape(given[0])
        if operator == "MatMul":
            shape = (*self._graph.shape(given[1])[:-2], first[-2], self._graph.shape(given[1])[-1])
        elif operator == "Transpose":
            shape = [first[axis] for axis in options["perm"]]
        self._graph.shapes[name] = tuple(shape) or first
        return name


def _factor(size: Dimension) -> int:
    """Of the batch, or the size itself."""
    known = sizes.of(size)
    return known.factor if isinstance(known, sizes.Rows) else known or 0
