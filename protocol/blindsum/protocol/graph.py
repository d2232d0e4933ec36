"""Who masks with whom: the neighbour graph of a round and its degree (SPEC.md section 2.4).

The graph is a union of random Hamiltonian cycles on the devices 0..n - 1. Cycle c visits them in the order of a
stable argsort of n little-endian uint64 from the PRG, keyed by the graph seed and c. Cycles are added until every
device has k neighbours (they overlap now and then). A seed that is fixed after the roster keeps anybody from choosing
who is cut off.

The degree follows Bell et al. 2020 and Google's graph parameter finder: with B = floor(gamma n) + floor(delta n)
devices corrupt or gone, a randomly permuted ring of degree k loses connection among the rest with probability at most
n (n - k - 1) / 2 * C(B, k) / C(n, k). tests/unit/test_graph.py checks by simulation that the union of cycles does no
worse.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from blindsum.protocol.keys import derive
from blindsum.protocol.prg import SUITES, apply
from blindsum.protocol.ring import Segment, zeros

__all__ = ["SIGMA_BITS", "Graph", "adjacency", "degree_for"]

SIGMA_BITS: Final = 40
"""The honest survivors of a round are disconnected with probability below 2^-SIGMA_BITS."""
EXTRA_CYCLES_MAX: Final = 1024
"""Cycles beyond the first k / 2 before giving up on a sparse graph; the complete one is then taken."""

_SUITE: Final = "aes128-ctr"
_Ints: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """An undirected graph without loops. The neighbours of i are targets[offsets[i] : offsets[i + 1]], ascending; a
    complete graph is stored without them."""

    size: int
    offsets: _Ints | None
    targets: _Ints | None

    @property
    def complete(self) -> bool:
        """Whether everybody is everybody's neighbour."""
        return self.targets is None

    @property
    def edges(self) -> int:
        """Number of edges."""
        return self.size * (self.size - 1) // 2 if self.targets is None else len(self.targets) // 2

    def neighbours(self, device: int) -> tuple[int, ...]:
        """The neighbours of `device` (0 <= device < size), ascending."""
        assert 0 <= device < self.size, "device outside the graph"
        if self.offsets is None or self.targets is None:
            return (*range(device), *range(device + 1, self.size))
        return tuple(self.targets[self.offsets[device] : self.offsets[device + 1]].tolist())


def adjacency(n: int, k: int, seed: bytes) -> Graph:
    """The graph of `n` devices under `seed`; every device has at least min(k, n - 1) neighbours. Every platform finds
    the same one."""
    if n <= k + 1:
        return Graph(n, None, None)
    least = (k + 1) // 2
    arcs = _distinct([_cycle(n, seed, number) for number in range(least)])
    for number in range(least, least + EXTRA_CYCLES_MAX):
        degrees = np.bincount(arcs // n, minlength=n)
        if degrees.min() >= k:
            return Graph(n, np.concatenate([np.zeros(1, np.int64), np.cumsum(degrees)]), arcs % n)
        arcs = _distinct([arcs, np.sort(_cycle(n, seed, number))])
    return Graph(n, None, None)


@lru_cache(maxsize=64)
def degree_for(n: int, corrupt_permille: int, dropped_permille: int, sigma_bits: int = SIGMA_BITS) -> int:
    """The smallest even k with n (n - k - 1) / 2 * C(B, k) / C(n, k) < 2^-sigma_bits, in exact integers; n - 1 (the
    complete graph) where that is not larger."""
    lost = n * corrupt_permille // 1000 + n * dropped_permille // 1000
    above, below = 1, 1
    for k in range(1, n - 1):
        # C(B, k) / C(n, k) as the product of (B - i) / (n - i); it is 0 from k = B + 1 on.
        above *= max(lost - k + 1, 0)
        below *= n - k + 1
        if k % 2 == 0 and n * (n - k - 1) * above << sigma_bits < 2 * below:
            return k
    return max(n - 1, 0)


def _cycle(n: int, seed: bytes, number: int) -> _Ints:
    """The arcs of a Hamiltonian cycle in both directions, each as from * n + to."""
    segments = [Segment("keys", n, 64)]
    keys = zeros(segments)
    stream_key = derive(seed, "graph cycle", number, size=SUITES[_SUITE])
    apply(segments, keys, [(stream_key, 1)], suite=_SUITE)
    order = np.argsort(keys[0], kind="stable").astype(np.int64)
    following = np.roll(order, -1)
    return np.concatenate([order * n + following, following * n + order])


def _distinct(parts: list[_Ints]) -> _Ints:
    """The distinct arcs, ascending. (np.unique hashes integers, 15 times slower at 10^7 of them; a stable sort merges
    parts that are ascending already.)"""
    arcs = np.concatenate(parts)
    arcs.sort(kind="stable")
    first = np.ones(arcs.size, np.bool_)
    np.not_equal(arcs[1:], arcs[:-1], out=first[1:])
    distinct: _Ints = arcs[first]
    return distinct
