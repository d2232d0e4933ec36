"""Questions about data that stays where it is: what devices add to sums of integers, and what these say (SPEC.md section 9.5).

A query turns a device's values into a fixed number of integers. Their sums over all devices are exact; all that is rounded is a
value with more decimals than `digits`, once, on its device. A device's values are cut to the query's bounds and number before they
count, so nobody's sum wraps and nobody counts more than others may.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Annotated, Any, ClassVar, Final

import msgspec
from msgspec import Meta

from blindsum.protocol.codec import DecodeError, decode, encode
from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.update import statistic_max

__all__ = [
    "DIGITS_MAX", "KINDS", "LENGTH_MAX", "Answer", "Count", "Histogram", "Mean", "Quantiles", "Query", "Sum", "Top", "Variance",
    "VectorSum", "read_query", "write_query",
]  # fmt: skip

LENGTH_MAX: Final = 1 << 20
"""Integers that a device adds for one query."""
VALUES_MAX: Final = 1 << 20
DIGITS_MAX: Final = 9

Digits = Annotated[int, Meta(ge=0, le=DIGITS_MAX)]
Bound = Annotated[int, Meta(ge=-(2**53), le=2**53)]
Values = Annotated[int, Meta(ge=1, le=VALUES_MAX)]
Length = Annotated[int, Meta(ge=1, le=LENGTH_MAX)]


class Answer(msgspec.Struct, frozen=True):
    """What a query's sum says. `devices`: how many added to it; `value`: as the query documents it."""

    devices: int
    value: Any


class Query(msgspec.Struct, frozen=True, kw_only=True, tag_field="query", forbid_unknown_fields=True):
    """A question. Integers in fields are in units of 10^-`digits`. `values_max`: how many values of one device count."""

    values_max: Values = 1
    length: ClassVar[int]

    @property
    def size(self) -> int:
        """How many integers a device adds."""
        return self.length

    def encode(self, values: Iterable[Any]) -> list[int]:
        """A device's `size` integers. Raises BlindsumError "query-values-invalid" for what is no value of the query."""
        raise NotImplementedError

    def decode(self, sums: Sequence[int]) -> Any:
        """The answer in `size` sums."""
        raise NotImplementedError

    @property
    def largest(self) -> int:
        """The largest magnitude of an integer that one device adds."""
        return self.values_max


class Count(Query, frozen=True, kw_only=True, tag="count"):
    """How many values there are on all devices. Answer: int."""

    length = 1

    def encode(self, values: Iterable[Any]) -> list[int]:
        return [len(_some(values, self.values_max))]

    def decode(self, sums: Sequence[int]) -> int:
        return sums[0]


class _Bounded(Query, frozen=True, kw_only=True):
    """Numbers from `low` to `high`; what lies outside counts as the bound."""

    low: Bound
    high: Bound
    digits: Digits = 0

    def __post_init__(self) -> None:
        if self.low >= self.high:
            raise BlindsumError("query-invalid", "low is not below high")

    @property
    def largest(self) -> int:
        return self.values_max * max(abs(self.low), abs(self.high), 1)

    def _whole(self, values: Iterable[Any]) -> list[int]:
        """The values that count, in units, within the bounds."""
        return [min(max(_unit(value, self.digits), self.low), self.high) for value in _some(values, self.values_max)]

    def _out(self, number: int | Fraction) -> Fraction:
        return Fraction(number) / int(10**self.digits)


class Sum(_Bounded, frozen=True, kw_only=True, tag="sum"):
    """The sum of all values. Answer: Fraction, exact (an integer where `digits` is 0)."""

    length = 1

    def encode(self, values: Iterable[Any]) -> list[int]:
        return [sum(self._whole(values))]

    def decode(self, sums: Sequence[int]) -> Fraction:
        return self._out(sums[0])


class Mean(_Bounded, frozen=True, kw_only=True, tag="mean"):
    """The mean of all values. Answer: Fraction, exact; None where there are no values."""

    length = 2

    def encode(self, values: Iterable[Any]) -> list[int]:
        whole = self._whole(values)
        return [len(whole), sum(whole)]

    def decode(self, sums: Sequence[int]) -> Fraction | None:
        return self._out(Fraction(sums[1], sums[0])) if sums[0] else None


class Variance(_Bounded, frozen=True, kw_only=True, tag="variance"):
    """The variance of all values about their mean (of a population: divided by their number). Answer: Fraction, exact; None where
    there are no values."""

    length = 3

    @property
    def largest(self) -> int:
        return self.values_max * max(self.low**2, self.high**2, 1)

    def encode(self, values: Iterable[Any]) -> list[int]:
        whole = self._whole(values)
        return [len(whole), sum(whole), sum(value * value for value in whole)]

    def decode(self, sums: Sequence[int]) -> Fraction | None:
        count, total, squares = sums
        return self._out(self._out(Fraction(squares, count) - Fraction(total, count) ** 2)) if count else None


class Histogram(Query, frozen=True, kw_only=True, tag="histogram"):
    """How many values lie between `edges` (ascending): below the first, from each up to the next, from the last on. Answer:
    list of len(edges) + 1 ints."""

    edges: Annotated[list[Bound], Meta(min_length=1, max_length=LENGTH_MAX - 1)]
    digits: Digits = 0

    def __post_init__(self) -> None:
        if any(a >= b for a, b in zip(self.edges, self.edges[1:], strict=False)):
            raise BlindsumError("query-invalid", "edges do not ascend")

    @property
    def size(self) -> int:
        return len(self.edges) + 1

    def encode(self, values: Iterable[Any]) -> list[int]:
        return _tally(
            self.size, (bisect_right(self.edges, _unit(v, self.digits)) for v in _some(values, self.values_max))
        )

    def decode(self, sums: Sequence[int]) -> list[int]:
        return list(sums)


