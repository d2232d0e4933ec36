"""A session is saved and restored bit for bit, and a fit that was killed goes on as if it had not been."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blindsum.protocol.errors import BlindsumError
from blindsum.training import SGD, Adam, TrainingSession, build_artifact, checkpoint, models, schedules

GENERATOR = np.random.default_rng(8)
X, Y = GENERATOR.normal(size=(50, 4)).astype(np.float32), GENERATOR.integers(0, 3, 50)
HELD = GENERATOR.normal(size=(20, 4)).astype(np.float32), GENERATOR.integers(0, 3, 20)
MODEL = models.mlp([4, 8, 3], seed=1)
ARTIFACT = build_artifact(MODEL, loss="cross-entropy", optimizer=Adam(lr=0.02, proximal=0.1, control=True))
ARGUMENTS = {
    "epochs": 6,
    "batch_size": 8,
    "shuffle_seed": 5,
    "schedule": schedules.Cosine(steps=40),
    "validation": HELD,
    "patience": 2,
    "accumulate": 2,
}


class Killed(Exception):
    pass


def _session():
    session = TrainingSession(ARTIFACT)
    session.control = np.full(session.manifest.size, 0.01, np.float32)
    return session


def _good():
    session, kept = _session(), []
    session.fit(X, Y, **ARGUMENTS, on_step=lambda _: kept.append(session.checkpoint()))
    return kept


UNBROKEN = _session()
REPORT = UNBROKEN.fit(X, Y, **ARGUMENTS)
KEPT = _good()
GOOD = KEPT[-1]


@pytest.mark.parametrize("at", range(0, len(KEPT), 3))
def test_fit_that_was_killed_goes_on_bit_for_bit(at):
    session = TrainingSession(ARTIFACT)  # a new process begins with this
    session.restore(KEPT[at])
    report = session.fit(X, Y, **ARGUMENTS, resume=True)
    assert np.array_equal(session.parameters, UNBROKEN.parameters)
    assert report == REPORT
    assert session.hyperparameters == UNBROKEN.hyperparameters
    assert session.checkpoint() == UNBROKEN.checkpoint()


def test_fit_that_failed_goes_on_in_the_same_session():
    def on_step(step):
        if step.step == 9:
            raise Killed

    session = _session()
    with pytest.raises(Killed):
        session.fit(X, Y, **ARGUMENTS, on_step=on_step)
    assert session.fit(X, Y, **ARGUMENTS, resume=True) == REPORT
    assert np.array_equal(session.parameters, UNBROKEN.parameters)


def test_fit_that_was_aborted_goes_on_in_the_same_session():
    session, asked = _session(), itertools.count()
    assert session.fit(X, Y, **ARGUMENTS, should_abort=lambda: next(asked) == 12).stopped == "aborted"
    assert session.fit(X, Y, **ARGUMENTS, resume=True) == REPORT
    assert np.array_equal(session.parameters, UNBROKEN.parameters)


def test_batches_of_a_function_are_passed_over_up_to_where_it_was():
    def batches(epoch):
        return ((X[at : at + 10], Y[at : at + 10]) for at in range(epoch, 50, 10))

    whole = _session()
    kept = []
    report = whole.fit(batches, epochs=3, on_step=lambda _: kept.append(whole.checkpoint()))
    session = TrainingSession(ARTIFACT)
    session.restore(kept[7])
    assert session.fit(batches, epochs=3, resume=True) == report
    assert np.array_equal(session.parameters, whole.parameters)


def test_checkpoint_outside_a_fit_holds_the_optimiser():
    one, other = _session(), TrainingSession(ARTIFACT)
    for _ in range(3):
        one.step(X, Y)
    one.hyperparameters = {"lr": 0.5}
    other.restore(one.checkpoint())
    assert other.hyperparameters == one.hyperparameters
    assert np.array_equal(other.control, one.control)
    assert other.checkpoint() == one.checkpoint()
    assert one.evaluate(X, Y) == other.evaluate(X, Y)
    for _ in range(3):
        assert one.step(X, Y) == other.step(X, Y)
    assert np.array_equal(one.parameters, other.parameters)


def test_resume_with_nothing_to_resume_begins():
    one, other = _session(), _session()
    one.fit(X, Y, epochs=2)
    other.fit(X, Y, epochs=2, resume=True)
    assert np.array_equal(one.parameters, other.parameters)


@pytest.mark.parametrize("change", [{"epochs": 7}, {"batch_size": 9}, {"shuffle_seed": None}, {"accumulate": 1}])
def test_resume_with_another_plan_is_refused(change):
    session = TrainingSession(ARTIFACT)
    session.restore(KEPT[4])
    with pytest.raises(BlindsumError, match="training-request-invalid: fit: resume with"):
        session.fit(X, Y, **{**ARGUMENTS, **change}, resume=True)


def _refusal(data):
    session = TrainingSession(ARTIFACT)
    before = session.checkpoint()
    with pytest.raises(BlindsumError) as caught:
        session.restore(data)
    assert session.checkpoint() == before
    return caught.value.code


def _sealed(body):
    return checkpoint.MAGIC + hashlib.sha256(body).digest() + body


START = len(checkpoint.MAGIC) + checkpoint.DIGEST_SIZE


def test_checkpoint_of_another_artifact_is_refused():
    other = TrainingSession(build_artifact(MODEL, loss="cross-entropy", optimizer=SGD()))
    assert _refusal(other.checkpoint()) == "training-checkpoint-foreign"


@pytest.mark.parametrize("data", [b"", ARTIFACT, GOOD[:-1], GOOD + b"\0", GOOD[:50], GOOD[:START]])
def test_what_is_no_whole_checkpoint_is_refused(data):
    assert _refusal(data) == "training-checkpoint-damaged"


@settings(max_examples=60, deadline=None)
@given(at=st.integers(0, len(GOOD) - 1), bit=st.integers(0, 7))
def test_flipped_bit_is_refused(at, bit):
    data = bytearray(GOOD)
    data[at] ^= 1 << bit
    with pytest.raises(BlindsumError, match="training-checkpoint-damaged"):
        checkpoint.decode(bytes(data), artifact="0" * 64, sizes=(0, 0))


@settings(max_examples=60, deadline=None)
@given(at=st.integers(START, len(GOOD) - 1), value=st.integers(0, 255))
def test_any_changed_byte_under_a_right_hash_is_restored_exactly_or_refused(at, value):
    body = bytearray(GOOD[START:])
    body[at - START] = value
    session = TrainingSession(ARTIFACT)
    try:
        session.restore(_sealed(bytes(body)))
    except BlindsumError as error:
        assert error.code.startswith("training-checkpoint-")
    else:
        assert session.checkpoint() == _sealed(bytes(body))
