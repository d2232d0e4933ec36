"""Queries against the statistics module and plain Python, over any split of the data among devices."""

from __future__ import annotations

import statistics
from collections import Counter
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blindsum.protocol.codec import encode
from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.queries import (
    Count,
    Histogram,
    Mean,
    Quantiles,
    Query,
    Sum,
    Top,
    Variance,
    VectorSum,
    read_query,
    write_query,
)  # fmt: skip

MANY = 100
DOMAIN = ["walk", "cycle", "bus", "car"]
DATA = st.lists(st.lists(st.integers(-50, 50), max_size=8), min_size=2, max_size=6)
ALL = [
    Count(values_max=MANY),
    Sum(low=-50, high=50, values_max=MANY),
    Mean(low=-50, high=50, values_max=MANY),
    Variance(low=-50, high=50, values_max=MANY),
    Histogram(edges=[-10, 0, 10], values_max=MANY),
    Top(domain=DOMAIN, k=2, values_max=MANY),
    Quantiles(low=-50, high=50, bins=101, values_max=MANY),
    VectorSum(low=-50, high=50, dimensions=3),
]


def ask(query: Query, devices: list[list[Any]]) -> Any:
    """The answer that the sum of the devices' integers gives, by way of the plan that devices read."""
    asked = read_query(write_query(query, 1000))
    assert asked == query
    rows = [asked.encode(values) for values in devices]
    assert all(len(row) == query.size and max(map(abs, row)) <= query.largest for row in rows)
    return query.decode([sum(column) for column in zip(*rows, strict=True)])


@given(DATA)
def test_answers_are_those_of_all_data_in_one_place(devices: list[list[int]]) -> None:
    together = [value for values in devices for value in values]
    count, total, mean, variance, histogram, _, quantiles, _ = ALL
    assert ask(count, devices) == len(together)
    assert ask(total, devices) == sum(together)
    assert ask(mean, devices) == (Fraction(sum(together), len(together)) if together else None)
    assert ask(variance, devices) == (statistics.pvariance(map(Fraction, together)) if together else None)
    assert ask(histogram, devices) == [
        sum(value < -10 for value in together),
        sum(-10 <= value < 0 for value in together),
        sum(0 <= value < 10 for value in together),
        sum(value >= 10 for value in together),
    ]
    answer = ask(quantiles, devices)
    median = statistics.median_low(together) if together else None
    assert answer == (None if median is None else [(median, median)])


@given(st.lists(st.lists(st.sampled_from([*DOMAIN, "rocket"]), max_size=8), min_size=2, max_size=6))
def test_top_values_of_the_domain_are_those_that_occur_most(devices: list[list[str]]) -> None:
    counted = Counter(value for values in devices for value in values if value in DOMAIN)
    answer = ask(Top(domain=DOMAIN, k=2, values_max=MANY), devices)
    assert [count for _, count in answer] == sorted((counted[name] for name in DOMAIN), reverse=True)[:2]
    assert all(counted[name] == count for name, count in answer)


@given(st.lists(st.lists(st.integers(-999, 999), min_size=1, max_size=9), min_size=1, max_size=5), st.integers(1, 40))
def test_quantile_lies_in_its_bin_however_wide_bins_are(devices: list[list[int]], bins: int) -> None:
    query = Quantiles(low=-999, high=999, bins=bins, permille=[0, 250, 500, 1000], values_max=MANY)
    together = sorted(value for values in devices for value in values)
    for share, (lower, upper) in zip(query.permille, ask(query, devices), strict=True):
        rank = max(1, -(-len(together) * share // 1000))
        assert lower <= together[rank - 1] <= upper
        assert upper - lower <= -(-1999 // bins)


def test_decimals_are_exact_and_what_is_finer_is_rounded_once() -> None:
    mean = Mean(low=-100_00, high=100_00, digits=2, values_max=MANY)
    assert ask(mean, [[0.1, 0.2], [Decimal("0.30"), 0.4]]) == Fraction(1, 4)
    assert ask(mean, [[0.126], [0.124]]) == Fraction(25, 200)
    variance = Variance(low=0, high=10_0, digits=1, values_max=MANY)
    assert ask(variance, [[1.5], [2.5]]) == Fraction(1, 4)
    assert ask(VectorSum(low=-10_0, high=10_0, digits=1, dimensions=2), [[0.1, -0.2], [0.2, 99]]) == [
        Fraction(3, 10),
        Fraction(98, 10),
    ]


def test_nobody_counts_for_more_than_the_bounds_and_the_number_of_values_allow() -> None:
    assert ask(Sum(low=0, high=10, values_max=2), [[1e9, 1e9, 1e9], [-5, 3]]) == 23
    assert ask(Count(values_max=3), [[0] * 100, [0]]) == 4
    assert ask(Histogram(edges=[5], values_max=1), [[9, 9, 9], [1]]) == [1, 1]


@pytest.mark.parametrize("value", ["3", None, float("nan"), float("inf"), [1]])
def test_what_is_no_number_is_refused(value: object) -> None:
    with pytest.raises(BlindsumError, match="query-values-invalid"):
        Sum(low=0, high=9, values_max=2).encode([1, value])


def test_vector_of_another_length_is_refused() -> None:
    with pytest.raises(BlindsumError, match="query-values-invalid"):
        VectorSum(low=0, high=9, dimensions=2).encode([1])


@pytest.mark.parametrize(
    "make",
    [
        lambda: Sum(low=1, high=1),
        lambda: Histogram(edges=[1, 1]),
        lambda: Top(domain=["a", "a"], k=1),
        lambda: Top(domain=["a"], k=2),
        lambda: Quantiles(low=0, high=3, bins=5),
        lambda: write_query(Sum(low=0, high=2**60), 10),
        lambda: write_query(Histogram(edges=[]), 10),
        lambda: write_query(Count(values_max=0), 10),
    ],
)
def test_query_whose_bounds_do_not_fit_is_refused(make: Any) -> None:
    with pytest.raises(BlindsumError, match="query-invalid"):
        make()


def test_query_whose_sum_might_wrap_is_refused() -> None:
    wide = Variance(low=-(2**26), high=2**26, values_max=100)
    assert write_query(wide, 2)
    with pytest.raises(BlindsumError, match="parameters-unsafe"):
        write_query(wide, 10_000)


@pytest.mark.parametrize(
    "plan", [b"", b"a training artifact", encode({"query": "moon"}), encode([1]), encode({"query": "count", "x": 1})]
)
def test_plan_that_is_no_query_is_refused(plan: bytes) -> None:
    with pytest.raises(BlindsumError, match="query-invalid"):
        read_query(plan)


@given(st.sampled_from(ALL))
def test_query_has_one_encoding(query: Query) -> None:
    plan = write_query(query, 100)
    assert write_query(read_query(plan), 100) == plan
