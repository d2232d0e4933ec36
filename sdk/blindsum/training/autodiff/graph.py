"""A graph under construction: nodes in execution order, constants, and the shape of every value known so far."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from blindsum.protocol.errors import BlindsumError

Dimension = int | str | None
"""A static size, a symbol that stands for the same size everywhere, or unknown."""
Shape = tuple[Dimension, ...]


class Graph:
    """Values are names. A name that starts with @ is ours; the author's model has none.

    What is made `beside` another graph shares the names of equal constants with it, and no other name.
    """

    def __init__(
        self,
        *,
        nodes: Iterable[onnx.NodeProto],
        constants: Mapping[str, NDArray[np.generic]],
        shapes: Mapping[str, Shape],
        opset: int,
        dtypes: Mapping[str, str] | None = None,
        beside: Graph | None = None,
    ) -> None:
        self.nodes = [copy.deepcopy(node) for node in nodes]
        self.constants = dict(constants)
        self.opset = opset
        self.shapes = dict(shapes)
        self.dtypes = dict(dtypes or {})
        self._fresh: Counter[str] = beside._fresh if beside else Counter()
        self._emitted: dict[tuple[str, tuple[str, ...], str], str] = {}
        self._pool: dict[tuple[str, tuple[int, ...], bytes], str] = beside._pool if beside else {}

    def op(self, operator: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """The output of a node of one output, appended unless the same is there already.

        An absent optional input is ''.
        """
        key = (operator, inputs, repr(sorted(attributes.items())))
        if output is None and key in self._emitted:
            return self._emitted[key]
        name = output or self.fresh(operator)
        self._emitted[key] = name
        self.nodes.append(onnx.helper.make_node(operator, inputs, [name], **attributes))
        return name

    def ops(self, operator: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        """The outputs of an appended node of several."""
        names = [self.fresh(operator) for _ in range(outputs)]
        self.nodes.append(onnx.helper.make_node(operator, inputs, names, **attributes))
        return names

    def constant(self, array: NDArray[np.generic]) -> str:
        """The name of a constant of this value; equal ones share it."""
        array = np.asarray(array)
        key = (array.dtype.name, array.shape, array.tobytes())
        if key not in self._pool:
            self._pool[key] = self.fresh("constant")
        self.constants[self._pool[key]] = array
        return self._pool[key]

    def scalar(self, value: float) -> str:
        return self.constant(np.array(value, np.float32))

    def integers(self, values: Sequence[int]) -> str:
        """A 1-D int64 constant: axes, a shape."""
        return self.constant(np.array(values, np.int64))

    def fresh(self, stem: str) -> str:
        """An unused name."""
        self._fresh[stem] += 1
        return f"@{stem}/{self._fresh[stem]}"

    def shape(self, name: str) -> Shape:
        """Shape of a value of the model, not of one that a gradient rule made. Raises where it is not known."""
        if name not in self.shapes:
            raise BlindsumError(
                "training-model-invalid",
                f"the shape of {name!r} cannot be inferred; simplify the model or fix its shapes",
            )
        return self.shapes[name]

    def reduce(self, value: str, shape: Shape, target: Shape, reference: str = "") -> str:
        """Sum `value` of shape `shape` down to `target`, which was broadcast to `shape` in the forward pass.

        `reference` has the shape `target`: where that alone does not tell what was broadcast, the graph looks.
        """
        extra = len(shape) - len(target)
        pairs = list(enumerate(zip(shape[extra:], target, strict=True), start=extra))
        kept = [axis for axis, (size, own) in pairs if own == 1 and size != 1]
        if any(not isinstance(own, int) and (own is None or own != size) for _, (size, own) in pairs):
            if not reference:
                detail = f"cannot tell how dimensions {target} are broadcast to {shape}; fix the model's shapes"
                raise BlindsumError("training-model-invalid", detail)
            ones = self.op("NonZero", self.op("Equal", self.op("Shape", reference), self.integers([1])))
            axes = self.op("Add", self.op("Reshape", ones, self.integers([-1])), self.integers([extra]))
            value = self.op("ReduceSum", value, axes, keepdims=1, noop_with_empty_axes=1)
        elif kept:
            value = self.op("ReduceSum", value, self.integers(kept), keepdims=1)
        if extra:
            value = self.op("ReduceSum", value, self.integers(range(extra)), keepdims=0)
        return value

    def sum_to(self, value: str, wide: str, narrow: str) -> str:
        """`value`, of the shape of `wide`, summed over what `narrow` was broadcast to in the forward pass."""
        if wide in self.shapes and narrow in self.shapes:
            return self.reduce(value, self.shapes[wide], self.shapes[narrow], narrow)
        whole, sizes = self.op("Shape", wide), self.op("Shape", narrow)  # not even the ranks are known
        extra = self.op("Sub", self.op("Shape", whole), self.op("Shape", sizes))
        padded = self.op("Concat", self.op("Expand", self.integers([1]), extra), sizes, axis=0)
        axes = self.op("Reshape", self.op("NonZero", self.op("Equal", padded, self.integers([1]))), self.integers([-1]))
        return self.op("Reshape", self.op("ReduceSum", value, axes, keepdims=1, noop_with_empty_axes=1), sizes)

    def reshape_like(self, value: str, reference: str) -> str:
        """`value` in the shape of `reference`, whose elements it has. The batch dimension stays dynamic."""
        shape = self.shapes.get(reference, (None, None))  # not known at all is not known in more than one place
        sizes = [size if isinstance(size, int) else -1 for size in shape]
        wanted = self.integers(sizes) if sizes.count(-1) <= 1 else self.op("Shape", reference)
        return self.op("Reshape", value, wanted)

    def rename(self, old: str, new: str) -> None:
        """Give a value that a node computes another name."""
        self.rename_all({old: new})

    def rename_all(self, renamed: Mapping[str, str]) -> None:
        """Give values that nodes compute other names; `renamed`: old name -> new name."""
        self._emitted.clear()
        for node in every_node(self.nodes):
            for names in (node.input, node.output):
                for at, name in enumerate(names):
                    if name in renamed:
                        names[at] = renamed[name]

    def substitute(self, functions: Mapping[str, Callable[[Graph, onnx.NodeProto], bool]]) -> None:
        """Let functions emit, by operator, what takes a node's place; one that returns False has left it as it is."""
        self._emitted.clear()
        nodes, self.nodes = self.nodes, []
        for node in nodes:
            function = functions.get(node.op_type)
            if function is None or not function(self, node):
                self.nodes.append(node)

    def copy(self) -> Graph:
        """An independent graph; names made in one are not made again in the other, unless for an equal constant."""
        return Graph(
            nodes=self.nodes,
            constants=self.constants,
            shapes=self.shapes,
            opset=self.opset,
            dtypes=self.dtypes,
            beside=self,
        )

    def inside(self) -> Graph:
        """An empty graph for the body of one of this one's nodes."""
        other = Graph(nodes=(), constants={}, shapes={}, opset=self.opset)
        other._fresh = self._fresh
        return other

    def prune(self, outputs: Sequence[str]) -> None:
        """Drop the nodes and constants that `outputs` do not need."""
        self._emitted.clear()
        needed, kept = set(outputs), []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                kept.append(node)
                needed.update(reads(node))
        self.nodes = kept[::-1]
        self.constants = {name: array for name, array in self.constants.items() if name in needed}


