"""Attacks by parties: wrong, withheld or unreadable openings, false complaints, silence, and attempts to have others blamed."""

from __future__ import annotations

import pytest

from blindsum.protocol.keys import BOX_PUBLIC_SIZE, SEED_SIZE
from blindsum.protocol.messages import Offer, Opening, OpeningContent
from blindsum.protocol.params import Committee
from blindsum.protocol.sharing import held_by, holders, subsets
from blindsum.testing.behaviours import (
    Behaviour,
    FalseCaps,
    FalseComplaints,
    GarbageBox,
    Silent,
    WithheldSums,
    WrongOpening,
    WrongSeeds,
    WrongShares,
    WrongSums,
)
from blindsum.testing.forgery import altered, body_of
from blindsum.testing.world import World


def blamed(world: World) -> set[tuple[object, object]]:
    """(culprit, code) of everything the coordinator holds against somebody."""
    events = world.happened("fault", "coordinator") + world.happened("evidence", "coordinator")
    return {(event.data["culprit"], event.data["code"]) for event in events}


def one_round(behaviours: dict[str, Behaviour], *, f: int = 1, devices: int = 7, **task: object) -> World:
    """A round in which these roles misbehave. It must finish, and every rule must hold."""
    world = World(5, devices=devices, committee=Committee.for_f(f), behaviours=behaviours, ballots=True, **task)
    world.run()
    assert world.phase == "done", world.failure
    world.check()
    return world


@pytest.mark.parametrize("party", [1, 2, 3, 4])
def test_wrong_sum_by_one_party_is_outvoted_and_blamed(party: int) -> None:
    world = one_round({f"party/{party}": WrongSums()})
    assert blamed(world) == {(f"party/{party}", "opening-differs")}


def test_wrong_sums_by_two_of_seven_parties_are_outvoted_and_blamed() -> None:
    world = one_round({"party/3": WrongSums(), "party/6": WrongSums()}, f=2)
    assert blamed(world) == {("party/3", "opening-differs"), ("party/6", "opening-differs")}


@pytest.mark.parametrize("party", [1, 2, 3, 4])
def test_withheld_sums_are_asked_of_others_and_blamed(party: int) -> None:
    world = one_round({f"party/{party}": WithheldSums()})
    assert blamed(world) == {(f"party/{party}", "opening-malformed")}


def test_two_of_seven_parties_that_vouch_and_withhold_do_not_stop_a_round() -> None:
    world = one_round({"party/1": WithheldSums(), "party/2": WithheldSums()}, f=2)
    assert {culprit for culprit, _ in blamed(world)} == {"party/1", "party/2"}


@pytest.mark.parametrize("party", [1, 4])
def test_wrong_edge_shares_by_one_party_are_found_out_and_blamed(party: int) -> None:
    world = one_round({f"party/{party}": WrongShares(), "device/d-0002": Silent("header", "chunk")})
    assert blamed(world) == {(f"party/{party}", "edge-share-differs")}
    assert world.results[0].count == 6


def test_wrong_edge_shares_by_two_of_seven_parties_are_found_out_and_blamed() -> None:
    silent = {"device/d-0000": Silent("header", "chunk"), "device/d-0004": Silent("header", "chunk")}
    world = one_round({"party/2": WrongShares(), "party/7": WrongShares(), **silent}, f=2)
    assert blamed(world) == {("party/2", "edge-share-differs"), ("party/7", "edge-share-differs")}
    assert world.results[0].count == 5


def test_lies_that_cancel_out_do_not_have_honest_parties_blamed() -> None:
    """Parties 6 and 7 change their shares of two subsets by the same bits. The edge opens all the same, and two stories fit
    what was signed: 6 and 7 lied, or 1 and 2 did. Nobody can be blamed."""
    committee = Committee.for_f(2)

    def lie(party: int) -> WrongOpening:
        wanted = next(
            place
            for place, subset in enumerate(held_by(party, subsets(7, 4)))
            if holders(subsets(7, 4)[subset], 7) == (1, 2, party)
        )

        def change(content: OpeningContent) -> OpeningContent:
            size = len(content.shares) // len(held_by(party, subsets(7, 4)))
            at = wanted * size
            shares = content.shares[:at] + bytes(b ^ 0x5A for b in content.shares[at : at + size])
            return altered(content, shares=shares + content.shares[at + size :])

        return WrongOpening(change)

    assert committee.equivocators == 2
    world = one_round({"party/6": lie(6), "party/7": lie(7), "device/d-0002": Silent("header", "chunk")}, f=2)
    assert not {culprit for culprit, _ in blamed(world)} & {"party/1", "party/2"}


