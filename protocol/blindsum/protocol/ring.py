"""Vectors over Z_{2^w} and their bytes on the wire (SPEC.md section 2.1).

A vector is one array ("lane") a segment. Widths 16, 32 and 64 are computed in unsigned lanes of that width, where
overflow *is* the reduction; 24 is computed in 32-bit lanes, because reduction mod 2^24 commutes with addition, and is
reduced only where values are compared or leave the process. On the wire a segment is its lane, little-endian; a 24-bit
segment is two planes, the low 16 bits of every value and then the high 8 bits of every value (interleaved bytes would
cost numpy a gather).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from blindsum.protocol.errors import BlindsumError

__all__ = [
    "WIDTHS",
    "Data",
    "Lane",
    "PackedSum",
    "Segment",
    "add_packed",
    "equal",
    "from_signed",
    "lane_dtype",
    "pack",
    "packed_size",
    "reduce",
    "subtract_packed",
    "to_signed",
    "unpack",
    "zeros",
]

WIDTHS: Final = (16, 24, 32, 64)
BLOCK_LENGTH: Final = 262_144
"""24-bit values taken apart or put together at a time: their scratch is 1 MiB whatever the length."""

Lane: TypeAlias = npt.NDArray[np.unsignedinteger[Any]]
Data: TypeAlias = bytes | bytearray | memoryview

_LANES: Final[dict[int, np.dtype[np.unsignedinteger[Any]]]] = {
    16: np.dtype("<u2"),
    24: np.dtype("<u4"),
    32: np.dtype("<u4"),
    64: np.dtype("<u8"),
}
_LOW, _HIGH = np.dtype("<u2"), np.dtype("u1")
_MASK_24: Final = np.uint32(0xFFFFFF)


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a vector: `length` values of `width` bits. Raises "parameters-unsafe" for a width not of `WIDTHS`."""

    name: str
    length: int
    width: int

    def __post_init__(self) -> None:
        if self.width not in WIDTHS or self.length < 0:
            shape = f"{self.length} values of {self.width} bits"
            raise BlindsumError("parameters-unsafe", f"segment {self.name!r} has {shape}; widths are {WIDTHS}")

    @property
    def packed_size(self) -> int:
        """Bytes on the wire."""
        return self.length * self.width // 8


def lane_dtype(width: int) -> np.dtype[np.unsignedinteger[Any]]:
    """What values of `width` bits are computed in: uint16, uint32 (for 24 and 32) or uint64, little-endian."""
    return _LANES[width]


def zeros(segments: Sequence[Segment]) -> list[Lane]:
    """The zero vector."""
    return [np.zeros(segment.length, lane_dtype(segment.width)) for segment in segments]


def packed_size(segments: Sequence[Segment]) -> int:
    """Bytes of a whole vector on the wire."""
    return sum(segment.packed_size for segment in segments)


def pack(segments: Sequence[Segment], lanes: Sequence[Lane]) -> bytes:
    """The wire form, every value reduced mod 2^w."""
    _check(segments, lanes)
    out = np.empty(packed_size(segments), np.uint8)
    start = 0
    for segment, lane in zip(segments, lanes, strict=True):
        part = out[start : start + segment.packed_size]
        start += segment.packed_size
        if segment.width == 24:
            low, high = part[: 2 * lane.size].view(_LOW), part[2 * lane.size :]
            scratch = np.empty(min(BLOCK_LENGTH, lane.size), np.uint32)
            for block in _blocks(lane.size):
                values = lane[block]
                shifted = scratch[: values.size]
                np.copyto(low[block], values, casting="unsafe")
                np.right_shift(values, 16, out=shifted)
                np.copyto(high[block], shifted, casting="unsafe")
        else:
            np.copyto(part.view(lane_dtype(segment.width)), lane)
    return out.tobytes()


def unpack(segments: Sequence[Segment], data: Data) -> list[Lane]:
    """The vector in `data`, in arrays of its own. Raises "update-wrong-shape" unless the length is exact."""
    lanes = zeros(segments)
    add_packed(segments, lanes, data)
    return lanes


def add_packed(segments: Sequence[Segment], lanes: Sequence[Lane], data: Data) -> None:
    """lanes += the vector in `data`, in place; a 24-bit lane is left unreduced. Raises "update-wrong-shape", having
    added nothing, unless the length is exact."""
    _combine(segments, lanes, data, np.add)


def subtract_packed(segments: Sequence[Segment], lanes: Sequence[Lane], data: Data) -> None:
    """lanes -= the vector in `data`, as `add_packed`."""
    _combine(segments, lanes, data, np.subtract)


def reduce(segments: Sequence[Segment], lanes: Sequence[Lane]) -> None:
    """Bring every value into 0..2^w - 1, in place (only 24-bit lanes can be outside)."""
    _check(segments, lanes)
    for segment, lane in zip(segments, lanes, strict=True):
        if segment.width == 24:
            np.bitwise_and(lane, _MASK_24, out=lane)


def equal(segments: Sequence[Segment], left: Sequence[Lane], right: Sequence[Lane]) -> bool:
    """Whether two vectors are the same mod 2^w."""
    _check(segments, left)
    _check(segments, right)
    for segment, one, other in zip(segments, left, right, strict=True):
        same = (one ^ other) & _MASK_24 == 0 if segment.width == 24 else one == other
        if not same.all():
            return False
    return True


