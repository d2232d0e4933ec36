"""What linear combinations of observed vectors are free of every mask: exact elimination over Z_{2^64}.

An observation is a sum of unknowns with integer coefficients, some of them masks, some of them secrets. A uniformly random mask
hides whatever it is added to, so an adversary learns of the secrets exactly the combinations of its observations in which every
mask has coefficient zero (one-time pad, applied to a linear map).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Final, TypeVar

__all__ = ["Combination", "Observation", "derivable"]

MODULUS: Final = 1 << 64
"""The widest ring. A combination of narrower values is one of these, reduced."""

M = TypeVar("M", bound=Hashable)
S = TypeVar("S", bound=Hashable)
Combination = dict[S, int]
"""Coefficients by unknown; none is zero."""
Observation = tuple[Mapping[M, int], Mapping[S, int]]
"""(masks, secrets) of one vector that was seen."""


def derivable(observations: Iterable[Observation[M, S]]) -> list[Combination[S]]:
    """Generators of all combinations of secrets that some combination of the observations gives without a mask.

    The ring has zero divisors, so the pivot is always an entry with the fewest factors 2: it divides all others, and what is
    left of its row after multiplying by the power of 2 that makes it vanish has no mask either.
    """
    rows = [(_reduced(masks), _reduced(secrets)) for masks, secrets in observations]
    out: list[Combination[S]] = []
    while rows:
        pivot = _pivot(rows)
        if pivot is None:
            out += [secrets for _, secrets in rows if secrets]
            break
        place, column = pivot
        masks, secrets = rows.pop(place)
        power = _twos(masks[column])
        inverse = pow(masks[column] >> power, -1, MODULUS)
        for number, (other_masks, other_secrets) in enumerate(rows):
            if column in other_masks:
                factor = -(other_masks[column] >> power) * inverse
                rows[number] = (_plus(other_masks, masks, factor), _plus(other_secrets, secrets, factor))
        rest = _plus({}, secrets, MODULUS >> power) if power else {}
        if rest:
            out.append(rest)
    return out


def _pivot(rows: list[tuple[Combination[M], Combination[S]]]) -> tuple[int, M] | None:
    """(row, mask) of an entry with the fewest factors 2, or None where no mask is left."""
    best: tuple[int, M] | None = None
    fewest = MODULUS.bit_length()
    for place, (masks, _) in enumerate(rows):
        for column, value in masks.items():
            if value & 1:
                return place, column
            if _twos(value) < fewest:
                best, fewest = (place, column), _twos(value)
    return best


def _twos(value: int) -> int:
    return (value & -value).bit_length() - 1


def _reduced(terms: Mapping[S, int]) -> Combination[S]:
    return {name: value % MODULUS for name, value in terms.items() if value % MODULUS}


def _plus(left: Combination[S], right: Combination[S], factor: int) -> Combination[S]:
    out = dict(left)
    for name, value in right.items():
        total = (out.get(name, 0) + factor * value) % MODULUS
        if total:
            out[name] = total
        else:
            out.pop(name, None)
    return out
