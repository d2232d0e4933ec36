"""Runs the nodes of a graph one after another; what each operator does is registered by the other modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

Array = NDArray[Any]
Tensor = torch.Tensor


@dataclass(frozen=True, slots=True)
class Node:
    """What a function may ask of the node that it stands for, beside its inputs."""

    operator: str
    attributes: Mapping[str, Any]
    opset: int
    outputs: Sequence[str]  # '' for one that nobody wants
    given: Sequence[bool]  # for each input, whether it is there

    def get(self, name: str, default: Any = None) -> Any:
        return self.attributes.get(name, default)


Function = Callable[..., Tensor | Sequence[Tensor | None]]
"""f(node, *inputs) -> the output, or all outputs; None stands for an absent input and for an output nobody wants."""

FUNCTIONS: dict[str, Function] = {}


def operator(*names: str) -> Callable[[Function], Function]:
    """Register the function of operators of the standard domain, all their versions alike (`node.opset` tells)."""

    def register(function: Function) -> Function:
        for name in names:
            assert name not in FUNCTIONS, name
            FUNCTIONS[name] = function
        return function

    return register


def tensor(array: Array) -> Tensor:
    """float32 becomes float64; everything else stays as it is."""
    array = np.asarray(array)
    return torch.from_numpy(array.astype(np.float64) if array.dtype == np.float32 else array.copy())


def run(proto: onnx.ModelProto, feeds: Mapping[str, Array | Tensor]) -> dict[str, Tensor]:
    """All values of the graph by name. `feeds` may override initialisers."""
    opset = next(item.version for item in proto.opset_import if item.domain in ("", "ai.onnx"))
    values: dict[str, Tensor] = {item.name: tensor(numpy_helper.to_array(item)) for item in proto.graph.initializer}
    values |= {name: item if isinstance(item, Tensor) else tensor(item) for name, item in feeds.items()}
    for node in proto.graph.node:
        attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        seen = Node(node.op_type, attributes, opset, list(node.output), [bool(name) for name in node.input])
        outputs = FUNCTIONS[node.op_type](seen, *(values[name] if name else None for name in node.input))
        outputs = [outputs] if isinstance(outputs, Tensor) else outputs
        for name, output in zip(node.output, outputs, strict=False):
            if name and output is not None:
                values[name] = output
    return values


def gradients(
    proto: onnx.ModelProto, x: Array, names: Sequence[str], loss: Callable[[Tensor], Tensor]
) -> tuple[Array, list[Array]]:
    """The first output, and autograd's gradients of `loss` of it for the named initialisers (zero for one unused)."""
    stored = {item.name: tensor(numpy_helper.to_array(item)) for item in proto.graph.initializer}
    leaves = {name: stored[name].requires_grad_() for name in names}
    y = run(proto, {proto.graph.input[0].name: x, **leaves})[proto.graph.output[0].name]
    slopes = torch.autograd.grad(loss(y), list(leaves.values()), allow_unused=True, materialize_grads=True)
    return y.detach().numpy(), [slope.numpy() for slope in slopes]
