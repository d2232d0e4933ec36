"""Walk a model forwards once: the type and shape of every value, everything that follows from constants computed,
the arithmetic on shapes written as constants, branches that are never taken dropped.

The batch is open: a shape that depends on it is followed as a multiple of it, so that a Reshape to computed sizes becomes
one to a constant with 0 or -1 in the place of the batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from blindsum.protocol.errors import BlindsumError

from ..manifest import Weight, noise
from ..operators import OPERATORS
from ..protobuf import DTYPES
from ..verify import IR_VERSION
from . import arithmetic, shapes, sizes
from .arithmetic import Vector
from .batchnorm import freeze
from .expand import Body, dropout, expanded, preferred
from .graph import Dimension, Graph, Shape, attribute
from .registry import covered, stops
from .reopen import Reopening
from .sizes import Rows, Size
from .source import constant_value, invalid, subgraphs, title

FOLD_MAX = 1 << 16  # elements of a constant that is larger than what it is made of
HINT_MAX = 1 << 10  # elements of a constant whose value shape inference may want
NODES_MAX = 100_000

_UNFOLDED = {"DequantizeLinear"}  # int8 weights stay int8
_INTEGERS = (TensorProto.INT64, TensorProto.INT32)


class Propagation:
    """Rewrites `graph` in place. `inputs`: dtype and shape by name, the batch as a symbol. `batch`: what a model that
    was made for a fixed one holds in its place, else 0. `kept`: constants that will change, so that nothing is computed
    from them. `drops`: Dropout is active, and `noise` lists what it wants to be fed.
    """

    def __init__(
        self,
        graph: Graph,
        inputs: Mapping[str, tuple[str, Shape]],
        batch: int,
        kept: Iterable[str],
        *,
        drops: bool = False,
    ) -> None:
        self._graph, self._batch, self._drops = graph, batch, drops
        self.noise: list[Weight] = []
        self._kinds: dict[str, int] = {}
        self._computed: dict[str, Vector] = {}
        self._aliases: dict[str, str] = {}
        self._forbidden: dict[str, str] = {}
        self._inside: dict[str, int] = {}
        self._changing = set(kept)
        self._known = shapes.Known(sizes=self._sizes, vectors=self._computed, constants=graph.constants)
        self._reopening = Reopening(
            graph, self._known, batch, frozen=lambda name: name not in self._changing, constant=self._made
        )
        self._opsets = [helper.make_opsetid("", graph.opset)]
        for name, (dtype, shape) in inputs.items():
            self._know(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)
        for name, array in list(graph.constants.items()):
            self._constant(name, array)

    def run(self, output: str) -> str:
        """Returns the name under which `output` goes on.

        Raises `BlindsumError` "training-model-invalid" or "training-operator-forbidden".
        """
        queue, self._graph.nodes, walked = deque(self._graph.nodes), [], 0
        while queue:
            walked += 1
            if walked > NODES_MAX:
                raise invalid(f"more than {NODES_MAX} nodes")
            node = queue.popleft()
            for at, name in enumerate(node.input):
                node.input[at] = self._aliases.get(name, name)
            if node.op_type == "If" and (branch := self._branch(node)) is not None:
                queue.extendleft(reversed(self._inlined(node, branch)))
            elif node.op_type == "Dropout":
                queue.extendleft(self._written(node, self._dropout(node)))
            elif node.op_type == "Attention" and (queries := self._narrow_mask(node)):
                queue.extendleft([node, self._widened(node, queries)])
            elif self._wants_expansion(node) and (body := expanded(node, self._graph.opset, self._types(node))):
                queue.extendleft(self._written(node, body))
            else:
                self._walk(node)
        if self._forbidden:
            raise BlindsumError("training-operator-forbidden", "; ".join(self._forbidden.values()))
        self._graph.dtypes = {name: DTYPES[kind] for name, kind in self._kinds.items() if kind in DTYPES}
        return self._aliases.get(output, output)

    def _walk(self, node: onnx.NodeProto) -> None:
        if node.op_type == "Constant":
            self._constant(node.output[0], constant_value(node))
            return
        for made in self._reopening.rewritten(node):
            self._walk(made)
        if self._passes(node):
            self._aliases[node.output[0]] = node.input[0]
            return
        if node.op_type not in OPERATORS or subgraphs(node):
            self._forbidden.setdefault(node.op_type, title(node))
            for name in node.output:
                self._kinds[name] = TensorProto.UNDEFINED
            return
        if node.op_type == "Reshape":
            self._reshape(node)
        elif node.op_type == "Resize":
            self._resize(node)
        elif node.op_type == "BatchNormalization":
            freeze(node)
        self._infer(node)
        self._follow(node)
        if self._compute(node) or self._fold(node):
            return
        if self._changing.intersection(node.input):
            self._changing.update(node.output)
        self._graph.nodes.append(node)

    # What is known about values

    def _know(self, name: str, kind: int, shape: Shape | None) -> None:
        self._kinds[name] = kind
        if shape is not None:
            self._graph.shapes[name] = shape

    def _constant(self, name: str, array: NDArray[np.generic]) -> None:
        if array.dtype.name not in DTYPES.values():
            raise invalid(f"constant {name!r} of type {array.dtype}; allowed are {', '.join(DTYPES.values())}")
        self._graph.constants[name] = array
        self._know(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        if array.dtype.kind in "ib" and array.ndim < 2 and array.size <= HINT_MAX:
            items = tuple(int(item) for item in array.ravel())
            self._computed[name] = Vector(items, array.ndim == 0, self._kinds[name])

    def _sizes(self, name: str) -> list[Size] | None:
        shape = self._graph.shapes.get(name)
        return None if shape is None else [sizes.of(dimension) for dimension in shape]

    def _infer(self, node: onnx.NodeProto) -> None:
        """Types and shapes of a node's outputs, by ONNX's own inference, and by ours where that loses the batch."""
        types, data = self._types(node), {}
        if any(item.tensor_type.elem_type == TensorProto.UNDEFINED for item in types.values()):
            for output in node.output:
                self._kinds[output] = TensorProto.UNDEFINED
            return
        for name in types:
            array = self._graph.constants.get(name)
            if array is not None and array.size <= HINT_MAX:
                data[name] = numpy_helper.from_array(array)
        try:
            schema = onnx.defs.get_schema(node.op_type, self._graph.opset, "")
            found = onnx.shape_inference.infer_node_outputs(schema, node, types, data, opset_imports=self._opsets)
        except Exception as error:
            hint = "; export the model with a dynamic batch" if self._batch else ""
            raise invalid(f"{title(node)}: {' '.join(str(error).split())}{hint}") from None
        for name, kind in found.items():
            tensor = kind.tensor_type
            known = tensor.HasField("shape")
            shape = tuple(_dimension(dim) for dim in tensor.shape.dim) if known else None
            self._know(name, tensor.elem_type, shape)
        if not found:  # GroupNormalization, of which onnx says nothing
            self._know(node.output[0], types[node.input[0]].tensor_type.elem_type, None)
        ours = shapes.shape(node, self._known)
        if ours is not None and None not in ours:
            self._graph.shapes[node.output[0]] = tuple(map(sizes.dimension, ours))

    def _types(self, node: onnx.NodeProto) -> dict[str, onnx.TypeProto]:
        """Of the node's inputs."""
        types = {}
        for name in filter(None, node.input):
            if name not in self._kinds:
                raise invalid(f"{title(node)} reads {name!r}, which nothing makes")
            types[name] = helper.make_tensor_type_proto(self._kinds[name], self._graph.shapes.get(name))
        return types

    # What is rewritten

    def _wants_expansion(self, node: onnx.NodeProto) -> bool:
        """True where devices do not run the operator, or it is to be trained through and no rule covers it."""
        if node.op_type == "Constant":
            return False
        if node.op_type not in OPERATORS or preferred(node.op_type):
            return True
        trained = self._changing.intersection(node.input) and not stops(node)
        return bool(trained) and not covered(node, self._graph.opset)

    def _narrow_mask(self, node: onnx.NodeProto) -> int:
        """How many queries share the one row of an Attention's mask, which onnxruntime's kernel wants repeated; or 0."""
        shapes = [self._graph.shapes.get(name) or () for name in (*node.input, *[""] * 4)[:4]]
        queries, rows = (shape[-2] if len(shape) > 1 else None for shape in (shapes[0], shapes[3]))
        return queries if isinstance(queries, int) and queries > 1 and rows == 1 else 0

    def _widened(self, node: onnx.NodeProto, queries: int) -> onnx.NodeProto:
        """The Expand that gives the mask of `node` a row for each query."""
        mask, wide, rows = node.input[3], self._graph.fresh("mask"), self._graph.fresh("rows")
        self._constant(rows, np.array([queries, 1]))
        node.input[3] = wide
        return helper.make_node("Expand", [mask, rows], [wide])

    def _passes(self, node: onnx.NodeProto) -> bool:
        """True where the first output is the first input."""
        operator = node.op_type
        if operator == "Cast":
            return self._kinds.get(node.input[0]) == attribute(node, "to")
        if operator == "Expand":
            given, wanted = self._sizes(node.input[0]), self._computed.get(node.input[1])
            if given is None or wanted is None or len(wanted.items) > len(given):
                return False
            pairs = zip(given[len(given) - len(wanted.items) :], wanted.items, strict=True)
            return all(size is not None and want in (1, size) for size, want in pairs)
        return operator == "Identity"

    def _reshape(self, node: onnx.NodeProto) -> None:
        given, wanted = self._sizes(node.input[0]), self._computed.get(node.input[1])
        if given is None or wanted is None:
            return
        if attribute(node, "allowzero", 0):  # PyTorch always says so; it matters only where there is a 0
            if 0 in wanted.items or None in wanted.items:
                return
            kept = [item for item in node.attribute if item.name != "allowzero"]
            del node.attribute[:]
            node.attribute.extend(kept)
        target = sizes.reshaped(given, wanted.items, self._batch, self._before(node.input[0]))
        if target is not None and tuple(target) != wanted.items:
            node.input[1] = self._integers(target)

    def _before(self, name: str) -> int | None:
        """How many elements lie before the batch in a value."""
        given = self._sizes(name) or []
        for at, size in enumerate(given):
            if isinstance(size, Rows):
                outside = sizes.product(given[:at])
                inside = 1 if size.factor == 1 else self._inside.get(name)
                return outside * inside if isinstance(outside, int) and inside is not None else None
        return None

    def _follow(self, node: onnx.NodeProto) -> None:
        """Note how many elements lie before the batch in a dimension that holds more than it."""
        output = node.output[0]
        given = self._sizes(output) or []
        at = next((at for at, size in enumerate(given) if isinstance(size, Rows) and size.factor > 1), None)
        if at is None:
            return
        if node.op_type == "Reshape":
            before, outside = self._before(node.input[0]), sizes.product(given[:at])
            if before is not None and isinstance(outside, int) and outside and before % outside == 0:
                self._inside[output] = before // outside
            return
        for name in node.input:
            if name in self._inside and given[at] in (self._sizes(name) or []):
                self._inside[output] = self._inside[name]

    def _resize(self, node: onnx.NodeProto) -> None:
        """Leave the dimensions that keep their size out of a Resize to computed sizes."""
        if len(node.input) < 4 or attribute(node, "axes") is not None:
            return
        given, wanted = self._sizes(node.input[0]), self._computed.get(node.input[3])
        if given is None or wanted is None or all(isinstance(size, int) for size in wanted.items):
            return
        axes = [at for at, (a, b) in enumerate(zip(given, wanted.items, strict=True)) if a is None or a != b]
        target = [wanted.items[at] for at in axes]
        if all(isinstance(size, int) for size in target):
            node.attribute.append(helper.make_attribute("axes", axes))
            node.input[3] = self._integers([size for size in target if isinstance(size, int)])

    def _integers(self, values: Sequence[int]) -> str:
        return self._made(np.array(values, np.int64))

    def _made(self, array: NDArray[np.generic]) -> str:
        """A constant of ours."""
        name = self._graph.constant(array)
        self._constant(name, self._graph.constants[name])
        return name

    def _compute(self, node: onnx.NodeProto) -> bool:
        """Follow arithmetic on shapes. True where the outcome is a constant, which makes the node superfluous."""
        output = node.output[0]
        kind, shape = self._kinds.get(output), self._graph.shapes.get(output)
        if (
            len(node.output) != 1
            or kind not in (*_INTEGERS, TensorProto.BOOL)
            or (shape is not None and len(shape) > 1)
        ):
            return False
        items = arithmetic.evaluate(node, self._sizes, self._computed)
        if items is None or len(items) > HINT_MAX:
            return False
        scalar = shape == ()
        self._computed[output] = Vector(tuple(items), scalar, kind)
        if not all(isinstance(item, int) for item in items):
            return False
        array = np.array(items, helper.tensor_dtype_to_np_dtype(kind))
        self._constant(output, array.reshape(()) if scalar else array)
        return True

    def _fold(self, node: onnx.NodeProto) -> bool:
        """Compute what depends on constants only."""
        given = [name for name in node.input if name]
        constants = self._graph.constants
        if not given or any(name not in constants or name in self._changing for name in given):
            return False
        size = sizes.product(self._sizes(node.output[0]) or [None])
        bound = max(FOLD_MAX, sum(constants[name].size for name in given))
        if node.op_type in _UNFOLDED or not isinstance(size, int) or size > bound:
            return False
        body = helper.make_graph(
            [node],
            "constant",
            [
                helper.make_value_info(n, helper.make_tensor_type_proto(self._kinds[n], None))
                for n in dict.fromkeys(given)
            ],
            [helper.make_empty_tensor_value_info(name) for name in node.output if name],
        )
        model = helper.make_model(body, opset_imports=self._opsets, ir_version=IR_VERSION)
        try:
            values = ReferenceEvaluator(model).run(None, {name: constants[name] for name in given})
        except Exception:  # an operator that the reference does not know stays in the graph
            return False
        for name, value in zip(filter(None, node.output), values, strict=True):
            self._constant(name, np.asarray(value, helper.tensor_dtype_to_np_dtype(self._kinds[name])))
        return True

    def _written(self, node: onnx.NodeProto, body: Body) -> list[onnx.NodeProto]:
        """The nodes that stand for `node`, last first, with names of their own."""
        own = {name for inner in body for name in inner.output if name and name not in node.output}
        prefix = self._graph.fresh(node.op_type) + "/"
        return [_renamed(inner, own, prefix) for inner in reversed(body)]

    def _dropout(self, node: onnx.NodeProto) -> Body:
        """Nothing where dropout is not active; else by noise that the device draws for each example."""
        x, ratio = node.input[0], 0.5
        if len(node.input) > 1 and node.input[1]:
            given = self._graph.constants.get(node.input[1])
            if given is None:
                raise invalid(f"{title(node)}: its ratio is not a constant")
            ratio = float(given)
        if not self._drops or ratio == 0.0:
            return dropout(node, self._kinds[x], ratio)
        shape = self._graph.shapes.get(x, ())
        rest = tuple(size for size in shape if isinstance(size, int))
        if len(rest) + 1 != len(shape) or sizes.BATCH not in shape:
            raise invalid(f"{title(node)}: it drops from {shape}, which is not the batch and fixed sizes")
        name = noise(node.output[0])
        self.noise.append(Weight(name=node.output[0], shape=rest))
        self._know(name, TensorProto.FLOAT, (sizes.BATCH, *rest))
        return dropout(node, self._kinds[x], ratio, name, shape.index(sizes.BATCH), len(shape))

    # Branches

    def _branch(self, node: onnx.NodeProto) -> onnx.GraphProto | None:
        condition = self._graph.constants.get(node.input[0])
        if condition is None or node.input[0] in self._changing:
            return None
        wanted = "then_branch" if condition.item() else "else_branch"
        branch: onnx.GraphProto = next(item.g for item in node.attribute if item.name == wanted)
        return branch

    def _inlined(self, node: onnx.NodeProto, branch: onnx.GraphProto) -> list[onnx.NodeProto]:
        """The nodes of the branch under names of their own, with its outputs as those of the node."""
        prefix = f"{node.name or node.output[0]}/"
        own = {item.name for item in branch.initializer} | {
            name for inner in branch.node for name in inner.output if name
        }
        for item in branch.initializer:
            self._constant(prefix + item.name, numpy_helper.to_array(item))
        nodes = [_renamed(inner, own, prefix) for inner in branch.node]
        for name, item in zip(node.output, branch.output, strict=True):
            source = prefix + item.name if item.name in own else item.name
            nodes.append(helper.make_node("Identity", [source], [name]))
        return nodes


def _dimension(dim: onnx.TensorShapeProto.Dimension) -> Dimension:
    """A symbol that inference made up stands for nothing that we know."""
    return dim.dim_value if dim.HasField("dim_value") else sizes.dimension(sizes.of(dim.dim_param or None))


def _renamed(node: onnx.NodeProto, own: set[str], prefix: str) -> onnx.NodeProto:
    """A copy with the names in `own` prefixed, in its subgraphs too."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.name = prefix + node.name if node.name else ""
    for names in (copy.input, copy.output):
        for at, name in enumerate(names):
            if name in own:
                names[at] = prefix + name
    for item in copy.attribute:
        if item.type == onnx.AttributeProto.GRAPH:
            inner = [_renamed(part, own, prefix) for part in item.g.node]
            del item.g.node[:]
            item.g.node.extend(inner)
            for result in item.g.output:
                if result.name in own:
                    result.name = prefix + result.name
    return copy
