"""Read an author's ONNX model: one output chosen, what does not lead to it cut away, functions written out, the
operator set raised, weights and `Constant` nodes as named arrays.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import inliner, numpy_helper

from blindsum.protocol.errors import BlindsumError

from ..operators import OPSET_MAX, OPSET_MIN
from ..protobuf import DTYPES
from . import sequences, sklearn
from .graph import attribute

MADE_UP = re.compile(r"val_\d+")  # names that PyTorch's newer exporter gives to what is not in the model

Model = onnx.ModelProto | bytes | str | os.PathLike[str]
STANDARD = ("", "ai.onnx")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What leads to the chosen output, in the standard domain."""

    nodes: tuple[onnx.NodeProto, ...]
    constants: dict[str, NDArray[np.generic]]
    weights: tuple[str, ...]  # the constants that the model stores as initialisers, in its order
    inputs: tuple[onnx.ValueInfoProto, ...]
    output: str
    opset: int
    digest: str  # SHA-256 of the given bytes


def load(model: Model) -> tuple[onnx.ModelProto, str]:
    """A copy of the model, and the SHA-256 of its bytes.

    Raises `BlindsumError` "training-request-invalid", "training-model-invalid" or "training-external-data".
    """
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
        onnx.checker.check_model(proto)
    except BlindsumError:
        raise
    except OSError as error:
        raise BlindsumError("training-request-invalid", str(error)) from None
    except Exception as error:  # protobuf and checker each raise their own
        raise invalid(f"not a valid ONNX model: {error}") from None
    return proto, hashlib.sha256(data).hexdigest()


def read_source(model: Model, output: str | None, fixed: Mapping[str, ArrayLike] | None = None) -> Source:
    """`output`: the one to train, None for the only one. `fixed`: inputs that are constants.

    Raises `BlindsumError` "training-request-invalid", "training-model-invalid", "training-external-data" or
    "training-operator-forbidden".
    """
    proto, digest = load(model)
    if proto.functions:
        proto = inliner.inline_local_functions(proto)
    output = _chosen(proto, output)
    _cut(proto, output)
    untie(proto.graph)
    sklearn.lower(proto.graph)
    proto = _upgraded(proto)
    if proto.graph.sparse_initializer:
        raise invalid("it holds sparse weights; store them dense")
    constants = {item.name: numpy_helper.to_array(item) for item in proto.graph.initializer}
    weights = tuple(constants)
    for name, value in (fixed or {}).items():
        constants[name] = _fixed(proto, name, value)
    nodes = []
    for node in proto.graph.node:
        if node.op_type == "Constant":
            constants[node.output[0]] = constant_value(node)
        else:
            nodes.append(node)
    nodes = sequences.lowered(nodes, constants)
    names = {*constants, *(name for node in nodes for name in (*reads(node), *node.output))}
    if any(name.startswith("@") for name in names):
        raise invalid("a name that starts with @; rename it")
    if any(array.dtype.name not in DTYPES.values() for array in constants.values()):
        raise invalid(f"weights of another type than {', '.join(DTYPES.values())}")
    for name in weights:
        if constants[name].dtype.kind == "f" and constants[name].size > 1 and np.isnan(constants[name]).any():
            raise invalid(f"weight {name!r} holds NaN")
    read = {name for node in nodes for name in reads(node)} | {output}
    return Source(
        nodes=tuple(nodes),
        constants=constants,
        weights=weights,
        inputs=tuple(item for item in proto.graph.input if item.name not in constants and item.name in read),
        output=output,
        opset=proto.opset_import[0].version,
        digest=digest,
    )


def untie(graph: onnx.GraphProto) -> None:
    """Give each weight that is read through an Identity an initialiser of its own, where all its elements are equal.

    PyTorch's older exporter stores weights that are equal once. In a model that was never trained those are the ones and
    zeros that its normalisations and biases begin with, and they must not stay equal. Weights that are tied on purpose
    hold more than one number. The newer exporter does so with what it computed out of weights, under a name of its own
    and without an Identity: the scales and biases of a GroupNorm.
    """
    stored = {item.name: item for item in graph.initializer}
    kept, taken = [], set[str]()
    for node in graph.node:
        origin = stored.get(node.input[0]) if node.op_type == "Identity" else None
        if origin is not None and _is_uniform(origin):
            graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(origin), node.output[0]))
            continue
        kept.append(node)
        for at, name in enumerate(node.input):
            if node.op_type not in ("Add", "Mul") or not MADE_UP.fullmatch(name) or not _is_uniform(stored.get(name)):
                continue
            if name in taken:
                node.input[at] = f"{name}/{node.output[0]}"
                graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(stored[name]), node.input[at]))
            taken.add(name)
    _replace(graph.node, kept)


