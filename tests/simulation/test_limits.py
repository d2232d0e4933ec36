"""Each bound on what a peer can make a role keep or reckon is reached, and what goes beyond it is refused and counted.

The table in docs/THREAT-MODEL.md names the bound, its code and its test.
"""

from __future__ import annotations

import os

import pytest

from blindsum.protocol import envelope
from blindsum.protocol.envelope import Head
from blindsum.protocol.machines import inbox, intake, party
from blindsum.protocol.machines.allowance import FRUITLESS_BURST, FRUITLESS_PER_S, SENDERS_MAX, Allowance, Shares
from blindsum.protocol.messages import (
    MESSAGES,
    Ask,
    BlobRef,
    Candidate,
    Check,
    Join,
    OfferRequest,
    Opening,
    Proposal,
    Result,
    RosterProposal,
    chunks_of,
)
from blindsum.protocol.roster import joins_size_max, survivors_size_max
from blindsum.protocol.view import opening_size_max
from blindsum.testing.behaviours import Silent
from blindsum.testing.fleet import make_task
from blindsum.testing.forgery import altered, body_of, proposal
from blindsum.testing.world import World


def refused(world: World, role: str, body: bytes) -> str:
    """The code that a role refuses a message with, as its counters show it; "" where it takes it."""
    before = world.actors[role].refusals.copy()
    world.give(role, body)
    (code, *_) = (*(world.actors[role].refusals - before), "")
    return code