class Top(Query, frozen=True, kw_only=True, tag="top"):
    """The `k` values of `domain` that occur most often; values outside it do not count. Answer: list of (value, count), most
    frequent first, in the domain's order where counts are equal."""

    domain: Annotated[list[Annotated[str, Meta(max_length=256)]], Meta(min_length=1, max_length=LENGTH_MAX)]
    k: Length

    def __post_init__(self) -> None:
        if len(set(self.domain)) < len(self.domain) or self.k > len(self.domain):
            raise BlindsumError("query-invalid", "the domain names a value twice, or has fewer than k")

    @property
    def size(self) -> int:
        return len(self.domain)

    def encode(self, values: Iterable[Any]) -> list[int]:
        places = {name: place for place, name in enumerate(self.domain)}
        return _tally(self.size, (places[v] for v in _some(values, self.values_max) if v in places))

    def decode(self, sums: Sequence[int]) -> list[tuple[str, int]]:
        return sorted(zip(self.domain, sums, strict=True), key=lambda row: -row[1])[: self.k]


class Quantiles(_Bounded, frozen=True, kw_only=True, tag="quantiles"):
    """The values at the shares `permille` of all values in order (500: the median), from a histogram of `bins` equal bins from
    `low` to `high`. Answer: list of (lower, upper) Fractions between which each lies; equal, and so exact, where a bin is one unit
    wide. None where there are no values."""

    bins: Length
    permille: Annotated[list[Annotated[int, Meta(ge=0, le=1000)]], Meta(min_length=1, max_length=1001)] = msgspec.field(
        default_factory=lambda: [500]
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bins > self.high - self.low + 1:
            raise BlindsumError("query-invalid", "there are more bins than units from low to high")

    @property
    def size(self) -> int:
        return self.bins

    @property
    def largest(self) -> int:
        return self.values_max

    def encode(self, values: Iterable[Any]) -> list[int]:
        span = self.high - self.low + 1
        return _tally(self.bins, ((value - self.low) * self.bins // span for value in self._whole(values)))

    def decode(self, sums: Sequence[int]) -> list[tuple[Fraction, Fraction]] | None:
        total = sum(sums)
        return [self._between(sums, max(1, -(-total * share // 1000))) for share in self.permille] if total else None

    def _between(self, sums: Sequence[int], rank: int) -> tuple[Fraction, Fraction]:
        """The first and last unit of the bin with the value number `rank` (from 1)."""
        span, place = self.high - self.low + 1, 0
        while rank > sums[place]:
            rank, place = rank - sums[place], place + 1
        first, after = (-(-edge * span // self.bins) for edge in (place, place + 1))
        return self._out(self.low + first), self._out(self.low + after - 1)


class VectorSum(_Bounded, frozen=True, kw_only=True, tag="vector"):
    """The sum of one vector of `dimensions` numbers a device. Answer: list of Fractions, exact."""

    dimensions: Length

    @property
    def size(self) -> int:
        return self.dimensions

    @property
    def largest(self) -> int:
        return max(abs(self.low), abs(self.high), 1)

    def encode(self, values: Iterable[Any]) -> list[int]:
        vector = list(values)
        if len(vector) != self.dimensions:
            raise BlindsumError("query-values-invalid", f"{len(vector)} numbers where {self.dimensions} belong")
        return [min(max(_unit(value, self.digits), self.low), self.high) for value in vector]

    def decode(self, sums: Sequence[int]) -> list[Fraction]:
        return [self._out(total) for total in sums]


KINDS: Final[dict[str, type[Query]]] = {
    str(kind.__struct_config__.tag): kind for kind in (Count, Sum, Mean, Variance, Histogram, Top, Quantiles, VectorSum)
}
"""Every query by the name that travels."""
_KINDS = Count | Sum | Mean | Variance | Histogram | Top | Quantiles | VectorSum


def write_query(query: Query, devices_max: int) -> bytes:
    """The plan of a task that asks `query`. Raises BlindsumError "query-invalid", or "parameters-unsafe" where the sums of
    `devices_max` devices might wrap."""
    data = encode(msgspec.to_builtins(query, builtin_types=(bytes,)))
    if read_query(data) != query:
        raise BlindsumError("query-invalid", f"{query}")
    if query.largest > statistic_max(devices_max):
        raise BlindsumError("parameters-unsafe", f"a device may add {query.largest}; {devices_max} of them might wrap")
    return data


def read_query(plan: bytes) -> Query:
    """The query of a task. Raises BlindsumError "query-invalid"."""
    try:
        found: Query = msgspec.convert(decode(plan), _KINDS, strict=True)
    except (DecodeError, msgspec.ValidationError, OverflowError) as error:
        raise BlindsumError("query-invalid", str(error)) from None
    return found


def _some(values: Iterable[Any], most: int) -> list[Any]:
    """The first `most` values."""
    some: list[Any] = []
    for value in values:
        if len(some) == most:
            break
        some.append(value)
    return some


def _unit(value: Any, digits: int) -> int:
    """A number in units of 10^-digits, rounded half to even."""
    try:
        if isinstance(value, str):
            raise TypeError(value)
        return round(Fraction(value) * int(10**digits))
    except (TypeError, ValueError, OverflowError):
        raise BlindsumError("query-values-invalid", f"{type(value).__name__} where a number belongs") from None


def _tally(size: int, places: Iterable[int]) -> list[int]:
    counts = [0] * size
    for place in places:
        counts[place] += 1
    return counts
