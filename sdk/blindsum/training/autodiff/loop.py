"""Loops over the rows of sequences, as Scan: the only operator with a body that devices run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
from onnx import helper

from .graph import Graph

Body = Callable[[Graph, list[str], list[str]], tuple[list[str], list[str]]]
"""body(graph, states, rows) -> (next states, result rows). It may read any value that the outer graph has by then."""


def scan(
    graph: Graph,
    states: Sequence[str],
    sequences: Sequence[str],
    body: Body,
    *,
    results: int,
    backwards: bool,
    dtype: str,
) -> tuple[list[str], list[str]]:
    """Run `body` over sequences, whose first axis counts the rows; from the last row to the first if `backwards`.

    States and rows are matrices of `dtype`. Returns the last states and `results` sequences, in the order of the rows.
    """
    inner = graph.inside()
    inputs = [graph.fresh("Scan") for _ in (*states, *sequences)]
    next_states, rows = body(inner, inputs[: len(states)], inputs[len(states) :])
    assert (len(next_states), len(rows), inner.constants) == (len(states), results, {})
    outputs: list[str] = []
    for name in (*next_states, *rows):  # a result is made inside the body, and is one result only
        made = any(name in node.output for node in inner.nodes) and name not in outputs
        outputs.append(name if made else inner.op("Identity", name, output=graph.fresh("Identity")))
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))

    def infos(names: list[str]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(name, kind, [f"{name}.rows", f"{name}.columns"]) for name in names]

    directions = [int(backwards)]
    found = graph.ops(
        "Scan",
        *states,
        *sequences,
        outputs=len(outputs),
        body=helper.make_graph(inner.nodes, "body", infos(inputs), infos(outputs)),
        num_scan_inputs=len(sequences),
        scan_input_directions=directions * len(sequences),
        scan_output_directions=directions * results,
    )
    return found[: len(states)], found[len(states) :]
