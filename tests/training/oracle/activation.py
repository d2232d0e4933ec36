"""Activation functions."""

from __future__ import annotations

import torch
from torch.nn import functional

from .interpreter import Node, Tensor, operator


@operator("Relu")
def relu(_: Node, x: Tensor) -> Tensor:
    return torch.relu(x)


@operator("LeakyRelu")
def leaky_relu(node: Node, x: Tensor) -> Tensor:
    return functional.leaky_relu(x, node.get("alpha", 0.01))


@operator("PRelu")
def p_relu(_: Node, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x > 0, x, x * slope)


@operator("ThresholdedRelu")
def thresholded_relu(node: Node, x: Tensor) -> Tensor:
    return functional.threshold(x, node.get("alpha", 1.0), 0.0)


@operator("Elu")
def elu(node: Node, x: Tensor) -> Tensor:
    return functional.elu(x, node.get("alpha", 1.0))


@operator("Selu")
def selu(node: Node, x: Tensor) -> Tensor:
    alpha = node.get("alpha", 1.67326319217681884765625)
    return node.get("gamma", 1.05070102214813232421875) * functional.elu(x, alpha)


@operator("Celu")
def celu(node: Node, x: Tensor) -> Tensor:
    return functional.celu(x, node.get("alpha", 1.0))


@operator("Softplus")
def softplus(_: Node, x: Tensor) -> Tensor:
    return functional.softplus(x, threshold=1e9)


@operator("Softsign")
def softsign(_: Node, x: Tensor) -> Tensor:
    return functional.softsign(x)


@operator("Sigmoid")
def sigmoid(_: Node, x: Tensor) -> Tensor:
    return torch.sigmoid(x)


@operator("HardSigmoid")
def hard_sigmoid(node: Node, x: Tensor) -> Tensor:
    return (node.get("alpha", 0.2) * x + node.get("beta", 0.5)).clamp(0.0, 1.0)


@operator("HardSwish")
def hard_swish(_: Node, x: Tensor) -> Tensor:
    return functional.hardswish(x)


@operator("Tanh")
def tanh(_: Node, x: Tensor) -> Tensor:
    return torch.tanh(x)


@operator("Gelu")
def gelu(node: Node, x: Tensor) -> Tensor:
    return functional.gelu(x, approximate=node.get("approximate", b"none").decode())


@operator("Mish")
def mish(_: Node, x: Tensor) -> Tensor:
    return functional.mish(x)


@operator("Swish")
def swish(node: Node, x: Tensor) -> Tensor:
    return x * torch.sigmoid(node.get("alpha", 1.0) * x)


@operator("Softmax")
def softmax(node: Node, x: Tensor) -> Tensor:
    return torch.softmax(x, node.get("axis", -1))


@operator("LogSoftmax")
def log_softmax(node: Node, x: Tensor) -> Tensor:
    return torch.log_softmax(x, node.get("axis", -1))


@operator("Clip")
def clip(_: Node, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    return x if low is None and high is None else torch.clamp(x, low, high)


@operator("Shrink")
def shrink(node: Node, x: Tensor) -> Tensor:
    bias, lambd = node.get("bias", 0.0), node.get("lambd", 0.5)
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, torch.zeros_like(x)))
