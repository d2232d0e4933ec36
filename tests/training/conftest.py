"""What the training tests share: tiny models from ONNX text, and the three-way gradient check."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from blindsum.training import TrainingSession, build_artifact, decode
from blindsum.training.manifest import TARGETS, feature
from blindsum.training.protobuf import with_initialisers

Array = NDArray[np.generic]
STEP = 1e-5  # of the central differences, in float64


def require_torch_gradient(
    session: TrainingSession,
    x: Array,
    targets: Array,
    prediction: torch.Tensor,
    doubles: Mapping[str, torch.Tensor],
    within: float,
) -> None:
    """A step's loss and gradient by squared error are PyTorch's, which made `prediction` of the float64 parameters `doubles`."""
    loss, slope = session.step(x, targets)
    expected = torch.nn.functional.mse_loss(prediction, torch.tensor(targets).double())
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    at = 0
    for name, shape in session.layout:
        wanted = doubles[name].grad.numpy()
        found = slope[at : at + wanted.size].reshape(shape)
        assert np.abs(found - wanted).max() <= within * np.abs(wanted).max(), name
        at += wanted.size
    assert at == slope.size


def make_model(text: str, weights: Mapping[str, Array], opset: int = 18) -> onnx.ModelProto:
    """`text` is the graph in ONNX's text form, from its inputs to its closing brace."""
    head = f'<ir_version: 8, opset_import: ["" : {opset}]>'
    proto = onnx.parser.parse_model(f"{head} model {text}")
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    return proto


def reference_loss(loss: str, prediction: Array, targets: Array) -> float:
    """The loss in float64, straight from its definition; `prediction` holds logits."""
    z = prediction.astype(np.float64)
    if loss == "mse":
        return float(np.mean((z - targets) ** 2))
    if loss == "binary-cross-entropy":
        return float(np.mean(np.logaddexp(0.0, z) - z * targets))
    log_probability = z - np.logaddexp.reduce(z, axis=1, keepdims=True)
    return float(-np.mean(log_probability[np.arange(len(z)), targets]))


def as_float64(proto: onnx.ModelProto) -> onnx.ModelProto:
    double = onnx.ModelProto()
    double.CopyFrom(proto)
    for item in (*double.graph.input, *double.graph.output):
        if item.type.tensor_type.elem_type == TensorProto.FLOAT:
            item.type.tensor_type.elem_type = TensorProto.DOUBLE
    for item in double.graph.initializer:
        if item.data_type == TensorProto.FLOAT:
            item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item).astype(np.float64), item.name))
    for node in double.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.DOUBLE
    return double


def differences(proto: onnx.ModelProto, loss: str, x: Array, t: Array, names: list[str]) -> NDArray[np.float64]:
    """Gradient of the loss by central differences, in float64, with the forward pass run by onnx.reference."""
    double = as_float64(proto)
    stored = {item.name: item for item in double.graph.initializer}
    features = {proto.graph.input[0].name: x.astype(np.float64)}
    slopes = []
    for name in names:
        origin = numpy_helper.to_array(stored[name]).copy()
        for at in range(origin.size):
            values = []
            for sign in (1, -1):
                moved = origin.copy()
                moved.flat[at] += sign * STEP
                stored[name].CopyFrom(numpy_helper.from_array(moved, name))
                values.append(reference_loss(loss, ReferenceEvaluator(double).run(None, features)[0], t))
            slopes.append((values[0] - values[1]) / (2 * STEP))
        stored[name].CopyFrom(numpy_helper.from_array(origin, name))
    return np.array(slopes)


def run_reference(artifact: bytes, x: Array, t: Array) -> list[Array]:
    """The outputs of the train graph as onnx.reference computes them: the loss, then gradients or updated tensors."""
    decoded = decode(artifact)
    evaluator = ReferenceEvaluator(onnx.load_model_from_string(with_initialisers(decoded.train, decoded.constants)))
    feeds: dict[str, Array] = {feature(decoded.manifest.features[0].name): x, TARGETS: t}
    feeds |= {f"@{name}": np.float32(value) for name, value in decoded.manifest.hyperparameters.items()}
    at = 0
    for weight in decoded.manifest.parameters:
        size = int(np.prod(weight.shape))
        feeds[weight.name] = decoded.parameters[at : at + size].reshape(weight.shape)
        at += size
    feeds |= {weight.name: np.zeros(weight.shape, np.float32) for weight in decoded.manifest.states}
    return evaluator.run(None, feeds)


def check_gradient(proto: onnx.ModelProto, loss: str, x: Array, t: Array) -> None:
    """The gradient that onnxruntime computes is that of onnx.reference and that of central differences."""
    artifact = build_artifact(proto, loss=loss, optimizer="gradient")
    session = TrainingSession(artifact)
    value, gradient = session.step(x, t)
    expected_value, _, *parts = run_reference(artifact, x, t)
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    np.testing.assert_allclose(gradient, np.concatenate([part.ravel() for part in parts]), rtol=1e-4, atol=1e-6)
    expected = differences(proto, loss, x, t, [name for name, _ in session.layout])
    assert np.abs(expected).max() > 1e-3, "a gradient of zero checks nothing"
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=2e-6)


@pytest.fixture(name="make_model")
def _make_model() -> Callable[..., onnx.ModelProto]:
    return make_model


@pytest.fixture(name="check_gradient")
def _check_gradient() -> Callable[[onnx.ModelProto, str, Array, Array], None]:
    return check_gradient


@pytest.fixture(name="run_reference")
def _run_reference() -> Callable[[bytes, Array, Array], list[Array]]:
    return run_reference
