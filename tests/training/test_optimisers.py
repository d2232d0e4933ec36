"""The update graphs against transcriptions of PyTorch's documented algorithms (torch.optim.SGD, torch.optim.Adam)."""

from __future__ import annotations

import numpy as np
import pytest

from blindsum.training import SGD, Adam, TrainingSession, build_artifact, models

STEPS = 25
MODEL = models.mlp([6, 8, 3], seed=2)


def _batches():
    generator = np.random.default_rng(4)
    for _ in range(STEPS):
        rows = int(generator.integers(1, 9))
        yield generator.normal(size=(rows, 6)).astype(np.float32), generator.integers(0, 3, rows)


def _gradients():
    """A session that hands out gradients at parameters of the test's choice."""
    return TrainingSession(build_artifact(MODEL, loss="cross-entropy", optimizer="gradient"))


def _torch_sgd(parameters, lr, momentum):
    oracle, velocity = _gradients(), None
    for x, t in _batches():
        oracle.parameters = parameters.astype(np.float32)
        gradient = oracle.step(x, t)[1].astype(np.float64)
        velocity = gradient if velocity is None else momentum * velocity + gradient
        parameters = parameters - lr * velocity
    return parameters


def _torch_adam(parameters, lr, beta1, beta2, epsilon):
    oracle = _gradients()
    mean = square = np.zeros_like(parameters)
    for step, (x, t) in enumerate(_batches(), start=1):
        oracle.parameters = parameters.astype(np.float32)
        gradient = oracle.step(x, t)[1].astype(np.float64)
        mean = beta1 * mean + (1 - beta1) * gradient
        square = beta2 * square + (1 - beta2) * gradient**2
        unbiased_mean, unbiased_square = mean / (1 - beta1**step), square / (1 - beta2**step)
        parameters = parameters - lr * unbiased_mean / (np.sqrt(unbiased_square) + epsilon)
    return parameters


CASES = [
    (SGD(lr=0.1), lambda p: _torch_sgd(p, 0.1, 0.0)),
    (SGD(lr=0.05, momentum=0.9), lambda p: _torch_sgd(p, 0.05, 0.9)),
    (Adam(lr=0.01), lambda p: _torch_adam(p, 0.01, 0.9, 0.999, 1e-8)),
    (Adam(lr=0.01, beta1=0.5, beta2=0.9, epsilon=1e-3), lambda p: _torch_adam(p, 0.01, 0.5, 0.9, 1e-3)),
]


@pytest.mark.parametrize(("optimiser", "expected"), CASES, ids=[repr(case[0]) for case in CASES])
def test_optimiser_follows_the_reference(optimiser, expected):
    session = TrainingSession(build_artifact(MODEL, loss="cross-entropy", optimizer=optimiser))
    start = session.parameters.astype(np.float64)
    for x, t in _batches():
        session.step(x, t)
    wanted = expected(start)
    assert np.abs(wanted - start).max() > 0.1
    np.testing.assert_allclose(session.parameters, wanted, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("optimiser", [SGD(lr=0.1), SGD(lr=0.1, momentum=0.9), Adam(lr=0.1)])
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
