"""Low-rank adapters: beside a frozen matrix while training, inside it otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from blindsum.protocol.errors import BlindsumError

from ..manifest import Adapter
from ..trainable import Adapters
from .graph import attribute
from .select import matching, users
from .source import Source

DOWN, UP = ".down", ".up"


def adapted(source: Source, wanted: Sequence[Adapters]) -> tuple[Source, Source, tuple[Adapter, ...]]:
    """The model with the adapters beside the matrices, the model with them inside, and what they are.

    Raises "training-request-invalid" where an `Adapters` finds no matrix, or two find the same.
    """
    found: dict[str, tuple[Adapter, Adapters]] = {}
    for item in wanted:
        mine = _matrices(source, item)
        if not mine or set(mine) & set(found):
            reason = f"two find {', '.join(set(mine) & set(found))}" if mine else "it finds no matrix of Gemm or MatMul"
            raise BlindsumError("training-request-invalid", f"{item}: {reason}")
        found.update((name, (Adapter(name=name, scale=item.scale, flipped=flip), item)) for name, flip in mine.items())
    constants = dict(source.constants)
    for name, (one, item) in found.items():
        down, up = _initial(constants[name], one.flipped, item)
        if name + DOWN in constants or name + UP in constants:
            raise BlindsumError("training-request-invalid", f"{name} has an adapter already")
        constants |= {name + DOWN: down, name + UP: up}
    beside, inside = [], []
    for node in source.nodes:
        name = _matrix(source, node)
        if name in found:
            beside += _beside(node, found[name][0])
            inside += _inside(node, found[name][0])
        else:
            beside.append(node)
            inside.append(node)
    for one, _ in found.values():
        constants[f"@adapter/{one.name}/scale"] = np.array(one.scale, np.float32)
    return (
        replace(source, nodes=tuple(beside), constants=constants),
        replace(source, nodes=tuple(inside), constants=constants),
        tuple(one for one, _ in found.values()),
    )


def merged(
    matrix: NDArray[np.float32], down: NDArray[np.float32], up: NDArray[np.float32], one: Adapter
) -> NDArray[np.float32]:
    """The matrix with its adapter inside, as devices compute it."""
    change = (down @ up) * np.float32(one.scale)
    return np.asarray(matrix + (change.T if one.flipped else change), np.float32)


def _matrix(source: Source, node: onnx.NodeProto) -> str:
    """The constant matrix that a node multiplies a batch by, '' where it is not of that kind."""
    if node.op_type not in ("Gemm", "MatMul") or attribute(node, "transA", 0) or attribute(node, "alpha", 1.0) != 1.0:
        return ""
    name = str(node.input[1])
    array = source.constants.get(name)
    return name if array is not None and array.ndim == 2 and array.dtype == np.float32 else ""


def _matrices(source: Source, item: Adapters) -> dict[str, bool]:
    """The matrices that `item` matches, each with whether it is (outputs, inputs); not those with another use."""
    found: dict[str, set[bool]] = {}
    for node in source.nodes:
        if name := _matrix(source, node):
            found.setdefault(name, set()).add(bool(attribute(node, "transB", 0)))
    readers = users(source)
    single = [n for n, f in found.items() if len(f) == 1 and all(_matrix(source, user) == n for user in readers[n])]
    patterns = [item.match] if isinstance(item.match, str) else item.match
    chosen = {name for pattern in patterns for name in matching(source, pattern, single)}
    return {name: found[name].pop() for name in single if name in chosen}


def _initial(
    matrix: NDArray[np.generic], flipped: bool, item: Adapters
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    inputs, outputs = matrix.shape[::-1] if flipped else matrix.shape
    generator = np.random.default_rng([item.seed, inputs, outputs])
    down = generator.normal(0.0, inputs**-0.5, (inputs, item.rank)).astype(np.float32)
    return down, np.zeros((item.rank, outputs), np.float32)


def _beside(node: onnx.NodeProto, one: Adapter) -> list[onnx.NodeProto]:
    """y = x W + ((x A) scale) B."""
    base, low, scaled, change = (f"@adapter/{node.output[0]}/{part}" for part in ("base", "low", "scaled", "change"))
    frozen = onnx.NodeProto()
    frozen.CopyFrom(node)
    frozen.output[0] = base
    nodes = [frozen, helper.make_node("MatMul", [node.input[0], one.name + DOWN], [low])]
    if one.scale != 1.0:
        nodes.append(helper.make_node("Mul", [low, f"@adapter/{one.name}/scale"], [scaled]))
    nodes.append(helper.make_node("MatMul", [scaled if one.scale != 1.0 else low, one.name + UP], [change]))
    return [*nodes, helper.make_node("Add", [base, change], [node.output[0]], node.name)]


def _inside(node: onnx.NodeProto, one: Adapter) -> list[onnx.NodeProto]:
    """y = x (W + scale A B); onnxruntime computes the sum once, when it loads the weights."""
    product, change, turned, whole = (
        f"@adapter/{node.output[0]}/{part}" for part in ("product", "scaled", "turned", "merged")
    )
    nodes = [
        helper.make_node("MatMul", [one.name + DOWN, one.name + UP], [product]),
        helper.make_node("Mul", [product, f"@adapter/{one.name}/scale"], [change]),
    ]
    if one.flipped:
        nodes.append(helper.make_node("Transpose", [change], [turned], perm=[1, 0]))
    nodes.append(helper.make_node("Add", [one.name, turned if one.flipped else change], [whole]))
    outer = onnx.NodeProto()
    outer.CopyFrom(node)
    outer.input[1] = whole
    return [*nodes, outer]
