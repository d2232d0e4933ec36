"""Operators written out as simpler ones: by our own definition where it is better, else by the standard's.

The standard defines many operators as functions of others. Any of those that has no gradient rule can be trained through
its definition, and one that devices do not run becomes one that they do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, inliner, numpy_helper

from ..operators import OPERATORS
from ..verify import IR_VERSION
from .graph import attribute

Body = list[onnx.NodeProto]
"""Nodes that read the inputs of the node that they stand for and make its outputs; other names are their own."""

Types = Mapping[str, onnx.TypeProto]

ALLOWED = OPERATORS | {"Constant", "If"}  # a branch that is never taken is dropped later


def expanded(node: onnx.NodeProto, opset: int, types: Types) -> Body | None:
    """What to put in the place of `node`; None where it is not known how. `types` of its inputs."""
    own = _BODIES.get(node.op_type)
    if own is not None:
        return own(node, types)
    try:
        inputs = [helper.make_value_info(name, types[name]) for name in dict.fromkeys(filter(None, node.input))]
        outputs = [helper.make_empty_tensor_value_info(name) for name in node.output if name]
        body = helper.make_graph([_with_defaults(node, opset)], "body", inputs, outputs)
        model = helper.make_model(body, opset_imports=[helper.make_opsetid("", opset)], ir_version=IR_VERSION)
        nodes = inliner.inline_selected_functions(model, [("", node.op_type)], inline_schema_functions=True).graph.node
    except Exception:  # no such operator, or types for which it is not defined: who called names it
        return None
    unknown = any(inner.op_type == node.op_type or inner.op_type not in ALLOWED for inner in nodes)
    return None if unknown else list(nodes)


def dropout(node: onnx.NodeProto, kind: int, ratio: float, noise: str = "", place: int = 0, rank: int = 0) -> Body:
    """x / (1 - ratio) where the uniform `noise` is not below `ratio`, else 0; the second output tells where.

    `place`: the axis of x, of `rank` dimensions, that is the first of `noise`. No noise: x itself, all of it kept.
    """
    x, y, kept = node.input[0], node.output[0], node.output[1] if len(node.output) > 1 and node.output[1] else "kept"
    if not noise:
        return [
            helper.make_node("Identity", [x], [y]),
            _constant("yes", np.array(True)),
            helper.make_node("Shape", [x], ["sizes"]),
            helper.make_node("Expand", ["yes", "sizes"], [kept]),
        ]
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    return [
        _constant("ratio", np.array(ratio, np.float32)),
        _constant("scale", np.array(1.0 / (1.0 - ratio) if ratio < 1.0 else 0.0, dtype)),
        placed(noise, "placed", rank, place),
        helper.make_node("GreaterOrEqual", ["placed", "ratio"], [kept]),
        helper.make_node("Cast", [kept], ["mask"], to=kind),
        helper.make_node("Mul", ["mask", "scale"], ["factor"]),
        helper.make_node("Mul", [x, "factor"], [y]),
    ]


def placed(source: str, target: str, rank: int, place: int) -> onnx.NodeProto:
    """`target` is `source` with its first dimension moved to `place`."""
    if place == 0:
        return helper.make_node("Identity", [source], [target])
    perm = [axis + 1 if axis < place else axis for axis in range(rank)]
    perm[place] = 0
    return helper.make_node("Transpose", [source], [target], perm=perm)


def preferred(operator: str) -> bool:
    """True where our definition, if it has one for the node, is better than the operator itself, trained or not."""
    return operator in _BODIES


def _mean_variance_normalization(node: onnx.NodeProto, types: Types) -> Body:
    """(x - mean) / (deviation + 1e-9); the standard's own body subtracts squares, which loses digits."""
    return [
        _constant("axes", np.array(attribute(node, "axes", [0, 2, 3]))),
        _constant("tiny", np.array(1e-9, np.float32)),
        helper.make_node("ReduceMean", [node.input[0], "axes"], ["mean"]),
        helper.make_node("Sub", [node.input[0], "mean"], ["centred"]),
        helper.make_node("Mul", ["centred", "centred"], ["squared"]),
        helper.make_node("ReduceMean", ["squared", "axes"], ["variance"]),
        helper.make_node("Sqrt", ["variance"], ["deviation"]),
        helper.make_node("Add", ["deviation", "tiny"], ["divisor"]),
        helper.make_node("Div", ["centred", "divisor"], [node.output[0]]),
    ]


def _batch_second(node: onnx.NodeProto, types: Types) -> Body | None:
    """A recurrent operator with layout=1, which onnxruntime does not run, between transpositions."""
    if not attribute(node, "layout", 0):
        return None
    inner, before, after = onnx.NodeProto(), [], []
    inner.CopyFrom(node)
    del inner.attribute[:]
    inner.attribute.extend(item for item in node.attribute if item.name != "layout")
    for at, name in enumerate(node.input):
        if name and at in (0, 5, 6):  # sequence and initial states
            inner.input[at] = f"given{at}"
            before.append(helper.make_node("Transpose", [name], [f"given{at}"], perm=[1, 0, 2]))
    for at, name in enumerate(node.output):
        if name:
            inner.output[at] = f"made{at}"
            order = [1, 0, 2] if at else [2, 0, 1, 3]
            after.append(helper.make_node("Transpose", [f"made{at}"], [name], perm=order))
    return [*before, inner, *after]


def _with_defaults(node: onnx.NodeProto, opset: int) -> onnx.NodeProto:
    """All attributes stated: the definition refers to them."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    given = {item.name for item in node.attribute}
    for name, item in onnx.defs.get_schema(node.op_type, opset, "").attributes.items():
        if name not in given and item.default_value.name:
            copy.attribute.append(item.default_value)
    return copy


_BODIES: dict[str, Callable[[onnx.NodeProto, Types], Body | None]] = {
    "GRU": _batch_second,
    "LSTM": _batch_second,
    "MeanVarianceNormalization": _mean_variance_normalization,
    "RNN": _batch_second,
}


def _constant(name: str, array: NDArray[Any]) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array))
