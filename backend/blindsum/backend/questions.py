"""Queries in words: the question of a command line as a `Query`, and an answer as lines that people read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import msgspec

from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.queries import DIGITS_MAX, KINDS, Histogram, Quantiles, Query, Top, VectorSum
from blindsum.runtime.kit import read_file

__all__ = ["in_words", "query_from", "title"]

SCALED: Final = frozenset({"low", "high", "edges"})
"""Fields that are given in the values' own unit and travel in units of 10^-digits."""
LISTS: Final = frozenset({"edges", "permille", "domain"})


def query_from(kind: str, words: Sequence[str]) -> Query:
    """The query `kind` ("mean", "top"…) with fields from `name=value` words, lists with commas in between; `domain=@FILE` takes
    one name a line. Raises BlindsumError "query-invalid", or what reading the file raises."""
    found = KINDS.get(kind)
    if found is None:
        raise BlindsumError("query-invalid", f"{kind!r} is no query; these are: {', '.join(KINDS)}")
    known = {field.name for field in msgspec.structs.fields(found)}
    said: dict[str, str] = {}
    for word in words:
        name, equals, text = word.partition("=")
        name = name.replace("-", "_")
        if not equals or name not in known or name in said:
            takes = ", ".join(sorted(name.replace("_", "-") for name in known))
            raise BlindsumError("query-invalid", f"{word!r}: {kind} takes, each once and with =: {takes}")
        said[name] = text
    digits = _number("digits", said.get("digits", "0"), 0)
    fields: Mapping[str, Any] = {name: _field(name, text, digits) for name, text in said.items()}
    try:
        return msgspec.convert(fields, found, strict=True)
    except msgspec.ValidationError as error:
        raise BlindsumError("query-invalid", str(error).replace("_", "-")) from None


def title(query: Query) -> str:
    """The question, as `query_from` would take it."""
    fields = msgspec.to_builtins(query)
    digits = fields.get("digits", 0)
    words = [fields.pop("query")]
    for name, value in fields.items():
        texts = [_plain(Fraction(item, 10**digits) if name in SCALED else item) for item in _list(value)]
        if len(texts) > 8:
            texts = [*texts[:8], f"… ({len(texts)})"]
        words.append(f"{name.replace('_', '-')}={','.join(texts)}")
    return " ".join(words)


def in_words(query: Query, value: Any) -> Iterator[tuple[str, str]]:
    """(what, how much) line by line."""
    if value is None:
        yield "no values", ""
    elif isinstance(query, Histogram):
        edges = [_plain(Fraction(edge, 10**query.digits)) for edge in query.edges]
        yield f"below {edges[0]}", str(value[0])
        for (low, high), count in zip(pairwise(edges), value[1:], strict=False):
            yield f"{low} to below {high}", str(count)
        yield f"{edges[-1]} or more", str(value[-1])
    elif isinstance(query, Top):
        yield from ((name, str(count)) for name, count in value)
    elif isinstance(query, Quantiles):
        for share, (low, high) in zip(query.permille, value, strict=True):
            yield f"{share / 10:g} %", _plain(low) if low == high else f"{_plain(low)} to {_plain(high)}"
    elif isinstance(query, VectorSum):
        yield from ((str(place), _plain(number)) for place, number in enumerate(value))
    else:
        yield type(query).__name__.lower(), _plain(value)


def _field(name: str, text: str, digits: int) -> object:
    if name == "domain":
        return read_file(Path(text[1:])).decode("utf-8").splitlines() if text.startswith("@") else text.split(",")
    places = digits if name in SCALED else 0
    if name in LISTS:
        return [_number(name, item, places) for item in text.split(",")]
    return _number(name, text, places)


def _number(name: str, text: str, places: int) -> int:
    """A decimal number in units of 10^-places."""
    if not re.fullmatch(r"-?[0-9]{1,20}(\.[0-9]{1,20})?", text):
        raise BlindsumError("query-invalid", f"{name}={text!r} is no number")
    number = Fraction(text) * 10 ** min(max(places, 0), DIGITS_MAX)
    if number.denominator != 1:
        raise BlindsumError("query-invalid", f"{name}={text} has more decimals than digits={places}")
    return int(number)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _plain(number: Any) -> str:
    """A number as a decimal, with the fraction that it is where that has no end."""
    if not isinstance(number, Fraction):
        return str(number)
    if number.denominator == 1:
        return str(number.numerator)
    left = number.denominator
    for prime in (2, 5):
        while left % prime == 0:
            left //= prime
    decimal = f"{Decimal(number.numerator) / Decimal(number.denominator):f}"
    return decimal.rstrip("0") if left == 1 else f"{float(number):.10g} ({number})"
