"""A PyTorch module and its ONNX export side by side: whose number is whose, gradients and losses of the former."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from blindsum.bench.zoo import Example

Array = NDArray[Any]
Places = dict[str, NDArray[np.int64]]
"""For each tensor of an ONNX model, where its elements stand in the flat vector of the module's parameters."""


def distinguish(module: nn.Module) -> None:
    """Move all parameters a little, so that no two are the same number and none is zero."""
    dice = np.random.default_rng(2)
    values = nn.utils.parameters_to_vector(module.parameters()).detach().numpy()
    values = (values + 0.02 * dice.normal(size=values.size)).astype(np.float32)
    while True:
        _, first = np.unique(values, return_index=True)
        again = np.ones(values.size, bool)
        again[first] = False
        if not again.any():
            break
        values[again] = np.nextafter(values[again], np.float32(np.inf))
    with torch.no_grad():
        nn.utils.vector_to_parameters(torch.from_numpy(values), module.parameters())


def places(model: onnx.ModelProto, module: nn.Module) -> Places:
    """Find the parameters of `module`, all different numbers, in `model` by value.

    However an exporter names, transposes, splits or packs them, each must be there once.
    """
    flat = nn.utils.parameters_to_vector(module.parameters()).detach().numpy()
    order = np.argsort(flat)
    found: Places = {}
    for item in model.graph.initializer:
        array = numpy_helper.to_array(item)
        if array.dtype == np.float32 and array.size:
            at = order[np.searchsorted(flat, array.ravel(), sorter=order).clip(max=flat.size - 1)]
            if np.array_equal(flat[at], array.ravel()):
                found[item.name] = at
    counts = np.bincount(np.concatenate(list(found.values())), minlength=flat.size)
    assert (counts == 1).all(), (
        f"{np.count_nonzero(counts == 0)} parameters lost, {np.count_nonzero(counts > 1)} doubled"
    )
    return found


def gradient(
    example: Example, module: nn.Module, inputs: Sequence[Array], targets: Array
) -> tuple[float, NDArray[np.float64]]:
    """Loss and gradient for all parameters by autograd in float64, where rounding is out of the question."""
    module = copy.deepcopy(module).double()
    loss = example.torch_loss(module(*_tensors(inputs, torch.float64)), *_tensors([targets], torch.float64))
    parts = torch.autograd.grad(loss, list(module.parameters()))
    return loss.item(), np.concatenate([part.numpy().ravel() for part in parts])


def losses(
    example: Example,
    module: nn.Module,
    optimiser: torch.optim.Optimizer,
    batches: Sequence[tuple[Sequence[Array], Array]],
) -> list[float]:
    """Train `module` in float32 on each batch once; the losses before each step."""
    values = []
    for inputs, targets in batches:
        optimiser.zero_grad()
        loss = example.torch_loss(module(*_tensors(inputs, torch.float32)), *_tensors([targets], torch.float32))
        loss.backward()
        optimiser.step()
        values.append(loss.item())
    return values


def _tensors(arrays: Sequence[Array], dtype: torch.dtype) -> list[Tensor]:
    tensors = [torch.from_numpy(array) for array in arrays]
    return [tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in tensors]