def blob_of(size: int) -> BlobRef:
    """A reference to so many bytes that nobody has."""
    chunk = 1024
    while size > 1024 * chunk:
        chunk *= 2
    return BlobRef(size=size, chunk_size=chunk, digests=os.urandom(32 * -(-size // chunk)))


def stopped_at(phase: str, **settings: object) -> World:
    """A round that goes no further, for its coordinator is in the hands of the test."""
    world = World(5, devices=4, faulty=["coordinator", "party/2"], checkers=(), **settings)
    world.start()
    world.until(phase)
    world.settle(50)
    return world


# -- the coordinator, against devices and parties -----------------------------------------------------------------------


def test_joins_beyond_the_rate_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "JOINS_PER_S", 5)
    world = stopped_at("join", devices_max=9, join_ms=60_000)
    raw, _ = world.round.joins["d-0001"]
    false = world.fleet.resign(raw, altered(body_of(raw, Join), certificate=b"\x30\x00"))
    codes = [refused(world, "coordinator", false) for _ in range(40)]
    assert set(codes) == {"certificate-invalid", "joins-too-many"}
    assert codes.index("joins-too-many") <= 9 + 5 and codes[-1] == "joins-too-many"
    world.settle(2_000)
    assert refused(world, "coordinator", false) == "certificate-invalid", "so many a second"


def test_allowance_refills_to_its_burst_and_no_further_whatever_the_clock_does() -> None:
    bucket = Allowance(burst=3, per_s=2, now=0)
    assert [bucket.take(0) for _ in range(4)] == [True, True, True, False]
    assert not bucket.take(499) and bucket.take(500) and not bucket.take(500)
    assert not bucket.take(-10_000), "a clock set back gives nothing"
    assert [bucket.take(1_000_000) for _ in range(4)] == [True, True, True, False]


def test_cohort_is_full_at_devices_max() -> None:
    world = World(5, devices=4, devices_max=3, checkers=())
    world.run()
    assert world.results[0].count == 3
    assert world.actors["coordinator"].refusals["joining-closed"] + world.actors["coordinator"].refusals["cohort-full"]


def test_party_that_asks_for_headers_again_and_again_is_refused() -> None:
    world = stopped_at("check")
    blob = os.urandom(32)
    every = Check(survivors=blob, missing=[index for index in range(4) for _ in range(1_000)], bad=[])
    body = world.forge("check", "party/2", "coordinator", every)
    first = world.give("coordinator", body)
    assert sum(out.kind == "header" for out in first.messages if hasattr(out, "kind")) == 4, (
        "each once, however often named"
    )
    codes = [refused(world, "coordinator", body) for _ in range(intake.RELAYS_MAX)]
    assert codes == [""] * (intake.RELAYS_MAX - 1) + ["relays-too-many"]


@pytest.mark.parametrize("role", ["coordinator", "party/1"])
def test_sender_whose_messages_come_to_nothing_is_looked_at_so_often_and_nobody_else_pays(role: str) -> None:
    world = stopped_at("upload", upload_ms=600_000)

    def header(device: str) -> bytes:
        return world.fleet.forge(
            "header", device, "all", Ask(blob=os.urandom(32), have=b"", window=1), task="sum", number=1
        )

    codes = [refused(world, role, header("device/d-0001")) for _ in range(2 * FRUITLESS_BURST)]
    assert "sender-over-share" not in codes[:FRUITLESS_BURST] and codes[-1] == "sender-over-share"
    assert refused(world, role, header("device/d-0002")) == codes[0] != "sender-over-share"
    world.settle(1_000)
    again = [refused(world, role, header("device/d-0001")) for _ in range(2 * FRUITLESS_PER_S)]
    assert again[0] == codes[0] and again[-1] == "sender-over-share"


def test_message_that_was_taken_is_answered_again_after_a_while_and_not_at_once() -> None:
    world = stopped_at("join", devices_max=9, join_ms=60_000)
    raw, _ = world.round.joins["d-0001"]
    world.settle(intake.AGAIN_MS)
    answers = [world.give("coordinator", raw) for _ in range(5)]
    assert [len(step.messages) for step in answers] == [1, 0, 0, 0, 0]
    assert [step.refused and step.refused.code for step in answers] == [None, *["message-repeated"] * 4]
    world.settle(intake.AGAIN_MS)
    assert len(world.give("coordinator", raw).messages) == 1


def test_device_is_sent_what_it_asks_for_so_often_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "RELAYS_MAX", 3)
    world = stopped_at("upload", upload_ms=600_000)
    blob = world.base.task.model.id
    ask = world.forge("ask", "device/d-0001", "coordinator", Ask(blob=blob, have=b"", window=4))
    codes = [refused(world, "coordinator", ask) for _ in range(200)]
    assert codes[0] == "" and codes[-1] == "relays-too-many"


def test_devices_of_another_version_are_told_so_often_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    world = stopped_at("join", devices_max=9, join_ms=60_000)
    monkeypatch.setattr(envelope, "PROTOCOL_VERSION", envelope.PROTOCOL_VERSION + 1)
    head = Head(type="join", fleet=world.fleet.trust.fleet, task="sum", round=1, sender="device/x", to="coordinator")
    foreign = envelope.seal_envelope(world.fleet.coordinator, head, {})
    monkeypatch.undo()
    steps = [world.give("coordinator", foreign) for _ in range(25 * intake.UPGRADES_PER_S)]
    assert {step.refused and step.refused.code for step in steps} == {"upgrade-required"}
    assert sum(len(step.messages) for step in steps) == 20 * intake.UPGRADES_PER_S


def test_senders_that_are_counted_are_bounded_and_the_latest_stay() -> None:
    shares = Shares(burst=1, per_s=1)
    for number in range(SENDERS_MAX + 1):
        shares.charge(f"device/{number}", 0)
    assert shares.left("device/0", 0) and not shares.left("device/1", 0) and not shares.left(f"device/{SENDERS_MAX}", 0)


def test_opening_larger_than_any_is_refused() -> None:
    world = World(5, devices=4, faulty=["party/2"], behaviours={"party/2": Silent("opening")}, checkers=())
    world.start()
    world.until("open")
    limit = 2 * opening_size_max(world.base)
    named = proposal(world, range(4)).digest

    def opening(size: int) -> bytes:
        payload = Opening(proposal=named, part=0, content=blob_of(size), plain=bytes(32))
        return world.forge("opening", "party/2", "coordinator", payload)

    assert refused(world, "coordinator", opening(limit + 1)) == "opening-malformed"
    assert refused(world, "coordinator", opening(limit)) == ""
    assert refused(world, "coordinator", opening(limit - 1)) == "second-opening", "one of a part is kept"


# -- parties, against the coordinator ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["candidate", "proposal"])
def test_party_fetches_no_more_survivor_sets_than_its_limit(kind: str) -> None:
    world = stopped_at("upload")
    made = Candidate if kind == "candidate" else Proposal
    codes = []
    for _ in range(inbox.BLOBS_MAX + 1):
        payload = made(roster=world.roster.digest, survivors=blob_of(100))
        codes.append(refused(world, "party/1", world.forge(kind, "coordinator", "parties", payload)))
    assert codes[0] == "" and codes[-1] == "blobs-too-many"
    rows = {key.split("/")[1] for key in world.actors["party/1"].store.rows if key.startswith("blob/")}
    assert len(rows) <= inbox.BLOBS_MAX
    honest = proposal(world, range(4)) if kind == "proposal" else None
    if honest is not None:
        assert refused(world, "party/1", honest.body) == "blobs-too-many", (
            "its own doing: the round fails, and the next is clean"
        )


def test_survivor_set_larger_than_the_roster_is_not_fetched() -> None:
    world = stopped_at("upload")
    limit = survivors_size_max(world.roster.size)
    for size, code in ((limit + 1, "survivors-malformed"), (limit, "")):
        payload = Proposal(roster=world.roster.digest, survivors=blob_of(size))
        assert refused(world, "party/1", world.forge("proposal", "coordinator", "parties", payload)) == code


def roster_of(world: World, size: int) -> bytes:
    entries, _ = chunks_of(b"entries", world.base.chunk_size)
    payload = RosterProposal(manifest=world.view.digest, joins=blob_of(size), entries=entries)
    return world.forge("roster-proposal", "coordinator", "parties", payload)


def test_joins_larger_than_the_task_allows_are_not_fetched() -> None:
    world = stopped_at("join", devices_max=9, join_ms=60_000)
    limit = joins_size_max(world.base)
    assert limit >= 9 * MESSAGES["join"][2]
    assert refused(world, "party/1", roster_of(world, limit + 1)) == "roster-malformed"
    assert refused(world, "party/1", roster_of(world, limit)) == ""


def test_party_fetches_no_more_rosters_than_its_limit() -> None:
    world = stopped_at("join", devices_max=9, join_ms=60_000)
    codes = [refused(world, "party/1", roster_of(world, 1_000)) for _ in range(inbox.BLOBS_MAX + 1)]
    assert codes[0] == "" and codes[-1] == "blobs-too-many"


def test_sum_of_another_size_is_not_fetched() -> None:
    world = World(5, devices=4, faulty=["coordinator"], checkers=())
    world.network.tap = lambda source, target, body: None if target == "party/1" and world.phase == "done" else body
    world.run()
    result = body_of(world.round.state.result, Result)
    false = world.fleet.resign(world.round.state.result, altered(result, sum=blob_of(result.sum.size + 1)))
    assert refused(world, "party/1", false) == "message-malformed"
    assert refused(world, "party/1", world.round.state.result) == ""


def test_party_takes_part_in_so_many_tasks_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(party, "TASKS_MAX", 2)
    world = World(5, devices=4)
    world.run()
    codes = []
    for name in ("second", "third"):
        raw, _, _ = make_task(world.fleet, name=name, committee=world.committee, devices_max=4)
        request = world.fleet.forge(
            "offer-request", "coordinator", "party/1", OfferRequest(task=raw), task=name, number=1
        )
        codes.append(refused(world, "party/1", request))
    assert codes == ["", "tasks-too-many"]


def test_devices_and_parties_refuse_what_no_message_may_be() -> None:
    """The sizes of section 5 of the specification, type by type, before anything is parsed or verified."""
    world = World(5, devices=4)
    for kind, (_, _, limit) in MESSAGES.items():
        sender = {"task": "operator", "join": "device/d-0001", "header": "device/d-0001"}.get(kind, "coordinator")
        body = world.fleet.forge(
            kind, sender, "all", Join(manifest=bytes(limit), certificate=b"", key=b""), task="sum", number=1
        )
        for role in ("coordinator", "party/1", "device/d-0000"):
            assert refused(world, role, body) == "message-too-large", kind
