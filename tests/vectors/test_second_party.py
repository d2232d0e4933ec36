"""A party written from the specification alone (`oracle/party.py`) in rounds of the product's coordinator, parties and devices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from blindsum.protocol.errors import Refused
from blindsum.protocol.machines.step import Step
from blindsum.protocol.transcript import verify
from blindsum.testing.behaviours import Behaviour, GarbageBox, Silent, WithheldSums
from blindsum.testing.checkers import CHECKERS, OnlySums
from blindsum.testing.entropy import Entropy
from blindsum.testing.world import World
from tests.vectors.meeting import step_of


class Spoken:
    """The second implementation where the world has a machine."""

    deadline = None

    def __init__(self, world: World, number: int, oracle: Callable[[str], Any]) -> None:
        party, self._fault = oracle("party").BookParty, oracle("fault").Fault
        key = world.fleet.parties[number - 1].private_bytes(
            serialization.Encoding.Raw, serialization.PrivateFormat.Raw, serialization.NoEncryption()
        )
        self.said: Counter[str] = Counter()
        self.party = party(number, key, world.fleet.trust.encode(), Entropy(7, "book"))

    def receive(self, body: bytes, now: int) -> Step:
        try:
            outs = self.party.receive(body, now)
        except self._fault as fault:
            return Step(refused=Refused(fault.code))
        self.said.update(kind for kind, _ in outs)
        return step_of(outs)

    def wake(self, now: int) -> Step:
        return Step()


def world_with_book_party(
    oracle: Callable[[str], Any], behaviours: dict[str, Behaviour], **settings: Any
) -> tuple[World, Spoken]:
    checkers = [kind for kind in CHECKERS if kind is not OnlySums]  # which looks into boxes that it saw being sealed
    world = World(
        6, checkers=checkers, devices=5, length=8, faulty=("party/4",), behaviours=behaviours, ballots=True, **settings
    )
    world.actors["party/4"].machine = spoken = Spoken(world, 4, oracle)  # type: ignore[assignment]
    return world, spoken


def test_party_in_another_implementation_takes_part_in_rounds_and_opens_what_the_others_open(
    oracle: Callable[[str], Any],
) -> None:
    world, spoken = world_with_book_party(
        oracle, {"party/1": WithheldSums(), "device/d-0003": GarbageBox(4)}, rotate=True
    )
    world.start()
    world.until("upload")
    world.stop("device/d-0000")
    world.finish()
    world.settle()
    world.run()
    world.settle()
    assert [result.survivors for result in world.results] == [
        ("d-0001", "d-0002", "d-0004"),
        ("d-0000", "d-0001", "d-0002", "d-0004"),
    ], "it complained about the box that it could not open"
    assert spoken.said["vote"] >= 6 and spoken.said["check"] >= 2 and spoken.said["opening"] >= 2
    assert spoken.party.link[0] == world.actors["party/1"].machine._chain.head(world.base)[0], (
        "it followed both results"
    )  # type: ignore[union-attr]
    world.check()
    for result in world.results:
        report = verify(result.transcript, trust=world.fleet.trust)
        assert report.valid or {fault.principal for fault in report.faults} == {"party/1"}
        assert 4 in report.facts["parties"]


def test_quorum_that_needs_the_other_implementation_is_one(oracle: Callable[[str], Any]) -> None:
    """Party 2 never says a word after its offer: without party 4 there is neither a vote nor an opening."""
    silent = Silent("vote", "check", "opening")
    world, spoken = world_with_book_party(oracle, {"party/2": silent})
    world.run()
    assert world.results[0].count == 5
    assert spoken.said["opening"] >= 1
    world.check()


def two_votes(party: Any, kind: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    return [body, {**body, "digest": bytes(32)}] if kind == "vote" and body["decides"] == "set" else [body]


def another_beacon(party: Any, kind: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    return [{**body, "beacon": bytes(32)}] if kind == "vote" and body["decides"] == "roster" else [body]


def two_openings(party: Any, kind: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    return [body, {**body, "plain": bytes(32)}] if kind == "opening" else [body]


def another_set(party: Any, kind: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    return [{**body, "proposal": bytes(32)}] if kind == "opening" else [body]


def two_offers(party: Any, kind: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    return [body, {**body, "chain": bytes(31) + b"1"}] if kind == "offer" else [body]


def no_map(party: Any, kind: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    return [{**body, "also": 1}] if kind == "check" else [body]


@pytest.mark.parametrize(
    ("lie", "code"),
    [
        (two_votes, "second-vote"),
        (another_beacon, "beacon-differs"),
        (two_openings, "second-opening"),
        (another_set, "opening-foreign"),
        (two_offers, "second-offer"),
        (no_map, "message-malformed"),
    ],
)
def test_dishonest_party_by_the_book_stops_nothing_and_is_named_by_what_it_signed(
    oracle: Callable[[str], Any], lie: Callable[..., list[dict[str, Any]]], code: str
) -> None:
    """Whatever order its messages arrive in: the first is kept, or it is refused because nothing like it was asked for."""
    world, spoken = world_with_book_party(oracle, {})
    party = spoken.party
    honest, receive = party._signed, party.receive
    also: list[tuple[str, bytes]] = []

    def signed(kind: str, body: dict[str, Any]) -> bytes:
        first, *more = [honest(kind, each) for each in lie(party, kind, body)]
        also.extend((kind, raw) for raw in more)
        return first

    def heard(body: bytes, now: int) -> list[tuple[str, bytes]]:
        outs = [*receive(body, now), *also]
        also.clear()
        return outs

    party._signed, party.receive = signed, heard
    world.run()
    assert [result.count for result in world.results] == [5]
    found = {(event.data["culprit"], event.data["code"]) for event in world.happened("evidence")}
    assert found <= {("party/4", code)}
    assert found or world.actors["coordinator"].refusals[code]
    world.check()
