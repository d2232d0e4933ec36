"""Bring an author's ONNX model into the form that differentiation works on.

Standard domain, operator set 18 or later, weights and `Constant` nodes as named arrays, inputs of features whose first
dimension is the symbol "batch" and whose others are fixed, one output, every shape inferred.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from blindsum.protocol.errors import BlindsumError

from ..manifest import feature
from ..operators import OPERATORS, OPSET_MAX, OPSET_MIN
from ..protobuf import DTYPES, Tensor
from ..verify import IR_VERSION
from .graph import Dimension, Graph, Shape, attribute
from .reverse import reached

BATCH = "batch"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """The model's nodes, constants and shapes in `graph`; in `weights` the names of its own initialisers."""

    graph: Graph
    features: tuple[Tensor, ...]  # as the model names them, shapes of one example
    output: str
    weights: tuple[str, ...]
    source: str  # SHA-256 of the given bytes


def prepare(
    model: onnx.ModelProto | bytes | str | os.PathLike[str], output: str | None, dimensions: Mapping[str, int]
) -> Prepared:
    """`output`: the one to train, None for the only one. `dimensions`: sizes of symbolic dimensions other than the batch.

    Raises `BlindsumError` "training-request-invalid", "training-model-invalid", "training-external-data" or
    "training-operator-forbidden" where the model does not fit.
    """
    proto, source = _load(model)
    proto = _upgraded(proto)
    constants, nodes, weights = _lifted(proto)
    output = _chosen(proto, output)
    graph = Graph(nodes=nodes, constants=constants, shapes={}, opset=proto.opset_import[0].version)
    graph.prune([output])
    read = {name for node in graph.nodes for name in node.input} | {output}
    given = [item for item in proto.graph.input if item.name not in weights and item.name in read]
    declared = _declared(given, dimensions)
    for item in declared:
        graph.rename(item.name, feature(item.name))
        graph.shapes[feature(item.name)] = (BATCH, *item.shape[1:])
    batch = max(size if isinstance(size := item.shape[0], int) else 0 for item in declared)
    _follow_batch(graph, {feature(item.name): item.dtype for item in declared}, output, batch)
    return Prepared(
        graph=graph,
        features=tuple(Tensor(item.name, item.dtype, item.shape[1:]) for item in declared),
        output=output,
        weights=tuple(name for name in weights if name in graph.constants),
        source=source,
    )


def _load(model: onnx.ModelProto | bytes | str | os.PathLike[str]) -> tuple[onnx.ModelProto, str]:
    try:
        if isinstance(model, onnx.ModelProto):
            proto, data = onnx.ModelProto(), model.SerializeToString(deterministic=True)
            proto.CopyFrom(model)
        elif isinstance(model, bytes):
            proto, data = onnx.load_model_from_string(model), model
        else:
            proto, data = onnx.load_model(os.fspath(model)), Path(model).read_bytes()
        if any(map(onnx.external_data_helper.uses_external_data, proto.graph.initializer)):
            raise BlindsumError("training-external-data", "pass the model's path, or save it in one file")
        onnx.checker.check_model(proto, full_check=True)
    except BlindsumError:
        raise
    except OSError as error:
        raise BlindsumError("training-request-invalid", str(error)) from None
    except Exception as error:  # protobuf, checker and shape inference each raise their own
        raise _invalid(f"not a valid ONNX model: {error}") from None
    return proto, hashlib.sha256(data).hexdigest()


def _upgraded(proto: onnx.ModelProto) -> onnx.ModelProto:
    foreign = sorted({node.domain for node in proto.graph.node} - {"", "ai.onnx"})
    if foreign or proto.functions:
        raise BlindsumError(
            "training-operator-forbidden", f"the model uses operators of {', '.join(foreign) or 'its own functions'}"
        )
    version = next((item.version for item in proto.opset_import if item.domain in ("", "ai.onnx")), 0)
    if version > OPSET_MAX:
        raise _invalid(f"operator set {version}; export it with {OPSET_MAX} or lower")
    if version < OPSET_MIN:
        try:
            proto = onnx.version_converter.convert_version(proto, OPSET_MIN)
        except Exception as error:
            raise _invalid(f"operator set {version} cannot be raised to {OPSET_MIN}: {error}") from None
        if version < 11:
            _keep_coordinates(proto)
        version = OPSET_MIN
    del proto.opset_import[:]
    proto.opset_import.append(onnx.helper.make_opsetid("", version))
    return proto


