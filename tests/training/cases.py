"""A case of a gradient rule: a small graph around the operator, and the four-way check of its gradient.

What onnxruntime computes is compared with central differences (float64, forward pass by onnx.reference), with PyTorch's
autograd on the oracle's forward pass (float64), its forward pass with the oracle's, at two batch sizes.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from blindsum.training import TrainingSession, build_artifact
from tests.training import oracle
from tests.training.conftest import STEP, as_float64, make_model

Array = NDArray[Any]
BATCHES = (5, 2)
PROBES = 6  # elements of each parameter of which the slope is measured; autograd checks all


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """`body` leads from the input `x` to `y`; it uses weights (trained) and constants by their names."""

    body: str
    x: tuple[int, ...]  # shape of one example
    between: tuple[float, float] | None  # x is uniform; otherwise normal
    dtype: str  # of x; integers are uniform `between`
    weights: Mapping[str, Array]
    constants: Mapping[str, Array]
    opset: int
    differences: bool
    tolerance: float


def case(
    body: str,
    x: tuple[int, ...],
    *,
    between: tuple[float, float] | None = None,
    dtype: str = "float32",
    opset: int = 18,
    differences: bool = True,
    tolerance: float = 1e-4,
    constants: Mapping[str, Any] | None = None,
    **weights: tuple[int, ...] | Array,
) -> Case:
    """A weight is a shape, and uniform in [0.3, 1.3] then, or an array; lists of integers are constants.

    Where the operator under test has an operand of its own that needs a gradient, "h = Mul (x, s)" makes the other one
    need one too. `differences=False` where the slope is one-sided, or onnx.reference does not know the operator or
    contradicts the specification: say which.
    """
    generator = np.random.default_rng(zlib.crc32(body.encode()))
    drawn, fixed = {}, {name: np.asarray(value) for name, value in (constants or {}).items()}
    for name, value in weights.items():
        if isinstance(value, tuple):
            drawn[name] = (0.3 + generator.random(value)).astype(np.float32)
        elif np.asarray(value).dtype.kind == "f":
            drawn[name] = np.asarray(value, np.float32)
        else:
            fixed[name] = np.asarray(value)
    return Case(
        body=body,
        x=x,
        between=between,
        dtype=dtype,
        weights=drawn,
        constants=fixed,
        opset=opset,
        differences=differences,
        tolerance=tolerance,
    )


def model_of(item: Case) -> onnx.ModelProto:
    """The case as a model with a dynamic batch, all shapes inferred."""
    sizes = ",".join(map(str, ("N", *item.x)))
    kind = {"float32": "float", "int64": "int64"}[item.dtype]
    text = f"({kind}[{sizes}] x) => (float y) {{ {item.body} }}"
    proto = make_model(text, {**item.weights, **item.constants}, item.opset)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    proto = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    shape = proto.graph.output[0].type.tensor_type.shape
    if not shape.dim:  # onnx does not infer it: as many dimensions as x, of any size
        shape.dim.extend(onnx.TensorShapeProto.Dimension() for _ in sizes.split(","))
    return proto


def examples(item: Case, size: int) -> Array:
    generator = np.random.default_rng([zlib.crc32(item.body.encode()), size])
    shape = (size, *item.x)
    if item.dtype == "int64":
        assert item.between is not None
        return generator.integers(int(item.between[0]), int(item.between[1]), shape)
    if item.between is not None:
        return generator.uniform(*item.between, shape).astype(np.float32)
    return generator.normal(size=shape).astype(np.float32)


def check(item: Case) -> None:
    """The gradient of the mean squared error, and the forward pass."""
    proto = model_of(item)
    artifact = build_artifact(proto, loss="mse", trainable=list(item.weights), optimizer="gradient")
    session = TrainingSession(artifact)
    names = [name for name, _ in session.layout]
    assert sorted(names) == sorted(item.weights)
    for size in BATCHES:
        x = examples(item, size)
        prediction = session.predict(x)
        targets = np.random.default_rng(size).normal(size=prediction.shape).astype(np.float32)
        wanted = oracle.tensor(targets)
        y, slopes = oracle.gradients(proto, x, names, lambda y, t=wanted: ((y - t) ** 2).mean())
        np.testing.assert_allclose(prediction, y, rtol=item.tolerance, atol=item.tolerance / 10)
        _, gradient = session.step(x, targets)
        expected = np.concatenate([slope.ravel() for slope in slopes])
        assert np.abs(expected).max() > 1e-3, "a gradient of zero checks nothing"
        np.testing.assert_allclose(gradient, expected, rtol=item.tolerance, atol=item.tolerance / 30)
        if item.differences and size == BATCHES[0]:
            _check_differences(proto, x, targets, names, gradient, item.tolerance)


def _check_differences(
    proto: onnx.ModelProto, x: Array, targets: Array, names: list[str], gradient: Array, tolerance: float
) -> None:
    double = as_float64(proto)
    stored = {item.name: item for item in double.graph.initializer}
    feeds = {proto.graph.input[0].name: x.astype(np.float64) if x.dtype == np.float32 else x}
    start = 0
    for name in names:
        origin = numpy_helper.to_array(stored[name]).copy()
        picked = np.random.default_rng(origin.size).permutation(origin.size)[:PROBES]
        for at in picked:
            losses = []
            for sign in (1, -1):
                moved = origin.copy()
                moved.flat[at] += sign * STEP
                stored[name].CopyFrom(numpy_helper.from_array(moved, name))
                losses.append(np.mean((ReferenceEvaluator(double).run(None, feeds)[0] - targets) ** 2))
            slope = (losses[0] - losses[1]) / (2 * STEP)
            np.testing.assert_allclose(gradient[start + at], slope, rtol=tolerance, atol=tolerance / 30)
        stored[name].CopyFrom(numpy_helper.from_array(origin, name))
        start += origin.size
