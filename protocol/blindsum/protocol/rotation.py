"""A public random rotation that spreads an update evenly over its coordinates (SPEC.md section 9.2).

The randomised Hadamard transform (Ailon and Chazelle 2006), H D / sqrt(size) with D a random diagonal of signs and H
the Walsh-Hadamard matrix in natural order, takes a power of two of coordinates. For any other length it is applied
twice: to the longest prefix that is a power of two, then, with other signs, to the suffix of the same size. The two
overlap and cover everything, so the product is orthonormal, keeps the length, and sends every coordinate through a
block of more than half of it: for a vector chosen before the seed, every output is sub-Gaussian with variance at most
norm^2 / block. (Blocks by the binary digits of the length, the usual way, leave a short tail almost as it was.)

Only sums, differences and products of single float32 values occur, in an order fixed here, so that every platform
computes the same bits: parties recompute models from sums.
"""

from __future__ import annotations

import math
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from blindsum.protocol.keys import derive
from blindsum.protocol.prg import PAGE_SIZE, SUITES, uniform_bits

__all__ = ["SEED_SIZE", "block_length", "rotate", "unrotate"]

SEED_SIZE: Final = 16
PANEL_LENGTH: Final = 65_536
"""Values transformed together: two buffers of this length stay in a core's second-level cache."""

Floats: TypeAlias = npt.NDArray[np.float32]

_SIGN: Final = np.uint32(0x80000000)


def block_length(length: int) -> int:
    """The largest power of two <= `length` (>= 1)."""
    return 1 << (length.bit_length() - 1)


def rotate(vector: Floats, seed: bytes) -> Floats:
    """The rotated copy of `vector` (float32, one dimension) under the public `seed` (16 bytes). Norms are kept."""
    out = vector.copy()
    for number, block in enumerate(_blocks(out)):
        _flip(block, seed, number)
        _hadamard(block)
    return out


def unrotate(vector: Floats, seed: bytes) -> Floats:
    """The inverse of `rotate`, up to float32 rounding."""
    out = vector.copy()
    for number, block in reversed(list(enumerate(_blocks(out)))):
        _hadamard(block)
        _flip(block, seed, number)
    return out


def _blocks(vector: Floats) -> list[Floats]:
    """Prefix and suffix, as views."""
    if vector.size == 0:
        return []
    size = block_length(vector.size)
    return [vector] if size == vector.size else [vector[:size], vector[-size:]]


def _flip(block: Floats, seed: bytes, number: int) -> None:
    """Negate where the top bit of the coordinate's 32-bit keystream lane is set."""
    assert len(seed) == SEED_SIZE, "rotation seed"
    key = derive(seed, "rotation", number, size=SUITES["aes128-ctr"])
    bits = block.view(np.uint32)
    step = PAGE_SIZE // 4
    for page, start in enumerate(range(0, block.size, step)):
        part = bits[start : start + step]
        signs = uniform_bits(key, page, part.size, 32)
        np.bitwise_and(signs, _SIGN, out=signs)
        np.bitwise_xor(part, signs, out=part)


def _hadamard(block: Floats) -> None:
    """block = H block / sqrt(size), in place.

    On a grid of rows x columns, H is a transform within rows and one within columns. Panels of either are copied into a
    buffer with the transformed index first, where butterflies run over long contiguous stretches.
    """
    columns = 1 << ((block.size.bit_length() - 1) // 2)
    rows = block.size // columns
    scale = np.float32(1 / math.sqrt(block.size))
    grid = block.reshape(rows, columns)
    buffers = np.empty((2, max(PANEL_LENGTH, rows)), np.float32)
    step = max(1, PANEL_LENGTH // columns)
    for start in range(0, rows, step):
        panel = grid[start : start + step]
        np.copyto(panel, _butterflies(panel.T, buffers).T)
    step = max(1, PANEL_LENGTH // rows)
    for start in range(0, columns, step):
        panel = grid[:, start : start + step]
        np.multiply(_butterflies(panel, buffers), scale, out=panel)


def _butterflies(panel: Floats, buffers: Floats) -> Floats:
    """The unscaled transform of `panel` along its first axis, in one of the two buffers."""
    size = panel.size
    source, target = buffers[0, :size], buffers[1, :size]
    np.copyto(source.reshape(panel.shape), panel)
    run = panel.shape[1]
    while run < size:
        pairs, sums = source.reshape(-1, 2, run), target.reshape(-1, 2, run)
        np.add(pairs[:, 0], pairs[:, 1], out=sums[:, 0])
        np.subtract(pairs[:, 0], pairs[:, 1], out=sums[:, 1])
        source, target = target, source
        run *= 2
    return source.reshape(panel.shape)
