"""Quantisation, with the straight-through gradient. Quantised values are float64 tensors that hold integers."""

from __future__ import annotations

import torch

from .interpreter import Node, Tensor, operator


def _along(node: Node, value: Tensor | None, x: Tensor) -> Tensor:
    if value is None:
        return x.new_zeros(())
    return value.double().reshape([-1] + [1] * (x.ndim - 1 - node.get("axis", 1) % x.ndim)) if value.ndim else value


@operator("QuantizeLinear")
def quantize_linear(node: Node, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    kind = torch.iinfo(torch.uint8 if zero is None else zero.dtype)
    exact = x / _along(node, scale, x) + _along(node, zero, x)
    whole = exact.round()
    inside = (whole >= kind.min) & (whole <= kind.max)
    return torch.where(inside, exact + (whole - exact).detach(), whole.clamp(kind.min, kind.max).detach())


@operator("DequantizeLinear")
def dequantize_linear(node: Node, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    return (x.double() - _along(node, zero, x)) * _along(node, scale, x)
