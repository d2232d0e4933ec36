"""Rules for arithmetic that works element by element and broadcasts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .registry import Backward, Gradients, rule
from .unary import root_slope


@rule("Add", since=7, broadcast=True)
def add(b: Backward) -> Gradients:
    return [b.dy, b.dy]


@rule("Sub", since=7)
def sub(b: Backward) -> Gradients:
    return [b.sum_to(b.dy, 0), b.op("Neg", b.sum_to(b.dy, 1))]


@rule("Mul", since=7, broadcast=True)
def mul(b: Backward) -> Gradients:
    return [b.op("Mul", b.dy, b.x[1]), b.op("Mul", b.dy, b.x[0])]


@rule("Div", since=7)
def div(b: Backward) -> Gradients:
    dividend = b.op("Div", b.dy, b.x[1])
    if b.graph.shapes.get(b.x[1]) == b.graph.shapes.get(b.y[0]):
        divisor = b.sum_to(b.op("Mul", dividend, b.y[0]), 1)
    else:  # the division comes after the sum, on what is left
        divisor = b.op("Div", b.sum_to(b.op("Mul", b.dy, b.y[0]), 1), b.x[1])
    return [b.sum_to(dividend, 0), b.op("Neg", divisor)]


@rule("Mod", since=10, broadcast=True)
def mod(b: Backward) -> Gradients:
    """x - y trunc(x / y), as `fmod` has it; the standard knows no other remainder of real numbers."""
    left, right = b.x
    quotient = b.op("Div", b.op("Sub", left, b.y[0]), right)
    return [b.dy, b.op("Neg", b.op("Mul", b.dy, quotient))]


@rule("Sum", since=8, broadcast=True)
def total(b: Backward) -> Gradients:
    return [b.dy] * len(b.x)


@rule("Mean", since=8, broadcast=True)
def mean(b: Backward) -> Gradients:
    return [b.op("Mul", b.dy, b.scalar(1 / len(b.x)))] * len(b.x)


@rule("Max", "Min", since=8, broadcast=True)
def extreme(b: Backward) -> Gradients:
    """Operands that tie share the gradient evenly, as in torch.maximum and torch.amax."""
    if len(b.x) == 1:
        return [b.dy]
    hits = [b.mask(b.op("Equal", x, b.y[0])) for x in b.x]
    share = b.op("Div", b.dy, b.op("Add" if len(hits) == 2 else "Sum", *hits))
    return [b.op("Mul", share, hit) for hit in hits]


@rule("Pow", since=7)
def power(b: Backward) -> Gradients:
    """The slope for a base of zero is torch.pow's: nothing where the exponent is zero, nothing for the exponent."""
    base, exponent = b.x
    fixed = b.known(exponent)
    if fixed is not None:
        slope = _fixed_power(b, fixed)
        return [slope and b.sum_to(b.op("Mul", b.dy, slope), 0), None]
    exponent = b.cast(exponent)
    zero = b.scalar(0.0)
    lower = b.op("Sub", exponent, b.op("Sub", b.scalar(1.0), b.mask(b.op("Equal", exponent, zero))))
    slope = b.op("Mul", exponent, b.op("Pow", base, lower))
    logarithm = b.op("Log", b.op("Add", base, b.mask(b.op("Equal", base, zero))))
    return [
        b.sum_to(b.op("Mul", b.dy, slope), 0),
        b.sum_to(b.op("Mul", b.dy, b.op("Mul", b.y[0], logarithm)), 1),
    ]


def _fixed_power(b: Backward, exponent: NDArray[np.generic]) -> str | None:
    """The slope of base^exponent for the base; None where it is zero everywhere."""
    base, exponents = b.x[0], exponent.astype(np.float64)
    if not exponents.any():
        return None
    if np.all(exponents == 2.0):
        return b.op("Mul", base, b.scalar(2.0))
    if np.all(exponents == 0.5):
        return root_slope(b)
    if np.all(exponents == -1.0):
        return b.op("Neg", b.op("Mul", b.y[0], b.y[0]))
    # where the exponent is 0, 0 * base^1 = 0 also for a base of 0
    lower = b.array(np.where(exponents == 0.0, 1.0, exponents - 1.0))
    return b.op("Mul", b.op("Pow", base, lower), b.array(exponents))
