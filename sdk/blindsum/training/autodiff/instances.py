"""Normalisation of instances, and of groups as exporters write it, as normalisation of rows.

The kernel of LayerNormalization gives mean and deviation away, which a gradient otherwise has to compute once more in five
passes over the image.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np
import onnx

from .graph import Graph, attribute
from .writer import Writer

ROW_MAX = 1 << 16  # elements of a row, as many as its constant scale has in the artifact


def as_rows(graph: Graph, changing: Collection[str]) -> None:
    """Rewrite InstanceNormalization of `graph` where it gets what training changes: in `changing`."""
    nodes, graph.nodes = graph.nodes, []
    for node in nodes:
        if node.op_type == "InstanceNormalization" and node.input[0] in changing and _fits(graph, node.input[0]):
            _write(graph, node, changing)
        else:
            graph.nodes.append(node)


def _fits(graph: Graph, x: str) -> bool:
    """Float32 images of known sizes that are not too large."""
    sizes = [size for size in graph.shapes.get(x, ())[1:] if isinstance(size, int)]
    known = len(sizes) > 1 and len(sizes) == len(graph.shape(x)) - 1
    return known and math.prod(sizes[1:]) <= ROW_MAX and graph.dtypes.get(x, "float32") == "float32"


def _write(graph: Graph, node: onnx.NodeProto, changing: Collection[str]) -> None:
    (x, scale, bias), y = node.input, node.output[0]
    channels, *plane = (size for size in graph.shape(x)[1:] if isinstance(size, int))
    write, row = Writer(graph, graph.shape(x)[0]), math.prod(plane)
    rows = write.reshaped(x, 0, channels, row) if len(plane) > 1 else x
    rows = write.emit(
        "LayerNormalization", rows, write.constant(np.ones(row)), axis=-1, epsilon=attribute(node, "epsilon", 1e-5)
    )
    for operator, vector, neutral in (("Mul", scale, 1.0), ("Add", bias, 0.0)):
        if vector in changing or vector not in graph.constants or (graph.constants[vector] != neutral).any():
            rows = write.emit(operator, rows, write.reshaped(vector, channels, 1))
    graph.op("Reshape", rows, graph.integers([-1, channels, *plane]), output=y)
