"""The arithmetic that exporters do on shapes, on sizes that may depend on the batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import TensorProto, numpy_helper

from . import sizes
from .graph import attribute
from .sizes import Size

ITEMS_MAX = 1 << 10


@dataclass(frozen=True, slots=True)
class Vector:
    """An integer or bool tensor of rank 0 or 1 whose elements may depend on the batch."""

    items: tuple[Size, ...]
    scalar: bool
    kind: int  # TensorProto.DataType


def evaluate(
    node: onnx.NodeProto, shape: Callable[[str], Sequence[Size] | None], vectors: Mapping[str, Vector]
) -> Sequence[Size] | None:
    """The elements of the node's output, None where they are not known or it is no operator for shapes.

    `shape`: the sizes of a value; `vectors`: the elements of those whose elements are known.
    """
    if node.op_type in ("Shape", "Size"):
        given = shape(node.input[0])
        if given is None:
            return None
        if node.op_type == "Size":
            return [sizes.product(given)]
        return given[_integer(node, "start", 0) : _integer(node, "end", len(given))]
    if any(name and name not in vectors for name in node.input):
        return None
    inputs = [vectors[name].items if name else () for name in node.input]
    if node.op_type in _BINARY:
        found: Sequence[Size] | None = inputs[0]
        for other in inputs[1:]:
            found = None if found is None else _paired(_BINARY[node.op_type], found, other)
        return found
    function = _OTHERS.get(node.op_type)
    return function(node, inputs) if function else None


def _integer(node: onnx.NodeProto, name: str, default: int) -> int:
    value = attribute(node, name, default)
    assert isinstance(value, int)
    return value


Inputs = Sequence[tuple[Size, ...]]
Function = Callable[[onnx.NodeProto, Inputs], Sequence[Size] | None]


def _paired(function: Callable[[Size, Size], Size], a: Sequence[Size], b: Sequence[Size]) -> list[Size] | None:
    length = max(len(a), len(b)) if a and b else 0
    if len(a) not in (1, length) or len(b) not in (1, length):
        return None
    return [function(a[at % len(a)], b[at % len(b)]) for at in range(length)]


def _both(a: Size, b: Size) -> Size:
    return None if a is None or b is None else int(bool(a) and bool(b))


def _either(a: Size, b: Size) -> Size:
    return None if a is None or b is None else int(bool(a) or bool(b))


def _equal(a: Size, b: Size) -> Size:
    same = sizes.same(a, b)
    return None if same is None else int(same)


def _unchanged(_node: onnx.NodeProto, inputs: Inputs) -> Sequence[Size]:
    return inputs[0]


def _cast(node: onnx.NodeProto, inputs: Inputs) -> Sequence[Size] | None:
    kind = attribute(node, "to")
    if kind == TensorProto.BOOL:
        return [None if item is None else int(item != 0) for item in inputs[0]]
    return inputs[0] if kind in (TensorProto.INT64, TensorProto.INT32) else None


def _concat(_node: onnx.NodeProto, inputs: Inputs) -> Sequence[Size]:
    return [item for items in inputs for item in items]


def _gather(node: onnx.NodeProto, inputs: Inputs) -> Sequence[Size] | None:
    items, indices = inputs
    if not all(isinstance(index, int) and -len(items) <= index < len(items) for index in indices):
        return None
    return [items[index] for index in indices if isinstance(index, int)]


def _slice(_node: onnx.NodeProto, inputs: Inputs) -> Sequence[Size] | None:
    items, start, end = inputs[:3]
    step: tuple[Size, ...] = inputs[4] if len(inputs) > 4 and inputs[4] else (1,)
    bounds = [one[0] for one in (start, end, step) if len(one) == 1 and isinstance(one[0], int)]
    return items[slice(*bounds)] if len(bounds) == 3 else None


def _where(_node: onnx.NodeProto, inputs: Inputs) -> Sequence[Size] | None:
    condition, yes, no = inputs
    length = max(map(len, inputs))
    if any(len(items) not in (1, length) for items in inputs):
        return None
    chosen: list[Size] = []
    for at in range(length):
        test, a, b = condition[at % len(condition)], yes[at % len(yes)], no[at % len(no)]
        chosen.append((a if test else b) if test is not None else a if a == b else None)
    return chosen


def _filled(node: onnx.NodeProto, inputs: Inputs) -> Sequence[Size] | None:
    value = attribute(node, "value")
    number = int(numpy_helper.to_array(value).item()) if isinstance(value, onnx.TensorProto) else 0
    length = inputs[0][0] if len(inputs[0]) == 1 else 1 if not inputs[0] else None
    return [number] * length if isinstance(length, int) and 0 <= length <= ITEMS_MAX else None


def _expand(_node: onnx.NodeProto, inputs: Inputs) -> Sequence[Size] | None:
    items, wanted = inputs
    length = wanted[0] if len(wanted) == 1 else None
    if not isinstance(length, int) or length > ITEMS_MAX or len(items) not in (1, length):
        return items if wanted in ((1,), ()) else None
    return list(items) * length if len(items) == 1 else items


def _negated(_node: onnx.NodeProto, inputs: Inputs) -> Sequence[Size]:
    return [-item if isinstance(item, int) else None for item in inputs[0]]


def _not(_node: onnx.NodeProto, inputs: Inputs) -> Sequence[Size]:
    return [None if item is None else int(item == 0) for item in inputs[0]]


def _product(_node: onnx.NodeProto, inputs: Inputs) -> Sequence[Size]:
    return [sizes.product(inputs[0])]


_BINARY: dict[str, Callable[[Size, Size], Size]] = {
    "Add": sizes.plus,
    "And": _both,
    "Div": sizes.over,
    "Equal": _equal,
    "Max": sizes.larger,
    "Min": sizes.smaller,
    "Mul": sizes.times,
    "Or": _either,
    "Sub": sizes.minus,
}
_OTHERS: dict[str, Function] = {
    "Cast": _cast,
    "Concat": _concat,
    "ConstantOfShape": _filled,
    "Expand": _expand,
    "Gather": _gather,
    "Neg": _negated,
    "Not": _not,
    "ReduceProd": _product,
    "Reshape": _unchanged,
    "Slice": _slice,
    "Squeeze": _unchanged,
    "Unsqueeze": _unchanged,
    "Where": _where,
}
