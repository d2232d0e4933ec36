"""Attacks by who may speak and by who carries: answers to questions nobody asked, words out of their phase, bodies that were not
named, a broker that keeps one kind of message from somebody, clocks that are far off."""

from __future__ import annotations

import pytest

from blindsum.protocol.codec import decode_chunk, encode_chunk
from blindsum.protocol.envelope import Head, open_envelope, peek, seal_envelope
from blindsum.protocol.machines.chain import PENDING_MAX
from blindsum.protocol.messages import (
    Announcement,
    Ask,
    Check,
    Header,
    Join,
    Opening,
    Receipt,
    Result,
    RosterAnnouncement,
    Vote,
    chunks_of,
)
from blindsum.testing.behaviours import Behaviour, GarbageBox, Silent
from blindsum.testing.forgery import altered, body_of, candidate, hand, proposal, said, vote
from blindsum.testing.world import World

DAY_MS = 86_400_000
KINDS_TO_PARTIES = (
    "offer-request",
    "manifest",
    "announcement",
    "roster-proposal",
    "roster",
    "header",
    "candidate",
    "proposal",
)
KINDS_TO_DEVICES = ("announcement", "receipt", "roster", "chunk", "result")


def kind_of(body: bytes) -> str:
    return open_envelope(body).head.type if peek(body) else "chunk"


def code_of(world: World, role: str, body: bytes) -> tuple[str, str]:
    """(code, culprit) with which a role refuses a message; it must do nothing else."""
    step = world.give(role, body)
    assert step.refused is not None and not step.messages
    return step.refused.code, step.refused.culprit


def in_phase(phase: str, **settings: object) -> World:
    world = World(4, **{"devices": 5, **settings})  # type: ignore[arg-type]
    world.start()
    world.until(phase)
    return world


# -- parties that speak out of turn -------------------------------------------------------------------------------------


def test_votes_on_what_nobody_proposed_and_checks_of_another_list_count_for_nothing() -> None:
    world = in_phase("manifest", faulty=("party/4",))
    assert code_of(world, "coordinator", vote(world, 4, "manifest", bytes(32))) == ("vote-differs", "party/4")
    world.until("check")
    foreign = Check(survivors=bytes(32), missing=[], bad=[(0, "box-unreadable")])
    told = world.forge("check", "party/4", "coordinator", foreign)
    assert code_of(world, "coordinator", told)[0] == "survivors-differ"
    world.finish()
    assert world.results[0].count == 5
    world.check()


def test_opening_before_its_time_of_another_set_or_out_of_order_is_refused() -> None:
    world = in_phase("upload", faulty=("party/4",), behaviours={"party/4": Silent("opening")})
    opening = Opening(proposal=bytes(32), part=0, content=chunks_of(b"box", 1024)[0], plain=bytes(32))
    for phase in ("upload", "check", "vote"):
        world.until(phase)
        early = world.forge("opening", "party/4", "coordinator", opening)
        assert code_of(world, "coordinator", early)[0] == "message-misplaced", phase
    world.until("open")
    assert code_of(world, "coordinator", world.forge("opening", "party/4", "coordinator", opening)) == (
        "opening-foreign",
        "party/4",
    )
    second = altered(opening, proposal=open_envelope(world.round.state.proposal).digest, part=1)
    late = world.forge("opening", "party/4", "coordinator", second)
    assert code_of(world, "coordinator", late) == ("opening-foreign", "party/4")
    stolen = Head(type="opening", fleet="test", task="sum", round=1, sender="party/1", to="coordinator")
    forged = seal_envelope(world.fleet.key_of("party/4"), stolen, second)
    assert code_of(world, "coordinator", forged)[0] == "signature-invalid"
    world.finish()
    assert world.results[0].count == 5
    world.check()


# -- a coordinator that shows different things ------------------------------------------------------------------------------


class SplitBeacons(Behaviour):
    """A coordinator that draws another graph for some devices by leaving out another beacon (SPEC.md section 14, note 3)."""

    def __init__(self, *victims: str) -> None:
        self._victims = victims
        self._votes: list[bytes] = []

    def hear(self, source: str, target: str, body: bytes) -> bytes:
        """Every vote on a roster, also the one that the machine did not wait for."""
        if target == "coordinator" and kind_of(body) == "vote" and body_of(body, Vote).decides == "roster":
            self._votes += [body] if body not in self._votes else []
        return body

    def send(self, world: World, target: str, kind: str, body: bytes) -> bytes | None:
        if kind != "roster" or target not in self._victims:
            return body
        shown = body_of(body, RosterAnnouncement)
        if len(self._votes) <= len(shown.votes):
            return None
        return world.fleet.resign(body, altered(shown, votes=self._votes[1:]))


