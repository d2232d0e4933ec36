"""Quantisation and rotation: SPEC.md sections 9.1 and 9.2."""

from __future__ import annotations

import hashlib
import math
from itertools import pairwise

import numpy as np
import pytest

from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.keys import derive
from blindsum.protocol.prg import keystream
from blindsum.protocol.quantize import BITS_MIN, BLOCK_LENGTH, Codec, bits_for, dequantise, quantise, rotated_range
from blindsum.protocol.ring import Segment, from_signed, lane_dtype, to_signed, zeros
from blindsum.protocol.rotation import Floats, block_length, rotate, unrotate

KEY = bytes(range(32))
SEED = bytes(range(16))


def wave(length: int, scale: float = 1.0) -> Floats:
    """Values that look like nothing in particular."""
    values: Floats = (np.sin(np.arange(length) * 1.7) * np.cos(np.arange(length) * 0.31) * scale).astype(np.float32)
    return values


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


# -- quantise ---------------------------------------------------------------------------------------------------------


def test_rounding_is_unbiased_and_never_off_by_a_level() -> None:
    length = 4 * BLOCK_LENGTH + 17
    codec = Codec(clip_norm=1e9, value_range=127.0, bits=8, weight_max=1)  # one level is 1.0
    segment = Segment("m", length, 24)
    for value in (0.25, -0.25, 3.9, -126.5, 0.001):
        levels = to_signed(segment, quantise(np.full(length, value, np.float32), 1, codec, segment, KEY))
        assert set(levels.tolist()) == {math.floor(value), math.ceil(value)}
        fraction = value - math.floor(value)
        deviation = math.sqrt(fraction * (1 - fraction) / length)
        assert abs(levels.mean() - value) < 5 * deviation + 2**-17


def test_whole_levels_are_exact() -> None:
    codec = Codec(clip_norm=1e9, value_range=127.0, bits=8, weight_max=3)
    segment = Segment("m", 255, 24)
    update = np.arange(-127, 128).astype(np.float32)
    assert to_signed(segment, quantise(update, 3, codec, segment, KEY)).tolist() == [3 * v for v in range(-127, 128)]


def test_rounding_bits_come_from_the_key_and_differ_between_segments() -> None:
    codec = Codec(clip_norm=1e9, value_range=127.0, bits=8, weight_max=1)
    update = np.full(4096, 0.5, np.float32)
    one, other = Segment("one", 4096, 32), Segment("other", 4096, 32)
    first = quantise(update, 1, codec, one, KEY)
    assert (quantise(update, 1, codec, one, KEY) == first).all()
    for again in (quantise(update, 1, codec, one, key(1)), quantise(update, 1, codec, other, KEY)):
        assert 1500 < np.count_nonzero(again != first) < 2600
    blocks = quantise(np.full(2 * BLOCK_LENGTH, 0.5, np.float32), 1, codec, Segment("one", 2 * BLOCK_LENGTH, 32), KEY)
    assert (blocks[:BLOCK_LENGTH] != blocks[BLOCK_LENGTH:]).any()


def test_update_longer_than_the_clip_norm_is_scaled_onto_it() -> None:
    length = 10_000
    codec = Codec(clip_norm=2.0, value_range=1.0, bits=20, weight_max=1)
    segment = Segment("m", length, 32)
    update = wave(length, 100.0)
    clipped = dequantise(quantise(update, 1, codec, segment, KEY), 1, codec, segment)
    assert np.linalg.norm(clipped) == pytest.approx(2.0, rel=1e-3)
    assert np.dot(clipped, update) / np.linalg.norm(update) == pytest.approx(2.0, rel=1e-3)
    short = wave(length, 0.001)
    assert np.abs(dequantise(quantise(short, 1, codec, segment, KEY), 1, codec, segment) - short).max() <= 2.0**-18


def test_huge_finite_updates_are_clipped_like_any_other() -> None:
    codec = Codec(clip_norm=2.0, value_range=2.0, bits=20, weight_max=1)
    segment = Segment("m", 4, 32)
    update = np.array([3e38, -3e38, 3e38, 3e38], np.float32)
    for each in (codec, Codec(2.0, 2.0, 20, 1, SEED)):
        mean = dequantise(quantise(update, 1, each, segment, KEY), 1, each, segment)
        assert np.allclose(mean, [1, -1, 1, 1], atol=1e-4)


def test_values_beyond_the_range_are_clamped() -> None:
    codec = Codec(clip_norm=1e9, value_range=1.0, bits=8, weight_max=5)
    segment = Segment("m", 4, 24)
    update = np.array([1.0, 5.0, -1.0, -1e6], np.float32)
    assert to_signed(segment, quantise(update, 5, codec, segment, KEY)).tolist() == [635, 635, -635, -635]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rotation", [b"", SEED])
