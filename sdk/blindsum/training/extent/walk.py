"""From a graph and a size of the batch to the extent of every value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from blindsum.protocol.errors import BlindsumError

from ..protobuf import DTYPES, RANK_MAX, Graph, Model, Node
from . import movement, plain, product, window  # noqa: F401  (each registers its rules)
from .call import RULES, Call, Shape, Value, wanted
from .known import SIZE_MAX, known

ELEMENTS_MAX = 1 << 31  # of one value

_BOOLEAN = frozenset(
    {"And", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual", "Not", "Or", "Xor"}
)
_INT64 = frozenset({"ArgMax", "ArgMin", "NonZero", "Shape", "Size"})
_INT32 = frozenset({"ConvInteger", "MatMulInteger"})
_FROM_INPUT = {"Where": 1, "OneHot": 2, "CastLike": 1, "DequantizeLinear": 1, "QLinearConv": 7, "QLinearMatMul": 7}
"""Operators whose outputs have the type of another input than the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """What a run holds and does, for one size of the batch.

    `values` by name. `work`: elements touched, and multiplications beyond that. `peak`: bytes of what is alive at once,
    inputs included, when the nodes run in their order and no buffer is used twice.
    """

    values: Mapping[str, Value] = field(repr=False)
    work: int
    peak: int


def operators() -> frozenset[str]:
    """The operators that have a rule."""
    return frozenset(RULES)


def constant(array: NDArray[np.generic]) -> Value:
    """An array as a value, known where it is small."""
    return Value(array.dtype.name, array.shape, array if array.size <= SIZE_MAX else None)


def extent_of(model: Model, constants: Mapping[str, Value], batch: int, label: str) -> Extent:
    """Walk through a graph of checked operators.

    `constants`: what the graph may read beside its inputs. Raises `BlindsumError` "training-artifact-malformed"
    where shapes do not fit together or outputs are not of their declared shape, "training-artifact-too-large".
    """
    used = {name for node in model.every_node() for name in node.inputs}
    values = {name: value for name, value in constants.items() if name in used}
    for item in model.inputs:
        values[item.name] = Value(item.dtype, _at(item.shape, batch))
    fixed = sum(value.bytes for value in values.values())
    work, peak = _run(model, model.opsets[0][1], values, f"{label} graph")
    for item in model.outputs:
        value = values[item.name]
        if (value.dtype, value.shape) != (item.dtype, _at(item.shape, batch)):
            detail = f"{label} graph: output {item.name} is {value.dtype} of shape {value.shape}, not as declared"
            raise BlindsumError("training-artifact-malformed", detail)
    return Extent(values=values, work=work, peak=fixed + peak)


def _run(graph: Graph, opset: int, values: dict[str, Value], label: str) -> tuple[int, int]:
    """Add what the nodes make to `values`; returns their work, and the bytes that are alive at once of what they make."""
    work = alive = peak = 0
    last: dict[str, int] = {}
    for number, node in enumerate(graph.nodes):
        read = node.inputs if node.body is None else [*node.inputs, *(n for one in node.body.nodes for n in one.inputs)]
        last.update((name, number) for name in read if name)
    last.update((item.name, len(graph.nodes)) for item in graph.outputs)
    ends: dict[int, list[str]] = {}
    for number, node in enumerate(graph.nodes):
        for name in filter(None, node.outputs):
            ends.setdefault(last.get(name, number), []).append(name)
    for number, node in enumerate(graph.nodes):
        made, more, inside = _call(node, opset, values, f"{label}: {node.operator}")
        values.update((name, value) for name, value in zip(node.outputs, made, strict=True) if name)
        work += more
        alive += sum(value.bytes for value in made)
        peak = max(peak, alive + inside)
        alive -= sum(values[name].bytes for name in ends.get(number, ()))
        alive -= sum(value.bytes for name, value in zip(node.outputs, made, strict=True) if not name)
    return work, peak


