"""The update graphs against torch.optim, which takes the same steps in float64."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import optim
from torch.nn import functional

from blindsum.protocol.errors import BlindsumError
from blindsum.training import SGD, Adagrad, Adam, AdamW, RMSprop, TrainingSession, build_artifact, decode, models
from blindsum.training.protobuf import with_initialisers

STEPS = 50
MODEL = models.mlp([6, 8, 3], seed=2)


def _batches():
    generator = np.random.default_rng(4)
    for _ in range(STEPS):
        rows = int(generator.integers(1, 9))
        yield generator.normal(size=(rows, 6)).astype(np.float32), generator.integers(0, 3, rows)


class _Twin:
    """The same perceptron in PyTorch."""

    def __init__(self, parameters, layout):
        ends = np.cumsum([int(np.prod(shape)) for _, shape in layout])
        parts = np.split(parameters.astype(np.float64), ends[:-1])
        self.parameters = [
            torch.tensor(part.reshape(shape), requires_grad=True)
            for part, (_, shape) in zip(parts, layout, strict=True)
        ]

    def loss(self, x, t):
        w1, b1, w2, b2 = self.parameters
        hidden = torch.relu(torch.tensor(x, dtype=torch.float64) @ w1 + b1)
        return functional.cross_entropy(hidden @ w2 + b2, torch.tensor(t))

    def train(self, optimiser, *, clip=None, proximal=0.0, control=None):
        anchors = [parameter.detach().clone() for parameter in self.parameters]
        for x, t in _batches():
            optimiser.zero_grad()
            loss = self.loss(x, t)
            for parameter, anchor in zip(self.parameters, anchors, strict=True):
                loss = loss + proximal / 2 * ((parameter - anchor) ** 2).sum()
            loss.backward()
            if control is not None:
                sizes = [parameter.numel() for parameter in self.parameters]
                for parameter, part in zip(self.parameters, torch.tensor(control).double().split(sizes), strict=True):
                    parameter.grad += part.reshape(parameter.shape)
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(self.parameters, clip)
            optimiser.step()
        return np.concatenate([parameter.detach().numpy().ravel() for parameter in self.parameters])


CASES = [
    (SGD(lr=0.1), lambda p: optim.SGD(p, 0.1)),
    (SGD(lr=0.1, weight_decay=0.02), lambda p: optim.SGD(p, 0.1, weight_decay=0.02)),
    (SGD(lr=0.05, momentum=0.9), lambda p: optim.SGD(p, 0.05, 0.9)),
    (SGD(lr=0.05, momentum=0.9, weight_decay=0.01), lambda p: optim.SGD(p, 0.05, 0.9, weight_decay=0.01)),
    (SGD(lr=0.03, momentum=0.8, nesterov=True), lambda p: optim.SGD(p, 0.03, 0.8, nesterov=True)),
    (
        SGD(lr=0.03, momentum=0.8, nesterov=True, weight_decay=0.01),
        lambda p: optim.SGD(p, 0.03, 0.8, nesterov=True, weight_decay=0.01),
    ),
    (Adam(lr=0.01), lambda p: optim.Adam(p, 0.01)),
    (Adam(lr=0.01, weight_decay=0.1), lambda p: optim.Adam(p, 0.01, weight_decay=0.1)),
    (Adam(lr=0.01, beta1=0.5, beta2=0.9, epsilon=1e-3), lambda p: optim.Adam(p, 0.01, (0.5, 0.9), 1e-3)),
    (AdamW(lr=0.01), lambda p: optim.AdamW(p, 0.01)),
    (AdamW(lr=0.01, weight_decay=0.3), lambda p: optim.AdamW(p, 0.01, weight_decay=0.3)),
    (Adagrad(lr=0.05), lambda p: optim.Adagrad(p, 0.05)),
    (Adagrad(lr=0.05, weight_decay=0.1), lambda p: optim.Adagrad(p, 0.05, weight_decay=0.1)),
    (RMSprop(lr=0.005), lambda p: optim.RMSprop(p, 0.005)),
    (
        RMSprop(lr=0.005, alpha=0.9, momentum=0.5, epsilon=1e-2, weight_decay=0.01),
        lambda p: optim.RMSprop(p, 0.005, 0.9, 1e-2, 0.01, 0.5),
    ),
]
TERMS = [
    ({"clip_norm": 0.2}, {"clip": 0.2}),
    ({"clip_norm": 1e6}, {"clip": 1e6}),
    ({"proximal": 0.5}, {"proximal": 0.5}),
    ({"control": True}, {}),
    ({"proximal": 0.5, "control": True, "clip_norm": 0.5}, {"proximal": 0.5, "clip": 0.5}),
]


def _train(optimiser, control=None):
    session = TrainingSession(build_artifact(MODEL, loss="cross-entropy", optimizer=optimiser))
    start, losses = session.parameters, []
    if control is not None:
        session.control = control
    for x, t in _batches():
        losses.append(session.step(x, t))
    return session, start, losses


@pytest.mark.parametrize(("optimiser", "torchs"), CASES, ids=[repr(case[0]) for case in CASES])
def test_fifty_steps_are_those_of_torch_optim(optimiser, torchs):
    session, start, _ = _train(optimiser)
    twin = _Twin(start, session.layout)
    wanted = twin.train(torchs(twin.parameters))
    assert np.abs(wanted - start).max() > 0.1
    np.testing.assert_allclose(session.parameters, wanted, rtol=2e-5, atol=5e-6)


@pytest.mark.parametrize(("ours", "torchs"), TERMS, ids=[repr(case[0]) for case in TERMS])
@pytest.mark.parametrize("kind", ["sgd", "momentum", "adam"])
def test_terms_of_the_gradient_are_those_of_torch(ours, torchs, kind):
    control = np.random.default_rng(3).normal(size=83).astype(np.float32) * 0.05 if "control" in ours else None
    optimiser, make = {
        "sgd": (SGD(lr=0.1, weight_decay=0.02, **ours), lambda p: optim.SGD(p, 0.1, weight_decay=0.02)),
        "momentum": (SGD(lr=0.05, momentum=0.9, **ours), lambda p: optim.SGD(p, 0.05, 0.9)),
        "adam": (Adam(lr=0.01, **ours), lambda p: optim.Adam(p, 0.01)),
    }[kind]
    session, start, _ = _train(optimiser, control)
    twin = _Twin(start, session.layout)
    wanted = twin.train(make(twin.parameters), control=control, **torchs)
    np.testing.assert_allclose(session.parameters, wanted, rtol=2e-5, atol=5e-6)


def test_proximal_term_measures_from_the_last_assignment():
    """A pull of strength 1 / lr in a step without gradient leads straight back to the anchor."""
    session = TrainingSession(build_artifact(MODEL, loss="cross-entropy", optimizer=SGD(lr=0.0, proximal=2.0)))
    anchor = np.zeros(83, np.float32)
    session.parameters = anchor
    session.hyperparameters = {"lr": 0.5, "proximal": 0.0}
    x, t = np.ones((1, 6), np.float32), [0]
    session.step(x, t)
    moved = session.parameters
    gradient = TrainingSession(build_artifact(MODEL, loss="cross-entropy", optimizer="gradient"))
    gradient.parameters = moved
    session.hyperparameters = {"proximal": 2.0}
    session.step(x, t)
    assert np.abs(moved).max() > 0.1
    np.testing.assert_allclose(session.parameters, anchor - 0.5 * gradient.step(x, t)[1], rtol=1e-4, atol=1e-6)


def test_control_variate_is_a_copy_and_begins_at_zero():
    session = TrainingSession(build_artifact(MODEL, loss="cross-entropy", optimizer=SGD(control=True)))
    assert not session.control.any()
    vector = np.ones(83, np.float32)
    session.control = vector
    vector[:] = 2
    session.control[:] = 3
    assert session.control.tolist() == [1.0] * 83
    for bad in (np.zeros(82, np.float32), np.full(83, np.nan, np.float32)):
        with pytest.raises(BlindsumError, match="training-parameters-invalid"):
            session.control = bad
    plain = TrainingSession(build_artifact(MODEL, loss="cross-entropy"))
    with pytest.raises(BlindsumError, match="training-request-invalid"):
        plain.control = vector
    with pytest.raises(BlindsumError, match="training-request-invalid"):
        _ = plain.control


@pytest.mark.parametrize("optimiser", [SGD(lr=0.1), SGD(lr=0.1, momentum=0.9), Adam(lr=0.1), RMSprop(lr=0.1)])
def test_updated_tensors_are_those_of_the_reference_evaluator(optimiser, run_reference):
    artifact = build_artifact(MODEL, loss="cross-entropy", optimizer=optimiser)
    x, t = next(iter(_batches()))
    session = TrainingSession(artifact)
    session.step(x, t)
    _, _, *updated = run_reference(artifact, x, t)
    expected = np.concatenate([part.ravel() for part in updated[: len(session.layout)]])
    np.testing.assert_allclose(session.parameters, expected, rtol=1e-5, atol=1e-6)


def test_learning_rate_changes_between_steps():
    session = TrainingSession(build_artifact(MODEL, loss="cross-entropy", optimizer=SGD(lr=0.1)))
    x, t = next(iter(_batches()))
    start = session.parameters
    session.step(x, t)
    first = session.parameters - start
    session.parameters = start
    session.hyperparameters = {"lr": 0.2}
    session.step(x, t)
    np.testing.assert_allclose(session.parameters - start, 2 * first, rtol=1e-3, atol=1e-6)
    assert session.hyperparameters == {"lr": pytest.approx(0.2)}


def test_setting_parameters_starts_the_optimiser_afresh():
    for optimiser in (SGD(lr=0.1, momentum=0.9), Adam(lr=0.1)):
        session = TrainingSession(build_artifact(MODEL, loss="cross-entropy", optimizer=optimiser))
        start, ends = session.parameters, []
        for _ in range(2):
            session.parameters = start
            for x, t in _batches():
                session.step(x, t)
            ends.append(session.parameters)
        assert np.array_equal(*ends)


@pytest.mark.parametrize("optimiser", [SGD(lr=0.1), SGD(lr=0.1, momentum=0.9), Adam(lr=0.1)])
def test_halves_of_the_train_graph_are_the_whole(optimiser):
    """What `gradient` hands to `update` gives the parameters that `train` gives."""
    artifact = build_artifact(MODEL, loss="cross-entropy", optimizer=optimiser)
    decoded, (x, t) = decode(artifact), next(iter(_batches()))
    whole = TrainingSession(artifact)
    whole.step(x, t)

    def run(graph, given):
        session = ort.InferenceSession(with_initialisers(graph, decoded.constants))
        wanted = {item.name for item in session.get_inputs()}
        names = [item.name for item in session.get_outputs()]
        return dict(zip(names, session.run(None, {n: a for n, a in given.items() if n in wanted}), strict=True))

    given = {"@features/features": x, "@targets": t}
    given |= {f"@{name}": np.array(value, np.float32) for name, value in decoded.manifest.hyperparameters.items()}
    ends = np.cumsum([np.prod(shape) for _, shape in whole.layout], dtype=int)
    parts = np.split(decoded.parameters, ends[:-1])
    given |= {name: part.reshape(shape) for part, (name, shape) in zip(parts, whole.layout, strict=True)}
    given |= {item.name: np.zeros(item.shape, np.float32) for item in decoded.manifest.states}
    result = run(decoded.update, given | run(decoded.gradient, given))
    updated = np.concatenate([result[f"@new/{name}"].ravel() for name, _ in whole.layout])
    np.testing.assert_allclose(updated, whole.parameters, rtol=1e-5, atol=1e-6)


def test_embedding_table_takes_its_update_in_the_scatter(make_model):
    table = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    proto = make_model("(int64[N,3] x) => (float[N,3,2] y) { y = Gather (table, x) }", {"table": table})
    x, t = np.array([[0, 3, 3], [-2, 1, 3]]), np.zeros((2, 3, 2), np.float32)
    session = TrainingSession(build_artifact(proto, loss="mse", optimizer=SGD(lr=0.5)))
    assert "ConstantOfShape" not in session.manifest.operators
    _, slope = TrainingSession(build_artifact(proto, loss="mse", optimizer="gradient")).step(x, t)
    session.step(x, t)
    np.testing.assert_allclose(session.parameters, table.ravel() - 0.5 * slope, rtol=1e-6)
    assert (session.parameters.reshape(5, 2)[[2, 4]] == table[[2, 4]]).all()
