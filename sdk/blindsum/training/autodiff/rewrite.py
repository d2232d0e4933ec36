"""Forward nodes of the train graph written in another way that computes the same and trains faster.

What is measured is in docs/adr/0014 and 0027. The graphs that evaluate and predict stay as the author wrote them: their weights
are constants, for which onnxruntime has faster kernels.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from . import columns, dense, gelu, heads, instances, lengths, narrow, patches, sequence, winograd
from .graph import Graph, Shape, Uses, attribute
from .registry import Backward
from .reverse import reached
from .window import Window, of_conv

MATRIX_MAX = 64 * 64  # inputs x outputs of one channel up to which a depthwise convolution is a matrix product
TAPS_MIN = 9

_RISING = frozenset({"Clip", "Relu", "Sigmoid", "Tanh"})


def rewrite(graph: Graph, output: str, parameters: Sequence[str]) -> None:
    """Rewrite `graph`, all of which leads to `output`. Values that it keeps keep their names."""
    changing = reached(graph, parameters)
    _pool_first(graph, changing)
    lengths.write_out(graph, changing)
    _take_last_states(graph)
    nodes, graph.nodes = graph.nodes, []
    for node in nodes:
        trained = node.op_type == "Conv" and node.input[1] in parameters
        if trained and (window := _small_depthwise(graph, node)) is not None:
            _as_product(graph, node, window)
        else:
            graph.nodes.append(node)
    patches.as_products(graph, parameters)
    winograd.as_products(graph, output, parameters)
    sequence.as_products(graph, output, parameters)
    narrow.as_wide(graph, output, parameters)
    columns.as_columns(graph, output, parameters)
    changing = reached(graph, parameters)
    gelu.write_out(graph, changing)
    instances.as_rows(graph, changing)
    changing = reached(graph, parameters)
    dense.as_products(graph, changing)
    heads.as_columns(graph, changing)


def _pool_first(graph: Graph, changing: Collection[str]) -> None:
    """MaxPool(f(x)) becomes f(MaxPool(x)) for a rising f: f and its gradient then see fewer elements.

    Not where nothing is trained before it: a frozen convolution and f are one kernel.

    Equal maxima that f makes out of different elements share no gradient any more: the one that was larger takes it.
    """
    uses = Uses(graph)
    for pool in [node for node in graph.nodes if node.op_type == "MaxPool" and len(node.output) == 1]:
        rising = uses.maker.get(pool.input[0])
        if rising is None or not _rises(rising) or rising.input[0] not in changing:
            continue
        if uses.only_reader(pool.input[0]) is not pool:
            continue
        pooled, result = graph.fresh("MaxPool"), pool.output[0]
        graph.shapes[pooled] = graph.shape(result)
        pool.input[0], pool.output[0] = rising.input[0], pooled
        rising.input[0], rising.output[0] = pooled, result
        at = graph.nodes.index(pool)
        graph.nodes.remove(rising)
        graph.nodes.insert(at, rising)
        uses.maker[pooled], uses.maker[result] = pool, rising


def _take_last_states(graph: Graph) -> None:
    """Gather(Y, last step) becomes Y_h: a recurrent operator then gets one gradient instead of one for each step."""
    makers = {name: node for node in graph.nodes for name in node.output}
    for node in [node for node in graph.nodes if node.op_type == "Gather"]:
        origin = _of_last_step(graph, makers, node)
        if origin is None:
            continue
        batch, hidden = graph.shape(origin.output[0])[2:]
        if graph.shapes.get(node.output[0]) != (batch, hidden) or isinstance(batch, int):
            continue
        origin.output.extend([""] * (2 - len(origin.output)))
        origin.output[1] = origin.output[1] or graph.fresh("last")
        graph.shapes[origin.output[1]] = (1, batch, hidden)
        node.op_type, node.input[:] = "Squeeze", [origin.output[1], graph.integers([0])]
        node.ClearField("attribute")


def _of_last_step(graph: Graph, makers: Mapping[str, onnx.NodeProto], node: onnx.NodeProto) -> onnx.NodeProto | None:
    """The recurrent node of one direction whose last state `node` gathers, if it does."""
    index, name, axis = graph.constants.get(node.input[1]), node.input[0], attribute(node, "axis", 0)
    while (maker := makers.get(name)) is not None and isinstance(axis, int) and name in graph.shapes:
        axis, given = axis % len(graph.shape(name)), graph.shapes.get(maker.input[0], ())
        if maker.op_type in ("GRU", "LSTM", "RNN"):
            return maker if name == maker.output[0] and axis == 0 and _is_last(graph, maker, index) else None
        if maker.op_type == "Transpose":
            axis = attribute(maker, "perm", [])[axis]  # type: ignore[index]
        elif maker.op_type == "Squeeze" and len(maker.input) > 1 and maker.input[1] in graph.constants:
            gone = {int(each) % len(given) for each in graph.constants[maker.input[1]]}
            axis = [each for each in range(len(given)) if each not in gone][axis]
        elif maker.op_type != "Reshape" or axis or given[:1] != graph.shape(name)[:1] or not isinstance(given[0], int):
            return None
        name = maker.input[0]
    return None


def _is_last(graph: Graph, node: onnx.NodeProto, index: NDArray[np.generic] | None) -> bool:
    """Whether a recurrent node of one direction comes to step `index` last."""
    direction, steps = attribute(node, "direction", b"forward"), graph.shape(node.output[0])[0]
    if index is None or index.shape or any(node.input[4:5]) or not isinstance(steps, int):
        return False
    return direction in (b"forward", b"reverse") and int(index) % steps == (steps - 1 if direction == b"forward" else 0)


def _rises(node: onnx.NodeProto) -> bool:
    slope = attribute(node, "alpha", 0.01)
    return node.op_type in _RISING or (node.op_type == "LeakyRelu" and isinstance(slope, float) and slope >= 0.0)


def _small_depthwise(graph: Graph, node: onnx.NodeProto) -> Window | None:
    """The node's window where it is such a convolution, all its sizes known but the batch."""
    image, weight, result = (graph.shapes.get(name, ()) for name in (*node.input[:2], node.output[0]))
    sizes = [size for size in (*image[2:], *result[2:], *weight) if isinstance(size, int)]
    if len(sizes) < 2 + 3 * (len(weight) - 2) or not weight or weight[:2] != (image[1], 1):
        return None
    window = of_conv(Backward(graph=graph, node=node, dys=(None,)))
    small = math.prod(window.inputs) * math.prod(window.outputs) <= MATRIX_MAX
    return window if small and math.prod(window.kernel) >= TAPS_MIN else None


