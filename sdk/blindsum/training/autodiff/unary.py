"""Rules for functions of one number."""

from __future__ import annotations

import math

from .registry import Backward, Gradients, rule

STEEP = 3e38
"""Takes any normal number beyond 1, so that clipping the product to [-1, 1] gives the sign: faster than Sign."""


@rule("Neg", since=6)
def neg(b: Backward) -> Gradients:
    return [b.op("Neg", b.dy)]


@rule("Abs", since=6)
def absolute(b: Backward) -> Gradients:
    return [b.op("Mul", b.dy, sign(b, b.x[0]))]


@rule("Exp", since=6)
def exp(b: Backward) -> Gradients:
    return [b.op("Mul", b.dy, b.y[0])]


@rule("Log", since=6)
def log(b: Backward) -> Gradients:
    return [b.op("Div", b.dy, b.x[0])]


@rule("Sqrt", since=6)
def sqrt(b: Backward) -> Gradients:
    return [b.op("Mul", b.dy, root_slope(b))]


def root_slope(b: Backward) -> str:
    """1 / (2 y), and nothing at zero.

    The slope there is infinite, and 0 x infinity is NaN: what PyTorch's `std` and `norm` rule out by themselves would
    else come back where a model spells them out with a square root.
    """
    flat = b.mask(b.op("Equal", b.y[0], b.scalar(0.0)))
    half = b.op("Mul", b.op("Sub", b.scalar(1.0), flat), b.scalar(0.5))
    return b.op("Div", half, b.op("Add", b.y[0], flat))


@rule("Reciprocal", since=6)
def reciprocal(b: Backward) -> Gradients:
    return [b.op("Neg", b.op("Mul", b.dy, b.op("Mul", b.y[0], b.y[0])))]


@rule("Erf", since=9)
def erf(b: Backward) -> Gradients:
    """2 / sqrt(pi) exp(-x^2), with the factor inside the exponent: one pass less."""
    exponent = b.op("Sub", b.scalar(math.log(2 / math.sqrt(math.pi))), b.op("Mul", b.x[0], b.x[0]))
    return [b.op("Mul", b.dy, b.op("Exp", exponent))]


@rule("Sin", since=7)
def sin(b: Backward) -> Gradients:
    return [b.op("Mul", b.dy, b.op("Cos", b.x[0]))]


@rule("Cos", since=7)
def cos(b: Backward) -> Gradients:
    return [b.op("Neg", b.op("Mul", b.dy, b.op("Sin", b.x[0])))]


@rule("Tan", since=7)
def tan(b: Backward) -> Gradients:
    return [b.op("Mul", b.dy, b.op("Add", b.op("Mul", b.y[0], b.y[0]), b.scalar(1.0)))]


@rule("Asin", since=7)
def asin(b: Backward) -> Gradients:
    return [b.op("Div", b.dy, _root_of_rest(b))]


@rule("Acos", since=7)
def acos(b: Backward) -> Gradients:
    return [b.op("Neg", b.op("Div", b.dy, _root_of_rest(b)))]


@rule("Atan", since=7)
def atan(b: Backward) -> Gradients:
    return [b.op("Div", b.dy, b.op("Add", b.op("Mul", b.x[0], b.x[0]), b.scalar(1.0)))]


@rule("Sinh", since=9)
def sinh(b: Backward) -> Gradients:
    return [b.op("Mul", b.dy, b.op("Cosh", b.x[0]))]


@rule("Cosh", since=9)
def cosh(b: Backward) -> Gradients:
    return [b.op("Mul", b.dy, b.op("Sinh", b.x[0]))]


@rule("Asinh", since=9)
def asinh(b: Backward) -> Gradients:
    return [b.op("Div", b.dy, b.op("Sqrt", b.op("Add", b.op("Mul", b.x[0], b.x[0]), b.scalar(1.0))))]


@rule("Acosh", since=9)
def acosh(b: Backward) -> Gradients:
    return [b.op("Div", b.dy, b.op("Sqrt", b.op("Sub", b.op("Mul", b.x[0], b.x[0]), b.scalar(1.0))))]


@rule("Atanh", since=9)
def atanh(b: Backward) -> Gradients:
    return [b.op("Div", b.dy, b.op("Sub", b.scalar(1.0), b.op("Mul", b.x[0], b.x[0])))]


def sign(b: Backward, value: str) -> str:
    """-1, 0 or 1."""
    if b.dtype != "float32":
        return b.op("Sign", value)
    return b.op("Clip", b.op("Mul", value, b.scalar(STEEP)), b.scalar(-1.0), b.scalar(1.0))


def _root_of_rest(b: Backward) -> str:
    """sqrt(1 - x^2)"""
    return b.op("Sqrt", b.op("Sub", b.scalar(1.0), b.op("Mul", b.x[0], b.x[0])))
