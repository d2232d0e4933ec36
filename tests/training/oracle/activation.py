"""Activation functions."""

from __future__ import annotations

import torch

from .interpreter import Node, Tensor, operator


@operator("Relu")
def relu(_: Node, x: Tensor) -> Tensor:
    return torch.relu(x)


@operator("Sigmoid")
def sigmoid(_: Node, x: Tensor) -> Tensor:
    return torch.sigmoid(x)


@operator("Tanh")
def tanh(_: Node, x: Tensor) -> Tensor:
    return torch.tanh(x)


@operator("Softmax")
def softmax(node: Node, x: Tensor) -> Tensor:
    return torch.softmax(x, node.get("axis", -1))


@operator("LogSoftmax")
def log_softmax(node: Node, x: Tensor) -> Tensor:
    return torch.log_softmax(x, node.get("axis", -1))
