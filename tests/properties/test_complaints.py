"""Whom complaints leave out, for any number of devices, liars and complaints."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from blindsum.protocol.machines.complaints import judge
from blindsum.protocol.params import Committee


@st.composite
def cases(draw: st.DrawFn) -> tuple[Committee, list[int], set[int], dict[int, dict[int, str]]]:
    """(committee, complete uploads, bad devices, what honest parties complain about: bad devices only)."""
    committee = Committee.for_f(draw(st.integers(1, 2)))
    complete = sorted(draw(st.sets(st.integers(0, 30), min_size=2, max_size=20)))
    bad = draw(st.sets(st.sampled_from(complete), max_size=len(complete) // 3))
    honest = {
        party: dict.fromkeys(draw(st.sets(st.sampled_from(sorted(bad)))), "box-unreadable") if bad else {}
        for party in range(1, committee.quorum + 1)
    }
    return committee, complete, bad, honest


@settings(deadline=None)
@given(cases(), st.data())
def test_nobody_is_blamed_or_left_out_without_cause(
    case: tuple[Committee, list[int], set[int], dict[int, dict[int, str]]], data: st.DataObject
) -> None:
    committee, complete, bad, honest = case
    liars = range(committee.quorum + 1, committee.parties + 1)
    lies = {party: dict.fromkeys(data.draw(st.sets(st.integers(0, 40))), "lie") for party in liars}
    least = data.draw(st.integers(1, len(complete)))
    verdict = judge({**honest, **lies}, complete, least=least, committee=committee)
    assert verdict.proven <= bad, "f parties prove nothing"
    assert verdict.proven <= verdict.excluded.keys()
    told = {index for complaints in (*honest.values(), *lies.values()) for index in complaints}
    assert verdict.excluded.keys() <= told & set(complete)


@settings(deadline=None)
@given(cases())
def test_true_complaints_all_count(case: tuple[Committee, list[int], set[int], dict[int, dict[int, str]]]) -> None:
    committee, complete, bad, honest = case
    verdict = judge(honest, complete, least=len(complete) - len(bad), committee=committee)
    assert verdict.excluded.keys() == {index for complaints in honest.values() for index in complaints}


@settings(deadline=None)
@given(cases())
def test_f_parties_that_complain_about_everybody_are_disregarded(
    case: tuple[Committee, list[int], set[int], dict[int, dict[int, str]]],
) -> None:
    committee, complete, bad, honest = case
    liars = range(committee.quorum + 1, committee.parties + 1)
    everybody = {party: dict.fromkeys(complete, "lie") for party in liars}
    verdict = judge({**honest, **everybody}, complete, least=len(complete) - len(bad), committee=committee)
    assert verdict.excluded.keys() == {index for complaints in honest.values() for index in complaints}
