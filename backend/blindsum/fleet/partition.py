"""Who owns which examples: a pooled data set split over owners. The same arguments always give the same parts."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from blindsum.protocol.errors import BlindsumError

__all__ = ["MINIMUM", "by_owner", "dirichlet", "iid", "quantity"]

MINIMUM: Final = 8
"""Examples an owner has at least, unless told otherwise: with fewer, a local epoch is hardly a step."""

Indices = NDArray[np.int64]


def dirichlet(
    targets: NDArray[np.int64], owners: int, alpha: float, seed: int, minimum: int = MINIMUM
) -> list[Indices]:
    """Split by label: the examples of each class go to the owners in shares drawn from Dirichlet(alpha).

    Small alpha: owners with few classes and very unequal sizes (0.3 is skewed, 100 nearly even). Every index into
    `targets` is in exactly one part; parts are sorted. Owners that would have fewer than `minimum` examples are filled up
    with random ones of whoever then has most. Method: Yurochkin et al., arXiv 1905.12022; Li et al., arXiv 2102.02079,
    who draw again until all have enough, which may never end. Raises "partition-impossible".
    """
    _check(len(targets), owners, minimum, seed)
    if not 0.0 < alpha < np.inf:
        raise BlindsumError("partition-impossible", f"alpha is {alpha}, not a positive number")
    generator = np.random.default_rng(seed)
    parts: list[list[Indices]] = [[] for _ in range(owners)]
    for label in np.unique(targets):
        members = generator.permutation(np.flatnonzero(targets == label))
        shares = generator.dirichlet(np.full(owners, alpha))
        cuts = np.rint(np.cumsum(shares)[:-1] * len(members)).astype(np.int64)
        for part, piece in zip(parts, np.split(members, cuts), strict=True):
            part.append(piece)
    return _filled([np.concatenate(part) for part in parts], minimum, generator)


def iid(targets: NDArray[np.int64], owners: int, seed: int, minimum: int = MINIMUM) -> list[Indices]:
    """Split at random into parts whose sizes differ by one at most. Every index is in exactly one part; parts are sorted.
    Raises "partition-impossible"."""
    _check(len(targets), owners, minimum, seed)
    order = np.random.default_rng(seed).permutation(len(targets))
    return [np.sort(part) for part in np.array_split(order, owners)]


def quantity(targets: NDArray[np.int64], owners: int, alpha: float, seed: int, minimum: int = MINIMUM) -> list[Indices]:
    """Split at random into parts of unequal sizes, in shares drawn from Dirichlet(alpha): quantity skew (Li et al., arXiv
    2102.02079). Every index is in exactly one part; parts are sorted and filled up as `dirichlet` does. Raises
    "partition-impossible"."""
    _check(len(targets), owners, minimum, seed)
    if not 0.0 < alpha < np.inf:
        raise BlindsumError("partition-impossible", f"alpha is {alpha}, not a positive number")
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(targets))
    cuts = np.rint(np.cumsum(generator.dirichlet(np.full(owners, alpha)))[:-1] * len(targets)).astype(np.int64)
    return _filled(list(np.split(order, cuts)), minimum, generator)


def by_owner(owners: NDArray[np.int64]) -> list[Indices]:
    """The indices of each owner's examples, for data that has owners: `owners` says whose each example is; parts are in the order
    of the owners' numbers."""
    return [np.flatnonzero(owners == owner) for owner in np.unique(owners)]


def _filled(parts: list[Indices], minimum: int, generator: np.random.Generator) -> list[Indices]:
    """Ends because `_check` found enough for all: while one part is short, the largest is above `minimum`."""
    for short in range(len(parts)):
        while len(parts[short]) < minimum:
            largest = max(range(len(parts)), key=lambda number: len(parts[number]))
            at = int(generator.integers(len(parts[largest])))
            parts[short] = np.append(parts[short], parts[largest][at])
            parts[largest] = np.delete(parts[largest], at)
    return [np.sort(part) for part in parts]


def _check(examples: int, owners: int, minimum: int, seed: int) -> None:
    for name, value in (("owners", owners), ("minimum", minimum), ("seed", seed)):
        if not isinstance(value, int | np.integer) or value < 0:
            raise BlindsumError("partition-impossible", f"{name} is {value!r}, not a whole number from 0")
    if owners < 1 or minimum < 1 or examples < owners * minimum:
        raise BlindsumError(
            "partition-impossible", f"{examples} examples for {owners} owners of at least {minimum} each"
        )
