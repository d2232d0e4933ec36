"""A party changes its signing key without a new fleet: who follows it, what the old key is worth, and what two keys prove."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from blindsum.protocol.codec import decode
from blindsum.protocol.envelope import Head, seal_envelope
from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.evidence import verify_evidence, write_evidence
from blindsum.protocol.keys import BOX_PRIVATE_SIZE, box_keypair, public_of
from blindsum.protocol.machines.keybook import write_key_file
from blindsum.protocol.messages import KEYS_MAX, Manifest, Offer, Result, Vote
from blindsum.protocol.partykeys import keys_of, next_step, operator_step, rank
from blindsum.protocol.transcript import verify
from blindsum.testing.fleet import TestFleet, change_key, make_fleet
from blindsum.testing.forgery import altered, body_of, hand, manifest, said
from blindsum.testing.world import World


def key(number: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes([number] * 32))


def changed(world: World, party: int, number: int, *, by_operator: bool = False) -> TestFleet:
    """The party's next life has another key. Returns the fleet as it was."""
    before = world.fleet
    world.fleet = change_key(world.fleet, party, key(number), by_operator=by_operator)
    world.crash(f"party/{party}")
    return before


def members(world: World) -> dict[int, tuple[int, int]]:
    """By party of the current round, which of its keys it takes part with."""
    return {member.party: rank(member.keys) for member in world.view.members}


def old_vote(before: TestFleet, world: World, party: int, decides: str, digest: bytes) -> bytes:
    """What whoever has the old key can sign."""
    vote = Vote(decides=decides, digest=digest, beacon=b"")  # type: ignore[arg-type]
    return before.forge("vote", f"party/{party}", "coordinator", vote, task=world.task, number=world.number)


def test_rounds_go_on_with_changed_keys_and_everybody_follows() -> None:
    world = World(3, devices=4, corrupt_permille=0)
    world.run()
    changed(world, 2, 101)
    world.run()
    assert members(world) == {1: (0, 0), 2: (0, 1), 3: (0, 0), 4: (0, 0)}
    changed(world, 2, 102)
    changed(world, 3, 103, by_operator=True)
    world.run()
    assert members(world) == {1: (0, 0), 2: (0, 2), 3: (1, 0), 4: (0, 0)}
    assert [result.count for result in world.results] == [4, 4, 4], "no device was told anything but by manifests"
    for name in ("coordinator", "party/1", "party/4"):
        world.crash(name)
    changed(world, 3, 104)
    world.run()
    assert members(world)[3] == (1, 1) and len(world.results) == 4
    world.check()
    assert all(verify(result.transcript, trust=world.fleet.trust).valid for result in world.results)


def test_device_that_was_away_for_all_changes_takes_part_at_once() -> None:
    world = World(3, devices=4, devices_min=3, corrupt_permille=0)
    world.run()
    for number in range(KEYS_MAX - 1):
        world.start()
        world.stop("device/d-0003")
        changed(world, 1 + number % 2, 110 + number)
        world.finish()
    world.run()
    assert world.results[-1].survivors == tuple(world.devices)
    world.check()


def test_offer_under_the_old_key_is_refused_once_a_later_one_was_seen() -> None:
    world = World(3, devices=4, corrupt_permille=0, faulty=["party/2", "coordinator"], checkers=())
    world.run()
    before = changed(world, 2, 101)
    world.run()
    world.start()
    world.until("manifest")
    offer = body_of(world.round.state.offers[2], Offer)
    stale = before.forge("offer", "party/2", "coordinator", altered(offer, keys=[]), task="sum", number=world.number)
    assert world.give("coordinator", stale).refused.code == "key-retired"
    offers = [stale if party == 2 else raw for party, raw in sorted(world.round.state.offers.items())]
    shown = altered(body_of(world.round.state.manifest, Manifest), offers=offers)
    step = world.give("party/1", world.forge("manifest", "coordinator", "parties", shown))
    assert step.refused.code == "key-retired" and not said(step, "vote")
    world.finish()
    assert world.phase == "done"