def _is_uniform(item: onnx.TensorProto | None) -> bool:
    """Float32 and several times the same number."""
    array = numpy_helper.to_array(item) if item is not None and item.dims else np.zeros(0)
    return bool(array.size > 1 and array.dtype == np.float32 and (array == array.flat[0]).all())


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """Names of the values that a node reads, those that its subgraphs take from outside included."""
    yield from filter(None, node.input)
    for graph in subgraphs(node):
        made = {item.name for item in (*graph.initializer, *graph.input)}
        for inner in graph.node:
            yield from (name for name in reads(inner) if name not in made)
            made.update(inner.output)
        yield from (item.name for item in graph.output if item.name not in made)


def subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [item.g for item in node.attribute if item.type == onnx.AttributeProto.GRAPH]


def constant_value(node: onnx.NodeProto) -> NDArray[np.generic]:
    """The array that a `Constant` node makes."""
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
        raise invalid(f"constant {node.name!r} is not a dense tensor of numbers")
    return numpy_helper.to_array(value)


def title(node: onnx.NodeProto) -> str:
    """How messages name a node."""
    name = f"{node.name!r}" if node.name else f"that makes {next(filter(None, node.output), '')!r}"
    return f"node {name} ({node.op_type})"


def invalid(reason: str) -> BlindsumError:
    return BlindsumError("training-model-invalid", reason)


def _fixed(proto: onnx.ModelProto, name: str, value: ArrayLike) -> NDArray[np.generic]:
    given = {item.name: item.type.tensor_type for item in proto.graph.input}
    if name not in given:
        raise BlindsumError("training-request-invalid", f"fixed {name!r} is none of {', '.join(given)}")
    array = np.asarray(value, onnx.helper.tensor_dtype_to_np_dtype(given[name].elem_type))
    sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in given[name].shape.dim]
    if array.ndim != len(sizes) or any(size not in (None, own) for size, own in zip(sizes, array.shape, strict=True)):
        raise BlindsumError("training-request-invalid", f"fixed {name!r} of shape {array.shape}, not {sizes}")
    return array


def _chosen(proto: onnx.ModelProto, output: str | None) -> str:
    names = [item.name for item in proto.graph.output]
    if output is not None and output not in names:
        if any(output in node.output for node in proto.graph.node):
            return output
        raise BlindsumError("training-request-invalid", f"output {output!r} is none of {', '.join(names)}")
    choice = {name: sklearn.scores(proto.graph, name) for name in ([output] if output else names)}
    tensors = {name: source for name, source in choice.items() if source} if len(names) > 1 else choice
    if len(tensors) != 1:
        listed = f"output= one of {', '.join(tensors or names)}"
        raise BlindsumError("training-request-invalid", f"choose the output to train: {listed}")
    return next(iter(tensors.values())) or names[0]


def _cut(proto: onnx.ModelProto, output: str) -> None:
    """Drop the nodes and weights that the output does not need; it becomes the only one."""
    needed, kept = {output}, []
    for node in reversed(proto.graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(reads(node))
    _replace(proto.graph.node, kept[::-1])
    _replace(proto.graph.initializer, [item for item in proto.graph.initializer if item.name in needed])
    kind = onnx.TensorProto.FLOAT
    made = [item for item in proto.graph.output if item.name == output and item.type.HasField("tensor_type")]
    _replace(proto.graph.output, made or [onnx.helper.make_tensor_value_info(output, kind, None)])
    del proto.graph.value_info[:]


def _replace(field: Any, items: Iterable[Any]) -> None:
    """Set a repeated field of a message."""
    kept = list(items)
    del field[:]
    field.extend(kept)


def _upgraded(proto: onnx.ModelProto) -> onnx.ModelProto:
    foreign = sorted({node.domain for node in proto.graph.node} - set(STANDARD))
    if foreign:
        which = [f"{node.domain}.{node.op_type}" for node in proto.graph.node if node.domain not in STANDARD]
        raise BlindsumError(
            "training-operator-forbidden",
            f"the model uses operators of {', '.join(foreign)}: {', '.join(dict.fromkeys(which))}",
        )
    version = next((item.version for item in proto.opset_import if item.domain in STANDARD), 0)
    if version > OPSET_MAX:
        raise invalid(f"operator set {version}; export it with {OPSET_MAX} or lower")
    _replace(proto.opset_import, [onnx.helper.make_opsetid("", version)])
    for node in proto.graph.node:
        node.domain = ""
    if version < OPSET_MIN:
        try:
            proto = onnx.version_converter.convert_version(proto, OPSET_MIN)
        except Exception as error:
            raise invalid(
                f"operator set {version} cannot be raised to {OPSET_MIN}: {error}; export it with {OPSET_MIN} or later"
            ) from None
        if version < 11:
            _keep_coordinates(proto)
        _replace(proto.opset_import, [onnx.helper.make_opsetid("", OPSET_MIN)])
    return proto


def _keep_coordinates(proto: onnx.ModelProto) -> None:
    """What Resize and Upsample did before they had a choice; onnx's converter gives them the later default."""
    for node in proto.graph.node:
        if node.op_type == "Resize":
            for name, value in (("coordinate_transformation_mode", "asymmetric"), ("nearest_mode", "floor")):
                node.attribute.append(onnx.helper.make_attribute(name, value))
