"""The next model and state: every role computes it for itself and gets the same bytes (SPEC.md section 9.3)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blindsum.protocol.algorithm import algorithm_of
from blindsum.protocol.codec import convert, encode
from blindsum.protocol.envelope import open_envelope, seal_envelope
from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.messages import Task
from blindsum.protocol.optimiser import advance
from blindsum.protocol.params import Committee
from blindsum.protocol.ring import from_signed, pack, to_signed, unpack
from blindsum.protocol.rotation import unrotate
from blindsum.protocol.view import TaskView, open_task
from blindsum.testing.fleet import make_fleet, make_task

FLEET = make_fleet(9, parties=4, devices=0)
SEED = bytes(range(16))
LENGTH = 6


def base(
    name: str = "fedavg", *, numbers: dict[str, int] | None = None, rate_micros: int = 1_000_000, **changes: Any
) -> TaskView:
    raw, _, _ = make_task(FLEET, committee=Committee.for_f(1), devices_max=16, length=LENGTH, **changes)
    opened = open_envelope(raw)
    task = convert(opened.payload, Task)
    fields = {name: getattr(task, name) for name in task.__struct_fields__}
    fields["algorithm"] = algorithm_of(name, rate_micros=rate_micros, **(numbers or {}))
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


def following(view: TaskView, model: bytes, total: bytes, rotation: bytes = b"") -> bytes:
    """The next model of an algorithm that keeps no state."""
    following, state = advance(view, model, b"", total, rotation)
    assert state == b""
    return following


MODEL = np.array([0.5, -1.25, 3.0, 0.0, 1e-3, -7.75], "<f4").tobytes()
LEVELS = [1, -1, 123_456, -123_456, 0, 77_777]


@pytest.mark.parametrize("rate_micros", [1_000_000, 250_000, 0, 3_333_333])
def test_next_model_is_the_papers_formula(rate_micros: int) -> None:
    view = base(rate_micros=rate_micros)
    total = packed(view, LEVELS, 13)
    assert following(view, MODEL, total, b"") == transcription(view, MODEL, total)
    if rate_micros == 0:
        assert following(view, MODEL, total, b"") == MODEL


def test_rotated_sums_are_turned_back_first() -> None:
    view = base(rotate=True)
    total = packed(view, LEVELS, 13)
    assert following(view, MODEL, total, SEED) == transcription(view, MODEL, total, SEED)
    assert following(view, MODEL, total, SEED) != following(view, MODEL, total, bytes(16))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(-(2**23), 2**23 - 1), min_size=LENGTH, max_size=LENGTH),
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=LENGTH, max_size=LENGTH),
    st.integers(1, 2**40),
)
def test_any_sum_and_model_give_the_formulas_bytes(levels: list[int], model: list[float], weight: int) -> None:
    view = base(rate_micros=700_000)
    total, before = packed(view, levels, weight), np.array(model, "<f4").tobytes()
    assert following(view, before, total, b"") == transcription(view, before, total)


GOLDEN = {
    (1_000_000, False): "1400003f0a00a0bf314649400b6314be6f12833a2214f5c0",
    (700_000, False): "0e00003f0700a0bfef7d4640dcbdcfbd6f12833a7ef4f5c0",
    (1_000_000, True): "2d46f23e3b46a9bfc6483e406d62943d13103f3df9e6f1c0",
}


@pytest.mark.parametrize(("rate_micros", "rotate"), GOLDEN)
def test_bytes_are_the_same_on_every_machine(rate_micros: int, rotate: bool) -> None:
    view = base(rate_micros=rate_micros, rotate=rotate)
    total = packed(view, LEVELS, 13)
    assert following(view, MODEL, total, SEED if rotate else b"").hex() == GOLDEN[rate_micros, rotate]


def test_model_of_another_length_than_the_sum_is_refused() -> None:
    view = base()
    for wrong in (MODEL[:-4], MODEL + bytes(4), b""):
        with pytest.raises(BlindsumError, match="sum-malformed"):
            following(view, wrong, packed(view, LEVELS, 13), b"")


@pytest.mark.parametrize("weight", [0, -3])
def test_sum_of_no_weight_is_refused(weight: int) -> None:
    view = base()
    with pytest.raises(BlindsumError, match="sum-malformed"):
        following(view, MODEL, packed(view, LEVELS, weight), b"")


def test_arguments_are_left_as_they_were() -> None:
    view = base()
    model, total = bytearray(MODEL), bytearray(packed(view, LEVELS, 13))
    before = bytes(model), bytes(total)
    following(view, model, total, b"")  # type: ignore[arg-type]
    assert (bytes(model), bytes(total)) == before
    assert encode(view.task)  # the task is still one


# -- algorithms with a state ------------------------------------------------------------------------------------------

ADAPTIVE = {"beta1_micros": 900_000, "beta2_micros": 990_000, "tau_micros": 1_000}


def mean_of(view: TaskView, total: bytes) -> np.ndarray:
    """The mean update as FedAvg at rate 1 applies it to zeros: the oracle of what the others get."""
    levels, exact = (to_signed(s, lane) for s, lane in zip(view.segments, unpack(view.segments, total), strict=True))
    codec = view.task.codec
    scale = (codec.range_micros / 1e6) / ((2 ** (codec.bits - 1) - 1) * int(exact[0]))
    return (levels.astype(np.float64) * scale).astype(np.float32).astype(np.float64)


def test_momentum_is_what_pytorch_computes() -> None:
    view = base("fedavgm", numbers={"beta1_micros": 900_000}, rate_micros=500_000)
    weight = torch.from_numpy(np.frombuffer(MODEL, "<f4").copy()).requires_grad_()
    sgd = torch.optim.SGD([weight], lr=0.5, momentum=0.9)
    model, state = MODEL, b""
    for levels in (LEVELS, LEVELS[::-1], [0] * LENGTH, LEVELS):
        total = packed(view, levels, 13)
        weight.grad = torch.from_numpy(-mean_of(view, total).astype(np.float32))
        sgd.step()
        model, state = advance(view, model, state, total, b"")
        assert np.frombuffer(model, "<f4") == pytest.approx(weight.detach().numpy(), rel=1e-5, abs=1e-6)
    assert len(state) == len(model)


@pytest.mark.parametrize("name", ["fedadam", "fedyogi"])
def test_adaptive_steps_are_those_of_the_paper(name: str) -> None:
    """Algorithm 2 of Reddi et al., arXiv 2003.00295, coordinate by coordinate in Python's own floats."""
    view = base(name, numbers=ADAPTIVE, rate_micros=20_000)
    beta1, beta2, tau, rate = 0.9, 0.99, 1e-3, 0.02
    x = np.frombuffer(MODEL, "<f4").astype(float).tolist()
    m, v = [0.0] * LENGTH, [tau**2] * LENGTH
    model, state = MODEL, b""
    for levels in (LEVELS, [0] * LENGTH, LEVELS[::-1], LEVELS):
        total = packed(view, levels, 13)
        delta = mean_of(view, total).tolist()
        for i, d in enumerate(delta):
            m[i] = beta1 * m[i] + (1 - beta1) * d
            if name == "fedadam":
                v[i] = beta2 * v[i] + (1 - beta2) * d**2
            else:
                v[i] -= (1 - beta2) * d**2 * float(np.sign(v[i] - d**2))
            x[i] += rate * m[i] / (v[i] ** 0.5 + tau)
        model, state = advance(view, model, state, total, b"")
        assert np.frombuffer(model, "<f4") == pytest.approx(x, rel=1e-5, abs=1e-6)
        assert np.frombuffer(state, "<f4") == pytest.approx(m + v, rel=1e-5, abs=1e-12)


