"""Operators that move elements or state shapes."""

from __future__ import annotations

import math

import onnx
import torch

from .interpreter import Node, Tensor, operator, tensor


@operator("Cast")
def cast(node: Node, x: Tensor) -> Tensor:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(node.get("to"))
    return x.to(tensor(torch.zeros(()).numpy().astype(dtype)).dtype)


@operator("Flatten")
def flatten(node: Node, x: Tensor) -> Tensor:
    axis = node.get("axis", 1) % max(x.ndim, 1) if node.get("axis", 1) != x.ndim else x.ndim
    return x.reshape(math.prod(x.shape[:axis]), -1)


@operator("Reshape")
def reshape(node: Node, x: Tensor, wanted: Tensor) -> Tensor:
    sizes = wanted.tolist()
    if not node.get("allowzero", 0):
        sizes = [size or x.shape[at] for at, size in enumerate(sizes)]
    return x.reshape(sizes)


@operator("Shape")
def shape(node: Node, x: Tensor) -> Tensor:
    return torch.tensor(list(x.shape)[slice(node.get("start", 0), node.get("end"))], dtype=torch.int64)


@operator("Transpose")
def transpose(node: Node, x: Tensor) -> Tensor:
    return x.permute(node.get("perm", list(range(x.ndim))[::-1]))
