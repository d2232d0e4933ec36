"""Rules for operators that move elements without changing them, and the list of those that pass no gradient on."""

from __future__ import annotations

from .registry import Backward, Gradients, rule, stop


@rule("Identity")
def identity(b: Backward) -> Gradients:
    return [b.dy]


@rule("Flatten", "Reshape", since=5)
def reshape(b: Backward) -> Gradients:
    return [b.graph.reshape_like(b.dy, b.x[0])]


@rule("Transpose")
def transpose(b: Backward) -> Gradients:
    rank = b.rank(b.x[0])
    forward = b.ints("perm", range(rank)[::-1])
    return [b.op("Transpose", b.dy, perm=[forward.index(axis) for axis in range(rank)])]


stop("Shape", "Size", "ArgMax", "ArgMin", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "IsInf", "IsNaN")
stop("Ceil", "Floor", "Round", "Sign")
