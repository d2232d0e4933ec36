"""FedAvg on the server: every role computes it for itself and gets the same bytes (SPEC.md section 9.3)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blindsum.protocol.codec import convert, encode
from blindsum.protocol.envelope import open_envelope, seal_envelope
from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.messages import Algorithm, Task
from blindsum.protocol.optimiser import advance
from blindsum.protocol.params import Committee
from blindsum.protocol.ring import from_signed, pack, to_signed, unpack
from blindsum.protocol.rotation import unrotate
from blindsum.protocol.view import TaskView, open_task
from blindsum.testing.fleet import make_fleet, make_task

FLEET = make_fleet(9, parties=4, devices=0)
SEED = bytes(range(16))
LENGTH = 6


def base(*, rate_micros: int = 1_000_000, **changes: Any) -> TaskView:
    raw, _, _ = make_task(FLEET, committee=Committee.for_f(1), devices_max=16, length=LENGTH, **changes)
    opened = open_envelope(raw)
    task = convert(opened.payload, Task)
    fields = {name: getattr(task, name) for name in task.__struct_fields__}
    fields["algorithm"] = Algorithm(name="fedavg", rate_micros=rate_micros)
    view = open_task(FLEET.trust, seal_envelope(FLEET.operator, opened.head, Task(**fields)))
    assert isinstance(view, TaskView), view
    return view


def packed(view: TaskView, levels: list[int], weight: int) -> bytes:
    values = (levels, [weight, 0])
    return pack(
        view.segments, [from_signed(s, np.array(v, np.int64)) for s, v in zip(view.segments, values, strict=True)]
    )


def transcription(view: TaskView, model: bytes, total: bytes, rotation: bytes = b"") -> bytes:
    """The page of the paper in numpy: w + rate * sum_u(n_u / n * update_u), the sum being levels of `value_range`."""
    levels, exact = (to_signed(s, lane) for s, lane in zip(view.segments, unpack(view.segments, total), strict=True))
    codec = view.task.codec
    scale = (codec.range_micros / 1e6) / ((2 ** (codec.bits - 1) - 1) * int(exact[0]))
    mean = (levels.astype(np.float64) * scale).astype(np.float32)
    if rotation:
        mean = unrotate(mean, rotation)
    weights = np.frombuffer(model, "<f4").astype(np.float64)
    return (weights + view.task.algorithm.rate_micros / 1e6 * mean.astype(np.float64)).astype("<f4").tobytes()


MODEL = np.array([0.5, -1.25, 3.0, 0.0, 1e-3, -7.75], "<f4").tobytes()
LEVELS = [1, -1, 123_456, -123_456, 0, 77_777]


@pytest.mark.parametrize("rate_micros", [1_000_000, 250_000, 0, 3_333_333])
def test_next_model_is_the_papers_formula(rate_micros: int) -> None:
    view = base(rate_micros=rate_micros)
    total = packed(view, LEVELS, 13)
    assert advance(view, MODEL, total, b"") == transcription(view, MODEL, total)
    if rate_micros == 0:
        assert advance(view, MODEL, total, b"") == MODEL


def test_rotated_sums_are_turned_back_first() -> None:
    view = base(rotate=True)
    total = packed(view, LEVELS, 13)
    assert advance(view, MODEL, total, SEED) == transcription(view, MODEL, total, SEED)
    assert advance(view, MODEL, total, SEED) != advance(view, MODEL, total, bytes(16))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(-(2**23), 2**23 - 1), min_size=LENGTH, max_size=LENGTH),
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=LENGTH, max_size=LENGTH),
    st.integers(1, 2**40),
)
def test_any_sum_and_model_give_the_formulas_bytes(levels: list[int], model: list[float], weight: int) -> None:
    view = base(rate_micros=700_000)
    total, before = packed(view, levels, weight), np.array(model, "<f4").tobytes()
    assert advance(view, before, total, b"") == transcription(view, before, total)


GOLDEN = {
    (1_000_000, False): "1400003f0a00a0bf314649400b6314be6f12833a2214f5c0",
    (700_000, False): "0e00003f0700a0bfef7d4640dcbdcfbd6f12833a7ef4f5c0",
    (1_000_000, True): "2d46f23e3b46a9bfc6483e406d62943d13103f3df9e6f1c0",
}


@pytest.mark.parametrize(("rate_micros", "rotate"), GOLDEN)
def test_bytes_are_the_same_on_every_machine(rate_micros: int, rotate: bool) -> None:
    view = base(rate_micros=rate_micros, rotate=rotate)
    total = packed(view, LEVELS, 13)
    assert advance(view, MODEL, total, SEED if rotate else b"").hex() == GOLDEN[rate_micros, rotate]


def test_model_of_another_length_than_the_sum_is_refused() -> None:
    view = base()
    for wrong in (MODEL[:-4], MODEL + bytes(4), b""):
        with pytest.raises(BlindsumError, match="sum-malformed"):
            advance(view, wrong, packed(view, LEVELS, 13), b"")


@pytest.mark.parametrize("weight", [0, -3])
def test_sum_of_no_weight_is_refused(weight: int) -> None:
    view = base()
    with pytest.raises(BlindsumError, match="sum-malformed"):
        advance(view, MODEL, packed(view, LEVELS, weight), b"")


def test_arguments_are_left_as_they_were() -> None:
    view = base()
    model, total = bytearray(MODEL), bytearray(packed(view, LEVELS, 13))
    before = bytes(model), bytes(total)
    advance(view, model, total, b"")  # type: ignore[arg-type]
    assert (bytes(model), bytes(total)) == before
    assert encode(view.task)  # the task is still one
