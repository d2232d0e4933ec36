"""Reductions, in the form they have since operator set 18 (ReduceSum: 13)."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .interpreter import Node, Tensor, operator


def _prod(x: Tensor, axes: list[int]) -> Tensor:
    for axis in axes:
        x = x.prod(axis, keepdim=True)
    return x


FORMS: dict[str, Callable[[Tensor, list[int]], Tensor]] = {
    "ReduceL1": lambda x, axes: x.abs().sum(axes, keepdim=True),
    "ReduceL2": lambda x, axes: torch.linalg.vector_norm(x, dim=axes, keepdim=True),
    "ReduceLogSum": lambda x, axes: x.sum(axes, keepdim=True).log(),
    "ReduceLogSumExp": lambda x, axes: torch.logsumexp(x, axes, keepdim=True),
    "ReduceMax": lambda x, axes: x.amax(axes, keepdim=True),
    "ReduceMean": lambda x, axes: x.mean(axes, keepdim=True),
    "ReduceMin": lambda x, axes: x.amin(axes, keepdim=True),
    "ReduceProd": _prod,
    "ReduceSum": lambda x, axes: x.sum(axes, keepdim=True),
    "ReduceSumSquare": lambda x, axes: (x * x).sum(axes, keepdim=True),
}


@operator(*FORMS)
def reduce(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    form = FORMS[node.operator]
    if axes is None or not axes.numel():
        if node.get("noop_with_empty_axes", 0):
            return form(x[None], [0])[0]  # each element by itself
        over = list(range(x.ndim))
    else:
        over = sorted(axis % x.ndim for axis in axes.tolist())
    y = form(x, over)
    return y if node.get("keepdims", 1) else y.reshape([size for at, size in enumerate(y.shape) if at not in over])


@operator("ArgMax", "ArgMin")
def extreme_position(node: Node, x: Tensor) -> Tensor:
    function = torch.argmax if node.operator == "ArgMax" else torch.argmin
    return function(x, node.get("axis", 0), keepdim=bool(node.get("keepdims", 1)))
