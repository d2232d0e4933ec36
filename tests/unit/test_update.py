"""An update becomes ring elements, and a sum of them the weighted mean again: SPEC.md section 9."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.params import Committee
from blindsum.protocol.ring import add_packed, from_signed, pack, reduce, to_signed, unpack, zeros
from blindsum.protocol.update import Aggregate, decode_sum, encode_update, statistic_max
from blindsum.protocol.view import TaskView, open_task
from blindsum.testing.fleet import make_fleet, make_task
from blindsum.training import SGD, TrainingSession, build_artifact, models

FLEET = make_fleet(7, parties=4, devices=0)
KEY = bytes(range(32))
SEED = bytes(range(16))
LENGTH = 50


def base(**changes: Any) -> TaskView:
    """A task of `LENGTH` parameters, clip norm 1, weights up to 8 and three exact numbers."""
    wanted = {"length": LENGTH, "devices_max": 16, "statistics": 2, **changes}
    raw, _, _ = make_task(FLEET, committee=Committee.for_f(1), **wanted)
    view = open_task(FLEET.trust, raw)
    assert isinstance(view, TaskView), view
    return view


PLAIN, ROTATED = base(), base(rotate=True)


def wave(number: int, length: int = LENGTH) -> np.ndarray:
    """An update of norm 0.5."""
    values = np.sin(np.arange(1, length + 1) * (number + 1.3))
    return (0.5 * values / np.linalg.norm(values)).astype(np.float32)


def encode(
    view: TaskView, update: np.ndarray, weight: int = 1, statistics: tuple[int, ...] = (0, 0), key: bytes = KEY
) -> Any:
    rotation = SEED if view.task.codec.rotate else b""
    return encode_update(view, update, weight=weight, statistics=statistics, rotation=rotation, key=key)


def total(view: TaskView, uploads: list[list[np.ndarray]]) -> bytes:
    """The packed sum, as the coordinator adds what devices send."""
    lanes = zeros(view.segments)
    for upload in uploads:
        add_packed(view.segments, lanes, pack(view.segments, upload))
    reduce(view.segments, lanes)
    return pack(view.segments, lanes)


def decode(view: TaskView, packed: bytes) -> Aggregate:
    return decode_sum(view, packed, SEED if view.task.codec.rotate else b"")


def refused(view: TaskView, update: np.ndarray, **changes: Any) -> str:
    with pytest.raises(BlindsumError) as caught:
        encode(view, update, **changes)
    return caught.value.code


@pytest.mark.parametrize("view", [PLAIN, ROTATED, base(width=16), base(width=32), base(width=64)])
def test_sum_decodes_to_the_weighted_mean_and_exact_statistics(view: TaskView) -> None:
    weights = [1, 8, 3, 5]
    updates = [wave(number) for number in range(4)]
    uploads = [
        encode(view, update, weight, (1000 * number, 7 - number), bytes([number]) * 32)
        for number, (update, weight) in enumerate(zip(updates, weights, strict=True))
    ]
    found = decode(view, total(view, uploads))
    expected = np.average(np.stack(updates).astype(np.float64), axis=0, weights=weights)
    levels = 2 ** (view.task.codec.bits - 1) - 1
    # rounding moves a weighted value by less than a level, so a sum of four by less than four
    bound = 4 / (levels * sum(weights)) * (np.sqrt(64) if view.task.codec.rotate else 1)
    assert found.mean.dtype == np.float32
    assert np.abs(found.mean - expected).max() <= bound + 1e-7
    assert found.weight == 17
    assert found.statistics.tolist() == [6000, 22]


def test_lanes_have_the_types_of_the_segments() -> None:
    parameters, statistics = encode(PLAIN, wave(1), 3, (40, 2_000_000))
    assert parameters.dtype == np.uint32 and parameters.shape == (LENGTH,)
    assert statistics.dtype == np.uint64 and statistics.tolist() == [3, 40, 2_000_000]


def test_negative_statistics_survive() -> None:
    packed = total(PLAIN, [encode(PLAIN, wave(1), 1, (-5, 2**40)), encode(PLAIN, wave(2), 1, (2, -(2**41)))])
    assert decode(PLAIN, packed).statistics.tolist() == [-3, -(2**40)]


def test_update_longer_than_the_clip_norm_counts_with_that_norm() -> None:
    long = 100 * wave(3)
    mean = decode(PLAIN, total(PLAIN, [encode(PLAIN, long)])).mean
    assert np.linalg.norm(mean) == pytest.approx(1.0, rel=1e-3)
    assert np.dot(mean, long) / np.linalg.norm(long) == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("view", [PLAIN, ROTATED])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 17, LENGTH - 1])
def test_update_that_is_not_finite_is_refused(view: TaskView, value: float, at: int) -> None:
    update = wave(1)
    update[at] = value
    assert refused(view, update) == "update-not-finite"


def test_parameters_that_overflow_in_the_last_step_of_a_training_are_refused() -> None:
    """The loss of the last step is from before it, so only the update shows what that step did."""
    session = TrainingSession(build_artifact(models.logistic(3), loss="mse", optimizer=SGD(lr=1e9)))
    start = np.zeros_like(session.parameters)
    session.parameters = start
    session.step(np.full((4, 3), 1e30, np.float32), np.ones((4, 1), np.float32))
    update = session.parameters - start
    assert not np.isfinite(update).all()
    assert refused(base(length=update.size), update) == "update-not-finite"


@pytest.mark.parametrize("weight", [0, -1, 9, 2**40])
def test_weight_outside_its_range_is_refused(weight: int) -> None:
    assert refused(PLAIN, wave(1), weight=weight) == "weight-out-of-range"


@pytest.mark.parametrize(
    "update", [wave(1)[:-1], np.zeros(LENGTH + 1, np.float32), wave(1).reshape(5, 10), wave(1).astype(np.float64)]
)
def test_update_of_another_shape_or_type_is_refused(update: np.ndarray) -> None:
    assert refused(PLAIN, update) == "update-wrong-shape"


@pytest.mark.parametrize("statistics", [(), (1,), (1, 2, 3)])
def test_wrong_number_of_statistics_is_refused(statistics: tuple[int, ...]) -> None:
    assert refused(PLAIN, wave(1), statistics=statistics) == "update-wrong-shape"


def test_update_is_not_changed_by_encoding() -> None:
    for view in (PLAIN, ROTATED):
        update = 3 * wave(1)
        encode(view, update)
        assert np.array_equal(update, 3 * wave(1))


def test_rounding_follows_from_the_key_alone() -> None:
    first = encode(PLAIN, wave(1))
    assert all(np.array_equal(a, b) for a, b in zip(first, encode(PLAIN, wave(1)), strict=True))
    assert not np.array_equal(first[0], encode(PLAIN, wave(1), key=bytes(32))[0])


@pytest.mark.parametrize("weight", [0, -1, -(2**62)])
def test_sum_whose_weights_are_not_positive_is_refused(weight: int) -> None:
    lanes = zeros(PLAIN.segments)
    lanes[1] = from_signed(PLAIN.segments[1], np.array([weight, 0, 0], np.int64))
    with pytest.raises(BlindsumError, match="sum-malformed"):
        decode(PLAIN, pack(PLAIN.segments, lanes))


def test_sum_of_another_length_is_refused() -> None:
    packed = total(PLAIN, [encode(PLAIN, wave(1))])
    for wrong in (packed[:-1], packed + b"\x00", b""):
        with pytest.raises(BlindsumError, match="update-wrong-shape"):
            decode(PLAIN, wrong)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 1000), st.integers(1, 8), st.floats(0.0, 50.0)), min_size=1, max_size=16),
    st.booleans(),
)
def test_no_sum_of_honest_devices_wraps(devices: list[tuple[int, int, float]], rotate: bool) -> None:
    view = ROTATED if rotate else PLAIN
    uploads = [encode(view, np.float32(scale) * wave(number), weight, (number, 0)) for number, weight, scale in devices]
    packed = total(view, uploads)
    by_hand = sum(to_signed(view.segments[0], upload[0]) for upload in uploads)
    assert np.array_equal(to_signed(view.segments[0], unpack(view.segments, packed)[0]), by_hand)
    found = decode(view, packed)
    assert found.weight == sum(weight for _, weight, _ in devices)
    assert found.statistics[0] == sum(number for number, _, _ in devices)
    assert np.linalg.norm(found.mean) <= 1.0 + 1e-2


@pytest.mark.parametrize("devices", [2, 1000, 100_000])
@pytest.mark.parametrize("sign", [1, -1])
def test_statistics_of_the_largest_cohort_never_wrap_however_large_a_loss_is(devices: int, sign: int) -> None:
    """A summed loss is any finite float, in 10^-6. As many as a round may have, all at the bound, add up to what they are."""
    view = base(devices_max=devices, width=64, weight_max=1, dropped_permille=0)
    most = statistic_max(devices)
    lanes = encode(view, wave(1), statistics=(sign * 10**44, sign * 7))
    exact = to_signed(view.segments[1], lanes[1])
    assert exact.tolist() == [1, sign * most, sign * 7]
    lane = np.full(view.segments[1].length, devices, np.uint64) * lanes[1]  # the ring sum of so many equal uploads
    assert to_signed(view.segments[1], lane).tolist() == [devices, sign * most * devices, sign * 7 * devices]
    assert abs(most * devices) < 2**63 <= (most + 1) * devices