def _as_product(graph: Graph, node: onnx.NodeProto, window: Window) -> None:
    """y = x T for each channel, with T (inputs, outputs) made of the taps; its gradient is two such products."""
    x, weight = node.input[:2]
    batch, channels = graph.shape(x)[:2]
    assert isinstance(channels, int)
    inputs, outputs, taps = (math.prod(sizes) for sizes in (window.inputs, window.outputs, window.kernel))

    def emit(shape: Shape, operator: str, *given: str, **options: Any) -> str:
        name = graph.op(operator, *given, **options)
        graph.shapes[name] = shape
        return name

    def reshaped(value: str, *sizes: int, **options: Any) -> str:
        return emit(
            (batch if not sizes[0] else sizes[0], *sizes[1:]), "Reshape", value, graph.integers(sizes), **options
        )

    spread = emit((channels, inputs * outputs), "MatMul", reshaped(weight, channels, taps), _places(graph, window))
    turned = emit((channels, batch, inputs), "Transpose", reshaped(x, 0, channels, inputs), perm=[1, 0, 2])
    y = emit((channels, batch, outputs), "MatMul", turned, reshaped(spread, channels, inputs, outputs))
    if len(node.input) > 2 and node.input[2]:
        y = emit((channels, batch, outputs), "Add", y, reshaped(node.input[2], channels, 1, 1))
    y = emit((batch, channels, outputs), "Transpose", y, perm=[1, 0, 2])
    reshaped(y, 0, channels, *window.outputs, output=node.output[0])


def _places(graph: Graph, window: Window) -> str:
    """Where in T each tap stands, (taps, inputs x outputs): 1 where a window's tap covers an input, else 0.

    It is the product of one small table for each axis, and onnxruntime multiplies them once, when it loads the graph.
    """
    rank, places = window.rank, ""
    for axis in range(rank):
        shape = [1] * 3 * rank
        table = window.table(axis)
        shape[axis], shape[rank + axis], shape[2 * rank + axis] = table.shape
        factor = graph.constant(table.reshape(shape))
        places = graph.op("Mul", places, factor) if places else factor
    sizes = [math.prod(window.kernel), math.prod(window.inputs) * math.prod(window.outputs)]
    flat = graph.op("Reshape", places, graph.integers(sizes))
    graph.shapes[flat] = tuple(sizes)
    return flat
