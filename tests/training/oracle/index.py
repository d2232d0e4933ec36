"""Operators that read or write where an index tensor says."""

from __future__ import annotations

import torch

from .interpreter import Node, Tensor, operator


@operator("Gather")
def gather(node: Node, x: Tensor, indices: Tensor) -> Tensor:
    axis = node.get("axis", 0) % x.ndim
    rows = x.index_select(axis, indices.reshape(-1).long() % x.shape[axis])
    return rows.reshape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


@operator("GatherElements")
def gather_elements(node: Node, x: Tensor, indices: Tensor) -> Tensor:
    axis = node.get("axis", 0)
    return x.gather(axis, indices.long() % x.shape[axis])


@operator("GatherND")
def gather_nd(node: Node, x: Tensor, indices: Tensor) -> Tensor:
    batch = node.get("batch_dims", 0)
    if batch:
        inner = Node(node.operator, {"batch_dims": batch - 1}, node.opset, node.outputs, node.given)
        return torch.stack([gather_nd(inner, *pair) for pair in zip(x, indices, strict=True)])
    return x[tuple(indices.unbind(-1))]


@operator("TopK")
def top_k(node: Node, x: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    return x.topk(int(k), node.get("axis", -1), bool(node.get("largest", 1)))


TORCH_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@operator("ScatterElements")
def scatter_elements(node: Node, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    axis, reduction = node.get("axis", 0), node.get("reduction", b"none").decode()
    indices = indices % x.shape[axis]
    if reduction == "none":
        return x.scatter(axis, indices, updates)
    return x.scatter_reduce(axis, indices, updates, TORCH_REDUCTIONS[reduction])


@operator("ScatterND")
def scatter_nd(node: Node, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    reduction = node.get("reduction", b"none").decode()
    depth = indices.shape[-1]
    flat = torch.zeros(indices.shape[:-1], dtype=torch.int64)  # of each row of x that is written, its number
    for at, length in enumerate(x.shape[:depth]):
        flat = flat * length + indices[..., at] % length
    rows = x.reshape(-1, *x.shape[depth:])
    pieces = updates.reshape(-1, *x.shape[depth:])
    numbers = flat.reshape(-1, *[1] * (pieces.ndim - 1)).expand(pieces.shape)
    if reduction == "none":
        return rows.scatter(0, numbers, pieces).reshape(x.shape)
    return rows.scatter_reduce(0, numbers, pieces, TORCH_REDUCTIONS[reduction]).reshape(x.shape)


@operator("OneHot")
def one_hot(node: Node, indices: Tensor, depth: Tensor, values: Tensor) -> Tensor:
    size, axis = int(depth.item()), node.get("axis", -1) % (indices.ndim + 1)
    wanted = torch.where(indices < 0, indices + size, indices).unsqueeze(axis)
    numbers = torch.arange(size).reshape([-1 if at == axis else 1 for at in range(indices.ndim + 1)])
    return torch.where(wanted == numbers, values[1], values[0])
