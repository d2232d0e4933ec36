"""What a model or an artifact holds, for its author: inputs, weights and what of them can be trained, operators, memory
(author side; needs the `onnx` package).
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import ArrayLike

from blindsum.protocol.errors import BlindsumError

from .artifact import MAGIC, decode
from .autodiff import differentiate
from .autodiff.graph import Graph
from .autodiff.prepare import prepare
from .autodiff.select import defaults, users
from .autodiff.sizes import Rows, of, product
from .autodiff.source import Source, load, read_source, title

FLOAT_SIZE = 4
USERS_MAX = 3


def describe(
    file: bytes | str | os.PathLike[str],
    *,
    output: str | None = None,
    dimensions: Mapping[str, int] | None = None,
    fixed: Mapping[str, ArrayLike] | None = None,
) -> dict[str, Any]:
    """Plain figures about an ONNX model or a training artifact, its bytes or its path; made for JSON.

    `output`, `dimensions`, `fixed`: as `build_artifact` takes them, for a model that needs them. Where it cannot be
    trained as it is, "obstacle" says why and what to do. "memory" counts bytes: the weights, and the forward results that
    a step keeps for each example of a batch.
    """
    try:
        data = file if isinstance(file, bytes) else Path(file).read_bytes()
    except OSError as error:
        raise BlindsumError("training-request-invalid", str(error)) from None
    if data.startswith(MAGIC):
        return _artifact(data)
    return _model(file, output, dimensions or {}, fixed or {})


def _artifact(data: bytes) -> dict[str, Any]:
    artifact = decode(data)
    manifest = artifact.manifest
    states = sum(math.prod(weight.shape) for weight in manifest.states)
    return {
        "kind": "training artifact",
        "bytes": len(data),
        "source": manifest.source,
        "loss": manifest.loss,
        "metrics": list(manifest.metrics),
        "optimizer": manifest.optimiser,
        "hyperparameters": dict(manifest.hyperparameters),
        "inputs": [{"name": i.name, "dtype": i.dtype, "shape": ["batch", *i.shape]} for i in manifest.features],
        "targets": {"dtype": manifest.targets.dtype, "shape": ["batch", *manifest.targets.shape]},
        "outputs": [{"dtype": manifest.prediction.dtype, "shape": ["batch", *manifest.prediction.shape]}],
        "weights": [{"name": w.name, "shape": list(w.shape), "trainable": True} for w in manifest.parameters],
        "adapters": [one.name for one in manifest.adapters],
        "opset": manifest.opset,
        "operators": dict(manifest.operators),
        "memory": {
            "trained": FLOAT_SIZE * manifest.size,
            "optimiser": FLOAT_SIZE * states,
            "frozen": sum(array.nbytes for array in artifact.constants.values()),
        },
    }


def _model(
    file: bytes | str | os.PathLike[str],
    output: str | None,
    dimensions: Mapping[str, int],
    fixed: Mapping[str, ArrayLike],
) -> dict[str, Any]:
    proto, digest = load(file)
    stored = {item.name for item in proto.graph.initializer}
    figures: dict[str, Any] = {
        "kind": "ONNX model",
        "source": digest,
        "inputs": [_value(item) for item in proto.graph.input if item.name not in stored],
        "outputs": [_value(item) for item in proto.graph.output],
        "opset": {item.domain or "ai.onnx": item.version for item in proto.opset_import},
        "operators": dict(sorted(Counter(node.op_type for node in proto.graph.node).items())),
    }
    source, figures["obstacle"] = _source(
        file, [output] if output else [None, *(o["name"] for o in figures["outputs"])], fixed
    )
    if source is None:
        return {**figures, "weights": []}
    trained: set[str] = set()
    wanted = defaults(source)
    try:
        prepared = prepare(source, wanted, dimensions)
        figures["memory"] = {
            "weights": sum(array.nbytes for array in prepared.graph.constants.values()),
            "step_per_example": _kept(prepared.graph),
        }
        graph = prepared.graph.copy()
        trained = set(differentiate(graph, prepared.output, graph.op("Identity", prepared.output), wanted))
    except BlindsumError as error:
        figures["obstacle"] = figures["obstacle"] or error.detail
    return {**figures, "weights": _weights(source, trained)}


def _source(
    file: bytes | str | os.PathLike[str], outputs: Sequence[str | None], fixed: Mapping[str, ArrayLike]
) -> tuple[Source | None, str | None]:
    """The model as the first of `outputs` that it has makes it, and what is in the way of the very first."""
    obstacle = None
    for output in outputs:
        try:
            return read_source(file, output, fixed), obstacle
        except BlindsumError as error:
            obstacle = obstacle or error.detail
    return None, obstacle


def _weights(source: Source, trained: set[str]) -> list[dict[str, Any]]:
    readers = users(source)
    return [
        {
            "name": name,
            "shape": list(array.shape),
            "dtype": array.dtype.name,
            "trainable": name in trained,
            "read_by": [title(node) for node in readers.get(name, [])[:USERS_MAX]],
        }
        for name, array in source.constants.items()
        if name in source.weights or name in trained or (array.ndim > 1 and array.dtype.kind == "f")
    ]


def _kept(graph: Graph) -> int:
    """Bytes of all forward results for one example."""
    count = 0
    for node in graph.nodes:
        for name in filter(None, node.output):
            size = product([of(dimension) for dimension in graph.shapes.get(name, ())])
            count += size.factor if isinstance(size, Rows) else 0
    return FLOAT_SIZE * count


def _value(item: onnx.ValueInfoProto) -> dict[str, Any]:
    tensor = item.type.tensor_type
    if not item.type.HasField("tensor_type"):
        return {"name": item.name, "dtype": item.type.WhichOneof("value"), "shape": None}
    shape = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in tensor.shape.dim]
    return {"name": item.name, "dtype": onnx.TensorProto.DataType.Name(tensor.elem_type).lower(), "shape": shape}
