"""Poolings over windows and over all positions."""

from __future__ import annotations

import math

import torch

from .convolution import padded, pads_of
from .interpreter import Node, Tensor, operator


def windows(node: Node, x: Tensor, fill: float) -> Tensor:
    """All windows, (N, C, positions..., elements); `fill` stands for what lies outside."""
    kernel = node.get("kernel_shape")
    rank = len(kernel)
    strides, dilations = node.get("strides", [1] * rank), node.get("dilations", [1] * rank)
    pads = pads_of(node, x.shape[2:], kernel)
    spans = [(k - 1) * gap + 1 for k, gap in zip(kernel, dilations, strict=True)]
    for axis in range(rank):
        first, last = pads[axis]
        steps = (x.shape[2 + axis] + first + last - spans[axis]) / strides[axis]
        count = (math.ceil if node.get("ceil_mode", 0) else math.floor)(steps) + 1
        if (count - 1) * strides[axis] >= x.shape[2 + axis] + first:
            count -= 1  # a window must not begin beyond the image
        pads[axis] = (first, (count - 1) * strides[axis] + spans[axis] - x.shape[2 + axis] - first)
    x = padded(x, pads, fill)
    for axis in range(rank):
        x = x.unfold(2 + axis, spans[axis], strides[axis])[..., :: dilations[axis]]
    return x.flatten(-rank)


@operator("MaxPool")
def max_pool(node: Node, x: Tensor) -> Tensor:
    return windows(node, x, -math.inf).max(-1).values


@operator("AveragePool")
def average_pool(node: Node, x: Tensor) -> Tensor:
    counted = torch.ones_like(x[:1, :1])
    if node.get("count_include_pad", 0):
        counted = padded(counted, pads_of(node, x.shape[2:], node.get("kernel_shape")), 1.0)
        bare = {name: value for name, value in node.attributes.items() if name not in ("pads", "auto_pad")}
        node_of_counts = Node(node.operator, bare, node.opset, node.outputs, node.given)
    else:
        node_of_counts = node
    return windows(node, x, 0.0).sum(-1) / windows(node_of_counts, counted, 0.0).sum(-1)


@operator("LpPool")
def lp_pool(node: Node, x: Tensor) -> Tensor:
    power = node.get("p", 2)
    return windows(node, x.abs() ** power, 0.0).sum(-1) ** (1 / power)


@operator("GlobalAveragePool")
def global_average_pool(_: Node, x: Tensor) -> Tensor:
    return x.mean(tuple(range(2, x.ndim)), keepdim=True)


@operator("GlobalMaxPool")
def global_max_pool(_: Node, x: Tensor) -> Tensor:
    return x.amax(tuple(range(2, x.ndim)), keepdim=True)


@operator("GlobalLpPool")
def global_lp_pool(node: Node, x: Tensor) -> Tensor:
    power = node.get("p", 2)
    return (x.abs() ** power).sum(tuple(range(2, x.ndim)), keepdim=True) ** (1 / power)
