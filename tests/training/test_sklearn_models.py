"""Fitted models of scikit-learn, as skl2onnx exports them, beside the same layers in PyTorch."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import skl2onnx
import torch
from numpy.typing import NDArray
from skl2onnx.common.data_types import FloatTensorType
from sklearn.datasets import load_iris
from sklearn.linear_model import LinearRegression, LogisticRegression, SGDClassifier
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from torch import Tensor, nn

from blindsum.training import SGD, TrainingSession, build_artifact

Array = NDArray[Any]
STEPS, LR = 50, 0.01


class TwoClasses(nn.Module):
    """The score of the second class; that of the first is zero."""

    def forward(self, score: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(score), score], dim=1)


class Scaled(nn.Module):
    def __init__(self, scaler: StandardScaler) -> None:
        super().__init__()
        self.mean, self.scale = (torch.tensor(values) for values in (scaler.mean_, scaler.scale_))

    def forward(self, x: Tensor) -> Tensor:
        return ((x - self.mean) / self.scale).to(x.dtype)


@dataclass(frozen=True)
class Fitted:
    """A fitted model with the layers that it should be."""

    model: Any
    layers: nn.Module
    loss: str
    targets: Array


def dense(weights: Sequence[Array], biases: Sequence[Array], activation: type[nn.Module]) -> list[nn.Module]:
    """Layers from scikit-learn's matrices (inputs, outputs)."""
    layers: list[nn.Module] = []
    for weight, bias in zip(weights, biases, strict=True):
        layer = nn.Linear(*weight.shape)
        layer.weight.data = torch.tensor(np.ascontiguousarray(weight.T, np.float32))
        layer.bias.data = torch.tensor(np.float32(bias))
        layers += [layer, activation()]
    return layers[:-1]


def linear_regression(x: Array, t: Array) -> Fitted:
    y = np.float32(x[:, :1] * 2 + t[:, None])
    model = LinearRegression().fit(x, y)
    return Fitted(model, nn.Sequential(*dense([model.coef_.T], [model.intercept_], nn.Identity)), "mse", y)


def logistic_regression(x: Array, t: Array) -> Fitted:
    model = LogisticRegression().fit(x, t)
    layers = dense([model.coef_.T], [model.intercept_], nn.Identity)
    return Fitted(model, nn.Sequential(*layers), "cross-entropy", t)


def logistic_regression_of_two_classes(x: Array, t: Array) -> Fitted:
    model = LogisticRegression().fit(x, t > 1)
    layers = dense([model.coef_.T], [model.intercept_], nn.Identity)
    return Fitted(model, nn.Sequential(*layers, TwoClasses()), "cross-entropy", np.int64(t > 1))


def scaled_perceptron(x: Array, t: Array) -> Fitted:
    model = make_pipeline(StandardScaler(), MLPClassifier((8, 6), max_iter=5, random_state=1)).fit(x, t)
    layers = dense(model[1].coefs_, model[1].intercepts_, nn.ReLU)
    return Fitted(model, nn.Sequential(Scaled(model[0]), *layers), "cross-entropy", t)


def regressing_perceptron(x: Array, t: Array) -> Fitted:
    y = np.float32(x[:, 0] + t)
    model = MLPRegressor(hidden_layer_sizes=(6,), activation="tanh", max_iter=5, random_state=1).fit(x, y)
    return Fitted(model, nn.Sequential(*dense(model.coefs_, model.intercepts_, nn.Tanh)), "mse", y[:, None])


MODELS: list[Callable[[Array, Array], Fitted]] = [
    linear_regression,
    logistic_regression,
    logistic_regression_of_two_classes,
    scaled_perceptron,
    regressing_perceptron,
]


