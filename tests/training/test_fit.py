"""The training loop, schedules and gradient accumulation."""

from __future__ import annotations

import itertools
import math
import weakref

import numpy as np
import pytest
import torch

from blindsum.protocol.errors import BlindsumError
from blindsum.training import SGD, Adam, CrossEntropy, RMSprop, TrainingSession, build_artifact, fit, models, schedules
from blindsum.training.batch import Feeder

GENERATOR = np.random.default_rng(8)
X, Y = GENERATOR.normal(size=(50, 4)).astype(np.float32), GENERATOR.integers(0, 3, 50)
MODEL = models.mlp([4, 8, 3], seed=1)


def _session(optimizer="sgd", loss="cross-entropy", **arguments):
    return TrainingSession(build_artifact(MODEL, loss=loss, optimizer=optimizer, **arguments))


def _steps(session, batches):
    return [session.step(x, y) for x, y in batches]


def test_fit_is_the_steps_in_order():
    by_hand, fitted = _session(Adam()), _session(Adam())
    losses = []
    for _ in range(2):
        losses.append(_steps(by_hand, [(X[at : at + 16], Y[at : at + 16]) for at in range(0, 50, 16)]))
    report = fitted.fit(X, Y, epochs=2, batch_size=16)
    assert np.array_equal(fitted.parameters, by_hand.parameters)
    sizes = [16, 16, 16, 2]
    assert [epoch.loss for epoch in report.epochs] == pytest.approx([np.average(row, weights=sizes) for row in losses])
    assert [(epoch.steps, epoch.examples, epoch.metrics) for epoch in report.epochs] == [(4, 50, {})] * 2
    assert (report.steps, report.stopped, report.reason) == (8, "completed", "")


def test_shuffling_is_seeded_and_goes_through_all_in_another_order_each_epoch(monkeypatch):
    x = np.arange(50, dtype=np.float32)[:, None] * np.ones(4, np.float32)
    read = []

    class Spy(Feeder):
        def __call__(self, features, targets):
            read.extend(features[:, 0].astype(int).tolist())
            return super().__call__(features, targets)

    monkeypatch.setattr(fit, "Feeder", Spy)
    orders = []
    for seed in (3, 3, 4, None):
        read.clear()
        _session(SGD(lr=0.0)).fit(x, Y, epochs=2, shuffle_seed=seed, batch_size=7)
        orders += [read[:50], read[50:]]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert orders[:2] == orders[2:4]
    assert len({tuple(order) for order in orders}) == 5  # two epochs of two seeds, and the plain order


def test_arrays_lists_generators_and_functions_of_batches_train_alike():
    batches = [(X[at : at + 8], Y[at : at + 8]) for at in range(0, 50, 8)]
    kinds = {
        "list": (batches, 3),
        "function": (lambda epoch: iter(batches), 3),
        "wide": ([(X, Y)], 3),
        "lists": ([(x.tolist(), y.tolist()) for x, y in batches], 3),
        "mapping": ([({"features": x}, y) for x, y in batches], 3),
    }
    expected = _session()
    expected.fit(X, Y, epochs=3, batch_size=8)
    for data, epochs in kinds.values():
        session = _session()
        session.fit(data, epochs=epochs, batch_size=8)
        assert np.array_equal(session.parameters, expected.parameters)


def test_generator_is_read_batch_by_batch_and_nothing_is_kept():
    alive = highest = 0

    class Array(np.ndarray):
        pass

    def died():
        nonlocal alive
        alive -= 1

    def stream():
        nonlocal alive, highest
        for at in range(0, 48, 4):
            batch = X[at : at + 4].copy().view(Array)
            weakref.finalize(batch, died)
            alive += 1
            highest = max(highest, alive)
            yield batch, Y[at : at + 4]
            del batch

    report = _session().fit(stream())
    assert report.steps == 12
    assert highest <= 2
    with pytest.raises(BlindsumError, match="training-request-invalid: the batches can be read only once"):
        _session().fit(stream(), epochs=2)


