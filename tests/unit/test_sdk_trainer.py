"""One training job: plan, model and examples in, an update out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.messages import Training
from blindsum.sdk.trainer import LOSS_MAX, Aborted, Job, Trained, train
from blindsum.training import SGD, TrainingSession, build_artifact, models

PLAN = build_artifact(models.mlp([4, 8, 3], seed=1), loss="cross-entropy")
START = TrainingSession(PLAN).parameters
MODEL = START.astype("<f4").tobytes()
X = np.sin(np.arange(40 * 4)).reshape(40, 4).astype(np.float32)
Y = np.arange(40) % 3

Batches = Callable[[int], Any]


def settings(epochs: int = 1, batch_size: int = 8, rate: float = 0.2) -> Training:
    return Training(
        epochs=epochs, batch_size=batch_size, rate_micros=round(rate * 1e6), proximal_micros=0, control_micros=0
    )


def run(batches: Batches, how: Training | None = None, *, plan: bytes = PLAN, model: bytes = MODEL) -> Trained:
    return train(Job(plan, model, batches), how or settings())


def everything(_epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    yield X, Y


def reference(epochs: int, batch_size: int, rate: float, start: np.ndarray = START) -> tuple[np.ndarray, float]:
    """The same training by hand: (parameters, mean loss of the last epoch)."""
    session = TrainingSession(PLAN)
    session.parameters = start
    session.hyperparameters = {"lr": rate}
    losses: list[float] = []
    for _ in range(epochs):
        losses = []
        for at in range(0, len(X), batch_size):
            loss = session.step(X[at : at + batch_size], Y[at : at + batch_size])
            assert isinstance(loss, float)
            losses += [loss] * len(X[at : at + batch_size])
    return session.parameters, float(np.mean(losses))


def test_update_is_new_minus_old_parameters_with_the_tasks_settings() -> None:
    trained = run(everything, settings(epochs=3, batch_size=7, rate=0.3))
    parameters, loss = reference(3, 7, 0.3)
    assert trained.update.dtype == np.float32
    assert np.array_equal(trained.update, parameters - START)
    assert np.abs(trained.update).max() > 0.01
    assert trained.examples == 40
    assert trained.loss == pytest.approx(loss, rel=1e-6)


def test_training_starts_from_the_rounds_model_not_from_the_plans() -> None:
    other = (START + np.float32(0.5)).astype(np.float32)
    trained = run(everything, model=other.astype("<f4").tobytes())
    assert np.array_equal(trained.update, reference(1, 8, 0.2, other)[0] - other)


def test_many_small_batches_equal_one_large_one_of_the_same_steps() -> None:
    small = run(lambda _epoch: ((X[at : at + 8], Y[at : at + 8]) for at in range(0, 40, 8)))
    assert np.array_equal(small.update, run(everything).update)


def test_lists_are_examples_too() -> None:
    assert np.array_equal(run(lambda _epoch: [(X.tolist(), Y.tolist())]).update, run(everything).update)


def test_each_epoch_asks_for_its_examples() -> None:
    asked: list[int] = []

    def batches(epoch: int) -> list[tuple[np.ndarray, np.ndarray]]:
        asked.append(epoch)
        return [(X[: epoch + 1], Y[: epoch + 1])]

    trained = run(batches, settings(epochs=4))
    assert asked == [0, 1, 2, 3]
    assert trained.examples == 4  # those of the last epoch, which is also the weight


@pytest.mark.parametrize(
    "batches", [lambda _epoch: [], lambda _epoch: [(X[:0], Y[:0])]], ids=["nothing", "empty arrays"]
)
def test_no_examples_is_an_error(batches: Batches) -> None:
    assert refusal(batches) == "no-examples"


@pytest.mark.parametrize(
    "batch",
    [
        pytest.param(X, id="one array"),
        pytest.param((X,), id="one of two"),
        pytest.param((X, Y, Y), id="three"),
        pytest.param(7, id="number"),
        pytest.param(None, id="none"),
        pytest.param((X, 7), id="scalar targets"),
        pytest.param((X[:5], Y), id="unequal"),
        pytest.param(([[1.0], [1.0, 2.0]], Y[:2]), id="ragged"),
        pytest.param((X[:, :3], Y), id="wrong shape"),
        pytest.param((X, Y + 1), id="no such class"),
        pytest.param((X, Y.astype(str)), id="words"),
    ],
)
def test_examples_of_another_shape_are_refused(batch: object) -> None:
    assert refusal(lambda _epoch: [batch]) == "training-batch-invalid"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_make_the_loss_infinite_give_no_update(value: float) -> None:
    assert refusal(lambda _epoch: [(np.full((8, 4), value, np.float32), Y[:8])]) == "training-diverged"


def test_loss_is_capped_so_that_no_device_can_wrap_the_sum() -> None:
    plan = build_artifact(models.logistic(2), loss="mse", optimizer=SGD(lr=0.1))
    model = np.zeros(TrainingSession(plan).parameters.size, "<f4").tobytes()
    targets = np.full((8, 1), 1e5, np.float32)
    trained = run(lambda _epoch: [(np.ones((8, 2), np.float32), targets)], settings(rate=1e-6), plan=plan, model=model)
    assert trained.loss == LOSS_MAX


def test_model_of_another_length_is_refused() -> None:
    with pytest.raises(BlindsumError, match="training-parameters-invalid"):
        run(everything, model=MODEL[:-4])


def test_obstacle_is_asked_before_the_examples_are() -> None:
    asked: list[int] = []

    def batches(epoch: int) -> list[tuple[np.ndarray, np.ndarray]]:
        asked.append(epoch)
        return [(X, Y)]

    with pytest.raises(Aborted, match="not charging"):
        train(Job(PLAN, MODEL, batches, obstacle=lambda: "not charging"), settings())
    assert not asked


def test_obstacle_that_comes_up_ends_training_before_the_next_step() -> None:
    yielded: list[int] = []

    def endless(_epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        while True:
            yielded.append(1)
            yield X[:8], Y[:8]

    with pytest.raises(Aborted, match="the round is over"):
        train(Job(PLAN, MODEL, endless, lambda: "the round is over" if len(yielded) == 5 else ""), settings())
    assert len(yielded) == 5


def test_what_the_examples_raise_comes_through() -> None:
    def failing(_epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        yield X, Y
        raise LookupError("no more")

    with pytest.raises(LookupError):
        run(failing)


def test_update_does_not_show_in_a_repr() -> None:
    assert "update" not in repr(run(everything))


def refusal(batches: Batches) -> str:
    with pytest.raises(BlindsumError) as caught:
        run(batches)
    return caught.value.code