def _call(node: Node, opset: int, values: dict[str, Value], where: str) -> tuple[list[Value], int, int]:
    """What the node makes, its work, and the bytes that are alive at once inside it."""
    call = Call(node, opset, [values[name] if name else None for name in node.inputs])
    inside = 0
    try:
        if node.body is not None:
            made, inside = _scan(call, node.body, values, where)
        else:
            shapes = RULES[node.operator](call)
            made = [_output(call, at, shape) for at, shape in zip(range(len(node.outputs)), shapes, strict=False)]
    except BlindsumError as error:
        raise BlindsumError(
            error.code, error.detail if error.detail.startswith(where) else f"{where}: {error.detail}"
        ) from None
    except (LookupError, ValueError, TypeError, ArithmeticError, AttributeError) as error:
        raise BlindsumError("training-artifact-malformed", f"{where}: {error}") from None
    if len(made) != len(node.outputs):
        raise BlindsumError("training-artifact-malformed", f"{where} with {len(node.outputs)} outputs")
    for value in made:
        if value.size > ELEMENTS_MAX or len(value.shape) > RANK_MAX:
            raise BlindsumError("training-artifact-too-large", f"{where} to shape {value.shape}")
    return made, call.work + sum(value.size for value in (*made, *filter(None, call.inputs))), inside


def _scan(call: Call, body: Graph, values: dict[str, Value], where: str) -> tuple[list[Value], int]:
    """The body runs once for each slice of the last inputs; its first outputs are the next states, the others rows."""
    number = call.integer("num_scan_inputs")
    wanted(1 <= number <= len(call.inputs), "num_scan_inputs")
    states = len(call.inputs) - number
    axes = call.ints("scan_input_axes", [0] * number)
    wanted(len(axes) == number, "scan_input_axes")
    lengths = set()
    for at, item in enumerate(body.inputs):
        value = call.value(at)
        if at >= states:
            axis = call.axis(axes[at - states], len(value.shape))
            lengths.add(value.shape[axis])
            value = Value(value.dtype, value.shape[:axis] + value.shape[axis + 1 :])
        values[item.name] = Value(value.dtype, value.shape)
        wanted(values[item.name].dtype == item.dtype, "types")
    wanted(len(lengths) == 1, "lengths")
    (steps,) = lengths
    work, peak = _run(body, call.opset, values, where)
    call.work = work * steps
    made = []
    axes = call.ints("scan_output_axes", [0] * (len(body.outputs) - states))
    wanted(len(body.outputs) == states + len(axes), "outputs")
    for at, item in enumerate(body.outputs):
        value = values[item.name]
        wanted(value.dtype == item.dtype, "types")
        if at < states:
            wanted(
                (value.dtype, value.shape) == (call.value(at).dtype, call.shape(at)), "a state that changes its shape"
            )
            made.append(Value(value.dtype, value.shape))
        else:
            axis = call.axis(axes[at - states], len(value.shape) + 1)
            made.append(Value(value.dtype, (*value.shape[:axis], steps, *value.shape[axis:])))
    return made, peak + sum(values[item.name].bytes for item in body.inputs)


def _at(shape: Iterable[int | str], batch: int) -> Shape:
    return tuple(batch if isinstance(size, str) else size for size in shape)


def _output(call: Call, at: int, shape: Shape) -> Value:
    dtype = _dtype(call, at)
    small = at == 0 and len(call.node.outputs) == 1
    return Value(dtype, shape, known(call, shape, dtype) if small else None)


def _dtype(call: Call, at: int) -> str:
    operator = call.node.operator
    if operator in _BOOLEAN:
        return "bool"
    if operator in _INT64 or (at == 1 and operator in ("TopK", "MaxPool")):
        return "int64"
    if operator in _INT32:
        return "int32"
    if operator == "Cast" or (operator in ("EyeLike", "DequantizeLinear") and _stated(call) is not None):
        return DTYPES[call.integer(_stated(call) or "to")]
    if operator == "QuantizeLinear":
        return call.value(2).dtype if call.given(2) else DTYPES[call.integer("output_dtype", 0) or 2]
    if operator == "DynamicQuantizeLinear":
        return "float32" if at == 1 else "uint8"
    if operator == "ConstantOfShape":
        value = call.node.attributes.get("value")
        return value.dtype.name if isinstance(value, np.ndarray) else "float32"
    return call.value(_FROM_INPUT.get(operator, 0)).dtype


def _stated(call: Call) -> str | None:
    """The attribute that states the type of the output."""
    return next((name for name in ("to", "dtype", "output_dtype") if call.node.attributes.get(name)), None)
