"""The voting rule under every schedule: the table of what a party does is taken from the production machine, step by step; the
search over all orders and committees goes by that table; what it finds is played with production machines again."""

from __future__ import annotations

from functools import cache

import pytest

from blindsum.protocol.codec import decode
from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.messages import Opening, Vote
from blindsum.protocol.params import Committee
from blindsum.testing.behaviours import Silent
from blindsum.testing.checkers import OnlySums
from blindsum.testing.closure import rounds
from blindsum.testing.forgery import Forged, body_of, certificate, hand, proposal, said, vote, want_all
from blindsum.testing.schedules import MOVES, SETS, Standing, search
from blindsum.testing.world import World

PARTIES_MAX = 7
COMMITTEES = [
    (parties, quorum, liars)
    for parties in range(2, PARTIES_MAX + 1)
    for quorum in range(1, parties + 1)
    for liars in range(1, quorum + 1)
    if liars < parties
]


def world_before_the_vote(committee: Committee, *corrupt: int) -> World:
    world = World(
        3,
        devices=4,
        committee=committee,
        behaviours={"coordinator": Silent("proposal", "certificate")},
        faulty=[f"party/{party}" for party in corrupt],
        checkers=(OnlySums,),
    )
    world.start()
    world.until("vote")
    world.settle(100)
    world.stop("coordinator")
    return world


def standing(world: World, party: int, sets: dict[str, Forged]) -> Standing:
    """What a party's database says it has done."""
    state = decode(world.actors[f"party/{party}"].store.rows[f"state/{world.task}"])
    names = {proposed.digest: name for name, proposed in sets.items()} | {b"": ""}
    opened = {names[body_of(raw, Opening).proposal] for raw in state["openings"]} or {""}
    voted = body_of(state["set_vote"], Vote).digest if state["set_vote"] else b""
    assert len(opened) == 1 and state["opened"] == (opened != {""})
    return Standing(names[voted], names[state["set_digest"]], opened.pop())


@cache
def table() -> dict[tuple[Standing, tuple[str, str]], Standing]:
    """Every standing that a production party can come to, and what each move makes of it."""
    world = world_before_the_vote(Committee.for_f(1), 2, 3, 4)
    sets = {"A": proposal(world, range(4)), "B": proposal(world, range(3))}
    votes = {name: [vote(world, party, "set", sets[name].digest) for party in (2, 3, 4)] for name in SETS}
    moves = {("show", name): sets[name] for name in SETS}
    moves |= {("certify", name): certificate(world, sets[name], votes[name]) for name in SETS}
    stores = {standing(world, 1, sets): world.backup("party/1")}
    out: dict[tuple[Standing, tuple[str, str]], Standing] = {}
    todo = list(stores)
    while todo:
        before = todo.pop()
        for move in MOVES:
            world.restore("party/1", stores[before])
            step = hand(world, "party/1", moves[move])
            after = out[before, move] = standing(world, 1, sets)
            signed = {body_of(raw, Vote).digest for raw in said(step, "vote")}
            given = {body_of(raw, Opening).proposal for raw in said(step, "opening")}
            assert signed <= {sets[after.voted].digest} if after.voted else not signed, "no vote that is not stored"
            assert given <= {sets[after.opened].digest} if after.opened else not given, "no opening that is not stored"
            if after not in stores:
                stores[after] = world.backup("party/1")
                todo.append(after)
    return out


def test_party_comes_to_seven_standings_and_answers_for_one_set_in_each() -> None:
    standings = {before for before, _ in table()}
    assert len(standings) == 7  # nothing; for each set: voted, voted and opened, opened without a vote
    for (before, _), after in table().items():
        assert {after.voted, after.answered, after.opened} <= {"", after.answered}
        for field in ("voted", "answered", "opened"):
            assert getattr(after, field) == getattr(before, field) or not getattr(before, field), (
                "nothing is taken back"
            )


@pytest.mark.parametrize("parties", range(2, PARTIES_MAX + 1))
def test_two_openings_are_possible_exactly_where_quorums_need_not_share_an_honest_party(parties: int) -> None:
    """Over all quorums and all numbers of liars: some schedule opens two sets if and only if 2q <= P + c."""
    for total, quorum, liars in COMMITTEES:
        if total != parties:
            continue
        found = search(table(), honest=parties - liars, equivocators=liars, quorum=quorum, threshold=liars + 1)
        possible = 2 * quorum <= parties + liars and parties - liars >= 2  # one honest party alone opens one set
        assert (found.schedule is not None) == possible, (parties, quorum, liars)
        assert found.states > 1


def test_no_committee_that_is_accepted_has_a_schedule_with_two_openings() -> None:
    accepted = 0
    for parties, quorum, liars in COMMITTEES:
        for threshold in range(1, quorum + 1):
            try:
                committee = Committee.custom(parties, threshold, quorum, liars)
            except BlindsumError:
                continue
            accepted += 1
            honest = committee.parties - committee.equivocators
            assert (
                search(table(), honest=honest, equivocators=liars, quorum=quorum, threshold=liars + 1).schedule is None
            ), committee
    assert accepted >= 10


@pytest.mark.parametrize(("parties", "threshold", "quorum"), [(3, 2, 2), (4, 2, 2), (5, 2, 3), (7, 3, 4)])
def test_schedule_that_breaks_a_small_quorum_gives_production_machines_away(
    parties: int, threshold: int, quorum: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One liar, and 2q <= P + c: with the refusal of such committees switched off, parties open both sets, and the coordinator and
    the liar compute one device's update."""
    found = search(table(), honest=parties - 1, equivocators=1, quorum=quorum, threshold=quorum)  # edges need q parties
    assert found.schedule is not None
    with pytest.raises(BlindsumError, match="2q > P \\+ c fails"):
        Committee.custom(parties, threshold, quorum, 1)
    monkeypatch.setattr(Committee, "__post_init__", lambda self: None)
    world = world_before_the_vote(
        Committee(parties=parties, threshold=threshold, quorum=quorum, equivocators=1), parties
    )
    sets = {"A": proposal(world, range(4)), "B": proposal(world, range(3))}
    votes = {name: [vote(world, parties, "set", sets[name].digest)] for name in SETS}
    for who, (what, name) in found.schedule:
        party = next(number for number in range(1, parties) if standing(world, number, sets) == who)
        shown = sets[name] if what == "show" else certificate(world, sets[name], votes[name])
        votes[name] += said(hand(world, f"party/{party}", shown), "vote")
    for party in range(1, parties):
        if name := standing(world, party, sets).opened:
            want_all(world, party, sets[name])
    checker = world.checkers[0]
    assert isinstance(checker, OnlySums)
    round_ = rounds(world, checker.tap)[0]
    told = [{round_.uploads[header] for header in one} for one in round_.derivable((f"party/{parties}",))]
    everybody = {f"device/{name}" for name in world.devices}
    assert everybody in told and everybody - {"device/d-0003"} in told
