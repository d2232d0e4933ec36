"""Rules for operators that change the resolution of images."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from blindsum.protocol.errors import BlindsumError

from ..verify import IR_VERSION
from .registry import Backward, Gradients, rule

Matrix = NDArray[np.float32]


@rule("Resize", since=13)
def resize(b: Backward) -> Gradients:
    """Interpolation is linear and works along one axis after the other: dx is dy times each axis' matrix."""
    before, after = b.shape(b.x[0]), b.shape(b.y[0])
    matrices: dict[int, Matrix] = {}
    for axis, (old, new) in enumerate(zip(before, after, strict=True)):
        if old == new and old is not None and _scale(b, axis) == 1.0 and _roi(b, axis) == (0.0, 1.0):
            continue
        if not isinstance(old, int) or not isinstance(new, int):
            raise _refused(b, f"axis {axis} is resized from {old} to {new}; fix its sizes")
        matrix = _matrix(b, axis, old, new)
        if not np.array_equal(matrix, np.eye(old)):
            matrices[axis] = matrix
    repeats = [_repeats(matrices[axis]) if axis in matrices else 1 for axis in range(len(before))]
    if repeats[:2] == [1, 1] and min(repeats) > 0:
        mean = b.op("AveragePool", b.dy, kernel_shape=repeats[2:], strides=repeats[2:])
        return [b.op("Mul", mean, b.scalar(math.prod(repeats)))]
    dx = b.dy
    for axis in sorted(matrices, reverse=True):
        dx = _along(b, dx, axis, matrices[axis])
    return [b.graph.reshape_like(dx, b.x[0])]


@rule("DepthToSpace")
def depth_to_space(b: Backward) -> Gradients:
    block = b.integer("blocksize", 0)
    if b.text("mode", "DCR") == "DCR":
        return [b.op("SpaceToDepth", b.dy, blocksize=block)]
    channels, *sizes = b.shape(b.x[0])[1:]
    height, width = (size if isinstance(size, int) else -1 for size in sizes)
    assert isinstance(channels, int)
    split = b.op("Reshape", b.dy, b.integers([0, channels // block**2, height, block, width, block]))
    return [b.graph.reshape_like(b.op("Transpose", split, perm=[0, 1, 3, 5, 2, 4]), b.x[0])]


@rule("SpaceToDepth")
def space_to_depth(b: Backward) -> Gradients:
    return [b.op("DepthToSpace", b.dy, blocksize=b.integer("blocksize", 0), mode="DCR")]


def _scale(b: Backward, axis: int) -> float:
    """By how much an axis grows; 1 for one that the node does not name."""
    scales = b.known(b.x[2]) if len(b.x) > 2 and b.x[2] else None
    axes = _axes(b)
    if scales is None and len(b.x) < 4:
        raise _refused(b, "its scales are computed in the graph; make them constant")
    return 1.0 if scales is None else 1.0 if axis not in axes else float(scales[axes.index(axis)])


def _matrix(b: Backward, axis: int, before: int, after: int) -> Matrix:
    """What the node does along one axis, (after, before): it resizes the unit matrix, in the runtime that devices use.

    So weights and rounding are those of the forward pass, to the last bit.
    """
    options = {item.name: onnx.helper.get_attribute_value(item) for item in b.node.attribute}
    for name in ("axes", "extrapolation_value", "keep_aspect_ratio_policy"):
        options.pop(name, None)
    sized = len(b.x) > 3 and b.x[3]
    inputs = ["x", "roi", "", "sizes"] if sized else ["x", "roi", "scales"]
    values = {
        "roi": np.array([0, 0, 0, _roi(b, axis)[0], 1, 1, 1, _roi(b, axis)[1]], np.float32),
        "scales": np.array([1, 1, 1, _scale(b, axis)], np.float32),
        "sizes": np.array([1, 1, before, after]),
    }
    body = onnx.helper.make_graph(
        [onnx.helper.make_node("Resize", inputs, ["y"], **options)],
        "axis",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 1, before, before])],
        [onnx.helper.make_empty_tensor_value_info("y")],
        [onnx.numpy_helper.from_array(values[name], name) for name in inputs[1:] if name],
    )
    body.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    opsets = [onnx.helper.make_opsetid("", b.graph.opset)]
    model = onnx.helper.make_model(body, opset_imports=opsets, ir_version=IR_VERSION)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (resized,) = session.run(None, {"x": np.eye(before, dtype=np.float32)[None, None]})
    matrix: Matrix = resized[0, 0].T
    return matrix


def _roi(b: Backward, axis: int) -> tuple[float, float]:
    given = b.known(b.x[1]) if len(b.x) > 1 and b.x[1] else None
    axes = _axes(b)
    if b.text("coordinate_transformation_mode", "half_pixel") != "tf_crop_and_resize" or axis not in axes:
        return 0.0, 1.0
    if given is None:
        raise _refused(b, "its region of interest is computed in the graph; make it constant")
    at = axes.index(axis)
    return float(given[at]), float(given[at + len(axes)])


def _axes(b: Backward) -> list[int]:
    """The axes that scales, sizes and region are about."""
    rank = b.rank(b.x[0])
    return [axis % rank for axis in b.ints("axes", range(rank))]


def _along(b: Backward, dx: str, axis: int, matrix: Matrix) -> str:
    """dx with one axis taken back from after to before."""
    after, _ = matrix.shape
    trailing = [size for size in b.shape(b.x[0])[axis + 1 :] if isinstance(size, int)]
    if len(trailing) != b.rank(b.x[0]) - axis - 1:
        raise _refused(b, f"axis {axis} is resized before one whose size is not fixed")
    if not trailing:
        return b.op("MatMul", dx, b.constant(matrix))
    planes = b.op("Reshape", dx, b.integers([-1, after, math.prod(trailing)]))
    return b.op("MatMul", b.constant(np.ascontiguousarray(matrix.T)), planes)


def _repeats(matrix: Matrix) -> int:
    """k where the axis repeats each element k times, else 0."""
    after, before = matrix.shape
    repeated = np.repeat(np.eye(before), after // before, axis=0)
    return after // before if np.array_equal(matrix, repeated) else 0


def _refused(b: Backward, reason: str) -> BlindsumError:
    return BlindsumError("training-model-invalid", f"node {b.node.name!r} ({b.node.op_type}): {reason}")
