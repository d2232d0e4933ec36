"""Attacks on the survivor set: two sets in one round, overlapping openings, parties that restart or come back from a backup."""

from __future__ import annotations

import pytest

from blindsum.protocol.blobs import read_blob
from blindsum.protocol.codec import convert, decode, decode_chunk, encode, encode_chunk
from blindsum.protocol.keys import box_open
from blindsum.protocol.messages import (
    Certificate,
    Opening,
    OpeningContent,
    Proposal,
    Vote,
    Want,
    chunks_of,
)
from blindsum.protocol.openings import combine
from blindsum.protocol.params import Committee
from blindsum.protocol.ring import add_packed, pack, reduce, subtract_packed, unpack, zeros
from blindsum.testing.behaviours import Silent
from blindsum.testing.forgery import Forged, altered, body_of, candidate, certificate, hand, proposal, said, vote
from blindsum.testing.world import World


def world_before_the_vote(f: int = 1, *, corrupt: tuple[int, ...] = (), devices: int = 6, **task: object) -> World:
    """A world whose parties hold all headers and wait for a survivor set; its coordinator is corrupt and keeps quiet."""
    world = World(
        3,
        devices=devices,
        committee=Committee.for_f(f),
        behaviours={"coordinator": Silent("proposal", "certificate")},
        faulty=[f"party/{party}" for party in corrupt],
        **task,
    )
    world.start()
    world.until("vote")
    world.settle(100)
    world.stop("coordinator")
    return world


def honest(world: World) -> list[int]:
    everybody = range(1, world.committee.parties + 1)
    return [party for party in everybody if f"party/{party}" not in world.faulty]


def votes_of(world: World, parties: list[int], proposed: Forged) -> list[bytes]:
    """What honest parties vote when they are shown a set."""
    return [body for party in parties for body in said(hand(world, f"party/{party}", proposed), "vote")]


def opened_sets(world: World, parties: list[int]) -> set[bytes]:
    """The proposals that these parties have opened, by what is in their stores."""
    out = set()
    for party in parties:
        state = decode(world.actors[f"party/{party}"].store.rows[f"state/{world.task}"])
        out |= {body_of(raw, Opening).proposal for raw in state["openings"]}
    return out


@pytest.mark.parametrize(("f", "first"), [(1, 0), (1, 1), (1, 2), (1, 3), (2, 2), (2, 3), (2, 5)])
def test_two_survivor_sets_are_never_both_opened_though_f_parties_sign_both(f: int, first: int) -> None:
    corrupt = tuple(range(2 * f + 2, 3 * f + 2))
    world = world_before_the_vote(f, corrupt=corrupt)
    everybody = proposal(world, range(6))
    one_less = proposal(world, range(5))
    one, other = honest(world)[:first], honest(world)[first:]
    ballots = {
        proposed.digest: votes_of(world, shown, proposed)
        + [vote(world, party, "set", proposed.digest) for party in corrupt]
        for proposed, shown in ((everybody, one), (one_less, other))
    }
    assert [len(votes) for votes in ballots.values()] == [first + f, 2 * f + 1 - first + f]
    for proposed in (everybody, one_less):
        for party in honest(world):
            hand(world, f"party/{party}", certificate(world, proposed, ballots[proposed.digest]))
    winners = [digest for digest, votes in ballots.items() if len(votes) >= 2 * f + 1]
    assert len(winners) <= 1
    assert opened_sets(world, honest(world)) == set(winners)


def test_party_refuses_second_set_and_keeps_the_proof() -> None:
    world = world_before_the_vote()
    first, second = proposal(world, range(6)), proposal(world, range(5))
    assert len(votes_of(world, [1], first)) == 1
    step = hand(world, "party/1", second)
    assert (step.refused.code, step.refused.culprit) == ("second-set", "coordinator")
    assert not said(step, "vote")
    proof = decode(next(write.value for write in step.writes if write.key.startswith("evidence/")))
    assert proof == ["coordinator", first.body, second.body, b""]