def test_vote_under_the_old_key_is_refused_and_proof_where_it_contradicts() -> None:
    world = World(3, devices=4, corrupt_permille=0, faulty=["party/2"], checkers=())
    before = changed(world, 2, 101)
    world.start()
    world.until(lambda: 2 in world.round.state.set_votes)
    vote = world.round.state.set_votes[2]
    same = old_vote(before, world, 2, "set", body_of(vote, Vote).digest)
    assert world.give("coordinator", same).refused.code == "key-retired"
    assert not list(world.actors["coordinator"].store.scan("evidence/"))
    other = old_vote(before, world, 2, "set", bytes(32))
    assert world.give("coordinator", other).refused.code == "second-vote"
    ((_, row),) = world.actors["coordinator"].store.scan("evidence/")
    _, first, second, offer = decode(row)
    report = verify_evidence(write_evidence(world.fleet.trust, first, second, offer), trust=world.fleet.trust)
    assert [(fault.principal, fault.code) for fault in report.faults] == [("party/2", "second-vote")]
    for shown in (b"", world.round.state.offers[1], vote):
        with pytest.raises(BlindsumError) as caught:
            verify_evidence(write_evidence(world.fleet.trust, first, second, shown), trust=world.fleet.trust)
        assert caught.value.code == "evidence-unproven"
    world.finish()
    assert world.phase == "done" and len(world.round.state.set_votes) <= 4


def test_party_does_not_answer_for_keys_that_the_operator_took_from_it() -> None:
    world = World(3, devices=4, corrupt_permille=0, faulty=["party/2"], checkers=())
    before = changed(world, 2, 101, by_operator=True)
    world.start()
    world.until(lambda: 2 in world.round.state.set_votes)
    vote, offer = world.round.state.set_votes[2], world.round.state.offers[2]
    other = old_vote(before, world, 2, "set", bytes(32))
    assert world.give("coordinator", other).refused.code == "key-retired"
    assert not list(world.actors["coordinator"].store.scan("evidence/"))
    with pytest.raises(BlindsumError):
        verify_evidence(write_evidence(world.fleet.trust, vote, other, offer), trust=world.fleet.trust)


def test_party_that_changes_its_key_in_a_round_says_nothing_more_in_it_and_the_round_goes_on() -> None:
    world = World(3, devices=4, corrupt_permille=0)
    world.start()
    world.until("vote")
    world.until(lambda: 2 in world.round.state.set_votes)
    changed(world, 2, 101)
    world.finish()
    assert world.phase == "done"
    assert [event.data["why"] for event in world.happened("round-over", "party/2")] == ["key-changed"]
    opened = {party for party, _ in body_of(world.round.state.result, Result).openings}
    assert 2 not in opened
    world.run()
    assert members(world)[2] == (0, 1) and len(world.results) == 2
    world.check()


def test_operators_word_takes_a_key_back_before_anybody_saw_a_manifest() -> None:
    world = World(3, devices=4, corrupt_permille=0, checkers=())
    world.run()
    before = world.fleet
    world.fleet = change_key(world.fleet, 2, key(101), by_operator=True)
    file = write_key_file({2: list(world.fleet.steps[1])})
    for name in ("coordinator", "party/1", "party/2", "party/3", "party/4"):
        actor = world.actors[name]
        world.apply(actor, actor.machine.learn(file), faulty=False)  # type: ignore[attr-defined]
        with pytest.raises(BlindsumError):
            actor.machine.learn(file[:-1] + bytes([file[-1] ^ 1]))  # type: ignore[attr-defined]
    world.run()  # party 2 still runs with the key that was taken from it
    assert 2 not in members(world) and world.phase == "done"
    assert world.actors["party/2"].refusals["key-retired"]
    offer = Offer(box_key=world.view.members[0].box_key, beacon_commitment=bytes(32), chain=bytes(32), keys=[])
    world.start()
    stale = before.forge("offer", "party/2", "coordinator", offer, task="sum", number=world.number)
    assert world.give("coordinator", stale).refused.code == "key-retired"
    world.finish()
    world.crash("party/2")
    world.run()
    assert members(world)[2] == (1, 0)


def test_party_with_a_kit_from_before_its_change_does_not_start() -> None:
    world = World(3, devices=4, corrupt_permille=0, checkers=())
    before = changed(world, 2, 101)
    world.run()
    world.fleet = before
    with pytest.raises(BlindsumError) as caught:
        world.crash("party/2")
    assert caught.value.code == "kit-incomplete"