def test_endless_batches_end_by_abort_with_its_reason():
    session = _session()
    asked = itertools.count()
    report = session.fit(itertools.repeat((X, Y)), should_abort=lambda: "on battery" if next(asked) == 6 else "")
    assert (report.stopped, report.reason, report.steps, report.epochs) == ("aborted", "on battery", 5, ())
    expected = _session()
    _steps(expected, [(X, Y)] * 5)
    assert np.array_equal(session.parameters, expected.parameters)


def test_abort_is_asked_before_the_data_are():
    def batches(_epoch):
        pytest.fail("read")

    assert _session().fit(batches, should_abort=lambda: True).stopped == "aborted"


@pytest.mark.parametrize("empty", [[], [(X[:0], Y[:0])], lambda _epoch: iter(())])
def test_epoch_without_examples_is_an_error(empty):
    with pytest.raises(BlindsumError, match="no-examples"):
        _session().fit(empty)


@pytest.mark.parametrize(
    "batch", [X, (X,), (X, Y, Y), 7, None, (X, 7), (X[:5], Y), ([[1.0], [1.0, 2.0]], Y[:2]), (X[:, :3], Y)]
)
def test_bad_batch_is_refused_after_the_good_ones(batch):
    session, expected = _session(), _session()
    _steps(expected, [(X, Y)])
    with pytest.raises(BlindsumError, match="training-batch-invalid"):
        session.fit([(X, Y), batch])
    assert np.array_equal(session.parameters, expected.parameters)


@pytest.mark.parametrize(
    "arguments",
    [
        {"epochs": 0},
        {"accumulate": 0},
        {"batch_size": -1},
        {"patience": 1},
        {"shuffle_seed": -1},
        {"patience": 0, "validation": (X, Y)},
        {"schedule": lambda _: -1.0},
        {"schedule": lambda _: math.nan},
    ],
)
def test_bad_argument_is_refused(arguments):
    session = _session()
    start = session.parameters
    with pytest.raises(BlindsumError, match="training-request-invalid"):
        session.fit(X, Y, **arguments)
    assert np.array_equal(session.parameters, start)
    assert session.hyperparameters["lr"] == pytest.approx(0.01)


def test_batches_cannot_be_shuffled_and_gradients_not_fitted():
    with pytest.raises(BlindsumError, match="shuffle_seed needs arrays"):
        _session().fit([(X, Y)], shuffle_seed=1)
    with pytest.raises(BlindsumError, match="updates nothing"):
        _session("gradient").fit(X, Y)


def test_step_that_diverges_changes_nothing_and_says_which_data_are_to_blame():
    session, expected = _session(), _session()
    bad = X.copy()
    bad[40] = np.nan
    with pytest.raises(BlindsumError, match="training-diverged: loss nan, because features hold NaN") as caught:
        session.fit(bad, Y, batch_size=10)
    assert caught.value.code == "training-diverged"
    expected.fit(X[:40], Y[:40], batch_size=10)
    assert np.array_equal(session.parameters, expected.parameters)


def test_last_step_that_makes_a_parameter_infinite_is_taken_back():
    """The loss of a step is that before its update, so an overflow in the last update shows in no loss."""
    session = _session(SGD(lr=1e38))
    session.hyperparameters = {"lr": 3e38}
    start = session.parameters
    with pytest.raises(BlindsumError, match="training-diverged: the last step made a parameter NaN or infinite"):
        session.fit(X * 1e3, Y, batch_size=50)
    assert np.array_equal(session.parameters, start)


def test_schedule_sets_the_rate_of_each_step_and_the_optimisers_own_is_put_back():
    seen = []
    session, by_hand = _session(SGD(lr=0.5)), _session(SGD(lr=0.5))
    schedule = schedules.Warmup(steps=2, then=schedules.Cosine(steps=3, floor=0.1))
    session.fit(X, Y, batch_size=10, schedule=schedule, on_step=seen.append)
    assert [step.rate for step in seen] == pytest.approx([0.5 * schedule(at) for at in range(5)])
    assert [(step.epoch, step.step, step.examples) for step in seen] == [(0, at, 10) for at in range(5)]
    assert session.hyperparameters["lr"] == 0.5
    for at in range(5):
        by_hand.hyperparameters = {"lr": 0.5 * schedule(at)}
        assert by_hand.step(X[10 * at :][:10], Y[10 * at :][:10]) == seen[at].loss
    assert np.array_equal(session.parameters, by_hand.parameters)


