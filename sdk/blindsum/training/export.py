"""Write trained parameters back into the author's model (author side; needs the `onnx` package)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import numpy_helper

from blindsum.protocol.errors import BlindsumError

from .artifact import decode
from .autodiff import adapters, sklearn
from .autodiff.source import Model, load, subgraphs
from .manifest import Manifest
from .personal import join, split

Floats = NDArray[np.float32]


def export_model(model: Model, artifact: bytes, parameters: ArrayLike | Path) -> bytes:
    """The model from which `artifact` was built, with `parameters` (one flat vector, as of a session, or a .npy file of it).

    Everything else stays as the author exported it: names, nodes, operator set, metadata. Adapters are merged into their
    matrices, coefficients of sklearn's linear models go back into the attributes that hold them.

    Raises `BlindsumError` "training-request-invalid" where the model is not that one, or keeps a weight in a function
    of its own, "training-parameters-invalid", and what loading a model and an artifact raises.
    """
    manifest = decode(artifact).manifest
    proto, digest = load(model)
    if digest != manifest.source:
        raise BlindsumError(
            "training-request-invalid",
            f"the artifact is of a model with SHA-256 {manifest.source}, this one has {digest}",
        )
    flat = np.asarray(_read(parameters) if isinstance(parameters, Path) else parameters, np.float32)
    if (
        manifest.personal and flat.ndim == 1 and flat.size < manifest.size
    ):  # what was learnt together, and the rest as built
        shared, personal = split(manifest, decode(artifact).parameters)
        flat = join(manifest, flat, personal) if flat.shape == shared.shape else flat
    if flat.shape != (manifest.size,) or not np.isfinite(flat).all():
        raise BlindsumError(
            "training-parameters-invalid", f"shape {flat.shape}, not ({manifest.size},), or not all of it finite"
        )
    wanted = _merged(proto.graph, manifest, _named(manifest, flat))
    _write_linear(proto.graph, wanted)
    _write_separated(proto.graph, wanted)
    for name, tensor in list(_tensors(proto.graph)):
        if name in wanted:
            _store(tensor, wanted.pop(name))
    if wanted:
        raise BlindsumError(
            "training-request-invalid",
            f"{', '.join(wanted)}: made by the model's functions, not stored under that name",
        )
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


def _read(path: Path) -> NDArray[np.generic]:
    try:
        array: NDArray[np.generic] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BlindsumError("training-request-invalid", f"{path}: {error}") from None
    return array


def _named(manifest: Manifest, flat: Floats) -> dict[str, Floats]:
    ends = np.cumsum([int(np.prod(weight.shape)) for weight in manifest.parameters])
    parts = np.split(flat, ends[:-1])
    return {weight.name: part.reshape(weight.shape) for weight, part in zip(manifest.parameters, parts, strict=True)}


def _merged(graph: onnx.GraphProto, manifest: Manifest, trained: dict[str, Floats]) -> dict[str, Floats]:
    """The weights as the model has them: with the adapters inside."""
    stored = dict(_tensors(graph))
    for one in manifest.adapters:
        down, up = trained.pop(one.name + adapters.DOWN), trained.pop(one.name + adapters.UP)
        base = trained.get(one.name)
        if base is None and one.name in stored:
            base = np.asarray(numpy_helper.to_array(stored[one.name]), np.float32)
        if base is None:
            raise BlindsumError("training-request-invalid", f"{one.name}: not stored under that name")
        trained[one.name] = adapters.merged(base, down, up, one)
    return trained


def _tensors(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """All constants with a name: initialisers and values of `Constant` nodes, those of branches included."""
    for item in graph.initializer:
        yield item.name, item
    for node in graph.node:
        if node.op_type == "Constant":
            yield from ((node.output[0], item.t) for item in node.attribute if item.name == "value")
        for inner in subgraphs(node):
            yield from _tensors(inner)


def _store(tensor: onnx.TensorProto, array: Floats) -> None:
    stored = numpy_helper.from_array(array.reshape(tuple(tensor.dims)), tensor.name)
    tensor.ClearField("float_data")
    tensor.raw_data = stored.raw_data


def _write_separated(graph: onnx.GraphProto, wanted: dict[str, Floats]) -> None:
    """Give weights that were read through an Identity and are trained apart an initialiser of their own."""
    kept = []
    for node in graph.node:
        if node.op_type == "Identity" and node.output[0] in wanted:
            graph.initializer.append(numpy_helper.from_array(wanted.pop(node.output[0]), node.output[0]))
        else:
            kept.append(node)
    if len(kept) < len(graph.node):
        del graph.node[:]
        graph.node.extend(kept)


def _write_linear(graph: onnx.GraphProto, wanted: dict[str, Floats]) -> None:
    """Set the attributes of sklearn's linear models."""
    for node in graph.node:
        linear = sklearn.weights(node)
        if linear is None:
            continue
        stem, coefficients, intercepts = linear
        given: Mapping[str, Floats] = {sklearn.COEFFICIENTS: coefficients, sklearn.INTERCEPTS: intercepts}
        rows = {part: wanted.pop(stem + part, value) for part, value in given.items()}
        if sklearn.is_stored_twice(node):
            rows = {part: np.concatenate([-value, value]) for part, value in rows.items()}
        kept = [item for item in node.attribute if f".{item.name}" not in rows]
        del node.attribute[:]
        node.attribute.extend(kept)
        for part, value in rows.items():
            node.attribute.append(onnx.helper.make_attribute(part[1:], value.ravel().tolist()))