@cache
def fitted(make: Callable[[Array, Array], Fitted]) -> tuple[Array, Fitted, onnx.ModelProto, str | None]:
    """Data, model, its export, and the output to train."""
    x, t = load_iris(return_X_y=True)
    x = np.float32(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # five epochs are few
        made = make(x, t)
    made = replace(made, targets=np.roll(made.targets, 20, axis=0))  # something else to learn
    model = skl2onnx.to_onnx(made.model, initial_types=[("x", FloatTensorType([None, 4]))])
    names = [item.name for item in model.graph.output]
    return x, made, model, "probabilities" if "probabilities" in names else None


@pytest.mark.parametrize("make", MODELS)
def test_gradient_of_a_fitted_model_is_that_of_its_layers(make: Callable[[Array, Array], Fitted]) -> None:
    x, made, model, output = fitted(make)
    session = TrainingSession(build_artifact(model, loss=made.loss, output=output, optimizer="gradient"))
    module = copy.deepcopy(made.layers).double()
    loss, ours = session.step(x, made.targets)
    expected = _loss(made, module(torch.tensor(np.float64(x))), torch.tensor(made.targets))
    theirs = torch.cat([part.ravel() for part in torch.autograd.grad(expected, list(module.parameters()))]).numpy()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    flat = nn.utils.parameters_to_vector(made.layers.parameters()).detach().numpy()
    order = np.argsort(flat)
    at = order[np.searchsorted(flat, session.parameters, sorter=order).clip(max=flat.size - 1)]
    assert np.array_equal(flat[at], session.parameters)
    assert np.array_equal(np.sort(at), np.arange(flat.size))
    np.testing.assert_allclose(ours, theirs[at], rtol=0, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("make", MODELS)
def test_fitted_model_goes_on_as_its_layers_do(make: Callable[[Array, Array], Fitted]) -> None:
    x, made, model, output = fitted(make)
    session = TrainingSession(build_artifact(model, loss=made.loss, output=output, optimizer=SGD(lr=LR)))
    known = made.model.predict_proba(x) if made.loss == "cross-entropy" else made.model.predict(x)
    np.testing.assert_allclose(session.predict(x), known.reshape(len(x), -1), rtol=1e-4, atol=1e-5)
    module = copy.deepcopy(made.layers)
    optimiser = torch.optim.SGD(module.parameters(), LR)
    ours, theirs = [], []
    for step in range(STEPS):
        rows = slice(step % 15 * 10, step % 15 * 10 + 10)
        ours.append(session.step(x[rows], made.targets[rows]))
        optimiser.zero_grad()
        loss = _loss(made, module(torch.tensor(x[rows])), torch.tensor(made.targets[rows]))
        loss.backward()
        optimiser.step()
        theirs.append(loss.item())
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3 * max(theirs))


def test_logistic_scores_far_from_zero_are_no_nan() -> None:
    """skl2onnx spells 1 / (1 + exp(-z)) out, which overflows; and it stores the parts of the formula like weights."""
    x, t = load_iris(return_X_y=True)
    model = SGDClassifier(loss="log_loss", random_state=1).fit(x, t)
    proto = skl2onnx.to_onnx(model, initial_types=[("x", FloatTensorType([None, 4]))], options={"zipmap": False})
    assert "Exp" in {node.op_type for node in proto.graph.node}
    session = TrainingSession(build_artifact(proto, loss="cross-entropy", optimizer="gradient"))
    assert [name for name, _ in session.layout] == ["coef", "intercept"]
    far = np.float32(x * 100)
    written = onnxruntime.InferenceSession(proto.SerializeToString()).run(["probabilities"], {"x": far})[0]
    np.testing.assert_allclose(session.predict(far), written, atol=1e-5)
    loss, gradient = session.step(far, t)
    assert np.isfinite(loss) and np.isfinite(gradient).all()


def test_ranges_of_a_scaler_are_not_trained() -> None:
    x, t = load_iris(return_X_y=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # two epochs are few
        model = make_pipeline(MinMaxScaler(), MLPClassifier((4,), max_iter=2, random_state=1)).fit(x, t)
    proto = skl2onnx.to_onnx(model, initial_types=[("x", FloatTensorType([None, 4]))], options={"zipmap": False})
    session = TrainingSession(build_artifact(proto, loss="cross-entropy"))
    assert session.parameters.size == 4 * 4 + 4 + 4 * 3 + 3


def _loss(made: Fitted, prediction: Tensor, targets: Tensor) -> Tensor:
    if made.loss == "cross-entropy":
        return nn.functional.cross_entropy(prediction, targets)
    return nn.functional.mse_loss(prediction, targets.to(prediction.dtype))