def test_schedules_are_those_of_torch():
    kinds = [
        (schedules.Constant(), lambda o: torch.optim.lr_scheduler.ConstantLR(o, 1.0)),
        (schedules.StepDecay(every=3, factor=0.5), lambda o: torch.optim.lr_scheduler.StepLR(o, 3, 0.5)),
        (schedules.Cosine(steps=10, floor=0.2), lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10, 0.2)),
        (schedules.Warmup(steps=4), lambda o: torch.optim.lr_scheduler.LinearLR(o, 0.25, 1.0, 3)),
    ]
    for ours, make in kinds:
        optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0)
        theirs = make(optimiser)
        for step in range(10):
            assert ours(step) == pytest.approx(optimiser.param_groups[0]["lr"]), ours
            optimiser.step()
            theirs.step()
    for bad in ({"every": 0}, {"every": 1, "factor": 2.0}):
        with pytest.raises(BlindsumError, match="training-request-invalid"):
            schedules.StepDecay(**bad)


def test_validation_follows_each_epoch_and_early_stop_keeps_the_best():
    session = _session(SGD(lr=0.5))
    labels = np.roll(Y, 7)  # nothing of what is learnt holds for these, so the loss there soon grows
    report = session.fit(X, Y, epochs=200, batch_size=10, validation=(X, labels), patience=3)
    losses = [epoch.metrics["loss"] for epoch in report.epochs]
    best = int(np.argmin(losses))
    assert report.stopped == "no-improvement"
    assert len(losses) == best + 4 < 200
    assert session.evaluate(X, labels)["loss"] == pytest.approx(min(losses))
    assert set(report.epochs[0].metrics) == {"loss", "accuracy"}
    short = _session(SGD(lr=0.5))
    report = short.fit(X, Y, epochs=best + 2, batch_size=10, validation=(X, labels), patience=3)
    assert report.stopped == "completed"
    assert np.array_equal(short.parameters, session.parameters)


OPTIMISERS = [
    SGD(lr=0.1),
    SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    Adam(lr=0.01, clip_norm=0.1),
    RMSprop(lr=0.01, proximal=0.5),
]


@pytest.mark.parametrize("optimiser", OPTIMISERS, ids=repr)
def test_accumulated_pieces_are_one_large_batch(optimiser):
    whole, pieces = _session(optimiser), _session(optimiser)
    reports = [
        whole.fit(X, Y, epochs=3, batch_size=25),
        pieces.fit(X, Y, epochs=3, batch_size=25, accumulate=4),
    ]
    assert reports[0].steps == reports[1].steps == 6
    for one, other in zip(reports[0].epochs, reports[1].epochs, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-5)
    np.testing.assert_allclose(pieces.parameters, whole.parameters, rtol=1e-4, atol=2e-6)


def test_accumulation_weighs_pieces_by_what_counts_in_them():
    """Most of the first piece's targets are ignored, so it must count for little."""
    loss = CrossEntropy(ignore_index=-1, class_weights=[1.0, 5.0, 0.5])
    targets = Y.copy()
    targets[:20] = -1
    targets[3] = 1
    whole, pieces = _session(SGD(lr=0.5), loss), _session(SGD(lr=0.5), loss)
    whole.fit(X, targets, batch_size=50)
    pieces.fit(X, targets, batch_size=50, accumulate=5)
    np.testing.assert_allclose(pieces.parameters, whole.parameters, rtol=1e-5, atol=1e-6)


def test_piece_that_diverges_changes_nothing():
    session = _session(Adam())
    start, bad = session.parameters, X.copy()
    bad[45] = np.inf
    with pytest.raises(BlindsumError, match="training-diverged"):
        session.fit(bad, Y, batch_size=50, accumulate=5)
    assert np.array_equal(session.parameters, start)
