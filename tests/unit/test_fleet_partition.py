"""Splits of pooled examples over owners."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from blindsum.fleet.partition import dirichlet, iid
from blindsum.protocol.errors import BlindsumError

LABELS = np.arange(1200, dtype=np.int64) % 10


def skew(parts: list[NDArray[np.int64]]) -> float:
    """Mean share of an owner's most frequent class: 0.1 is none, 1.0 is one class each."""
    return float(np.mean([np.bincount(LABELS[part], minlength=10).max() / len(part) for part in parts]))


@given(
    labels=st.lists(st.integers(0, 4), min_size=12, max_size=200),
    owners=st.integers(1, 12),
    alpha=st.sampled_from([0.01, 0.3, 1.0, 100.0]),
    seed=st.integers(0, 2**32),
    data=st.data(),
)
def test_every_example_has_exactly_one_owner_and_every_owner_enough(
    labels: list[int], owners: int, alpha: float, seed: int, data: st.DataObject
) -> None:
    minimum = data.draw(st.integers(1, len(labels) // owners))
    targets = np.array(labels, np.int64)
    for parts in (dirichlet(targets, owners, alpha, seed, minimum), iid(targets, owners, seed, minimum)):
        assert len(parts) == owners and min(map(len, parts)) >= minimum
        assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
        assert all((np.diff(part) > 0).all() for part in parts)


def test_same_seed_gives_the_same_parts_and_another_seed_others() -> None:
    for split in (lambda seed: dirichlet(LABELS, 12, 0.3, seed), lambda seed: iid(LABELS, 12, seed)):
        first, again, other = split(1), split(1), split(2)
        assert all((one == two).all() for one, two in zip(first, again, strict=True))
        assert any(one.tolist() != two.tolist() for one, two in zip(first, other, strict=True))


def test_small_alpha_is_skewed_and_large_alpha_even() -> None:
    strong, weak, even = (dirichlet(LABELS, 12, alpha, 7) for alpha in (0.05, 0.5, 1000.0))
    assert skew(strong) > 0.6 > skew(weak) > 0.25
    assert skew(even) < 0.14
    assert max(map(len, even)) < 115 and max(map(len, strong)) > 160


def test_iid_parts_differ_in_size_by_one_at_most() -> None:
    sizes = {len(part) for part in iid(LABELS[:1003], 12, 3)}
    assert sizes == {83, 84}


@pytest.mark.parametrize("owners", [0, -1, 151])
def test_too_few_examples_for_the_owners_are_refused(owners: int) -> None:
    assert min(map(len, dirichlet(LABELS, 150, 0.3, 1))) == 8
    for split in (lambda: dirichlet(LABELS, owners, 0.3, 1), lambda: iid(LABELS, owners, 1)):
        with pytest.raises(BlindsumError) as caught:
            split()
        assert caught.value.code == "partition-impossible"


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_alpha_that_is_not_a_positive_number_is_refused(alpha: float) -> None:
    with pytest.raises(BlindsumError, match="alpha is") as caught:
        dirichlet(LABELS, 12, alpha, 1)
    assert caught.value.code == "partition-impossible"