def test_devices_shown_another_graph_count_as_dropped_and_nobody_opens_them() -> None:
    victims = ("device/d-0001", "device/d-0004")
    league = SplitBeacons(*victims)
    world = World(4, devices=7, behaviours={"coordinator": league}, ballots=True)
    rosters: dict[str, bytes] = {}

    def tap(source: str, target: str, body: bytes) -> bytes:
        if source.startswith("device/") and kind_of(body) == "header":
            rosters[source] = body_of(body, Header).roster
        return league.hear(source, target, body)

    world.network.tap = tap
    world.run()
    assert len({rosters[victim] for victim in victims}) == 1 and len(set(rosters.values())) == 2
    assert world.results[0].survivors == tuple(name for name in world.devices if f"device/{name}" not in victims)
    assert world.actors["party/1"].refusals["header-foreign"] + world.actors["coordinator"].refusals["header-foreign"]
    world.check()


def test_set_with_a_device_that_a_party_refuses_gets_no_vote_of_it() -> None:
    world = World(
        4, devices=5, behaviours={"coordinator": Silent("candidate", "proposal"), "device/d-0002": GarbageBox(1)}
    )
    world.start()
    world.until("check")
    world.settle(100)
    everybody = proposal(world, range(5))
    step = hand(world, "party/1", everybody)
    assert step.refused is not None and step.refused.code == "survivor-refused" and not said(step, "vote")
    assert not said(hand(world, "party/1", candidate(world, range(5))), "vote")
    assert said(hand(world, "party/2", everybody), "vote"), "its box was good"


def test_results_that_follow_nothing_are_kept_so_many_and_no_more() -> None:
    world = World(4, devices=5)
    world.run()
    result = Result(
        previous=bytes(32),
        rotation=b"",
        manifest=world.view.digest,
        roster=bytes(32),
        proposal=bytes(32),
        count=5,
        sum=chunks_of(bytes(world.base.task.segments[0].length * 3 + 16), 1024)[0],
        model=world.base.task.model,
        state=world.base.first_state,
        openings=[],
    )
    for place in range(PENDING_MAX + 4):
        stray = altered(result, previous=bytes([place + 1] * 32))
        raw = world.forge("result", "coordinator", "all", stray, number=100 + place)
        assert world.give("party/1", raw).refused.code == "chain-behind"
    assert len(list(world.actors["party/1"].store.keys("pending/"))) == PENDING_MAX
    world.run()
    assert len(world.results) >= 2
    world.check()


# -- devices and those who speak for them -------------------------------------------------------------------------------


class AnotherBody(Behaviour):
    """A device whose header names another body than it sends."""

    def send(self, world: World, target: str, kind: str, body: bytes) -> bytes | None:
        if kind != "chunk":
            return body
        blob, index, data = decode_chunk(body)
        return encode_chunk(blob, index, bytes([data[0] ^ 1]) + data[1:])


def test_device_that_sends_another_body_than_it_signed_is_left_out_and_costs_nobody_else_anything() -> None:
    world = World(4, devices=5, behaviours={"device/d-0003": AnotherBody()})
    world.run()
    assert world.results[0].survivors == ("d-0000", "d-0001", "d-0002", "d-0004")
    assert world.actors["coordinator"].refusals["chunk-wrong"] > 0
    world.check()


def test_receipt_for_another_device_changes_nothing() -> None:
    world = in_phase("join")
    world.until(lambda: len(world.round.joins) >= 2)
    name = next(device for device in world.devices if world.actors[f"device/{device}"].machine.phase("sum") == "joined")
    other = next(device for device in world.round.joins if device != name)
    subject = open_envelope(world.round.joins[other][0]).digest
    receipt = Receipt(subject=subject, status="refused", code="certificate-revoked")
    for body in (
        world.forge("receipt", "coordinator", f"device/{name}", receipt),
        world.forge(
            "receipt", "coordinator", f"device/{name}", altered(receipt, subject=bytes(32), status="held", code="")
        ),
    ):
        assert code_of(world, f"device/{name}", body)[0] == "receipt-foreign"
    world.finish()
    assert world.results[0].count == 5


