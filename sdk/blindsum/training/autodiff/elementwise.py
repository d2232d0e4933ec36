"""Rules for arithmetic that works element by element and broadcasts."""

from __future__ import annotations

from .registry import Backward, Gradients, rule


@rule("Add", since=7, broadcast=True)
def add(b: Backward) -> Gradients:
    return [b.dy, b.dy]


@rule("Sub", since=7, broadcast=True)
def sub(b: Backward) -> Gradients:
    return [b.dy, b.op("Neg", b.dy)]


@rule("Mul", since=7, broadcast=True)
def mul(b: Backward) -> Gradients:
    return [b.op("Mul", b.dy, b.x[1]), b.op("Mul", b.dy, b.x[0])]


@rule("Div", since=7, broadcast=True)
def div(b: Backward) -> Gradients:
    dividend = b.op("Div", b.dy, b.x[1])
    return [dividend, b.op("Neg", b.op("Mul", dividend, b.y[0]))]


@rule("Neg", since=6)
def neg(b: Backward) -> Gradients:
    return [b.op("Neg", b.dy)]
