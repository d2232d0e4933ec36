"""Matrix products."""

from __future__ import annotations

import torch

from .interpreter import Node, Tensor, operator


@operator("MatMul")
def matmul(_: Node, left: Tensor, right: Tensor) -> Tensor:
    return torch.matmul(left, right)


@operator("Gemm")
def gemm(node: Node, left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    left = left.T if node.get("transA", 0) else left
    right = right.T if node.get("transB", 0) else right
    product = node.get("alpha", 1.0) * (left @ right)
    return product if bias is None else product + node.get("beta", 1.0) * bias