def test_an_update_with_nan_or_infinity_is_refused(bad: float, rotation: bytes) -> None:
    update = wave(2 * BLOCK_LENGTH)
    update[-3] = bad
    codec = Codec(clip_norm=1.0, value_range=1.0, bits=8, weight_max=1, rotation=rotation)
    with pytest.raises(BlindsumError, match=f"1 of {update.size} values") as caught:
        quantise(update, 1, codec, Segment("m", update.size, 24), KEY)
    assert caught.value.code == "update-not-finite"


@pytest.mark.parametrize("wrong", [np.zeros(3, np.float32), np.zeros(4, np.float64), np.zeros((4, 1), np.float32)])
def test_another_shape_or_dtype_is_refused(wrong: Floats) -> None:
    with pytest.raises(BlindsumError) as caught:
        quantise(wrong, 1, Codec(1.0, 1.0, 8, 1), Segment("m", 4, 24), KEY)
    assert caught.value.code == "update-wrong-shape"


@pytest.mark.parametrize("weight", [0, -1, 11])
def test_weights_outside_the_codec_are_refused(weight: int) -> None:
    codec = Codec(1.0, 1.0, 8, 10)
    with pytest.raises(BlindsumError) as caught:
        quantise(wave(4), weight, codec, Segment("m", 4, 24), KEY)
    assert caught.value.code == "weight-out-of-range"
    with pytest.raises(BlindsumError, match="add up to 0"):
        dequantise(zeros([Segment("m", 4, 24)])[0], 0, codec, Segment("m", 4, 24))


@pytest.mark.parametrize("width", [16, 24, 32, 64])
@pytest.mark.parametrize("rotation", [b"", SEED])
def test_the_mean_of_a_sum_is_the_weighted_mean_of_the_updates(width: int, rotation: bytes) -> None:
    devices, length = 20, 1000
    bits = bits_for(width, devices, 4)
    segment = Segment("m", length, width)
    codec = Codec(clip_norm=50.0, value_range=20.0, bits=bits, weight_max=4, rotation=rotation)
    updates = [wave(length + i)[i:] for i in range(devices)]
    weights = [1 + i % 4 for i in range(devices)]
    total = np.zeros(length, lane_dtype(width))
    for number, (update, weight) in enumerate(zip(updates, weights, strict=True)):
        total += quantise(update, weight, codec, segment, key(number))
    mean = dequantise(total, sum(weights), codec, segment)
    expected = sum(w * u.astype(np.float64) for w, u in zip(weights, updates, strict=True)) / sum(weights)
    assert mean.dtype == np.float32
    # Each rounding errs by less than a level, with variance at most 1/4 of its square; the rotation keeps the norm.
    level = codec.value_range / codec.level_max
    assert np.linalg.norm(mean - expected) < 2 * math.sqrt(length * devices / 4) * level / sum(weights) + 1e-4


@pytest.mark.parametrize("width", [16, 24, 32, 64])
@pytest.mark.parametrize(("devices", "weight"), [(1, 1), (7, 3), (100, 1), (333, 2)])
def test_no_sum_wraps_when_every_device_is_at_the_edge(width: int, devices: int, weight: int) -> None:
    bits = bits_for(width, devices, weight)
    codec = Codec(clip_norm=10.0, value_range=1.0, bits=bits, weight_max=weight)
    segment = Segment("m", 2, width)
    lane = quantise(np.array([1.0, -1.0], np.float32), weight, codec, segment, KEY)
    total = zeros([segment])[0]
    for _ in range(devices):
        total += lane
    assert np.allclose(dequantise(total, devices * weight, codec, segment), [1, -1], rtol=1e-6)
    wider = ((1 << bits) - 1) * weight
    assert devices * wider >= 1 << (width - 1) or wider >= 1 << 36, "one more bit would not be safe"


def test_dequantise_gives_the_same_bits_everywhere() -> None:
    segment = Segment("m", 1000, 24)
    total = from_signed(segment, np.arange(1000, dtype=np.int64) * 7919 % 65_536 - 32_768)
    mean = dequantise(total, 37, Codec(3.0, 0.7, 12, 1, SEED), segment)
    digest = "66673496d76b4a8d8ebe63aa64d1e34a864e8a8b64be15c00ec47cfee20c89d6"
    assert hashlib.sha256(mean.astype("<f4").tobytes()).hexdigest() == digest


# -- bits -------------------------------------------------------------------------------------------------------------


def test_bits_are_the_most_that_cannot_wrap() -> None:
    assert bits_for(24, 1000, 1) == 14  # 1000 * 8191 < 2^23 <= 1000 * 16383
    assert bits_for(16, 1000, 1) == 6
    assert bits_for(32, 1000, 1) == 22
    assert bits_for(24, 1000, 1, headroom_bits=2) == 12
    assert bits_for(24, 1024, 1) == 14  # 1024 * 8191 = 2^23 - 1024
    assert bits_for(24, 1, 1) == 24
    assert bits_for(64, 1000, 1) == 37  # a float64 holds no more with its rounding bits