STATES = {
    "fedavgm": "5be3003f0000a0bff255404031e4abbbf010833a82c8f7c04446a83d11930eb63608073e360807be6ac98db5bf34293e",
    "fedadam": (
        "a2bd083f2500a0bff8c1414040fce0bc23c7823a5425f6c09c9e063c821e64b4230d583c230d58bcdddbe2b3665d873c"
        "e811af38393b82359cbf233a9cbf233a383b8235af0f2e39"
    ),
    "fedyogi": (
        "98b8083f2500a0bf38c14140a29be0bc9ac7823adb26f6c09c9e063c821e64b4230d583c230d58bcdddbe2b3665d873c"
        "4ce1b038bd378635f466253af466253abd378635ddd42f39"
    ),
}


@pytest.mark.parametrize("name", STATES)
def test_states_are_the_same_on_every_machine(name: str) -> None:
    view = base(name, numbers=ADAPTIVE if name != "fedavgm" else {"beta1_micros": 900_000}, rate_micros=20_000)
    model, state = MODEL, b""
    for levels in (LEVELS, LEVELS[::-1], LEVELS):
        model, state = advance(view, model, state, packed(view, levels, 13), b"")
    assert (model + state).hex() == STATES[name]


def test_state_of_another_length_is_refused() -> None:
    view = base("fedadam", numbers=ADAPTIVE)
    for wrong in (MODEL, MODEL * 3, (MODEL * 2)[:-4]):
        with pytest.raises(BlindsumError, match="sum-malformed"):
            advance(view, MODEL, wrong, packed(view, LEVELS, 13), b"")


@pytest.mark.parametrize("name", ["fedavg", "fedadam"])
def test_nothing_that_is_not_finite_becomes_a_model_or_a_state(name: str) -> None:
    view = base(name, numbers=ADAPTIVE if name == "fedadam" else {})
    infinite = np.array([np.inf, *[0.0] * (LENGTH - 1)], "<f4").tobytes()
    with pytest.raises(BlindsumError, match="sum-malformed"):
        advance(view, infinite, b"", packed(view, LEVELS, 13), b"")
    if name == "fedadam":
        with pytest.raises(BlindsumError, match="sum-malformed"):
            advance(view, MODEL, MODEL + infinite, packed(view, LEVELS, 13), b"")
