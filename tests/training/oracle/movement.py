"""Operators that move elements or state shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence

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


@operator("Squeeze")
def squeeze(_: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(axes.tolist()))


@operator("Unsqueeze")
def unsqueeze(_: Node, x: Tensor, axes: Tensor) -> Tensor:
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes.tolist()):
        x = x.unsqueeze(axis)
    return x


@operator("Concat")
def concat(node: Node, *parts: Tensor) -> Tensor:
    return torch.cat(parts, node.get("axis"))


@operator("Split")
def split(node: Node, x: Tensor, sizes: Tensor | None = None) -> Sequence[Tensor]:
    axis = node.get("axis", 0)
    if sizes is not None:
        return torch.split(x, sizes.tolist(), axis)
    count = node.get("num_outputs", len(node.outputs))
    return torch.split(x, -(-x.shape[axis] // count), axis)


@operator("Slice")
def slice_(_: Node, x: Tensor, starts: Tensor, ends: Tensor, *rest: Tensor | None) -> Tensor:
    axes, steps = [*rest, None, None][:2]
    for at, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        axis = at if axes is None else int(axes[at])
        taken = range(x.shape[axis])[start : end : 1 if steps is None else int(steps[at])]
        x = x.index_select(axis, torch.tensor(list(taken), dtype=torch.int64))
    return x


@operator("Pad")
def pad(node: Node, x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None) -> Tensor:
    mode = node.get("mode", b"constant").decode()
    which = list(range(x.ndim)) if axes is None else axes.tolist()
    for axis, before, after in zip(which, *pads.reshape(2, -1).tolist(), strict=True):
        size = x.shape[axis]
        wanted = torch.arange(-before, size + after)
        inside = (wanted >= 0) & (wanted < size)
        if mode == "reflect" and size > 1:
            wanted = (size - 1) - ((wanted % (2 * size - 2)) - (size - 1)).abs()
        y = x.index_select(axis, wanted % size if mode == "wrap" else wanted.clamp(0, size - 1))
        if mode == "constant":
            filling = torch.zeros((), dtype=x.dtype) if value is None else value.reshape(())
            y = torch.where(inside.reshape([-1] + [1] * (x.ndim - 1 - axis % x.ndim)), y, filling)
        x = y
    return x


@operator("Tile")
def tile(_: Node, x: Tensor, repeats: Tensor) -> Tensor:
    return x.tile(repeats.tolist())


@operator("Expand")
def expand(_: Node, x: Tensor, sizes: Tensor) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, sizes.tolist()))


@operator("Where")
def where(_: Node, condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return torch.where(condition, x, y)


@operator("CastLike")
def cast_like(_: Node, x: Tensor, like: Tensor) -> Tensor:
    return x.to(like.dtype)


@operator("Trilu")
def trilu(node: Node, x: Tensor, k: Tensor | None = None) -> Tensor:
    return (torch.triu if node.get("upper", 1) else torch.tril)(x, 0 if k is None else int(k))


@operator("CumSum")
def cumsum(node: Node, x: Tensor, axis: Tensor) -> Tensor:
    at = int(axis)
    x = x.flip(at) if node.get("reverse", 0) else x
    y = x.cumsum(at) - (x if node.get("exclusive", 0) else 0)
    return y.flip(at) if node.get("reverse", 0) else y


@operator("ReverseSequence")
def reverse_sequence(node: Node, x: Tensor, lengths: Tensor) -> Tensor:
    batch, time = node.get("batch_axis", 1), node.get("time_axis", 0)
    steps = torch.arange(x.shape[time])
    order = [torch.cat([steps[:length].flip(0), steps[length:]]) for length in lengths.tolist()]
    rows = [row.index_select(time - (batch < time), item) for row, item in zip(x.unbind(batch), order, strict=True)]
    return torch.stack(rows, batch)


@operator("Compress")
def compress(node: Node, x: Tensor, condition: Tensor) -> Tensor:
    axis = node.get("axis")
    x, axis = (x.reshape(-1), 0) if axis is None else (x, axis)
    return x.index_select(axis, condition.nonzero().reshape(-1))


@operator("ConstantOfShape")
def constant_of_shape(node: Node, sizes: Tensor) -> Tensor:
    value = node.get("value")
    filling = torch.zeros(()) if value is None else tensor(onnx.numpy_helper.to_array(value)).reshape(())
    return filling.to(torch.float64 if filling.is_floating_point() else filling.dtype).repeat(sizes.tolist())


@operator("EyeLike")
def eye_like(node: Node, x: Tensor) -> Tensor:
    rows, columns = torch.arange(x.shape[0])[:, None], torch.arange(x.shape[1])
    return (columns - rows == node.get("k", 0)).to(x.dtype)


@operator("NonZero")
def non_zero(_: Node, x: Tensor) -> Tensor:
    return x.nonzero().T


@operator("Range")
def range_(_: Node, start: Tensor, limit: Tensor, step: Tensor) -> Tensor:
    return torch.arange(start.item(), limit.item(), step.item())


@operator("Size")
def size(_: Node, x: Tensor) -> Tensor:
    return torch.tensor(x.numel())


@operator("CenterCropPad")
def center_crop(node: Node, x: Tensor, sizes: Tensor) -> Tensor:
    """Crops only; an odd rest is cut at the end."""
    for axis, size in zip(node.get("axes", range(x.ndim)), sizes.tolist(), strict=True):
        x = x.narrow(axis, (x.shape[axis] - size) // 2, size)
    return x