def test_key_that_was_signed_over_twice_is_followed_once() -> None:
    world = World(3, devices=4, corrupt_permille=0, faulty=["party/2"], checkers=())
    before = changed(world, 2, 101)
    world.run()
    thief = change_key(before, 2, key(102))
    world.start()
    offer = Offer(
        box_key=_box(),
        beacon_commitment=bytes(32),
        chain=bytes(32),
        keys=list(thief.steps[1]),
    )
    raw = thief.forge("offer", "party/2", "coordinator", offer, task="sum", number=world.number)
    refused = world.give("coordinator", raw).refused
    assert (refused.code, refused.culprit) == ("second-key", "party/2")
    world.finish()
    world.fleet = change_key(world.fleet, 2, key(103), by_operator=True)
    world.crash("party/2")
    world.run()
    assert members(world)[2] == (1, 0), "the operator decides"


def _box() -> bytes:
    return box_keypair(bytes(range(BOX_PRIVATE_SIZE)))[1]


# -- steps ------------------------------------------------------------------------------------------------------------


def test_steps_hold_only_as_they_were_signed() -> None:
    fleet = make_fleet(1, parties=4, devices=1)
    trust, own, keys = fleet.trust, fleet.parties[1], [key(number) for number in range(101, 120)]
    one = next_step(own, trust, 2, [], public_of(keys[0]))
    two = next_step(keys[0], trust, 2, [one], public_of(keys[1]))
    new = operator_step(fleet.operator, trust, 2, 1, public_of(keys[2]))
    on = next_step(keys[2], trust, 2, [new], public_of(keys[3]))
    for steps, count in (([], 1), ([one], 2), ([one, two], 3), ([new], 2), ([new, on], 3)):
        assert len(keys_of(trust, 2, steps)) == count
    other = make_fleet(2, parties=4, devices=1).trust
    for party, bundle, steps in (
        (3, trust, [one]),
        (2, other, [one]),
        (2, trust, [two]),
        (2, trust, [two, one]),
        (2, trust, [one, one]),
        (2, trust, [one, new]),
        (2, trust, [on]),
        (2, trust, [(0, *one[1:3], bytes(64))]),
        (2, trust, [(0, 2, *one[2:])]),
        (2, trust, [(1, *one[1:])]),
        (2, trust, [(0, *new[1:])]),
        (2, trust, [next_step(own, trust, 2, [], trust.parties[0])]),
        (2, trust, [next_step(own, trust, 2, [], trust.coordinator)]),
        (2, trust, [one, next_step(keys[0], trust, 2, [one], trust.parties[1])]),
        (2, trust, [operator_step(own, trust, 2, 1, public_of(keys[2]))]),
        (5, trust, []),
    ):
        assert keys_of(bundle, party, steps) == ()
    steps, signer = [new], keys[2]
    for following in keys[3 : 3 + KEYS_MAX]:
        steps.append(next_step(signer, trust, 2, steps, public_of(following)))
        signer = following
    assert keys_of(trust, 2, steps[:KEYS_MAX]) and not keys_of(trust, 2, steps)


def test_offer_is_signed_with_the_key_that_it_shows() -> None:
    world = World(3, devices=4, checkers=())
    before = changed(world, 2, 101)
    world.start()
    head = Head(type="offer", fleet="test", task="sum", round=world.number, sender="party/2", to="coordinator")
    for signer, steps in ((before.parties[1], world.fleet.steps[1]), (world.fleet.parties[1], ())):
        offer = Offer(box_key=_box(), beacon_commitment=bytes(32), chain=bytes(32), keys=list(steps))
        assert world.give("coordinator", seal_envelope(signer, head, offer)).refused.code == "signature-invalid"


def test_host_whose_key_was_given_to_another_one_votes_for_no_manifest_with_its_offer() -> None:
    """The operator gave party 4 a key on a new host, and the old host still runs: in one round there is one of them."""
    world = World(3, devices=4, faulty=("party/4",))
    world.start()
    world.until("manifest")
    offers = list(world.view.manifest.offers)
    given = change_key(world.fleet, 4, key(9), by_operator=True)
    theirs = altered(body_of(offers[3], Offer), beacon_commitment=bytes(32), keys=list(given.steps[3]))
    other = given.forge("offer", "party/4", "coordinator", theirs, task=world.task, number=1)
    shown = manifest(world, offers=[*offers[:3], other])
    step = hand(world, "party/4", shown)
    assert step.refused is not None and step.refused.code == "offer-differs" and not said(step, "vote")
    assert said(hand(world, "party/1", shown), "vote"), "the others take part with the new one"