def _keep_coordinates(proto: onnx.ModelProto) -> None:
    """What Resize and Upsample did before they had a choice; onnx's converter gives them the later default."""
    for node in proto.graph.node:
        if node.op_type == "Resize":
            for name, value in (("coordinate_transformation_mode", "asymmetric"), ("nearest_mode", "floor")):
                node.attribute.append(onnx.helper.make_attribute(name, value))


def _lifted(proto: onnx.ModelProto) -> tuple[dict[str, NDArray[np.generic]], list[onnx.NodeProto], list[str]]:
    """All constants by name, the nodes that remain, and the names of the initialisers proper."""
    if proto.graph.sparse_initializer:
        raise _invalid("it holds sparse weights; store them dense")
    constants = {item.name: numpy_helper.to_array(item) for item in proto.graph.initializer}
    weights = list(constants)
    nodes = []
    for node in proto.graph.node:
        node.domain = ""
        if node.op_type == "Constant":
            constants[node.output[0]] = _constant(node)
            continue
        if node.op_type not in OPERATORS:
            raise BlindsumError("training-operator-forbidden", f"node {node.name!r}: {node.op_type}")
        nodes.append(node)
    names = {*constants, *(name for node in nodes for name in (*node.input, *node.output))}
    if any(name.startswith("@") for name in names):
        raise _invalid("a name that starts with @; rename it")
    if any(array.dtype.name not in DTYPES.values() for array in constants.values()):
        raise _invalid(f"weights of another type than {', '.join(DTYPES.values())}")
    return constants, nodes, weights


def _constant(node: onnx.NodeProto) -> NDArray[np.generic]:
    for name, dtype in (
        ("value_float", np.float32),
        ("value_floats", np.float32),
        ("value_int", np.int64),
        ("value_ints", np.int64),
    ):
        value = attribute(node, name)
        if value is not None:
            return np.array(value, dtype)
    value = attribute(node, "value")
    if not isinstance(value, onnx.TensorProto):
        raise _invalid(f"constant {node.name!r} is not a dense tensor of numbers")
    return numpy_helper.to_array(value)


def _chosen(proto: onnx.ModelProto, output: str | None) -> str:
    names = [item.name for item in proto.graph.output]
    if output is None and len(names) > 1:
        raise BlindsumError(
            "training-request-invalid", f"choose the output to train: output= one of {', '.join(names)}"
        )
    if output is not None and output not in names:
        raise BlindsumError("training-request-invalid", f"output {output!r} is none of {', '.join(names)}")
    return output or names[0]


def _declared(given: Sequence[onnx.ValueInfoProto], dimensions: Mapping[str, int]) -> list[Tensor]:
    """The inputs, with the first dimension '' where it is symbolic and all others fixed."""
    if not given:
        raise _invalid("the output depends on no input")
    inputs, open_, known = [], [], set()
    for item in given:
        tensor = item.type.tensor_type
        dtype = DTYPES.get(tensor.elem_type)
        if dtype is None or not tensor.shape.dim:
            raise _invalid(f"input {item.name!r} must be a batch of numbers, its first dimension the batch")
        sizes: list[int | str] = [_dimension(tensor.shape.dim[0]) or ""]
        for axis, dim in enumerate(tensor.shape.dim[1:], start=1):
            name = _dimension(dim) or f"{item.name}.{axis}"
            if isinstance(name, str):
                known.add(name)
                if name not in dimensions:
                    open_.append(name)
            sizes.append(dimensions.get(name, 0) if isinstance(name, str) else name)
        inputs.append(Tensor(item.name, dtype, tuple(sizes)))
    if stray := sorted(set(dimensions) - known):
        detail = f"dimensions {', '.join(stray)}; the symbolic ones are {', '.join(sorted(known)) or 'none'}"
        raise BlindsumError("training-request-invalid", detail)
    if open_:
        wanted = ", ".join(f'"{name}": ...' for name in dict.fromkeys(open_))
        raise BlindsumError(
            "training-request-invalid", f"fix the sizes of symbolic dimensions: dimensions={{{wanted}}}"
        )
    if len({item.shape[0] for item in inputs if isinstance(item.shape[0], int)} - {1}) > 1:
        heads = ", ".join(f"{item.name} {item.shape[0]}" for item in inputs)
        raise _invalid(f"the first dimensions of its inputs are not one batch: {heads}")
    return inputs


