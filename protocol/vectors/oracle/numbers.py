"""Parameters, and the arithmetic of the codec and the optimiser in plain floats (SPEC.md sections 9 and 11)."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from oracle.fault import Fault, require
from oracle.masks import Segment, derive, keystream, signed, unpack

PRODUCT_BITS_MAX = 36
PARTIES_MAX = 10
_UNSAFE = "parameters-unsafe"


# -- parameters -------------------------------------------------------------------------------------------------------


def committee(parties: int, threshold: int, quorum: int, liars: int) -> None:
    require(1 <= threshold <= quorum <= parties <= PARTIES_MAX and liars >= 1, _UNSAFE)
    require(2 * quorum > parties + liars and threshold > liars and quorum >= 2 * threshold - 1, _UNSAFE)


def degree(n: int, corrupt_permille: int, dropped_permille: int) -> int:
    lost = n * corrupt_permille // 1000 + n * dropped_permille // 1000
    for k in range(2, n - 1, 2):
        # n (n - k - 1) / 2 * C(lost, k) / C(n, k) < 2^-40, without fractions
        if n * (n - k - 1) * math.comb(lost, k) << 40 < 2 * math.comb(n, k):
            return k
    return max(n - 1, 0)


def survivors_min(n: int, corrupt_permille: int, dropped_permille: int, cohort_min: int) -> int:
    return max(cohort_min + n * corrupt_permille // 1000, n - n * dropped_permille // 1000)


def bits(width: int, devices_max: int, weight_max: int) -> int:
    def fits(b: int) -> bool:
        level = (2 ** (b - 1) - 1) * weight_max
        return devices_max * level < 2 ** (width - 1) and level < 2**PRODUCT_BITS_MAX

    best = max((b for b in range(1, 65) if fits(b)), default=0)
    require(best >= 4, _UNSAFE)
    return best


# -- codec ------------------------------------------------------------------------------------------------------------


class Codec(NamedTuple):
    clip_micros: int
    range_micros: int
    bits: int
    weight_max: int

    @property
    def level_max(self) -> int:
        return int(2 ** (self.bits - 1)) - 1


def single(value: float) -> float:
    """Rounded to float32. The double result of one operation on two singles, rounded again, is the correct single."""
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


def singles(data: bytes) -> list[float]:
    require(len(data) % 4 == 0, "update-wrong-shape")
    return list(struct.unpack(f"<{len(data) // 4}f", data))


def packed_singles(values: Sequence[float]) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def quantise(
    update: Sequence[float], weight: int, codec: Codec, rotation: bytes, segment: Segment, key: bytes
) -> list[int]:
    """The signed levels of SPEC.md section 9.1."""
    require(len(update) == segment.length, "update-wrong-shape")
    require(1 <= weight <= codec.weight_max, "weight-out-of-range")
    require(all(map(math.isfinite, update)), "update-not-finite")
    norm = math.sqrt(math.fsum(x * x for x in update))
    factor = min(1.0, codec.clip_micros / 1e6 / norm) if norm else 1.0
    if rotation:
        update, factor = rotate([single(x * factor) for x in update], rotation), 1.0
    limit = codec.level_max * weight
    stream_key, levels = derive(key, "rounding", segment.name, size=24), []
    for i, x in enumerate(update):
        page, place = divmod(i, 65_536)
        r = int.from_bytes(keystream("aes128-ctr", stream_key, page, 2 * place, 2), "little")
        level = math.floor(x * (factor / (codec.range_micros / 1e6) * limit) + (r + 0.5) / 65_536)
        levels.append(max(-limit, min(limit, level)))
    return levels


def _blocks(length: int) -> list[tuple[int, int]]:
    size = 1 << length.bit_length() - 1
    return [(0, size)] if size == length else [(0, size), (length - size, size)]


def _flip(values: list[float], seed: bytes, number: int) -> list[float]:
    key = derive(seed, "rotation", number, size=24)
    stream = keystream("aes128-ctr", key, 0, 0, 4 * len(values))
    return [-x if stream[4 * i + 3] & 0x80 else x for i, x in enumerate(values)]


def _hadamard(values: list[float]) -> list[float]:
    h = 1
    while h < len(values):
        out = values[:]
        for i in range(len(values)):
            if not i & h:
                out[i], out[i + h] = single(values[i] + values[i + h]), single(values[i] - values[i + h])
        values, h = out, 2 * h
    scale = single(1 / math.sqrt(len(values)))
    return [single(x * scale) for x in values]


def rotate(vector: Sequence[float], seed: bytes) -> list[float]:
    out = list(vector)
    for number, (start, size) in enumerate(_blocks(len(out))):
        out[start : start + size] = _hadamard(_flip(out[start : start + size], seed, number))
    return out


def unrotate(vector: Sequence[float], seed: bytes) -> list[float]:
    out = list(vector)
    for number, (start, size) in reversed(list(enumerate(_blocks(len(out))))):
        out[start : start + size] = _flip(_hadamard(out[start : start + size]), seed, number)
    return out


# -- the optimiser ----------------------------------------------------------------------------------------------------

# name: (vectors of state, numbers that its formula has a place for)
ALGORITHMS: dict[str, tuple[int, set[str]]] = {
    "fedavg": (0, {"rate_micros"}),
    "fedavgm": (1, {"rate_micros", "beta1_micros"}),
    "fedadam": (2, {"rate_micros", "beta1_micros", "beta2_micros", "tau_micros"}),
    "fedyogi": (2, {"rate_micros", "beta1_micros", "beta2_micros", "tau_micros"}),
    "scaffold": (0, {"rate_micros", "population"}),
    "evaluate": (0, set()),
}


def advance(
    model: bytes,
    state: bytes,
    total: bytes,
    segments: Sequence[Segment],
    codecs: Sequence[str],
    codec: Codec,
    algorithm: Mapping[str, Any],
    rotation: bytes,
) -> tuple[bytes, bytes]:
    """The next model and state of SPEC.md section 9.3."""
    parts = list(zip(segments, unpack(segments, total), strict=True))
    weight = signed(*next(part for part, kind in zip(parts, codecs, strict=True) if kind == "exact"))[0]
    require(weight >= 1, "sum-malformed")
    name, (vectors, _) = algorithm["name"], ALGORITHMS[algorithm["name"]]
    require(len(state) in (0, vectors * len(model)), "sum-malformed")
    if name == "evaluate":
        return model, state
    scale = codec.range_micros / 1e6 / (codec.level_max * weight)
    means: list[list[float]] = []
    for (segment, values), kind in zip(parts, codecs, strict=True):
        if kind == "quantised":
            mean = [single(v * scale) for v in signed(segment, values)]
            means.append(unrotate(mean, rotation) if rotation else mean)
    old, change = singles(model), [m for mean in means for m in mean]
    require(len(old) == len(change), "sum-malformed")
    kept = singles(state) if state else []
    first, second = kept[: len(old)], kept[len(old) :]
    rate = algorithm["rate_micros"] / 1e6
    if name == "fedavg":
        steps = [rate * d for d in change]
    elif name == "scaffold":
        share, half = min(weight, algorithm["population"]) / algorithm["population"], len(change) // 2
        steps = [(rate if i < half else share) * d for i, d in enumerate(change)]
    elif name == "fedavgm":
        first = [
            algorithm["beta1_micros"] / 1e6 * m + d for m, d in zip(first or [0.0] * len(old), change, strict=True)
        ]
        steps = [rate * m for m in first]
    else:
        first, second, steps = _adaptive(name, algorithm, first, second, change)
    require(all(map(math.isfinite, (*old, *steps, *first, *second))), "sum-malformed")
    try:
        made = [packed_singles([single(x + step) for x, step in zip(old, steps, strict=True)])]
        made.append(packed_singles([single(x) for x in (*first, *second)]))
    except OverflowError:
        raise Fault("sum-malformed") from None
    return made[0], made[1]


def _adaptive(
    name: str, algorithm: Mapping[str, Any], first: list[float], second: list[float], change: list[float]
) -> tuple[list[float], list[float], list[float]]:
    """(m, v, steps) of FedAdam and FedYogi."""
    rate, tau = algorithm["rate_micros"] / 1e6, algorithm["tau_micros"] / 1e6
    beta1, fresh1 = algorithm["beta1_micros"] / 1e6, (1_000_000 - algorithm["beta1_micros"]) / 1e6
    beta2, fresh2 = algorithm["beta2_micros"] / 1e6, (1_000_000 - algorithm["beta2_micros"]) / 1e6
    first = [beta1 * m + fresh1 * d for m, d in zip(first or [0.0] * len(change), change, strict=True)]
    before = second or [tau * tau] * len(change)
    if name == "fedadam":
        second = [beta2 * v + fresh2 * (d * d) for v, d in zip(before, change, strict=True)]
    else:
        second = [v - fresh2 * (d * d) * ((v > d * d) - (v < d * d)) for v, d in zip(before, change, strict=True)]
    return first, second, [rate * (m / (math.sqrt(v) + tau)) for m, v in zip(first, second, strict=True)]
