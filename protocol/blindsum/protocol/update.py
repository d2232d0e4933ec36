"""From an update to ring elements and from a sum back to a mean (SPEC.md section 9)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.keys import derive
from blindsum.protocol.quantize import dequantise, quantise
from blindsum.protocol.ring import from_signed, to_signed, unpack
from blindsum.protocol.view import TaskView

__all__ = ["Aggregate", "decode_lanes", "decode_sum", "encode_update", "exact_sums", "statistic_max"]


@dataclass(frozen=True, slots=True)
class Aggregate:
    """What a round's sum says: `mean` is the weighted mean update (float32; the quantised segments joined), `weight` the sum of
    weights, `statistics` the exact sums that followed the weight (int64)."""

    mean: NDArray[np.float32] = field(repr=False)
    weight: int
    statistics: NDArray[np.int64]


def statistic_max(devices_max: int) -> int:
    """The largest magnitude of a device's statistic of which `devices_max` cannot wrap their 64-bit sum."""
    return ((1 << 63) - 1) // devices_max


def encode_update(
    base: TaskView, update: NDArray[np.float32], *, weight: int, statistics: Sequence[int], rotation: bytes, key: bytes
) -> list[np.ndarray]:
    """Lanes for one device: `update`, cut into the quantised segments, each clipped, rotated, scaled, weighted and rounded with
    secret randomness `key` (32 bytes); and [weight, *statistics] exactly, a statistic beyond ±`statistic_max` as that. Raises
    BlindsumError for NaN, a wrong length, or a weight outside 1..weight_max."""
    codec, most = base.codec(rotation), statistic_max(base.task.devices_max)
    length = sum(spec.length for spec in base.task.segments if spec.codec == "quantised")
    if update.shape != (length,):
        raise BlindsumError("update-wrong-shape", f"{update.shape} where ({length},) belongs")
    lanes, start = [], 0
    for number, (segment, spec) in enumerate(zip(base.segments, base.task.segments, strict=True)):
        if spec.codec == "quantised":
            part, start = update[start : start + segment.length], start + segment.length
            lanes.append(quantise(part, weight, codec, segment, derive(key, "round", number)))
        else:
            values = [weight, *(min(max(value, -most), most) for value in statistics)]
            if len(values) != segment.length:
                raise BlindsumError("update-wrong-shape", f"{len(values)} statistics where {segment.length} belong")
            lanes.append(from_signed(segment, np.asarray(values, dtype=np.int64)))
    return lanes


def exact_sums(base: TaskView, lanes: Sequence[np.ndarray]) -> NDArray[np.int64]:
    """The exact sums in the lanes of a ring sum: of the weights first, then the statistics."""
    exact = np.zeros(1, np.int64)
    for segment, spec, lane in zip(base.segments, base.task.segments, lanes, strict=True):
        if spec.codec == "exact":
            exact = to_signed(segment, lane)
    return exact


def decode_sum(base: TaskView, packed: bytes, rotation: bytes) -> Aggregate:
    """The mean update and exact statistics of a packed ring sum. Raises BlindsumError("sum-malformed") where the weights do not
    sum to a positive number (no honest cohort gives that)."""
    lanes = unpack(base.segments, packed)
    exact = exact_sums(base, lanes)
    weight = int(exact[0])
    if weight <= 0:
        raise BlindsumError("sum-malformed", f"the weights sum to {weight}")
    return Aggregate(decode_lanes(base, lanes, weight, rotation), weight, exact[1:])


def decode_lanes(base: TaskView, lanes: Sequence[np.ndarray], weight: int, rotation: bytes) -> NDArray[np.float32]:
    """What the quantised lanes say divided by `weight`: of a sum the mean update, of one device's own lanes what it uploads."""
    codec = base.codec(rotation)
    means = [
        dequantise(lane, weight, codec, segment)
        for segment, spec, lane in zip(base.segments, base.task.segments, lanes, strict=True)
        if spec.codec == "quantised"
    ]
    return np.concatenate(means) if means else np.zeros(0, np.float32)