def test_party_that_voted_opens_no_other_certified_set() -> None:
    world = world_before_the_vote(corrupt=(4,))
    shown, certified = proposal(world, range(6)), proposal(world, range(5))
    assert votes_of(world, [1], shown)
    votes = [*votes_of(world, [2, 3], certified), vote(world, 4, "set", certified.digest)]
    step = hand(world, "party/1", certificate(world, certified, votes))
    assert step.refused.code == "second-set"
    assert not said(step, "opening")


def test_certificate_with_repeated_foreign_or_too_few_votes_opens_nothing() -> None:
    world = world_before_the_vote(corrupt=(4,))
    proposed, other = proposal(world, range(6)), proposal(world, range(5))
    one = votes_of(world, [2], proposed)[0]
    corrupt = vote(world, 4, "set", proposed.digest)
    stuffed = [
        [one, corrupt],
        [one, one, one, corrupt],
        [one, corrupt, vote(world, 4, "set", other.digest)],
        [one, corrupt, vote(world, 4, "roster", proposed.digest)],
        [one, corrupt, world.forge("vote", "party/4", "coordinator", body_of(corrupt, Vote), number=7)],
        [one, corrupt, world.fleet.resign(one, body_of(one, Vote))[:-64] + bytes(64)],
    ]
    for votes in stuffed:
        step = hand(world, "party/1", certificate(world, proposed, votes))
        assert step.refused.code == "votes-too-few", votes
        assert not said(step, "opening")


def test_one_round_gives_one_opening_and_its_seeds_are_gone_for_any_other() -> None:
    world = world_before_the_vote(corrupt=(4,))
    first, second = proposal(world, range(6)), proposal(world, range(5))
    votes = votes_of(world, [1, 2, 3], first)
    for party in (1, 2, 3):
        assert said(hand(world, f"party/{party}", certificate(world, first, votes)), "opening")
    again = {
        party: vote(world, party, "set", second.digest) for party in (1, 2, 3, 4)
    }  # even if all were to vote once more
    for party in (1, 2, 3):
        others = [again[other] for other in again if other != party]
        step = hand(world, f"party/{party}", certificate(world, second, others))
        assert step.refused.code == "second-set"
        store = world.actors[f"party/{party}"].store
        assert not [key for key in store.rows if "/header/" in key]
        assert not any(store.holds(seed) for device in world.devices for seed in world.drawn[f"device/{device}"])


def test_want_gives_further_parts_of_the_opened_set_only() -> None:
    world = world_before_the_vote()
    first, second = proposal(world, range(6)), proposal(world, range(5))
    votes = votes_of(world, [1, 2, 3], first)
    early = world.give("party/1", want(world, 1, first, 1, [0]))
    assert early.refused.code == "message-early"
    hand(world, "party/1", certificate(world, first, votes))
    assert world.give("party/1", want(world, 1, second, 1, [1])).refused.code == "roster-differs"
    not_held = next(s for s, outside in enumerate(world.base.self_subsets) if 1 in outside)
    assert world.give("party/1", want(world, 1, first, 1, [not_held])).refused.code == "subset-not-held"
    assert world.give("party/1", want(world, 1, first, 5, [1])).refused.code == "message-misplaced"


def want(world: World, party: int, proposed: Forged, part: int, subsets: list[int]) -> bytes:
    payload = Want(proposal=proposed.digest, part=part, subsets=subsets)
    return world.forge("want", "coordinator", f"party/{party}", payload)