def test_blob_that_a_role_does_not_serve_is_not_given_to_anybody() -> None:
    world = in_phase("upload")
    world.until(
        lambda: all(world.actors[f"device/{device}"].machine.phase("sum") != "joined" for device in world.devices)
    )
    ask = Ask(blob=bytes(32), have=b"", window=64)
    device = world.devices[0]
    assert code_of(world, "party/1", world.forge("ask", "coordinator", "party/1", ask))[0] == "blob-unknown"
    assert (
        code_of(world, f"device/{device}", world.forge("ask", "coordinator", f"device/{device}", ask))[0]
        == "blob-unknown"
    )
    for asker in ("party/1", f"device/{device}"):
        assert code_of(world, "coordinator", world.forge("ask", asker, "coordinator", ask))[0] == "blob-unknown"


def test_header_that_comes_before_the_roster_is_asked_for_again() -> None:
    world = in_phase("join", behaviours={"coordinator": Silent("header")})
    world.until("roster")
    join = body_of(next(iter(world.round.joins.values()))[0], Join)
    ref = chunks_of(b"", 1024)[0]
    header = Header(manifest=join.manifest, roster=bytes(32), index=0, body=ref, commitments=b"", boxes=[], edges=b"")
    early = world.forge("header", "device/d-0000", "all", header)
    assert code_of(world, "party/1", early)[0] == "header-early"
    world.finish()
    world.check()


def test_message_of_a_type_that_nobody_knows_is_refused_by_all() -> None:
    world = in_phase("join")
    for role in ("coordinator", "party/1", "device/d-0000"):
        for sender in ("coordinator", "operator", "party/2"):
            head = Head(type="poll", fleet="test", task="sum", round=1, sender=sender, to="all")
            raw = seal_envelope(world.fleet.key_of(sender), head, Announcement(task=b"t", manifest=b"m", votes=[]))
            assert code_of(world, role, raw)[0] == "message-type-unknown"


# -- a broker with a will of its own ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kinds", "targets"),
    [
        *[((kind,), ("party/2",)) for kind in KINDS_TO_PARTIES],
        *[((kind,), ("device/d-0001", "device/d-0002")) for kind in KINDS_TO_DEVICES],
        (("join", "header", "chunk"), ()),
    ],
    ids=lambda value: "-".join(value) or "up",
)
def test_broker_that_keeps_one_kind_of_message_from_somebody_stops_no_round_and_changes_no_sum(
    kinds: tuple[str, ...], targets: tuple[str, ...]
) -> None:
    world = World(4, devices=6, ballots=True)
    kept = 0

    def tap(source: str, target: str, body: bytes) -> bytes | None:
        nonlocal kept
        theirs = target in targets if targets else source in ("device/d-0001", "device/d-0002")
        if theirs and kind_of(body) in kinds:
            kept += 1
            return None
        return body

    world.network.tap = tap
    world.run(2)
    assert kept, "there was nothing to keep back"
    assert [result.number for result in world.results] == [1, 2]
    assert all(result.count >= 4 for result in world.results)
    world.check()


# -- clocks -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skew_ms", [-DAY_MS, DAY_MS])
def test_roles_whose_clock_is_a_day_off_cost_their_own_part_and_nothing_else(skew_ms: int) -> None:
    world = World(4, devices=6, ballots=True)
    for role in ("party/2", "device/d-0001"):
        world.actors[role].skew_ms = skew_ms
    world.run(2)
    assert world.actors["party/2"].refusals["clock-skew"] > 0
    assert [result.number for result in world.results] == [1, 2]
    assert all("d-0001" not in result.survivors and result.count == 5 for result in world.results)
    world.check()


def test_rounds_of_a_coordinator_whose_clock_is_a_day_slow_do_not_begin() -> None:
    world = World(4, devices=4)
    world.actors["coordinator"].skew_ms = -DAY_MS
    world.run()
    assert world.results == [] and world.failure == "votes-too-few"
    assert all(world.actors[f"party/{number}"].refusals["clock-skew"] for number in (1, 2, 3, 4))
