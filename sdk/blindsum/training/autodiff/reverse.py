"""Reverse-mode differentiation of a graph: backward nodes for what the parameters reach, and for nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from blindsum.protocol.errors import BlindsumError

from .blocked import refusal, without_rule
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
    missing = {
        at: without_rule(node, graph.opset) for at, node in enumerate(forward) if not find(node.op_type, graph.opset)
    }
    if missing:
        raise refusal(forward, missing, parameters, "training-operator-unsupported")
    contributions: dict[str, list[str]] = {value: [seed]}
    tape = []
    for at, node in reversed(list(enumerate(forward))):
        dys = tuple(_total(graph, contributions.pop(name, [])) for name in node.output)
        if all(dy is None for dy in dys):
            continue
        entry = find(node.op_type, graph.opset)
        assert entry is not None
        start = len(graph.nodes)
        try:
            gradients = entry.rule(Backward(graph=graph, node=node, dys=dys, active=active))
        except BlindsumError as error:
            raise refusal(forward, {at: error.detail}, parameters, error.code) from None
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
