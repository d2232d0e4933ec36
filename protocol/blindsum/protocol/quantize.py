"""Float updates to ring elements and back (SPEC.md section 9.1).

Clip to an L2 norm, optionally rotate (`rotation`), scale so that `value_range` becomes the largest b-bit integer,
multiply by the integer example weight, round stochastically so that the expectation is kept, and take two's
complement. A sum of such vectors divided by the sum of the weights is the weighted mean of the clipped updates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.keys import derive
from blindsum.protocol.prg import SUITES, uniform_bits
from blindsum.protocol.ring import Lane, Segment, lane_dtype, to_signed
from blindsum.protocol.rotation import SEED_SIZE, Floats, block_length, rotate, unrotate

__all__ = ["BITS_MIN", "Codec", "bits_for", "dequantise", "quantise", "rotated_range"]

BITS_MIN: Final = 4
"""Fewer bits a value than this lose more accuracy than a wider ring costs."""
PRODUCT_BITS_MAX: Final = 36
"""Bits of a weighted value: with the rounding's 16 they fit the 52 of a float64, so that no sum in here is inexact."""
ROUNDING_BITS: Final = 16
BLOCK_LENGTH: Final = 65_536
"""Values per pass: the float64 scratch stays in a core's second-level cache."""
CLAMP_BITS: Final = 20
"""`rotated_range` lets any coordinate be clamped with probability at most 2^-CLAMP_BITS."""


@dataclass(frozen=True, slots=True)
class Codec:
    """How a float vector becomes integers: `clip_norm` (L2) and `value_range` (a coordinate's largest magnitude) in
    units of the update, `bits` a value before weighting, `weight_max` the largest example weight, `rotation` a public
    16-byte seed or b"" for none. Raises "parameters-unsafe" where one of them is meaningless."""

    clip_norm: float
    value_range: float
    bits: int
    weight_max: int
    rotation: bytes = b""

    def __post_init__(self) -> None:
        for name, value in (("clip_norm", self.clip_norm), ("value_range", self.value_range)):
            if not (math.isfinite(value) and value > 0):
                raise BlindsumError("parameters-unsafe", f"{name} is {value}, not a positive number")
        if self.bits < 2 or self.weight_max < 1 or self.level_max * self.weight_max >> PRODUCT_BITS_MAX:
            shape = f"{self.bits} bits with weights up to {self.weight_max}"
            raise BlindsumError("parameters-unsafe", f"{shape} are not within 2 and {PRODUCT_BITS_MAX} bits in all")
        if len(self.rotation) not in (0, SEED_SIZE):
            raise BlindsumError("parameters-unsafe", f"a rotation seed has {SEED_SIZE} bytes or none")

    @property
    def level_max(self) -> int:
        """The integer that `value_range` becomes: 2^(bits - 1) - 1."""
        return (1 << (self.bits - 1)) - 1


