"""Replicated secret sharing among the parties (SPEC.md section 2.3).

CNF_s sharing (Ito, Saito, Nishizeki 1987; as PRSS in Cramer, Damgard, Ishai 2005): one independent seed for every
subset T of s parties, given to every party outside T. Any s parties miss the seed of the subset that holds them all;
any s + 1 hold every seed. A self mask is the sum of one keystream a subset, so parties can publish sums of keystreams
and no seed; a pairwise key is capped with one pad a subset, so parties can open one edge and no other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from itertools import combinations

from blindsum.protocol.keys import SEED_SIZE

__all__ = ["combine", "deal", "held_by", "holders", "subsets", "xor"]


@cache
def subsets(parties: int, size: int) -> tuple[tuple[int, ...], ...]:
    """All subsets of `size` of the parties 1..`parties`, each ascending, in lexicographic order: the order of seeds."""
    return tuple(combinations(range(1, parties + 1), size))


def holders(subset: tuple[int, ...], parties: int) -> tuple[int, ...]:
    """The parties that are given the seed of `subset`: those outside it, ascending."""
    return tuple(party for party in range(1, parties + 1) if party not in subset)


@cache
def held_by(party: int, among: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
    """Which seeds `party` is given, as indices into the subsets that they belong to, ascending."""
    return tuple(index for index, subset in enumerate(among) if party not in subset)


def deal(random: Callable[[int], bytes], count: int) -> tuple[bytes, ...]:
    """`count` independent seeds of `SEED_SIZE` bytes; `random(size)` is a cryptographic source."""
    return tuple(random(SEED_SIZE) for _ in range(count))


def xor(left: bytes, right: bytes) -> bytes:
    """Bytewise exclusive or of two strings of one length."""
    assert len(left) == len(right), "xor of different lengths"
    return (int.from_bytes(left, "big") ^ int.from_bytes(right, "big")).to_bytes(len(left), "big")


def combine(value: bytes, pads: Iterable[bytes]) -> bytes:
    """`value` XOR every pad: a pairwise key to its cap, and, with the same pads, a cap to its pairwise key."""
    size, number = len(value), int.from_bytes
    total = number(value, "big")
    for pad in pads:
        assert len(pad) == size, "xor of different lengths"
        total ^= number(pad, "big")
    return total.to_bytes(size, "big")
