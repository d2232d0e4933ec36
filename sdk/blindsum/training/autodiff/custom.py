"""A loss that the author gives as an ONNX model: its nodes become part of the graph and are differentiated there."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
from onnx import TensorProto

from blindsum.protocol.errors import BlindsumError

from ..losses import CustomLoss
from ..manifest import Targets
from ..protobuf import DTYPES
from .graph import Graph, Shape
from .loss import LossRule, Mean
from .propagate import Propagation
from .sizes import BATCH
from .source import Source, load, read_source

VALUE = "@custom"  # what the loss gives, and the prefix of the names inside it


@dataclass(frozen=True, slots=True)
class CustomRule(LossRule):
    """Every batch weighs as many as it has examples."""

    source: Source

    @property
    def separable(self) -> bool:
        return False

    def targets(self) -> Targets:
        given = [item.type.tensor_type for item in self.source.inputs]
        sizes = tuple(dim.dim_value for dim in given[1].shape.dim)
        dtype = DTYPES.get(given[1].elem_type)
        if not sizes or not all(sizes[1:]) or dtype is None:
            raise _unfit("its targets must be of shape (batch, fixed sizes)")
        declared = tuple(dim.dim_value for dim in given[0].shape.dim)
        right = len(declared) == len(self.shape) and all(
            not size or size == mine for size, mine in zip(declared[1:], self.sizes(), strict=True)
        )
        if not right or given[0].elem_type != TensorProto.FLOAT:
            raise _unfit(f"its prediction is not float32 of shape {self.shape}")
        return Targets(dtype=dtype, shape=sizes[1:])  # type: ignore[arg-type]

    def mean(self, graph: Graph, prediction: str, targets: str) -> Mean:
        if not any(VALUE in node.output for node in graph.nodes):
            self._splice(graph, prediction, targets)
        rows = graph.op("Squeeze", graph.op("Shape", prediction, start=0, end=1), graph.integers([0]))
        return VALUE, graph.op("Cast", rows, to=TensorProto.FLOAT)

    def origin(self, graph: Graph, prediction: str, targets: str, scale: str) -> tuple[str, str]:
        return VALUE, scale or graph.scalar(1.0)

    def _splice(self, graph: Graph, prediction: str, targets: str) -> None:
        wanted = self.targets()
        outer = dict(zip((item.name for item in self.source.inputs), (prediction, targets), strict=True))

        def name_of(name: str) -> str:
            return outer.get(name) or (name and f"{VALUE}/{name}")

        part = graph.copy()
        part.constants = {name_of(name): array for name, array in self.source.constants.items()}
        part.nodes = []
        for node in self.source.nodes:
            inner = onnx.NodeProto()
            inner.CopyFrom(node)
            inner.input[:], inner.output[:] = map(name_of, node.input), map(name_of, node.output)
            part.nodes.append(inner)
        shapes: dict[str, tuple[str, Shape]] = {
            prediction: ("float32", self.shape),
            targets: (wanted.dtype, (BATCH, *wanted.shape)),
        }
        value = Propagation(part, shapes, 0, ()).run(name_of(self.source.output))
        shape = part.shapes.get(value)
        if shape not in ((), (1,)) or part.dtypes.get(value) != "float32":
            raise _unfit(f"its output is not one float32 number but of shape {shape}")
        operator, axes = ("Squeeze", [part.integers([0])]) if shape else ("Identity", [])
        part.op(operator, value, *axes, output=VALUE)
        part.shapes[VALUE] = ()
        graph.nodes.extend(part.nodes)
        graph.constants.update(part.constants)
        graph.shapes.update(part.shapes)
        graph.dtypes.update(part.dtypes)


def custom_rule(loss: CustomLoss, shape: Shape, opset: int) -> CustomRule:
    """Reads the loss model, in the operator set of the graph that it will be part of."""
    proto, _ = load(loss.model)
    try:
        proto = onnx.version_converter.convert_version(proto, opset)
    except Exception as error:
        raise _unfit(f"it cannot be brought to the model's operator set {opset}: {error}") from None
    source = read_source(proto, None)
    if len(source.inputs) != 2:
        names = ", ".join(item.name for item in source.inputs)
        raise _unfit(f"it must read two inputs, prediction and targets, not {names or 'none'}")
    return CustomRule(loss, shape, source)


def _unfit(reason: str) -> BlindsumError:
    return BlindsumError("training-model-invalid", f"the loss model: {reason}")
