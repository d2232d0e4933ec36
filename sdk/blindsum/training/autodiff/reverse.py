"""Reverse-mode differentiation of a graph: backward nodes for what the parameters reach, and for nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from blindsum.protocol.errors import BlindsumError

from .graph import Graph
from .recompute import Visit, recompute
from .registry import Backward, find, stops


def reached(graph: Graph, parameters: Sequence[str]) -> set[str]:
    """All values that depend smoothly on a parameter, the parameters included."""
    values = set(parameters)
    for node in graph.nodes:
        if values.intersection(node.input) and not stops(node):
            values.update(node.output)
    values.discard("")
    return values


def differentiate(
    graph: Graph, value: str, seed: str, parameters: Sequence[str], *, held_max: int | None = None
) -> dict[str, str]:
    """Append the backward pass; `seed` is the gradient of the loss for `value`.

    `held_max`: the most bytes per example of forward results that the backward pass may hold (see `recompute`).

    Returns the gradient's name for each parameter that has one: where an operator passes none on (Shape, ArgMax, the
    data-dependent inputs), a parameter is left out. Raises "training-operator-unsupported" with the node, the
    parameters that it blocks and those that can be trained without it.
    """
    active = reached(graph, parameters) & _leading(graph, value)
    forward = [node for node in graph.nodes if active.intersection(node.output)]
    _require_rules(graph, forward, parameters)
    contributions: dict[str, list[str]] = {value: [seed]}
    tape = []
    for node in reversed(forward):
        dys = tuple(_total(graph, contributions.pop(name, [])) for name in node.output)
        if all(dy is None for dy in dys):
            continue
        entry = find(node.op_type, graph.opset)
        assert entry is not None
        start = len(graph.nodes)
        gradients = entry.rule(Backward(graph=graph, node=node, dys=dys, active=active))
        for name, dx in zip(node.input, gradients, strict=False):
            if dx is None or name not in active:
                continue
            reduced = graph.sum_to(dx, node.output[0], name) if entry.broadcast else dx
            contributions.setdefault(name, []).append(reduced)
        tape.append(Visit(dy=next(filter(None, dys)), emitted=range(start, len(graph.nodes))))
    totals = {name: _total(graph, contributions.get(name, [])) for name in parameters}
    found = {name: total for name, total in totals.items() if total is not None}
    if held_max is not None:
        recompute(graph, tape, found.values(), held_max)
    return found


def _leading(graph: Graph, value: str) -> set[str]:
    """All values that `value` depends on, itself included."""
    values = {value}
    for node in reversed(graph.nodes):
        if values.intersection(node.output):
            values.update(filter(None, node.input))
    return values


def _total(graph: Graph, parts: list[str]) -> str | None:
    if len(parts) < 2:
        return parts[0] if parts else None
    return graph.op("Add" if len(parts) == 2 else "Sum", *parts)


def _require_rules(graph: Graph, forward: list[onnx.NodeProto], parameters: Sequence[str]) -> None:
    missing = [node for node in forward if find(node.op_type, graph.opset) is None]
    if not missing:
        return
    blocked: set[str] = set()
    reasons = []
    for node in missing:
        mine = [name for name in parameters if set(node.input) & reached(graph, [name])]
        blocked.update(mine)
        title = f"node {node.name!r} ({node.op_type}, operator set {graph.opset})"
        reasons.append(f"{title} blocks {', '.join(mine)}")
    rest = [name for name in parameters if name not in blocked]
    remainder = f"trainable without it: {', '.join(rest)}" if rest else "no parameter lies behind it"
    raise BlindsumError("training-operator-unsupported", f"{'; '.join(reasons)}; {remainder}")
