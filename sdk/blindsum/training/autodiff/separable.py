"""Whether a graph treats the rows of a batch apart: row i of its output depends on row i of its inputs and no other.

Then a batch may be worked out in shares, at the same time. What is not known to keep rows apart is taken to mix them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import onnx

from . import sizes
from .graph import Graph, Shape, attribute

Carried = Mapping[int, int]
"""Which inputs of a node hold the batch, and in which dimension."""
_Check = Callable[[Graph, onnx.NodeProto, Carried], bool]


def separable(graph: Graph, output: str, batches: Iterable[str]) -> bool:
    """`batches`: the inputs that hold the batch, in their first dimension, as `output` must."""
    places = dict.fromkeys(batches, 0)
    for node in graph.nodes:
        carried = {at: places[name] for at, name in enumerate(node.input) if name in places}
        if not carried:
            continue
        check = _CHECKS.get(node.op_type)
        if check is None or not check(graph, node, carried):
            return False
        for name in filter(None, node.output):
            place = _place(graph.shapes.get(name))
            if place is None:
                return False
            places[name] = place
    return places.get(output) == 0


def _place(shape: Shape | None) -> int | None:
    """The one dimension that holds the batch, all others being known."""
    places = [at for at, size in enumerate(shape or ()) if not isinstance(size, int)]
    if len(places) != 1 or not isinstance(sizes.of((shape or ())[places[0]]), sizes.Rows):
        return None
    return places[0]


def _pointwise(graph: Graph, node: onnx.NodeProto, carried: Carried) -> bool:
    """Numpy's broadcasting keeps the batch in one place, counted from the end."""
    shapes = [graph.shapes.get(name) for name in (*(node.input[at] for at in carried), node.output[0])]
    ends = {len(shape) - place for shape in shapes if shape is not None and (place := _place(shape)) is not None}
    return len(ends) == 1 and None not in shapes


def _first(graph: Graph, node: onnx.NodeProto, carried: Carried) -> bool:
    """The first input is a batch of examples, the others are weights."""
    return carried == {0: 0} and _place(graph.shapes.get(node.output[0])) == 0


def _along(default: int) -> _Check:
    """The node works along one axis, which is not the batch."""

    def check(graph: Graph, node: onnx.NodeProto, carried: Carried) -> bool:
        axis = attribute(node, "axis", default)
        assert isinstance(axis, int)
        ranks = {at: len(graph.shape(node.input[at])) for at in carried}
        return all(axis % ranks[at] != place for at, place in carried.items()) and len(set(carried.values())) == 1

    return check


def _from(graph: Graph, node: onnx.NodeProto, carried: Carried) -> bool:
    """Normalises over the axes from one on."""
    axis = attribute(node, "axis", -1)
    assert isinstance(axis, int)
    return set(carried) == {0} and axis % len(graph.shape(node.input[0])) > carried[0]


def _reduction(graph: Graph, node: onnx.NodeProto, carried: Carried) -> bool:
    axes = graph.constants.get(node.input[1]) if len(node.input) > 1 else None  # operator set 18: an input
    if axes is None or not axes.size:
        return False
    return set(carried) == {0} and carried[0] not in axes % len(graph.shape(node.input[0]))


def _resized(graph: Graph, node: onnx.NodeProto, carried: Carried) -> bool:
    return set(carried) == {0} and graph.shape(node.input[0])[carried[0]] == graph.shape(node.output[0])[carried[0]]


def _padded(graph: Graph, node: onnx.NodeProto, carried: Carried) -> bool:
    pads, rank = graph.constants.get(node.input[1]), len(graph.shape(node.input[0]))
    if set(carried) != {0} or pads is None or len(pads) != 2 * rank:
        return False
    return not pads[carried[0]] and not pads[rank + carried[0]]


