"""The one pseudo-random generator: seekable keystreams and their sums into a vector (SPEC.md section 2.2).

A stream is cut into pages of `PAGE_SIZE` bytes, and page j has the nonce `salt8 || uint32_be(j)` (12 bytes):

* "aes128-ctr", key16 || salt8: AES-128-CTR from the counter block `nonce || 00000002`. AES-128-GCM (NIST SP 800-38D)
  makes the same bytes of zeros under that nonce, so either may run; GCM is set up faster and its code uses VAES.
* "chacha20", key32 || salt8: RFC 8439 ChaCha20 with counter 0, for devices without AES instructions.

The keystream of a vector: every segment starts at a fresh page, pages are numbered through the vector, and a lane is
read little-endian from its pages in order (a 24-bit value takes 4 bytes, of which the ring keeps 3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from types import MappingProxyType
from typing import Final, TypeAlias

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from blindsum.protocol.ring import Lane, Segment, lane_dtype, zeros

__all__ = ["GROUP_MAX", "PAGE_SIZE", "SUITES", "Stream", "apply", "keystream", "uniform_bits"]

PAGE_SIZE: Final = 262_144
"""With the accumulator's page and the zeros to encrypt it fits a core's second-level cache."""
SUITES: Final = MappingProxyType({"aes128-ctr": 24, "chacha20": 40})
"""Suite name to size of a stream key: cipher key and 8 bytes of salt."""
GROUP_MAX: Final = 128
"""Streams taken from the iterable, and ciphers held, at a time."""
THREADED_SIZE_MIN: Final = 8 << 20
"""Bytes of keystream below which handing them to threads costs more than it saves."""

Stream: TypeAlias = tuple[bytes, int]
"""(stream key, +1 or -1)"""
_Block: TypeAlias = tuple[int, Lane]
"""(page, the part of a lane that it masks)"""
_Fill: TypeAlias = Callable[[bytes, memoryview, None, memoryview], object]
"""Write the keystream of a page: (nonce, zeros, no associated data, room for them and a tag)."""

_ZEROS: Final = memoryview(bytes(PAGE_SIZE))
_TAG_SIZE: Final = 16
_COUNTER_CTR: Final = bytes([0, 0, 0, 2])
_COUNTER_CHACHA20: Final = bytes(4)


def keystream(suite: str, stream_key: bytes, page: int, size: int) -> bytes:
    """The first `size` <= `PAGE_SIZE` bytes of a page, by the plain definition (`apply` takes the fast path)."""
    assert len(stream_key) == SUITES[suite] and 0 <= size <= PAGE_SIZE, "stream key or size"
    key, nonce = stream_key[:-8], stream_key[-8:] + page.to_bytes(4, "big")
    if suite == "chacha20":
        cipher = Cipher(algorithms.ChaCha20(key, _COUNTER_CHACHA20 + nonce), None).encryptor()
    else:
        cipher = Cipher(algorithms.AES128(key), modes.CTR(nonce + _COUNTER_CTR)).encryptor()
    return cipher.update(_ZEROS[:size])


def uniform_bits(stream_key: bytes, page: int, count: int, width: int) -> Lane:
    """`count` uniform values of `width` bits (16, 32 or 64), at most a page: how a page of "aes128-ctr" starts."""
    size = count * width // 8
    assert len(stream_key) == SUITES["aes128-ctr"] and 0 <= size <= PAGE_SIZE, "stream key or count"
    out = np.empty(size + _TAG_SIZE, np.uint8)
    _aes(stream_key[:-8])(stream_key[-8:] + page.to_bytes(4, "big"), _ZEROS[:size], None, out.data)
    return out[:size].view(lane_dtype(width))


def apply(
    segments: Sequence[Segment],
    lanes: Sequence[Lane],
    streams: Iterable[Stream],
    *,
    suite: str,
    threads: int = 1,
    page: int = 0,
) -> None:
    """lanes += sign * keystream for each (stream key, sign), in place; 24-bit lanes are left unreduced. `page` is the number of the
    first page, where the lanes are a part of a vector that begins at one.

    Memory is bounded whatever `streams` yields: `GROUP_MAX` ciphers and a page a thread and, where the vector has too
    few pages to share out, a vector a thread. The result does not depend on `threads`.
    """
    blocks = _cut(segments, lanes, page)
    source = iter(streams)
    if threads == 1:
        while group := list(islice(source, GROUP_MAX)):
            _expand(blocks, group, suite)
        return
    size = sum(part.nbytes for _, part in blocks)
    with ThreadPoolExecutor(threads - 1) as pool:
        while group := list(islice(source, GROUP_MAX)):
            if size * len(group) < THREADED_SIZE_MIN:
                _expand(blocks, group, suite)
            elif len(blocks) >= 4 * threads:
                _share(pool, [(blocks[i::threads], group, suite) for i in range(threads)])
            else:
                sums = [zeros(segments) for _ in range(threads)]
                _share(pool, [(_cut(segments, sums[i], page), group[i::threads], suite) for i in range(threads)])
                for vector in sums:
                    for lane, addend in zip(lanes, vector, strict=True):
                        np.add(lane, addend, out=lane)


def _share(pool: ThreadPoolExecutor, jobs: Sequence[tuple[Sequence[_Block], Sequence[Stream], str]]) -> None:
    """Run `_expand` on every job: the first in this thread, the others in the pool."""
    others = [pool.submit(_expand, *job) for job in jobs[1:]]
    _expand(*jobs[0])
    for other in others:
        other.result()


def _cut(segments: Sequence[Segment], lanes: Sequence[Lane], page: int) -> list[_Block]:
    blocks: list[_Block] = []
    for segment, lane in zip(segments, lanes, strict=True):
        assert lane.shape == (segment.length,) and lane.dtype == lane_dtype(segment.width), "lane of another segment"
        step = PAGE_SIZE // lane.itemsize
        blocks += [(page + len(blocks) + i, lane[i * step : (i + 1) * step]) for i in range(-(-segment.length // step))]
    return blocks


def _expand(blocks: Sequence[_Block], group: Sequence[Stream], suite: str) -> None:
    """Page by page, so that a page of the accumulator stays in cache while every stream of the group passes over it."""
    size = SUITES[suite]
    assert all(len(key) == size and sign in (1, -1) for key, sign in group), "stream key or sign"
    make = _chacha20 if suite == "chacha20" else _aes
    fills = [(make(key[:-8]), key[-8:], np.add if sign > 0 else np.subtract) for key, sign in group]
    scratch = np.empty(max((part.nbytes for _, part in blocks), default=0) + _TAG_SIZE, np.uint8)
    for page, part in blocks:
        number, source = page.to_bytes(4, "big"), _ZEROS[: part.nbytes]
        room = scratch.data[: part.nbytes + _TAG_SIZE]
        stream = scratch[: part.nbytes].view(part.dtype)
        for fill, salt, operation in fills:
            fill(salt + number, source, None, room)
            operation(part, stream, part)


def _aes(key: bytes) -> _Fill:
    return AESGCM(key).encrypt_into


def _chacha20(key: bytes) -> _Fill:
    cipher = Cipher(algorithms.ChaCha20(key, bytes(16)), None).encryptor()

    def fill(nonce: bytes, source: memoryview, _: None, room: memoryview) -> None:
        cipher.reset_nonce(_COUNTER_CHACHA20 + nonce)
        cipher.update_into(source, room)

    return fill