def bits_for(width: int, n_max: int, weight_max: int, headroom_bits: int = 0) -> int:
    """The largest b with n_max * (2^(b-1) - 1) * weight_max * 2^headroom_bits < 2^(width-1): no sum of `n_max`
    devices can wrap. (In 64 bits it is a weighted value's `PRODUCT_BITS_MAX` that binds.) Raises "parameters-unsafe"
    where b < `BITS_MIN`."""
    assert n_max >= 1 and weight_max >= 1 and headroom_bits >= 0, "counts"
    total_max = min(((1 << (width - 1)) - 1) // (n_max << headroom_bits), (1 << PRODUCT_BITS_MAX) - 1)
    bits = (total_max // weight_max + 1).bit_length()
    if bits < BITS_MIN:
        room = f" and {headroom_bits} bits of headroom" if headroom_bits else ""
        raise BlindsumError(
            "parameters-unsafe",
            f"{n_max} devices of weight up to {weight_max}{room} leave room for {bits}-bit values in {width}-bit sums; "
            f"{BITS_MIN} bits are needed: take a wider ring, fewer devices or smaller weights",
        )
    return bits


def rotated_range(clip_norm: float, length: int) -> float:
    """The range to quantise rotated updates in: of one of L2 norm `clip_norm` and `length` coordinates, chosen before
    the seed, any is clamped with probability at most 2^-CLAMP_BITS (sub-Gaussian tail and union bound, see
    `rotation`)."""
    tail = 2 * math.log(2 * length * 2.0**CLAMP_BITS)
    return clip_norm * min(1.0, math.sqrt(tail / block_length(length)))


def quantise(update: Floats, weight: int, codec: Codec, segment: Segment, key: bytes) -> Lane:
    """The ring elements of weight * clip(update): float32 of the segment's length to a lane (24-bit lanes unreduced).

    `key` is a fresh secret (>= 16 bytes) that the rounding bits come from; every segment takes its own bits of it.
    Rounding is unbiased to 2^-17 of a level. Raises "update-not-finite", "update-wrong-shape", "weight-out-of-range".
    """
    if update.shape != (segment.length,) or update.dtype != np.float32:
        shape = f"{update.dtype} of shape {update.shape}"
        raise BlindsumError(
            "update-wrong-shape", f"segment {segment.name!r} takes {segment.length} float32, not {shape}"
        )
    if not 1 <= weight <= codec.weight_max:
        raise BlindsumError("weight-out-of-range", f"{weight} is not in 1..{codec.weight_max}")
    limit = codec.level_max * weight
    assert limit < 1 << (segment.width - 1) and len(key) >= 16, "codec too wide for the ring, or short key"

    scratch = np.empty(min(BLOCK_LENGTH, update.size), np.float64)
    factor = _clip_factor(update, codec.clip_norm, scratch)
    if codec.rotation:
        # Clipped first, because the rotation adds up to all coordinates in float32, which must not overflow.
        clipped = update if factor == 1.0 else np.multiply(update, factor, dtype=np.float64).astype(np.float32)
        update, factor = rotate(clipped, codec.rotation), 1.0
    scale = factor / codec.value_range * limit

    lane = np.empty(update.size, lane_dtype(segment.width))
    signed = lane.view(np.dtype(f"<i{lane.itemsize}"))
    rounding_key = derive(key, "rounding", segment.name, size=SUITES["aes128-ctr"])
    for page, start in enumerate(range(0, update.size, BLOCK_LENGTH)):
        values = update[start : start + BLOCK_LENGTH]
        levels = scratch[: values.size]
        # floor(v + u) with u uniform on the centres of 2^16 equal parts of [0, 1): right in expectation.
        np.multiply(values, scale * 2**ROUNDING_BITS, out=levels, dtype=np.float64)
        np.add(levels, uniform_bits(rounding_key, page, values.size, ROUNDING_BITS), out=levels)
        np.add(levels, 0.5, out=levels)
        np.multiply(levels, 2.0**-ROUNDING_BITS, out=levels)
        np.floor(levels, out=levels)
        np.clip(levels, -limit, limit, out=levels)
        np.copyto(signed[start : start + BLOCK_LENGTH], levels, casting="unsafe")
    return lane


def dequantise(total: Lane, total_weight: int, codec: Codec, segment: Segment) -> Floats:
    """The weighted mean update, float32, from a sum of quantised updates and the sum of their weights (>= 1, else
    "weight-out-of-range"). Bit for bit the same on every platform."""
    if total_weight < 1:
        raise BlindsumError("weight-out-of-range", f"the weights of a sum add up to {total_weight}")
    scale = codec.value_range / (codec.level_max * total_weight)
    mean = (to_signed(segment, total) * scale).astype(np.float32)
    return unrotate(mean, codec.rotation) if codec.rotation else mean


def _clip_factor(update: Floats, clip_norm: float, scratch: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    """What to multiply by so that the L2 norm is at most `clip_norm`. Raises "update-not-finite"."""
    square = 0.0
    for start in range(0, update.size, BLOCK_LENGTH):
        values = update[start : start + BLOCK_LENGTH]
        wide = scratch[: values.size]
        np.square(values, out=wide, dtype=np.float64)
        square += float(wide.sum())  # not np.dot: BLAS would start threads for it
    if not math.isfinite(square):  # float32 squares cannot overflow a float64
        raise BlindsumError(
            "update-not-finite", f"{int(np.count_nonzero(~np.isfinite(update)))} of {update.size} values"
        )
    norm = math.sqrt(square)
    return min(1.0, clip_norm / norm) if norm else 1.0
