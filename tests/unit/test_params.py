"""Threat models and committees: SPEC.md section 11."""

from __future__ import annotations

from itertools import combinations

import pytest

from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.graph import degree_for
from blindsum.protocol.params import PARTIES_MAX, Committee, ThreatModel, derive, survivors_min


@pytest.mark.parametrize(("f", "expected"), [(1, (4, 2, 3, 1)), (2, (7, 3, 5, 2)), (3, (10, 4, 7, 3))])
def test_one_number_sets_the_committee(f: int, expected: tuple[int, int, int, int]) -> None:
    committee = Committee.for_f(f)
    assert (committee.parties, committee.threshold, committee.quorum, committee.equivocators) == expected
    assert committee == Committee.custom(*expected)


def test_default_committee_has_four_self_and_six_cap_subsets() -> None:
    committee = Committee.for_f(1)
    assert committee.self_subsets == ((1,), (2,), (3,), (4,))
    assert committee.cap_subsets == ((1, 2), (1, 3), (1, 4), (2, 3), (2, 4), (3, 4))


def test_two_of_three_without_votes_is_refused_and_explained() -> None:
    for equivocators in (0, 1):
        with pytest.raises(BlindsumError) as caught:
            Committee.custom(3, 2, 2, equivocators)
        assert caught.value.code == "parameters-unsafe"
        assert "2-of-3 without votes is broken by one bad party plus the coordinator" in str(caught.value)


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        ((4, 2, 2, 1), "broken by the coordinator alone"),
        ((6, 3, 4, 2), "broken by 2 bad parties plus the coordinator"),
        ((4, 1, 3, 1), "t > c fails"),
        ((3, 2, 3, 0), "at least one party must be allowed to lie"),
        ((4, 3, 2, 1), "threshold <= quorum"),
        ((4, 2, 5, 1), "quorum <= parties"),
        ((4, 0, 3, 1), "1 <= threshold"),
        ((4, 3, 4, 2), "q >= 2t - 1 fails: 4 parties may hold a sum 2 times, and 3 must vouch"),
        ((13, 5, 9, 4), f"parties <= {PARTIES_MAX}"),
    ],
)
def test_unsafe_committees_are_refused_with_the_reason(numbers: tuple[int, int, int, int], reason: str) -> None:
    with pytest.raises(BlindsumError, match="parameters-unsafe") as caught:
        Committee.custom(*numbers)
    assert reason in caught.value.detail


@pytest.mark.parametrize("f", [0, 4])
def test_for_f_refuses_what_no_committee_can_do(f: int) -> None:
    with pytest.raises(BlindsumError):
        Committee.for_f(f)


def splits(parties: int, quorum: int, liars: set[int]) -> bool:
    """By trying all: whether two different sets can both gather `quorum` votes when only `liars` sign twice."""
    everyone = range(1, parties + 1)
    return any(
        set(one) & set(other) <= liars
        for one in combinations(everyone, quorum)
        for other in combinations(everyone, quorum)
    )


@pytest.mark.parametrize("parties", range(2, 7))
def test_accepted_committees_are_exactly_those_that_can_open_and_no_liars_can_split(parties: int) -> None:
    for quorum in range(1, parties + 1):
        for threshold in range(1, quorum + 1):
            for liars in range(1, parties + 1):
                safe = liars < threshold and not splits(parties, quorum, set(range(1, liars + 1)))
                safe = safe and quorum - (threshold - 1) >= threshold
                try:
                    Committee.custom(parties, threshold, quorum, liars)
                except BlindsumError:
                    assert not safe
                else:
                    assert safe


@pytest.mark.parametrize(
    "wrong",
    [
        {"malicious_parties": 0},
        {"corrupt_permille": -1},
        {"corrupt_permille": 500, "dropped_permille": 500},
        {"cohort_min": 1},
    ],
)
def test_a_threat_model_that_promises_nothing_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(BlindsumError) as caught:
        ThreatModel(**{"cohort_min": 50, **wrong})
    assert caught.value.code == "parameters-unsafe"


def test_survivors_cover_the_cohort_and_the_dropouts_the_graph_was_made_for() -> None:
    threat = ThreatModel(corrupt_permille=100, dropped_permille=300, cohort_min=50)
    assert survivors_min(1000, threat) == 700
    assert survivors_min(70, threat) == 57  # 50 honest and 7 corrupt, where dropouts alone would leave 49
    assert survivors_min(105, threat) == 74  # floors, not fractions


def test_derived_numbers_follow_from_the_threat_model() -> None:
    threat = ThreatModel(corrupt_permille=100, dropped_permille=300, cohort_min=50)
    derived = derive(threat, n_max=1000)
    assert derived.committee == Committee.for_f(1)
    assert derived.degree == degree_for(1000, 100, 300) == 44
    assert derived.survivors_min == 700
    assert (derived.width, derived.bits) == (24, 14)
    assert 82 <= derived.n_min <= 84
    assert derived.n_min - threat.dropped(derived.n_min) >= 50 + threat.corrupt(derived.n_min)


@pytest.mark.parametrize(("width", "bits"), [(16, 6), (24, 14), (32, 22)])
def test_a_thousand_devices_fit_two_three_and_four_bytes_a_parameter(width: int, bits: int) -> None:
    assert derive(ThreatModel(cohort_min=50), n_max=1000, width=width).bits == bits


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"width": 16, "n_max": 5000}, "5000 devices of weight up to 1 leave room for 3-bit values in 16-bit sums"),
        ({"weight_max": 10_000}, "1000 devices of weight up to 10000 leave room for 1-bit values"),
        ({"n_max": 40}, "do not fit"),
        ({"n_min": 40}, "do not fit"),
        ({"n_min": 1001}, "1001 to 1000 devices"),
        ({"weight_max": 0}, "weights up to 0"),
    ],
)
def test_derive_refuses_what_cannot_be_kept(change: dict[str, object], reason: str) -> None:
    with pytest.raises(BlindsumError, match=reason):
        derive(ThreatModel(cohort_min=50), **{"n_max": 1000, **change})  # type: ignore[arg-type]


def test_a_committee_weaker_than_the_threat_is_refused() -> None:
    threat = ThreatModel(malicious_parties=2, cohort_min=50)
    with pytest.raises(BlindsumError, match="stands 1 lying parties, not 2"):
        derive(threat, n_max=1000, committee=Committee.for_f(1))
    assert derive(threat, n_max=1000).committee.parties == 7


def test_description_names_every_number() -> None:
    text = derive(ThreatModel(cohort_min=50), n_max=1000, headroom_bits=2).describe()
    for words in (
        "4: 1 may be malicious",
        "3 votes decide",
        "4 for self masks and 6 for caps",
        "at least 900 of 1000",
        "22 at 1000 devices",
        "3 bytes a parameter",
        "12-bit values",
        "2 bits of headroom",
    ):
        assert words in text
