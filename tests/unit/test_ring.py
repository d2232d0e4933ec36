"""Lanes and their wire form: SPEC.md section 2.1."""

from __future__ import annotations

import numpy as np
import pytest

from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.ring import (
    BLOCK_LENGTH,
    WIDTHS,
    Lane,
    Segment,
    add_packed,
    equal,
    from_signed,
    lane_dtype,
    pack,
    packed_size,
    reduce,
    subtract_packed,
    to_signed,
    unpack,
    zeros,
)


def ramp(segment: Segment, start: int = 1) -> Lane:
    """A lane that reaches every bit of the ring."""
    step = 0x9E3779B97F4A7C15
    values = [((start + i) * step) % (1 << segment.width) for i in range(segment.length)]
    return np.array(values, np.uint64).astype(lane_dtype(segment.width))


def test_a_24_bit_segment_is_a_low_plane_and_then_a_high_plane() -> None:
    lane = np.array([0x030201, 0xFFEEDD, 0x000080], np.uint32)
    assert pack([Segment("m", 3, 24)], [lane]).hex() == "0102" + "ddee" + "8000" + "03" + "ff" + "00"


@pytest.mark.parametrize(
    ("width", "value", "wire"),
    [(16, 0x0102, "0201"), (32, 0x01020304, "04030201"), (64, 0x0102030405060708, "0807060504030201")],
)
def test_other_widths_are_little_endian_lanes(width: int, value: int, wire: str) -> None:
    assert pack([Segment("m", 1, width)], [np.array([value], lane_dtype(width))]).hex() == wire


def test_segments_follow_each_other_without_padding() -> None:
    segments = [Segment("a", 3, 24), Segment("b", 1, 64), Segment("c", 1, 16)]
    lanes: list[Lane] = [np.array([1, 2, 3], np.uint32), np.array([4], np.uint64), np.array([5], np.uint16)]
    assert packed_size(segments) == 9 + 8 + 2
    assert pack(segments, lanes).hex() == "010002000300" + "000000" + "0400000000000000" + "0500"


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("length", [0, 1, 7, BLOCK_LENGTH - 1, BLOCK_LENGTH, 2 * BLOCK_LENGTH + 3])
def test_unpack_undoes_pack_at_every_block_boundary(width: int, length: int) -> None:
    segments = [Segment("m", length, width)]
    lanes = [ramp(segments[0])]
    data = pack(segments, lanes)
    assert len(data) == length * width // 8
    assert (unpack(segments, data)[0] == lanes[0]).all()


def test_pack_reduces_24_bit_lanes_that_have_carried() -> None:
    segments = [Segment("m", 2, 24)]
    assert pack(segments, [np.array([0x1_000005, 0xFF_FFFFFF], np.uint32)]) == pack(
        segments, [np.array([5, 0xFFFFFF], np.uint32)]
    )


@pytest.mark.parametrize("width", WIDTHS)
def test_adding_then_subtracting_an_upload_leaves_the_sum(width: int) -> None:
    segments = [Segment("odd", 5, 24), Segment("m", BLOCK_LENGTH + 11, width)]  # the second segment is unaligned
    lanes = [ramp(segment) for segment in segments]
    upload = pack(segments, [ramp(segment, start=99) for segment in segments])
    sums = [lane.copy() for lane in lanes]
    add_packed(segments, sums, memoryview(upload))
    modulus = 1 << width
    expected = [(int(a) + int(b)) % modulus for a, b in zip(lanes[1], ramp(segments[1], start=99), strict=True)]
    reduce(segments, sums)
    assert [int(value) for value in sums[1]] == expected
    subtract_packed(segments, sums, upload)
    assert equal(segments, sums, lanes)


@pytest.mark.parametrize("change", [-1, 1])
def test_a_wrong_length_is_refused_before_anything_is_added(change: int) -> None:
    segments = [Segment("a", 2, 32), Segment("b", 4, 24)]
    lanes = zeros(segments)
    data = b"\x01" * (packed_size(segments) + change)
    for call in (add_packed, subtract_packed):
        with pytest.raises(BlindsumError, match=f"{len(data)} bytes where the segments take 20") as caught:
            call(segments, lanes, data)
        assert caught.value.code == "update-wrong-shape"
    with pytest.raises(BlindsumError):
        unpack(segments, data)
    assert equal(segments, lanes, zeros(segments))


def test_length_is_counted_in_bytes_whatever_the_view() -> None:
    segments = [Segment("m", 2, 64)]
    data = np.array([1, 2], np.uint64).data
    assert len(data) == 2
    assert unpack(segments, data)[0].tolist() == [1, 2]


@pytest.mark.parametrize(
    "lanes",
    [
        [np.zeros(3, np.uint32)],
        [np.zeros(1, np.uint32)],
        [np.zeros(2, np.uint64)],
        [np.zeros((2, 1), np.uint32)],
        [],
        [np.zeros(2, np.uint32)] * 2,
    ],
)
def test_arrays_that_numpy_would_broadcast_are_refused(lanes: list[Lane]) -> None:
    segments = [Segment("m", 2, 24)]
    with pytest.raises(BlindsumError, match="do not match"):
        pack(segments, lanes)
    with pytest.raises(BlindsumError, match="do not match"):
        add_packed(segments, lanes, bytes(6))


@pytest.mark.parametrize("width", WIDTHS)
def test_twos_complement_at_the_edges(width: int) -> None:
    half = 1 << (width - 1)
    segment = Segment("m", 5, width)
    signed = np.array([0, 1, -1, half - 1, -half], np.int64)
    lane = from_signed(segment, signed)
    assert [int(value) for value in lane] == [0, 1, 2 * half - 1, half - 1, half]
    assert to_signed(segment, lane).dtype == np.int64
    assert (to_signed(segment, lane) == signed).all()


def test_to_signed_ignores_what_a_24_bit_lane_has_carried() -> None:
    lane = np.array([0x05_FFFFFE, 0xFF_000003], np.uint32)
    assert to_signed(Segment("m", 2, 24), lane).tolist() == [-2, 3]


def test_from_signed_takes_only_int64_of_the_right_length() -> None:
    segment = Segment("m", 2, 32)
    for wrong in (np.zeros(3, np.int64), np.zeros(2, np.int32), np.zeros(2, np.float64)):
        with pytest.raises(BlindsumError, match="takes 2 int64"):
            from_signed(segment, wrong)  # type: ignore[arg-type]


def test_equal_compares_in_the_ring() -> None:
    narrow, wide = [Segment("m", 1, 24)], [Segment("m", 1, 32)]
    one, carried = [np.array([1], np.uint32)], [np.array([0x1000001], np.uint32)]
    assert equal(narrow, one, carried)
    assert not equal(wide, one, carried)
    assert not equal(narrow, one, [np.array([2], np.uint32)])


@pytest.mark.parametrize(("length", "width"), [(1, 8), (1, 20), (-1, 32)])
def test_other_widths_and_negative_lengths_are_refused(length: int, width: int) -> None:
    with pytest.raises(BlindsumError) as caught:
        Segment("m", length, width)
    assert caught.value.code == "parameters-unsafe"