@pytest.mark.parametrize("moment", ["after the vote", "after the certificate"])
def test_party_that_restarts_opens_the_set_it_voted_for_and_no_other(moment: str) -> None:
    world = world_before_the_vote()
    first, second = proposal(world, range(6)), proposal(world, range(5))
    votes = votes_of(world, [1, 2, 3], first)
    certified = certificate(world, first, votes)
    if moment == "after the certificate":
        hand(world, "party/1", certified)
    before = world.backup("party/1").rows
    world.crash("party/1")
    assert hand(world, "party/1", second).refused.code == "second-set"
    assert said(hand(world, "party/1", first), "vote") == [votes[0]], "the same vote, byte for byte"
    openings = said(hand(world, "party/1", certified), "opening")
    if moment == "after the certificate":
        stored = decode(before[f"state/{world.task}"])["openings"]
        assert openings == stored, "the same opening, byte for byte"
    assert opened_sets(world, [1]) == {first.digest}
    assert hand(world, "party/1", certificate(world, second, votes)).refused.code == "votes-too-few"


def test_set_below_the_promised_minimum_gets_neither_vote_nor_opening() -> None:
    world = world_before_the_vote(corrupt=(4,), dropped_permille=300, corrupt_permille=200, cohort_min=3, devices_min=3)
    assert world.roster.survivors_min == 5  # 6 devices less 1 dropped; 3 honest beside 1 corrupt would be 4
    small = proposal(world, range(4))
    for party in (1, 2, 3):
        assert hand(world, f"party/{party}", small).refused.code == "survivors-too-few"
    votes = [vote(world, party, "set", small.digest) for party in (2, 3, 4)]  # were they all corrupt
    step = hand(world, "party/1", certificate(world, small, votes))
    assert step.refused.code == "survivors-too-few"
    assert opened_sets(world, [1, 2, 3]) == set()


def test_set_with_unknown_repeated_or_unordered_devices_is_refused() -> None:
    world = world_before_the_vote()
    headers = world.round.bodies.headers
    digests = {index: headers[index].digest for index in headers}
    beyond = proposal(world, range(7), headers={**digests, 6: bytes(32)})
    assert hand(world, "party/1", beyond).refused.code == "survivors-malformed"
    for rows in ([[1, digests[1]], [0, digests[0]]], [[0, digests[0]], [0, digests[0]]], [[0, b""]], {"0": 1}, []):
        ref, chunks = chunks_of(encode(rows), world.base.chunk_size)
        body = world.forge("proposal", "coordinator", "parties", Proposal(roster=world.roster.digest, survivors=ref))
        step = hand(world, "party/1", Forged(body, (encode_chunk(ref.id, 0, chunks[0]),)))
        assert step.refused.code in ("survivors-malformed", "survivors-too-few")
    assert votes_of(world, [1], proposal(world, range(6))), "none of them used up this party's vote"


def test_candidate_commits_to_nothing() -> None:
    """Complaints are made before any vote, so a candidate may be followed by a smaller proposal."""
    world = world_before_the_vote()
    assert said(hand(world, "party/1", candidate(world, range(6))), "check")
    assert said(hand(world, "party/1", candidate(world, range(5))), "check")
    assert votes_of(world, [1], proposal(world, range(5)))


# -- old backups ------------------------------------------------------------------------------------------------------


def test_one_party_from_an_old_backup_is_within_what_the_quorum_withstands() -> None:
    """A party whose store is put back to before its vote votes twice: it equivocates, as one malicious party would. With
    2q > P + c one such party, and no other, makes no second quorum."""
    world = world_before_the_vote(corrupt=(3,))  # party 3 is honest but restored, and so counts as faulty
    first, second = proposal(world, range(6)), proposal(world, range(5))
    backup = world.backup("party/3")
    votes = votes_of(world, [1, 2, 3], first)
    for party in (1, 2, 3):
        hand(world, f"party/{party}", certificate(world, first, votes))
    world.restore("party/3", backup)
    again = votes_of(world, [3, 4], second)
    assert len(again) == 2, "the restored party has forgotten its vote"
    for party in (1, 2, 3, 4):
        step = hand(world, f"party/{party}", certificate(world, second, again))
        assert step.refused.code == "votes-too-few" and not said(step, "opening")
    assert opened_sets(world, [1, 2, 3, 4]) == {first.digest}