class Uses:
    """Which node makes each value of a graph, and which nodes read it; `outputs`: those that are read outside as well."""

    def __init__(self, graph: Graph, outputs: Collection[str] = ()) -> None:
        self._outputs = outputs
        self.maker = {name: node for node in graph.nodes for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.nodes:
            for name in reads(node):
                self.readers.setdefault(name, []).append(node)

    def only_reader(self, name: str) -> onnx.NodeProto | None:
        """The node that alone reads a value."""
        readers = self.readers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self._outputs else None


def bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The subgraphs of a node."""
    return [item.g for item in node.attribute if item.type == onnx.AttributeProto.GRAPH]


def reads(node: onnx.NodeProto) -> set[str]:
    """The values that a node reads, those that its body takes from outside among them."""
    names = set(filter(None, node.input))
    for body in bodies(node):
        own = {item.name for item in body.input}.union(*(inner.output for inner in body.node))
        names |= {name for inner in body.node for name in inner.input if name} - own
    return names


def every_node(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """The nodes, and after each those of its bodies."""
    for node in nodes:
        yield node
        for body in bodies(node):
            yield from body.node


def attribute(node: onnx.NodeProto, name: str, default: object = None) -> object:
    """The value of a node's attribute, or `default`."""
    for item in node.attribute:
        if item.name == name:
            value: object = onnx.helper.get_attribute_value(item)
            return value
    return default


def factor_of(graph: Graph, node: onnx.NodeProto, value: str, changing: Collection[str]) -> float:
    """The constant number, none of those `changing`, that `node` multiplies `value` by; 0 where it does something else."""
    if node.op_type not in ("Div", "Mul") or list(node.input).count(value) != 1:
        return 0.0
    at = list(node.input).index(value)
    other = node.input[1 - at]
    known = graph.constants.get(other)
    if known is None or other in changing or known.dtype != np.float32 or known.size != 1:
        return 0.0
    if known.ndim > len(graph.shapes.get(value, ())) or (node.op_type == "Div" and (at == 1 or known.item() == 0.0)):
        return 0.0
    return float(known.item()) if node.op_type == "Mul" else 1.0 / float(known.item())
