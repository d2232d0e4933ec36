"""Queries in words: what a command line asks is the query that was meant, and what it cannot mean is refused with a reason."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from blindsum.backend.questions import in_words, query_from, title
from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.queries import (
    KINDS,
    Count,
    Histogram,
    Mean,
    Quantiles,
    Query,
    Sum,
    Top,
    Variance,
    VectorSum,
)

ASKED: list[tuple[str, Query, Any, list[tuple[str, str]]]] = [
    ("count values-max=9", Count(values_max=9), 873, [("count", "873")]),
    ("sum low=-1 high=2.5 digits=1", Sum(low=-10, high=25, digits=1), Fraction(-7, 4), [("sum", "-1.75")]),
    ("mean low=30 high=220", Mean(low=30, high=220), Fraction(229, 3), [("mean", "76.33333333 (229/3)")]),
    ("mean low=0 high=1", Mean(low=0, high=1), None, [("no values", "")]),
    ("variance low=0 high=0.25 digits=2", Variance(low=0, high=25, digits=2), Fraction(0), [("variance", "0")]),
    (
        "histogram edges=0,0.5,20 digits=1",
        Histogram(edges=[0, 5, 200], digits=1),
        [1, 2, 3, 4],
        [("below 0", "1"), ("0 to below 0.5", "2"), ("0.5 to below 20", "3"), ("20 or more", "4")],
    ),
    ("histogram edges=7", Histogram(edges=[7]), [1, 2], [("below 7", "1"), ("7 or more", "2")]),
    ("top domain=walk,bus k=1", Top(domain=["walk", "bus"], k=1), [("bus", 4)], [("bus", "4")]),
    (
        "quantiles low=0 high=99 bins=20 permille=500,955",
        Quantiles(low=0, high=99, bins=20, permille=[500, 955]),
        [(Fraction(10), Fraction(14)), (Fraction(95), Fraction(95))],
        [("50 %", "10 to 14"), ("95.5 %", "95")],
    ),
    (
        "vector low=0 high=9 dimensions=2",
        VectorSum(low=0, high=9, dimensions=2),
        [Fraction(1), Fraction(2)],
        [("0", "1"), ("1", "2")],
    ),
]


@pytest.mark.parametrize(("words", "query", "value", "read"), ASKED, ids=[words for words, *_ in ASKED])
def test_words_give_the_query_its_title_gives_the_words_and_its_answer_is_readable(
    words: str, query: Query, value: Any, read: list[tuple[str, str]]
) -> None:
    kind, *fields = words.split()
    assert query_from(kind, fields) == query
    again, *fields = title(query).split()
    assert again == kind and query_from(again, fields) == query
    assert list(in_words(query, value)) == read


def test_every_query_can_be_asked_in_words() -> None:
    assert {words.split()[0] for words, *_ in ASKED} == set(KINDS)


def test_long_domain_comes_from_a_file(tmp_path: Path) -> None:
    names = [f"word {number}" for number in range(1000)]
    (tmp_path / "names.txt").write_text("\n".join(names) + "\n", "utf-8")
    found = query_from("top", [f"domain=@{tmp_path / 'names.txt'}", "k=3"])
    assert found == Top(domain=names, k=3)
    assert "word 7,… (1000)" in title(found)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("median low=1", "these are: count, sum"),
        ("mean low=1 high=2 hihg=3", "mean takes, each once and with =: digits, high, low, values-max"),
        ("mean low=1 low=1 high=2", "each once"),
        ("mean low=1 high", "each once"),
        ("mean low=1", "high"),
        ("mean low=2 high=1", "low is not below high"),
        ("mean low=1.5 high=2", "more decimals than digits=0"),
        ("mean low=one high=2", "is no number"),
        ("mean low=1e999999999 high=2", "is no number"),
        ("mean low=0 high=1 digits=99", "digits"),
        ("count values-max=0", "values-max"),
        ("top domain=a,a k=1", "twice"),
        ("histogram edges=1,1", "do not ascend"),
    ],
)
def test_words_that_mean_no_query_are_refused_with_the_reason(words: str, why: str) -> None:
    kind, *fields = words.split()
    with pytest.raises(BlindsumError, match="query-invalid") as caught:
        query_from(kind, fields)
    assert why in str(caught.value)
