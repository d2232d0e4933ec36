"""Einsum, Attention and RotaryEmbedding."""

from __future__ import annotations

import math

import torch

from .interpreter import Node, Tensor, operator


@operator("Einsum")
def einsum(node: Node, *operands: Tensor) -> Tensor:
    return torch.einsum(node.get("equation").decode(), *operands)


@operator("Attention")
def attention(
    node: Node,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    past_k: Tensor | None = None,
    past_v: Tensor | None = None,
) -> list[Tensor]:
    packed = q.ndim == 3
    if packed:
        q, k, v = (
            value.unflatten(2, (node.get(f"{kind}_num_heads"), -1)).transpose(1, 2)
            for value, kind in ((q, "q"), (k, "kv"), (v, "kv"))
        )
    if past_k is not None:
        k, v = torch.cat([past_k, k], 2), torch.cat([past_v, v], 2)
    present = [k, v]
    group = q.shape[1] // k.shape[1]
    k, v = (value.repeat_interleave(group, 1) for value in (k, v))
    scores = q @ k.transpose(2, 3) * node.get("scale", 1 / math.sqrt(q.shape[-1]))
    if node.get("softcap", 0.0):
        scores = node.get("softcap") * torch.tanh(scores / node.get("softcap"))
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    if node.get("is_causal", 0):
        scores = scores.masked_fill(torch.ones(scores.shape[2:]).triu(1).bool(), -math.inf)
    y = scores.softmax(-1) @ v
    return [y.transpose(1, 2).flatten(2) if packed else y, *present]


@operator("RotaryEmbedding")
def rotary_embedding(node: Node, x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None = None) -> Tensor:
    packed = x.ndim == 3
    if packed:
        x = x.unflatten(2, (node.get("num_heads"), -1)).transpose(1, 2)
    if positions is not None:
        cos, sin = cos[positions], sin[positions]
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    turned, rest = x.split([2 * cos.shape[-1], x.shape[-1] - 2 * cos.shape[-1]], -1)
    if node.get("interleaved", 0):
        real, imaginary = turned[..., ::2], turned[..., 1::2]
    else:
        real, imaginary = turned.chunk(2, -1)
    parts = real * cos - imaginary * sin, real * sin + imaginary * cos
    turned = torch.stack(parts, -1).flatten(-2) if node.get("interleaved", 0) else torch.cat(parts, -1)
    y = torch.cat([turned, rest], -1)
    return y.transpose(1, 2).flatten(2) if packed else y