def test_too_few_bits_are_refused_with_the_numbers() -> None:
    with pytest.raises(BlindsumError, match="10000 devices of weight up to 1 leave room for 3-bit values") as caught:
        bits_for(16, 10_000, 1)
    assert caught.value.code == "parameters-unsafe"
    with pytest.raises(BlindsumError, match="3 bits of headroom leave room for 3-bit"):
        bits_for(16, 1000, 1, headroom_bits=3)
    assert bits_for(16, 4681, 1) == BITS_MIN
    with pytest.raises(BlindsumError):
        bits_for(16, 4682, 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"clip_norm": 0.0},
        {"clip_norm": math.inf},
        {"value_range": math.nan},
        {"value_range": -1.0},
        {"bits": 1},
        {"bits": 38},
        {"bits": 30, "weight_max": 1 << 10},
        {"weight_max": 0},
        {"rotation": bytes(15)},
    ],
)
def test_meaningless_codecs_are_refused(wrong: dict[str, object]) -> None:
    fields: dict[str, object] = {"clip_norm": 1.0, "value_range": 1.0, "bits": 8, "weight_max": 1}
    with pytest.raises(BlindsumError) as caught:
        Codec(**{**fields, **wrong})  # type: ignore[arg-type]
    assert caught.value.code == "parameters-unsafe"


# -- rotation ---------------------------------------------------------------------------------------------------------


def reference_rotation(vector: Floats, seed: bytes) -> np.ndarray:
    """The definition with dense float64 matrices: H D / sqrt(size) on the prefix, then on the suffix."""
    out = vector.astype(np.float64)
    size = block_length(len(out))
    hadamard = np.ones((1, 1))
    while len(hadamard) < size:
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    for number in range(1 if size == len(out) else 2):
        stream = keystream("aes128-ctr", derive(seed, "rotation", number, size=24), 0, 4 * size)
        signs = 1.0 - 2.0 * (np.frombuffer(stream, "<u4") >> 31)
        part = slice(0, size) if number == 0 else slice(len(out) - size, len(out))
        out[part] = hadamard @ (signs * out[part]) / math.sqrt(size)
    return out


@pytest.mark.parametrize("length", [1, 2, 3, 5, 8, 12, 100, 128, 300, 1024, 1500])
def test_rotation_is_a_signed_hadamard_transform_of_prefix_and_suffix(length: int) -> None:
    assert np.allclose(rotate(wave(length), SEED), reference_rotation(wave(length), SEED), atol=1e-5)


@pytest.mark.parametrize("length", [1, 2, 3, 1000, 1 << 12, 65_536 * 3 + 5, 1 << 18])
def test_unrotate_undoes_rotate_and_norms_are_kept(length: int) -> None:
    vector = wave(length)
    before = vector.copy()
    rotated = rotate(vector, SEED)
    assert (vector == before).all()
    assert rotated.shape == vector.shape
    assert np.linalg.norm(rotated) == pytest.approx(np.linalg.norm(vector), rel=1e-5)
    assert np.abs(unrotate(rotated, SEED) - vector).max() < 1e-5
    assert length < 3 or not np.allclose(rotate(vector, bytes(16)), rotated)


@pytest.mark.parametrize("length", [1000, 1024, 4097, 10_007])
def test_a_rotated_spike_stays_in_the_derived_range_wherever_it_was(length: int) -> None:
    limit = rotated_range(1.0, length)
    assert limit < 0.5
    for place in (0, length // 2, length - 1):
        spike = np.zeros(length, np.float32)
        spike[place] = 1.0
        for number in range(8):
            assert np.abs(rotate(spike, key(number)[-16:])).max() < limit


def test_the_derived_range_shrinks_with_the_length_and_never_exceeds_the_norm() -> None:
    ranges = [rotated_range(2.0, 1 << k) for k in range(0, 21, 4)]
    assert ranges[0] == 2.0
    assert all(longer <= shorter for shorter, longer in pairwise(ranges))
    assert ranges[-1] < 2.0 * 8 / 1024


def test_rotation_lets_few_bits_carry_an_update_with_a_spike() -> None:
    length, bits = 5000, 6
    update = wave(length, 0.001)
    update[17] = 0.9
    segment = Segment("m", length, 24)

    def error(codec: Codec) -> float:
        mean = dequantise(quantise(update, 1, codec, segment, KEY), 1, codec, segment)
        return float(np.linalg.norm(mean - update))

    plain = error(Codec(clip_norm=1.0, value_range=1.0, bits=bits, weight_max=1))
    rotated = error(
        Codec(clip_norm=1.0, value_range=rotated_range(1.0, length), bits=bits, weight_max=1, rotation=SEED)
    )
    assert rotated < plain / 2
    assert rotated < 0.15
