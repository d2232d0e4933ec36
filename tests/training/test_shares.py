"""Batches worked out in shares, at the same time: the step is the same."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest

from blindsum.protocol.errors import BlindsumError
from blindsum.training import (
    SGD,
    Adam,
    CrossEntropy,
    TrainingSession,
    build_artifact,
    decode,
    engine,
    models,
    opened,
    shares,
)

GENERATOR = np.random.default_rng(4)
X, Y = GENERATOR.normal(size=(50, 4)).astype(np.float32), GENERATOR.integers(0, 3, 50)
MODEL = models.mlp([4, 8, 3], seed=1)


@pytest.fixture(autouse=True)
def every_batch_is_shared(monkeypatch):
    monkeypatch.setattr(engine, "WORK_MIN", 1)
    monkeypatch.setattr(engine, "WORK_PER_WEIGHT_MIN", 0)


@pytest.fixture
def workers(monkeypatch):
    """The threads that have worked out shares, and how many rows each had."""
    seen = []
    call = shares.Run.__call__

    def noted(self, feeds, options=None):
        seen.append((threading.get_ident(), len(next(iter(feeds.values())))))
        return call(self, feeds, options)

    monkeypatch.setattr(shares.Run, "__call__", noted)
    return seen


def _sessions(optimizer, loss="cross-entropy"):
    artifact = build_artifact(MODEL, loss=loss, optimizer=optimizer)
    return TrainingSession(artifact), TrainingSession(artifact, threads=3)


@pytest.mark.parametrize("optimizer", [SGD(lr=0.5), SGD(lr=0.1, momentum=0.9, weight_decay=0.1), Adam(clip_norm=0.1)])
def test_shared_steps_are_those_of_one_thread(optimizer, workers):
    one, three = _sessions(optimizer)
    for _ in range(5):
        assert three.step(X, Y) == pytest.approx(one.step(X, Y), rel=1e-5)
    np.testing.assert_allclose(three.parameters, one.parameters, rtol=1e-4, atol=2e-6)
    rows = [rows for _, rows in workers]
    assert (rows.count(50), rows.count(17), rows.count(16)) == (5, 10, 5)
    assert len({thread for thread, _ in workers}) > 1


@pytest.mark.parametrize(("granted", "gradients"), [(1 << 24, 3), (0, 1)])
def test_shares_have_sessions_of_their_own_unless_constants_are_large(granted, gradients, monkeypatch):
    opened = []
    open_graph = engine.open_graph

    def noted(graph, constants, threads, **options):
        opened.append(graph)
        return open_graph(graph, constants, threads, **options)

    monkeypatch.setattr(engine, "open_graph", noted)
    monkeypatch.setattr(engine, "SESSION_BYTES", granted)
    one, three = _sessions(Adam(lr=0.1))
    for _ in range(3):
        assert three.step(X, Y) == pytest.approx(one.step(X, Y), rel=1e-5)
    np.testing.assert_allclose(three.parameters, one.parameters, rtol=1e-4, atol=2e-6)
    slopes = decode(build_artifact(MODEL, loss="cross-entropy", optimizer=Adam(lr=0.1))).gradient
    assert opened.count(slopes) == gradients


@pytest.mark.parametrize(
    ("worth", "loss", "inside"),
    [
        (1, "contrastive", 3),
        (1, "cross-entropy", 3),
        (64 * 40, "cross-entropy", 1),  # what takes as much work is shared out
        (1 << 23, "contrastive", 1),
    ],
)
def test_operators_get_threads_where_their_work_is_worth_them(worth, loss, inside, monkeypatch):
    opened = []
    open_graph = engine.open_graph

    def noted(graph, constants, threads, **options):
        opened.append(threads)
        return open_graph(graph, constants, threads, **options)

    monkeypatch.setattr(engine, "open_graph", noted)
    monkeypatch.setattr(engine, "WORK_MIN", worth)
    TrainingSession(build_artifact(MODEL, loss=loss), threads=3)
    assert opened == [inside]


def test_threads_of_operators_stay_awake_for_the_next_step_and_no_longer():
    wanted = {"spin_duration_us": "500"} if opened._LINGERS else {"allow_spinning": "1"}
    options = TrainingSession(build_artifact(MODEL, loss="cross-entropy"))._engine._train.get_session_options()
    assert {key: options.get_session_config_entry(f"session.intra_op.{key}") for key in wanted} == wanted


def test_gradient_of_shares_is_handed_out_whole():
    one, three = _sessions("gradient")
    (loss, slope), (other_loss, other) = one.step(X, Y), three.step(X, Y)
    assert other_loss == pytest.approx(loss, rel=1e-5)
    np.testing.assert_allclose(other, slope, rtol=1e-4, atol=1e-6)
    assert np.array_equal(one.parameters, three.parameters)


def test_shares_weigh_by_what_counts_in_them():
    targets = Y.copy()
    targets[:30] = -1
    one, three = _sessions(SGD(lr=0.5), CrossEntropy(ignore_index=-1, class_weights=[1.0, 5.0, 0.5]))
    assert three.step(X, targets) == pytest.approx(one.step(X, targets), rel=1e-5)
    np.testing.assert_allclose(three.parameters, one.parameters, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("row", [0, 20, 49])
def test_share_that_diverges_changes_nothing(row):
    _, three = _sessions(Adam())
    start, bad = three.parameters, X.copy()
    bad[row] = np.nan
    with pytest.raises(BlindsumError, match="training-diverged"):
        three.step(bad, Y)
    assert np.array_equal(three.parameters, start)
    assert np.isfinite(three.step(X, Y))


def test_pieces_are_shared_as_well(workers):
    one, three = _sessions(SGD(lr=0.5))
    one.fit(X, Y, batch_size=50)
    three.fit(X, Y, batch_size=50, accumulate=2)
    np.testing.assert_allclose(three.parameters, one.parameters, rtol=1e-4, atol=1e-6)
    assert sorted(rows for _, rows in workers if rows > 1) == [7, 7, 9, 9, 9, 9, 50]  # one row gives memory back


def test_batch_of_one_row_needs_no_threads():
    one, three = _sessions(SGD(lr=0.5))
    assert three.step(X[:1], Y[:1]) == pytest.approx(one.step(X[:1], Y[:1]), rel=1e-5)


def test_rows_that_count_together_stay_together(workers):
    """Shares would leave out the pairs of rows from different ones."""
    one, three = _sessions("sgd", "contrastive")
    assert three.step(X, Y) == pytest.approx(one.step(X, Y), rel=1e-5)
    assert {rows for _, rows in workers} == {50}


def test_large_rows_are_taken_few_at_a_time(workers, monkeypatch):
    one, few = _sessions(Adam(lr=0.1))[0], _sessions(Adam(lr=0.1))[0]
    for _ in range(3):
        one.step(X, Y)
    assert [rows for _, rows in workers] == [50] * 3
    monkeypatch.setattr(engine, "PIECE_BYTES", 4096)
    for _ in range(3):
        few.step(X, Y)
    sizes = [rows for _, rows in workers[3:]]
    assert sum(sizes) == 150
    assert 8 <= max(sizes) < 50
    np.testing.assert_allclose(few.parameters, one.parameters, rtol=1e-4, atol=2e-6)


def test_threads_end_with_their_session():
    session = TrainingSession(build_artifact(MODEL, loss="cross-entropy"), threads=3)
    before = set(threading.enumerate())
    session.step(X, Y)
    made = [thread for thread in set(threading.enumerate()) - before if thread.name == "blindsum-training"]
    assert len(made) == 2
    del session
    gc.collect()
    for thread in made:
        thread.join(60)
        assert not thread.is_alive()
