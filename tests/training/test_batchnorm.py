"""BatchNormalization with frozen statistics and in training, beside PyTorch."""

from __future__ import annotations

import copy
import io
import warnings

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from blindsum.protocol.errors import BlindsumError
from blindsum.training import SGD, TrainingSession, build_artifact, models


def _net(*, dense=False):
    torch.manual_seed(0)
    body = [nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)]
    if not dense:
        body = [nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 4 * 4, 3)]
    net = nn.Sequential(*body)
    with torch.no_grad():
        net[1].running_mean.uniform_(-0.5, 0.5)
        net[1].running_var.uniform_(0.5, 2.0)
        net[1].weight.uniform_(0.5, 2.0)
    return net


def _export(net, shape=(2, 6, 6)):
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this exporter announces its own end
        net.eval()
        torch.onnx.export(
            net, (torch.zeros(2, *shape),), file, dynamo=False, opset_version=18, do_constant_folding=False,
            training=torch.onnx.TrainingMode.PRESERVE, input_names=["x"], dynamic_axes={"x": {0: "n"}},
        )  # fmt: skip
    return onnx.load_model_from_string(file.getvalue())


NET = _net()
MODEL = _export(NET)
GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(1.0, 2.0, size=(8, 2, 6, 6)).astype(np.float32)
T = GENERATOR.integers(0, 3, 8)


@pytest.mark.parametrize("dense", [False, True])
def test_training_moves_weights_and_statistics_as_pytorch_does(dense):
    net = _net(dense=dense).train()
    x, count = (X[:, 0, 0, :4], 8) if dense else (X, 8 * 4 * 4)
    model = _export(copy.deepcopy(net), x.shape[1:])
    optimiser = torch.optim.SGD(net.parameters(), 0.1)
    session = TrainingSession(build_artifact(model, loss="cross-entropy", optimizer=SGD(lr=0.1), batch_norm="train"))
    for _ in range(3):
        before = net[1].running_var.clone()
        loss = nn.functional.cross_entropy(net(torch.from_numpy(x)), torch.from_numpy(T))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():  # PyTorch keeps the variance over n - 1, ONNX that over n
            batch = (net[1].running_var - 0.9 * before) / 0.1
            net[1].running_var.copy_(0.9 * before + 0.1 * batch * (count - 1) / count)
        assert session.step(x, T) == pytest.approx(loss.item(), rel=1e-5)
    state = net.state_dict()
    at, vector = 0, session.parameters
    for name, shape in session.layout:
        size = int(np.prod(shape))
        np.testing.assert_allclose(vector[at : at + size].reshape(shape), state[name], rtol=2e-4, atol=1e-6)
        at += size
    assert at == vector.size == sum(t.numel() for n, t in state.items() if n != "1.num_batches_tracked")
    np.testing.assert_allclose(session.predict(x), net.eval()(torch.from_numpy(x)).detach(), rtol=1e-3, atol=1e-5)


def test_frozen_statistics_normalise_and_stay():
    session = TrainingSession(build_artifact(MODEL, loss="cross-entropy"))
    assert not {"1.running_mean", "1.running_var"} & {name for name, _ in session.layout}
    expected = nn.functional.cross_entropy(_net().eval()(torch.from_numpy(X)), torch.from_numpy(T))
    assert session.step(X, T) == pytest.approx(expected.item(), rel=1e-5)


def test_model_in_training_mode_is_frozen_all_the_same():
    model = onnx.ModelProto()
    model.CopyFrom(MODEL)
    node = next(node for node in model.graph.node if node.op_type == "BatchNormalization")
    next(item for item in node.attribute if item.name == "training_mode").i = 1
    node.output.extend(["new_mean", "new_variance"])
    sessions = [TrainingSession(build_artifact(one, loss="cross-entropy")) for one in (model, MODEL)]
    assert sessions[0].step(X, T) == sessions[1].step(X, T)


def test_gradient_artifact_normalises_by_the_batch_and_leaves_the_statistics_out():
    net = _net().train()
    nn.functional.cross_entropy(net(torch.from_numpy(X)), torch.from_numpy(T)).backward()
    session = TrainingSession(
        build_artifact(MODEL, loss="cross-entropy", optimizer="gradient", batch_norm="train", trainable=["0.*", "1.*"])
    )
    assert [name for name, _ in session.layout] == ["0.weight", "0.bias", "1.weight", "1.bias"]
    _, ours = session.step(X, T)
    gradients = {name: parameter.grad.numpy().ravel() for name, parameter in net.named_parameters()}
    expected = np.concatenate([gradients[name] for name, _ in session.layout])
    np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-5)


def test_micro_batches_average_their_statistics():
    artifact = build_artifact(MODEL, loss="cross-entropy", optimizer=SGD(lr=0.0), batch_norm="train", trainable="head")
    start = TrainingSession(artifact).parameters
    halves = []
    for rows in (slice(0, 4), slice(4, 8)):
        session = TrainingSession(artifact)
        session.step(X[rows], T[rows])
        halves.append(session.parameters)
    session = TrainingSession(artifact)
    session.fit(X, T, epochs=1, batch_size=8, accumulate=2, shuffle_seed=None)
    assert not np.array_equal(session.parameters, start)
    np.testing.assert_allclose(session.parameters, (halves[0] + halves[1]) / 2, rtol=1e-5)


def test_variance_below_zero_is_read_as_zero():
    session = TrainingSession(build_artifact(MODEL, loss="cross-entropy", batch_norm="train"))
    at = [name for name, _ in session.layout].index("1.running_var")
    start = sum(int(np.prod(shape)) for _, shape in session.layout[:at])
    vector = session.parameters
    vector[start : start + 3] = -1.0
    session.parameters = vector
    assert np.isfinite(session.predict(X)).all() and np.isfinite(session.evaluate(X, T)["loss"])
    session.step(X, T)
    assert (session.parameters[start : start + 3] >= 0).all()


def test_model_without_statistics_is_refused():
    with pytest.raises(BlindsumError, match="the model has no BatchNormalization"):
        build_artifact(models.mlp([4, 3], seed=1), loss="cross-entropy", batch_norm="train")
    with pytest.raises(BlindsumError, match="batch_norm 'thaw' is none of frozen, train"):
        build_artifact(MODEL, loss="cross-entropy", batch_norm="thaw")