def to_signed(segment: Segment, lane: Lane) -> npt.NDArray[np.int64]:
    """The representatives in -2^(w-1)..2^(w-1) - 1 (two's complement in w bits), int64."""
    _check([segment], [lane])
    if segment.width == 24:
        # Shift bit 23 up to the sign bit and back down: sign extension without a comparison.
        shifted = np.left_shift(lane, 8).view(np.dtype("<i4"))
        return np.right_shift(shifted, 8, out=shifted).astype(np.int64)
    return lane.view(np.dtype(f"<i{segment.width // 8}")).astype(np.int64)


def from_signed(segment: Segment, values: npt.NDArray[np.int64]) -> Lane:
    """The residues mod 2^w of `values` (int64, one a value of the segment); undoes `to_signed` if they fit w bits."""
    if values.shape != (segment.length,) or values.dtype != np.int64:
        shape = f"{values.dtype} of shape {values.shape}"
        raise BlindsumError("update-wrong-shape", f"segment {segment.name!r} takes {segment.length} int64, not {shape}")
    lane = values.astype(lane_dtype(segment.width))
    reduce([segment], [lane])
    return lane


class PackedSum:
    """The running sum of many packed vectors, for whoever adds uploads as they arrive.

    A 24-bit segment is summed in the planes it travels in: the low 16 bits add with wrap, `sum < term` is the carry into the
    high 8 bits, and their wrap is the reduction. Three times as fast as widening every upload to 32 bits.
    """

    def __init__(self, segments: Sequence[Segment]) -> None:
        self._segments = tuple(segments)
        self._planes: list[list[np.ndarray[Any, Any]]] = [
            [np.zeros(part.length, _LOW), np.zeros(part.length, _HIGH)]
            if part.width == 24
            else [np.zeros(part.length, lane_dtype(part.width))]
            for part in self._segments
        ]

    def add(self, data: Data) -> None:
        """Raises "update-wrong-shape", having added nothing, unless the length is exact."""
        self._apply(data, np.add)

    def subtract(self, data: Data) -> None:
        """Take a vector out again; as `add`."""
        self._apply(data, np.subtract)

    def lanes(self) -> list[Lane]:
        """The sum as reduced lanes; the caller's to change."""
        data = b"".join(plane.tobytes() for planes in self._planes for plane in planes)
        return unpack(self._segments, data)

    def _apply(self, data: Data, operation: np.ufunc) -> None:
        octets = memoryview(data).nbytes
        if octets != packed_size(self._segments):
            raise BlindsumError("update-wrong-shape", f"{octets} bytes, not {packed_size(self._segments)}")
        start = 0
        for planes in self._planes:
            terms = []
            for plane in planes:
                terms.append(np.frombuffer(data, plane.dtype, plane.size, start))
                start += plane.nbytes
            if len(planes) == 1:
                operation(planes[0], terms[0], out=planes[0])
                continue
            for block in _blocks(planes[0].size):
                low, high, term = planes[0][block], planes[1][block], terms[0][block]
                if operation is np.add:
                    np.add(low, term, out=low)
                    over = np.less(low, term)
                else:
                    over = np.less(low, term)
                    np.subtract(low, term, out=low)
                operation(high, terms[1][block], out=high)
                operation(high, over.view(_HIGH), out=high)


def _combine(segments: Sequence[Segment], lanes: Sequence[Lane], data: Data, operation: np.ufunc) -> None:
    _check(segments, lanes)
    octets = memoryview(data).nbytes
    if octets != packed_size(segments):
        raise BlindsumError("update-wrong-shape", f"{octets} bytes where the segments take {packed_size(segments)}")
    start = 0
    for segment, lane in zip(segments, lanes, strict=True):
        if segment.width == 24:
            _combine_planes(lane, data, start, operation)
        else:
            values = np.frombuffer(data, lane.dtype, lane.size, start)
            operation(lane, values, out=lane)
        start += segment.packed_size


def _combine_planes(lane: Lane, data: Data, start: int, operation: np.ufunc) -> None:
    low = np.frombuffer(data, _LOW, lane.size, start)
    high = np.frombuffer(data, _HIGH, lane.size, start + low.nbytes)
    scratch = np.empty(min(BLOCK_LENGTH, lane.size), np.uint32)
    for block in _blocks(lane.size):
        values = lane[block]
        term = scratch[: values.size]
        np.copyto(term, high[block])
        np.left_shift(term, 16, out=term)
        operation(values, term, out=values)
        np.copyto(term, low[block])
        operation(values, term, out=values)


def _blocks(length: int) -> Iterator[slice]:
    return (slice(start, start + BLOCK_LENGTH) for start in range(0, length, BLOCK_LENGTH))


def _check(segments: Sequence[Segment], lanes: Sequence[Lane]) -> None:
    """Shapes are part of the contract: numpy would broadcast a wrong one in silence."""
    if len(segments) != len(lanes) or any(
        lane.shape != (segment.length,) or lane.dtype != lane_dtype(segment.width)
        for segment, lane in zip(segments, lanes, strict=True)
    ):
        raise BlindsumError("update-wrong-shape", f"arrays do not match the segments {[s.name for s in segments]}")