def test_device_and_party_in_league_do_not_have_an_honest_party_blamed() -> None:
    """A corrupt device makes the check of its edges fit the false share of a corrupt party, so that the honest holder of the same
    seed looks like the liar. As many devices as may be corrupt prove nothing."""
    flip = bytes([1]) + bytes(SEED_SIZE - 1)
    lied = next(
        place for place, subset in enumerate(held_by(4, subsets(4, 2))) if holders(subsets(4, 2)[subset], 4) == (3, 4)
    )

    def change(content: OpeningContent) -> OpeningContent:
        count = len(content.shares) // len(held_by(4, subsets(4, 2))) // SEED_SIZE
        at = lied * count * SEED_SIZE  # the first survivor's edge to the one dropped device
        share = bytes(a ^ b for a, b in zip(content.shares[at : at + SEED_SIZE], flip, strict=True))
        return altered(content, shares=content.shares[:at] + share + content.shares[at + SEED_SIZE :])

    corrupt = {
        "party/4": WrongOpening(change),
        "device/d-0000": FalseCaps(),
    }  # its caps are off by the same bit
    silent = {"device/d-0006": Silent("header", "chunk")}
    world = World(5, devices=7, behaviours={**corrupt, **silent}, corrupt_permille=150)
    world.run()
    assert not {culprit for culprit, _ in blamed(world)} & {"party/1", "party/2", "party/3"}


def test_opening_that_is_not_what_its_party_signed_is_blamed() -> None:
    class Unreadable(Behaviour):
        def send(self, world: World, target: str, kind: str, body: bytes) -> bytes | None:
            if kind != "opening":
                return body
            return world.fleet.resign(body, altered(body_of(body, Opening), plain=bytes(32)))

    world = one_round({"party/2": Unreadable()})
    assert blamed(world) == {("party/2", "opening-unreadable")}


def test_opening_without_its_parts_is_blamed() -> None:
    world = one_round({"party/2": WrongOpening(lambda content: altered(content, hashes=content.hashes[1:]))})
    assert blamed(world) == {("party/2", "opening-malformed")}


@pytest.mark.parametrize("indices", [None, (0,), (0, 1, 2)])
def test_false_complaints_of_one_party_neither_stop_a_round_nor_blame_a_device(indices: tuple[int, ...] | None) -> None:
    world = one_round({"party/3": FalseComplaints(indices)})
    assert not blamed(world)
    left_out = {str(event.data["device"]) for event in world.happened("left-out")}
    assert left_out == {world.devices[index] for index in indices or ()}
    assert world.results[0].count == 7 - len(left_out)


def test_false_complaints_do_not_shield_a_bad_device() -> None:
    world = one_round({"party/3": FalseComplaints(), "device/d-0005": GarbageBox(1)})
    assert "d-0005" not in world.results[0].survivors
    assert world.results[0].count == 6


def test_device_that_t_parties_refuse_is_blamed_and_left_out() -> None:
    world = one_round({"device/d-0005": WrongSeeds(1, 2)})
    assert blamed(world) == {("device/d-0005", "commitment-differs")}
    assert world.results[0].count == 6


def test_box_key_that_nobody_can_seal_to_keeps_only_its_party_out() -> None:
    class BadOffer(Behaviour):
        def __init__(self, key: bytes) -> None:
            self._key = key

        def send(self, world: World, target: str, kind: str, body: bytes) -> bytes | None:
            if kind != "offer":
                return body
            offer = body_of(body, Offer)
            key = offer.box_key[: -len(self._key)] + self._key
            return world.fleet.resign(body, altered(offer, box_key=key))

    for key in (b"\xff" * BOX_PUBLIC_SIZE, bytes(32)):  # no ML-KEM key; an X25519 point of small order
        world = one_round({"party/2": BadOffer(key)})
        assert world.refused("offer-malformed") > 0
        assert [member.party for member in world.view.members] == [1, 3, 4]


@pytest.mark.parametrize("kind", ["offer", "vote", "check", "opening", "chunk", "ask"])
def test_party_that_is_silent_at_any_step_does_not_stop_a_round(kind: str) -> None:
    world = one_round({"party/4": Silent(kind)})
    assert not blamed(world)


@pytest.mark.parametrize("kinds", [("offer",), ("vote",), ("check", "opening")])
def test_rounds_fail_closed_with_more_silent_parties_than_promised(kinds: tuple[str, ...]) -> None:
    world = World(5, devices=5, behaviours={"party/1": Silent(*kinds), "party/2": Silent(*kinds)})
    world.run()
    assert world.phase == "failed"
    assert not world.results
    world.check()


def test_false_caps_of_a_device_void_the_round_and_are_blamed_on_it() -> None:
    """A device can make a round fail where one of its edges is lost after the vote; it is named, and can be revoked."""
    world = World(5, devices=5, behaviours={"device/d-0001": FalseCaps(), "device/d-0002": Silent("header", "chunk")})
    world.run()
    assert (world.phase, world.failure) == ("failed", "edge-false")
    assert blamed(world) == {("device/d-0001", "edge-false")}
    world.check()