def _sliced(graph: Graph, node: onnx.NodeProto, carried: Carried) -> bool:
    axes = graph.constants.get(node.input[3]) if len(node.input) > 3 else None
    return axes is not None and set(carried) == {0} and carried[0] not in axes % len(graph.shape(node.input[0]))


def _reshaped(graph: Graph, node: onnx.NodeProto, carried: Carried) -> bool:
    """As many elements lie before the batch as did, so that it stays what it was."""
    before, after = graph.shapes.get(node.input[0]), graph.shapes.get(node.output[0])
    place = _place(after)
    if set(carried) != {0} or before is None or after is None or place is None:
        return False
    outside = (math.prod(int(size or 0) for size in shape[:at]) for shape, at in ((before, carried[0]), (after, place)))
    return len(set(outside)) == 1


def _turned(graph: Graph, node: onnx.NodeProto, carried: Carried) -> bool:
    del graph, node, carried
    return True


def _gathered(graph: Graph, node: onnx.NodeProto, carried: Carried) -> bool:
    """Rows of a table by a batch of numbers, or constant places of a batch's rows."""
    return carried.keys() == {1} or _along(0)(graph, node, carried)


def _product(graph: Graph, node: onnx.NodeProto, carried: Carried) -> bool:
    ranks = [len(graph.shape(name)) for name in node.input]
    if carried.keys() == {0}:
        return carried[0] != ranks[0] - 1
    if carried.keys() == {1}:
        return carried[1] != max(ranks[1] - 2, 0)
    return ranks[0] - carried[0] == ranks[1] - carried[1] > 2


def _gemm(graph: Graph, node: onnx.NodeProto, carried: Carried) -> bool:
    del graph
    return carried == {0: 0} and not attribute(node, "transA", 0)


def _recurrent(graph: Graph, node: onnx.NodeProto, carried: Carried) -> bool:
    del graph
    lengths = carried.get(4, 0)
    others = {place for at, place in carried.items() if at != 4}
    return not attribute(node, "layout", 0) and set(carried) <= {0, 4, 5, 6} and (lengths, others) == (0, {1})


def _attention(graph: Graph, node: onnx.NodeProto, carried: Carried) -> bool:
    """Queries, keys and values are batches, masks of four dimensions may be."""
    if 3 in carried and len(graph.shape(node.input[3])) != 4:
        return False
    return {0, 1, 2} <= set(carried) <= {0, 1, 2, 3} and set(carried.values()) == {0}


def _table(check: _Check, operators: str) -> dict[str, _Check]:
    return dict.fromkeys(operators.split(), check)


_CHECKS: dict[str, _Check] = {
    **_table(
        _pointwise,
        "Abs Acos Acosh Add And Asin Asinh Atan Atanh Cast CastLike Ceil Celu Clip Cos Cosh Div Elu Equal Erf Exp Expand "
        "Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Less LessOrEqual Log Max "
        "Mean Min Mish Mod Mul Neg Not Or PRelu Pow Reciprocal Relu Round Selu Sigmoid Sign Sin Sinh Softplus Softsign "
        "Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu Where Xor",
    ),
    **_table(
        _first,
        "AveragePool BatchNormalization Conv ConvTranspose DepthToSpace GlobalAveragePool GlobalLpPool GlobalMaxPool "
        "GroupNormalization InstanceNormalization LRN LpPool MaxPool SpaceToDepth",
    ),
    **_table(_along(-1), "LogSoftmax LpNormalization Softmax"),
    **_table(_along(0), "Concat Split"),
    **_table(_from, "LayerNormalization RMSNormalization"),
    **_table(
        _reduction,
        "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare",
    ),
    **_table(_reshaped, "Flatten Reshape Squeeze Unsqueeze"),
    **_table(_turned, "Transpose"),
    **_table(_recurrent, "GRU LSTM RNN"),
    "Attention": _attention,
    "Gather": _gathered,
    "Gemm": _gemm,
    "MatMul": _product,
    "Pad": _padded,
    "Resize": _resized,
    "Slice": _sliced,
}
