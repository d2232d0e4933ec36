"""Masking, opening, adding, packing and quantising beside what the machine can do at most, and Flower.

    python bench/masks.py

10^6 parameters in a 24-bit ring unless a row says otherwise. A row is the median of interleaved rounds. The limit is
measured in the same run: for masks the bare AES-128-CTR keystream of the same bytes (nothing added), for sums numpy's
in-place add of as many values that need no unpacking, for packing a copy, for quantising the keystream of the rounding
bits, one multiplication and one cast. The peer is Flower's own code for the same step where it is installed: SecAgg+
with one self mask, a generator that is not cryptographic and 8 bytes a parameter.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from blindsum.protocol.prg import PAGE_SIZE, Stream, apply
from blindsum.protocol.quantize import Codec, quantise, rotated_range
from blindsum.protocol.ring import WIDTHS, PackedSum, Segment, lane_dtype, pack, packed_size, zeros
from blindsum.protocol.rotation import rotate

LENGTH = 1_000_000
SMALL = 10_000
NEIGHBOURS = 20
SELF_SEEDS = 4
DEVICES = 100
UPLOADS = 8  # different ones, so that they come from memory as a coordinator's do
ROUNDS = 15
CORES = os.cpu_count() or 1
SUITE = "aes128-ctr"

Job = Callable[[], object]


def rows() -> list[dict[str, object]]:
    """One row a step: {name, ours, limit, peer, unit, ratio}. `ratio` is ours / limit; a figure nobody has is None."""
    times = _median_s(_jobs())
    table: list[dict[str, object]] = []

    def row(name: str, unit: str, scale: Callable[[float], float]) -> None:
        figures = {kind: scale(times[kind, name]) for kind in ("ours", "limit", "peer") if (kind, name) in times}
        table.append(
            {
                "name": name,
                "ours": round(figures["ours"], 3),
                "limit": round(figures["limit"], 3) if "limit" in figures else None,
                "peer": round(figures["peer"], 3) if "peer" in figures else None,
                "unit": unit,
                "ratio": round(figures["ours"] / figures["limit"], 2) if "limit" in figures else None,
            }
        )

    for name in ("device mask", f"device mask, {CORES} cores", f"device mask, {SMALL} parameters"):
        row(name, "ms", lambda seconds: seconds * 1e3)
    row(f"party opening, n = {DEVICES}, {CORES} cores", "GB/s", lambda seconds: DEVICES * 4 * LENGTH / seconds / 1e9)
    for width in WIDTHS:
        size = UPLOADS * LENGTH * width // 8
        row(f"coordinator add, w = {width}", "GB/s", lambda seconds, size=size: size / seconds / 1e9)  # type: ignore[misc]
    for name in ("quantise", "rotate", "pack"):
        row(name, "ms", lambda seconds: seconds * 1e3)
    return table


def _jobs() -> dict[tuple[str, str], Job]:
    jobs: dict[tuple[str, str], Job] = {}
    streams = [(os.urandom(24), 1 if i % 2 else -1) for i in range(NEIGHBOURS + SELF_SEEDS)]
    vector, small = [Segment("model", LENGTH, 24)], [Segment("model", SMALL, 24)]
    lanes, few = zeros(vector), zeros(small)
    jobs["ours", "device mask"] = lambda: apply(vector, lanes, streams, suite=SUITE)
    jobs["limit", "device mask"] = lambda: _bare(streams, 4 * LENGTH)
    jobs["ours", f"device mask, {CORES} cores"] = lambda: apply(vector, lanes, streams, suite=SUITE, threads=CORES)
    jobs["limit", f"device mask, {CORES} cores"] = lambda: _bare_on_all_cores(streams, 4 * LENGTH)
    jobs["ours", f"device mask, {SMALL} parameters"] = lambda: apply(small, few, streams, suite=SUITE)
    jobs["limit", f"device mask, {SMALL} parameters"] = lambda: _bare(streams, 4 * SMALL)

    seeds = [(os.urandom(24), 1) for _ in range(DEVICES)]
    opening = f"party opening, n = {DEVICES}, {CORES} cores"
    jobs["ours", opening] = lambda: apply(vector, zeros(vector), iter(seeds), suite=SUITE, threads=CORES)
    jobs["limit", opening] = lambda: _bare_on_all_cores(seeds, 4 * LENGTH)

    for width in WIDTHS:
        jobs |= _add_jobs(width)

    update = np.sin(np.arange(LENGTH)).astype(np.float32)
    codec = Codec(clip_norm=1.0, value_range=rotated_range(1.0, LENGTH), bits=14, weight_max=1)
    jobs["ours", "quantise"] = lambda: quantise(update, 1, codec, vector[0], bytes(32))
    jobs["limit", "quantise"] = lambda: _bare_quantise(update, streams[0])
    jobs["ours", "rotate"] = lambda: rotate(update, bytes(16))
    jobs["ours", "pack"] = lambda: pack(vector, lanes)
    packed = bytearray(packed_size(vector))
    jobs["limit", "pack"] = lambda: bytes(packed)
    return jobs | _flower_jobs(update)


def _add_jobs(width: int) -> dict[tuple[str, str], Job]:
    segments = [Segment("model", LENGTH, width)]
    sums, running = zeros(segments), PackedSum(segments)
    values = [np.full(LENGTH, i, lane_dtype(width)) for i in range(UPLOADS)]
    uploads = [pack(segments, [lane]) for lane in values]

    def ours() -> None:
        for upload in uploads:
            running.add(upload)

    def limit() -> None:
        for lane in values:
            np.add(sums[0], lane, out=sums[0])

    name = f"coordinator add, w = {width}"
    return {("ours", name): ours, ("limit", name): limit}


def _bare(streams: list[Stream], size: int) -> None:
    """The keystream alone, as fast as the library makes it: one cipher a stream, cache-sized pieces, nothing added."""
    zero, out = memoryview(bytes(PAGE_SIZE)), bytearray(PAGE_SIZE)
    for key, _ in streams:
        cipher = Cipher(algorithms.AES128(key[:16]), modes.CTR(key[16:] + bytes(8))).encryptor()
        for start in range(0, size, PAGE_SIZE):
            cipher.update_into(zero[: min(PAGE_SIZE, size - start)], out)


def _bare_quantise(update: np.ndarray, stream: Stream) -> np.ndarray:
    _bare([stream], 2 * update.size)
    return (update * np.float32(8191)).astype(np.int32)


def _bare_on_all_cores(streams: list[Stream], size: int) -> None:
    with ThreadPoolExecutor(CORES) as pool:
        list(pool.map(_bare, [streams[i::CORES] for i in range(CORES)], [size] * CORES))


def _flower_jobs(update: np.ndarray) -> dict[tuple[str, str], Job]:
    """Flower's functions for the same steps, none where it is not installed."""
    try:
        from flwr.common import ndarray_to_bytes
        from flwr.common.secure_aggregation.ndarrays_arithmetic import parameters_addition, parameters_mod
        from flwr.common.secure_aggregation.quantization import quantize
        from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
    except ImportError:
        return {}

    def mask(length: int, count: int) -> None:
        total = [np.zeros(length, np.int64)]
        for _ in range(count):
            total = parameters_addition(total, pseudo_rand_gen(os.urandom(32), 1 << 32, [(length,)]))
        parameters_mod(total, 1 << 32)

    ones = np.ones(LENGTH, np.int64)
    return {
        ("peer", "device mask"): lambda: mask(LENGTH, NEIGHBOURS + 1),
        ("peer", f"device mask, {SMALL} parameters"): lambda: mask(SMALL, NEIGHBOURS + 1),
        ("peer", "quantise"): lambda: quantize([update], 8.0, 1 << 22),
        ("peer", "pack"): lambda: ndarray_to_bytes(ones),
    }


def _median_s(jobs: dict[tuple[str, str], Job]) -> dict[tuple[str, str], float]:
    """Seconds a call, the median of interleaved rounds after one that does not count."""
    times: dict[tuple[str, str], list[float]] = {name: [] for name in jobs}
    for _ in range(ROUNDS + 1):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(each[1:]) for name, each in times.items()}


def main() -> None:
    """Print the table, and the rows as JSON lines after it."""
    table = rows()
    print(f"{'':<34} {'ours':>9} {'limit':>9} {'Flower':>9}  unit  ours / limit")
    for row in table:
        ours, limit, peer, ratio = ("-" if row[key] is None else row[key] for key in ("ours", "limit", "peer", "ratio"))
        print(f"{row['name']:<34} {ours:>9} {limit:>9} {peer:>9}  {row['unit']:<5} {ratio:>11}")
    for row in table:
        print(json.dumps(row))


if __name__ == "__main__":
    main()
