"""Normalisation, each operator by its definition."""

from __future__ import annotations

import torch

from .interpreter import Node, Tensor, operator


def _by_channel(vector: Tensor, x: Tensor) -> Tensor:
    return vector.reshape(-1, *[1] * (x.ndim - 2))


def _standard(x: Tensor, axes: list[int], epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    mean = x.mean(axes, keepdim=True)
    inverse = ((x - mean) ** 2).mean(axes, keepdim=True).add(epsilon).rsqrt()
    return (x - mean) * inverse, mean, inverse


@operator("BatchNormalization")
def batch_normalization(
    node: Node, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
) -> list[Tensor]:
    epsilon, momentum = node.get("epsilon", 1e-5), node.get("momentum", 0.9)
    if not node.get("training_mode", 0):
        standard = (x - _by_channel(mean, x)) / torch.sqrt(_by_channel(variance, x) + epsilon)
        return [standard * _by_channel(scale, x) + _by_channel(bias, x)]
    axes = [axis for axis in range(x.ndim) if axis != 1]
    standard = _standard(x, axes, epsilon)[0]
    return [
        standard * _by_channel(scale, x) + _by_channel(bias, x),
        mean * momentum + x.mean(axes) * (1 - momentum),
        variance * momentum + x.var(axes, correction=0) * (1 - momentum),
    ]


@operator("LayerNormalization")
def layer_normalization(node: Node, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> list[Tensor]:
    axes = list(range(node.get("axis", -1) % x.ndim, x.ndim))
    standard, mean, inverse = _standard(x, axes, node.get("epsilon", 1e-5))
    y = standard * scale
    return [y if bias is None else y + bias, mean, inverse]


@operator("InstanceNormalization")
def instance_normalization(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    standard = _standard(x, list(range(2, x.ndim)), node.get("epsilon", 1e-5))[0]
    return standard * _by_channel(scale, x) + _by_channel(bias, x)


@operator("GroupNormalization")
def group_normalization(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    groups = node.get("num_groups")
    rows = x.reshape(x.shape[0], groups, -1)
    standard = _standard(rows, [2], node.get("epsilon", 1e-5))[0].reshape(x.shape)
    return standard * _by_channel(scale, x) + _by_channel(bias, x)


@operator("RMSNormalization")
def rms_normalization(node: Node, x: Tensor, scale: Tensor) -> Tensor:
    axes = list(range(node.get("axis", -1) % x.ndim, x.ndim))
    return x / torch.sqrt((x * x).mean(axes, keepdim=True) + node.get("epsilon", 1e-5)) * scale


@operator("MeanVarianceNormalization")
def mean_variance_normalization(node: Node, x: Tensor) -> Tensor:
    axes = node.get("axes", [0, 2, 3])
    return (x - x.mean(axes, keepdim=True)) / (x.std(axes, correction=0, keepdim=True) + 1e-9)


@operator("LpNormalization")
def lp_normalization(node: Node, x: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(x, node.get("p", 2), dim=node.get("axis", -1), keepdim=True)
    return torch.where(norm == 0, 0.0, x / norm)


@operator("LRN")
def local_response_normalization(node: Node, x: Tensor) -> Tensor:
    size, channels = node.get("size"), x.shape[1]
    sums = [
        (x * x)[:, max(0, at - (size - 1) // 2) : min(channels, at + size // 2 + 1)].sum(1) for at in range(channels)
    ]
    root = node.get("bias", 1.0) + node.get("alpha", 1e-4) / size * torch.stack(sums, 1)
    return x / root ** node.get("beta", 0.75)