def test_an_old_backup_beside_a_malicious_party_breaks_the_round_it_was_taken_in() -> None:
    """The stated limit: two parties of four that sign twice (one malicious, one put back to before its vote) and a corrupt
    coordinator open two sets that differ in one device, and the difference is its update. So a party's store is never
    restored from a backup; a party that lost its store starts anew and sits out the round under way."""
    world = world_before_the_vote(corrupt=(3, 4))
    everybody, without_last = proposal(world, range(6)), proposal(world, range(5))
    backups = {party: world.backup(f"party/{party}") for party in (3, 4)}
    first = opened_total(world, everybody, [1, 3, 4])
    for party, backup in backups.items():
        world.restore(f"party/{party}", backup)
    second = opened_total(world, without_last, [2, 3, 4])
    lanes = unpack(world.base.segments, first)
    subtract_packed(world.base.segments, lanes, second)
    reduce(world.base.segments, lanes)
    assert pack(world.base.segments, lanes) == world.truth[1, world.devices[5]]


def opened_total(world: World, proposed: Forged, parties: list[int]) -> bytes:
    """The sum that a corrupt coordinator gets when these parties vote for a set and open it."""
    votes = votes_of(world, parties, proposed)
    contents: dict[int, list[OpeningContent]] = {}
    for party in parties:
        step = hand(world, f"party/{party}", certificate(world, proposed, votes))
        contents[party] = [content_of(world, party, said(step, "opening")[0])]
    rows, bodies, segments = world.actors["coordinator"].store, world.round.bodies, world.base.segments
    headers = {index: bodies.headers[index] for index in range(len(survivors_of(proposed)))}
    lanes = zeros(segments)
    for header in headers.values():
        packed = read_blob(rows, header.body)
        assert packed is not None
        add_packed(segments, lanes, packed)
    combined = combine(world.view, world.roster, lanes, headers=headers, contents=contents)
    for party, subsets in combined.wants.items():
        step = world.give(f"party/{party}", want(world, party, proposed, 1, subsets))
        contents[party].append(content_of(world, party, said(step, "opening")[0]))
    if not combined.complete:
        combined = combine(world.view, world.roster, lanes, headers=headers, contents=contents)
    assert combined.complete, combined
    return pack(segments, lanes)


def content_of(world: World, party: int, raw: bytes) -> OpeningContent:
    """What a party has opened, as the coordinator's key shows it."""
    opening = body_of(raw, Opening)
    sealed = read_blob(world.actors[f"party/{party}"].store, opening.content)
    assert sealed is not None
    info = encode(["blindsum/1 opening", world.view.digest, opening.proposal, party, opening.part])
    plain = box_open(world.fleet.coordinator_box, info, sealed)
    assert plain is not None
    return convert(decode(plain), OpeningContent)


def survivors_of(proposed: Forged) -> list[list[object]]:
    """The rows of a proposed set."""
    rows: list[list[object]] = decode(b"".join(decode_chunk(chunk)[2] for chunk in proposed.chunks))
    return rows


def test_certificate_must_hold_the_proposal_of_this_round_and_roster() -> None:
    world = world_before_the_vote(corrupt=(4,))
    good = proposal(world, range(6))
    inner = body_of(good.body, Proposal)
    strange = Forged(world.forge("proposal", "coordinator", "parties", altered(inner, roster=bytes(32))), good.chunks)
    votes = [vote(world, party, "set", strange.digest) for party in (2, 3, 4)]
    assert hand(world, "party/1", certificate(world, strange, votes)).refused.code == "roster-differs"
    other_round = Forged(world.forge("proposal", "coordinator", "parties", inner, number=9), good.chunks)
    votes = [vote(world, party, "set", other_round.digest) for party in (2, 3, 4)]
    assert hand(world, "party/1", certificate(world, other_round, votes)).refused.code == "message-misplaced"
    not_a_proposal = Certificate(proposal=votes[0], votes=votes)
    body = world.forge("certificate", "coordinator", "parties", not_a_proposal)
    assert world.give("party/1", body).refused is not None
    assert opened_sets(world, [1]) == set()
