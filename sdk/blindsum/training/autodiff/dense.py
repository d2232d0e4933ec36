"""Dense layers over the last axis of sequences as one Gemm over all positions, with what scales values next to them.

onnxruntime adds the bias of a Gemm while it multiplies, that of a MatMul in a pass of its own. What scales activations can
scale the weight instead, which is smaller: the scale of a LayerNormalization that only such layers read, while its bias,
multiplied by the weight, joins theirs; and a constant factor on either side, such as those of `gelu`. The gradient of what
is left of the normalisation takes half as many passes.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx

from .graph import Graph, Uses, factor_of
from .writer import Writer

EXAMPLES = 8  # whose positions pay for passes over a weight where they are no fewer than its outputs, or its inputs


def as_products(graph: Graph, changing: Collection[str]) -> None:
    """Rewrite such layers of `graph` where they make what is `changing` while it trains."""
    layers = _Layers(graph, changing)
    nodes, graph.nodes = graph.nodes, []
    for node in nodes:
        y = node.output[0]
        if y in layers.by_result:
            _write(graph, layers.by_result[y])
        elif y in layers.norms:
            graph.nodes.append(_standard(graph, node))
        elif id(node) not in layers.nodes:
            graph.nodes.append(node)


@dataclass(slots=True)
class _Layer:
    """y = behind (before x w + b), and x, where a `norm` makes it, without its scale and bias, which w and b then take."""

    x: str
    weight: str
    y: str
    bias: str = ""
    before: float = 1.0
    behind: float = 1.0
    norm: onnx.NodeProto | None = None


class _Layers:
    """`by_result`: the layers by what they make. `norms`: values that normalisations make for layers only.

    `nodes`: those that the layers stand for.
    """

    def __init__(self, graph: Graph, changing: Collection[str]) -> None:
        self._graph, self._changing = graph, changing
        self._uses = Uses(graph)
        products = [node for node in graph.nodes if self._is_product(node)]
        self._paying = {id(node) for node in products if self._pays(node, 1)}
        self.by_result: dict[str, _Layer] = {}
        self.nodes: set[int] = set()
        for node in products:
            self._add(node)
        self.norms = {layer.x for layer in self.by_result.values() if layer.norm is not None}

    def _add(self, node: onnx.NodeProto) -> None:
        layer = _Layer(x=node.input[0], weight=node.input[1], y=node.output[0])
        self.nodes.add(id(node))
        behind = self._uses.only_reader(layer.y)
        if behind is not None and (bias := self._bias(behind, layer.y)):
            layer.bias, layer.y = bias, behind.output[0]
            self.nodes.add(id(behind))
        before = self._uses.maker.get(layer.x)
        if before is not None and id(before) not in self.nodes and self._only_layers_read(layer.x):
            value, factor = self._factor(before)
            if self._is_norm(before):
                layer.norm = before
            elif factor:
                layer.x, layer.before = value, factor
        behind = self._uses.only_reader(layer.y)
        if behind is not None and self._pays(node, 0) and (factor := self._factor(behind)[1]):
            layer.y, layer.behind = behind.output[0], factor
            self.nodes.add(id(behind))
        self.by_result[layer.y] = layer

    def _is_product(self, node: onnx.NodeProto) -> bool:
        """Of sequences, sizes known but the first, with one matrix."""
        if node.op_type != "MatMul" or node.output[0] not in self._changing:
            return False
        shapes, dtypes = self._graph.shapes, self._graph.dtypes
        x, weight = (shapes.get(name, ()) for name in node.input)
        known = isinstance(x[0], str) and all(isinstance(size, int) for size in x[1:]) if len(x) > 2 else False
        return (
            known
            and len(weight) == 2
            and node.input[1] in self._graph.constants
            and dtypes.get(node.output[0], "float32") == "float32"
        )

    def _pays(self, product: onnx.NodeProto, axis: int) -> bool:
        """Whether its weights are trained, and along that axis no more than the positions of a few examples.

        Weights that never change are laid out in advance, and nobody needs their gradient.
        """
        weights: int = self._graph.constants[product.input[1]].shape[axis]
        return (
            product.input[1] in self._changing
            and EXAMPLES * math.prod(int(size or 0) for size in self._graph.shape(product.input[0])[1:-1]) >= weights
        )

    def _only_layers_read(self, name: str) -> bool:
        """And all those can take something over."""
        return all(id(reader) in self._paying for reader in self._uses.readers[name])

    def _bias(self, node: onnx.NodeProto, y: str) -> str:
        """What `node` adds to the outputs of a layer, '' where it does something else."""
        if node.op_type != "Add":
            return ""
        other = node.input[1] if node.input[0] == y else node.input[0]
        known = other in self._graph.constants and self._graph.shape(other) == self._graph.shape(y)[-1:]
        return other if known else ""

    def _factor(self, node: onnx.NodeProto) -> tuple[str, float]:
        """Which value `node` multiplies by which constant; 0 where it does something else."""
        for value in node.input:
            if factor := factor_of(self._graph, node, value, self._changing):
                return value, factor
        return "", 0.0

    def _is_norm(self, node: onnx.NodeProto) -> bool:
        """With a scale and bias that are not computed."""
        if node.op_type != "LayerNormalization" or node.input[0] not in self._changing:
            return False
        last = self._graph.shape(node.output[0])[-1:]
        return all(name in self._graph.constants and self._graph.shape(name) == last for name in node.input[1:])


def _standard(graph: Graph, norm: onnx.NodeProto) -> onnx.NodeProto:
    """The normalisation without its scale and bias."""
    plain = onnx.NodeProto()
    plain.CopyFrom(norm)
    plain.input[1:] = [graph.constant(np.ones_like(graph.constants[norm.input[1]]))]
    return plain


def _write(graph: Graph, layer: _Layer) -> None:
    batch, *places = graph.shape(layer.x)[:-1]
    inputs, outputs = (int(size or 0) for size in graph.shape(layer.weight))
    write = Writer(graph, batch)

    def scaled(value: str, factor: float) -> str:
        return value if not value or factor == 1.0 else write.emit("Mul", value, graph.scalar(factor))

    weight, bias = layer.weight, scaled(layer.bias, layer.behind)
    if layer.norm is None:
        weight = scaled(weight, layer.before * layer.behind)
    else:
        scale, *offset = (scaled(name, layer.behind) for name in layer.norm.input[1:])
        if offset:
            row = write.reshaped(offset[0], 1, inputs)
            bias = write.emit("Gemm", *filter(None, (row, weight, bias)), shape=(1, outputs))
        weight = write.emit("Mul", weight, write.reshaped(scale, inputs, 1))
    rows = write.reshaped(layer.x, 0, inputs)
    y = write.emit("Gemm", *filter(None, (rows, weight, bias)), shape=(graph.shape(rows)[0], outputs))
    graph.op("Reshape", y, graph.integers([-1, *(int(place or 0) for place in places), outputs]), output=layer.y)
