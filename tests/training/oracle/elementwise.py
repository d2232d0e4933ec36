"""Arithmetic, comparisons and logic, element by element."""

from __future__ import annotations

import functools

import torch

from .interpreter import Node, Tensor, operator

UNARY = {
    "Ceil": torch.ceil,
    "Floor": torch.floor,
    "Identity": torch.clone,
    "Neg": torch.neg,
    "Round": torch.round,
    "Sign": torch.sign,
}
BINARY = {
    "Add": torch.add,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Mul": torch.mul,
    "Sub": torch.sub,
}


def _plain(node: Node, *inputs: Tensor) -> Tensor:
    return {**UNARY, **BINARY}[node.operator](*inputs)


operator(*UNARY, *BINARY)(_plain)


@operator("Div")
def div(_: Node, left: Tensor, right: Tensor) -> Tensor:
    return left / right if left.is_floating_point() else torch.div(left, right, rounding_mode="trunc")


@operator("Sum")
def total(_: Node, *inputs: Tensor) -> Tensor:
    return functools.reduce(torch.add, inputs)