def _dimension(dim: onnx.TensorShapeProto.Dimension) -> Dimension:
    return dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None


def _follow_batch(graph: Graph, inputs: Mapping[str, str], output: str, batch: Dimension) -> None:
    """Infer all shapes, with Reshape targets written so that the batch dimension keeps its name through them.

    A Reshape to [-1, ...] of a batch takes its head from the input instead. So does one to [2, ...] in a model that was
    made for a `batch` fixed at 2, which this makes dynamic.
    """
    reshapes = [node for node in graph.nodes if node.op_type == "Reshape" and not attribute(node, "allowzero", 0)]
    followed = reached(graph, list(inputs))
    changed = True
    while changed:  # each round settles one Reshape at least
        _infer_shapes(graph, inputs, output)
        changed = False
        for node in reshapes:
            wanted, shape = graph.constants.get(node.input[1]), graph.shapes.get(node.input[0])
            if wanted is None or node.input[0] not in followed or not wanted.size or wanted[0] not in (-1, batch):
                continue
            head = 0 if shape and _keeps_batch(shape, wanted.tolist()) else -1
            if wanted[0] != head and (head == 0 or -1 not in wanted):
                node.input[1] = graph.constant(np.concatenate([[head], wanted[1:]]))
                changed = True


def _keeps_batch(shape: Shape, wanted: list[int]) -> bool:
    """True where reshaping a batch of shape `shape` to `wanted` leaves the rows whole."""
    rest = [size if size or at >= len(shape) else shape[at] for at, size in enumerate(wanted)][1:]
    if shape[0] != BATCH or not all(isinstance(size, int) for size in (*shape[1:], *rest)):
        return False
    return -1 in rest or math.prod(_sizes(rest)) == math.prod(_sizes(shape[1:]))


def _sizes(shape: Iterable[Dimension]) -> list[int]:
    return [size for size in shape if isinstance(size, int)]


def _infer_shapes(graph: Graph, inputs: Mapping[str, str], output: str) -> None:
    """Fill in the shapes of all values. `inputs`: dtype by name."""
    body = onnx.helper.make_graph(
        graph.nodes,
        "model",
        [
            onnx.helper.make_tensor_value_info(
                name, onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), graph.shapes[name]
            )
            for name, dtype in inputs.items()
        ],
        [onnx.helper.make_empty_tensor_value_info(output)],
        [numpy_helper.from_array(array, name) for name, array in graph.constants.items()],
    )
    opsets = [onnx.helper.make_opsetid("", graph.opset)]
    resized: dict[str, Shape] = {}  # onnx loses the batch in Resize, so those shapes are stated before
    while True:
        try:
            model = onnx.helper.make_model(body, opset_imports=opsets, ir_version=IR_VERSION)
            model = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
        except Exception as error:
            raise _invalid(f"its shapes do not agree: {error}") from None
        _record_shapes(graph, model)
        lost = {name: shape for name, shape in _resized(graph) if name not in resized}
        if not lost:
            break
        resized |= lost
        for name, shape in lost.items():
            info = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
            (body.output[0] if name == output else body.value_info.add()).CopyFrom(info)
    if model.graph.output[0].type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
        raise _invalid("its output is not float32")


def _record_shapes(graph: Graph, model: onnx.ModelProto) -> None:
    graph.shapes.update((name, array.shape) for name, array in graph.constants.items())
    for item in (*model.graph.value_info, *model.graph.output):
        if item.type.tensor_type.HasField("shape"):
            graph.shapes[item.name] = tuple(_dimension(dim) for dim in item.type.tensor_type.shape.dim)


def _resized(graph: Graph) -> Iterator[tuple[str, Shape]]:
    """Outputs of Resize nodes that leave the batch as it is, with their shape."""
    for node in (node for node in graph.nodes if node.op_type == "Resize"):
        before, after = graph.shapes.get(node.input[0]), graph.shapes.get(node.output[0])
        scales = graph.constants.get(node.input[2]) if len(node.input) > 2 else None
        axes = attribute(node, "axes")
        if not before or not after or before[0] != BATCH:
            continue
        kept = isinstance(axes, Sequence) and not {0, -len(before)}.intersection(axes)
        if kept or (axes is None and scales is not None and scales.size and scales[0] == 1.0):
            yield node.output[0], (BATCH, *after[1:])


def _invalid(reason: str) -> BlindsumError:
    return BlindsumError("training-model-invalid", reason)
