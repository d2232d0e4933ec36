"""The rules bite: each checker of the virtual world finds the one thing it is there for."""

from __future__ import annotations

import pytest

from blindsum.protocol.codec import encode_chunk
from blindsum.protocol.errors import Refused
from blindsum.protocol.machines.step import Event, Step
from blindsum.protocol.messages import Header
from blindsum.testing.behaviours import Silent
from blindsum.testing.checkers import (
    CohortKept,
    CountedOnce,
    ExactSums,
    HonestUnblamed,
    OneAnswer,
    OneUpload,
    RoundsForgotten,
    Transcripts,
)
from blindsum.testing.forgery import altered, body_of, hand, proposal
from blindsum.testing.world import World


def played(*checkers: type, **settings: object) -> World:
    world = World(2, devices=4, checkers=checkers, ballots=True, **settings)
    world.run()
    world.settle()
    world.check()
    return world


def test_exact_sums_finds_one_wrong_bit() -> None:
    world = played(ExactSums)
    total = bytearray(world.results[0].total)
    total[3] ^= 1
    world.results[0].total = bytes(total)
    with pytest.raises(AssertionError, match="not the plain ring sum"):
        world.check()


def test_counted_once_finds_a_device_that_is_in_the_sum_twice() -> None:
    world = played(CountedOnce)
    world.results[0].survivors = world.results[0].survivors[1:]
    with pytest.raises(AssertionError, match="twice or not at all"):
        world.check()


def test_one_answer_finds_a_party_that_forgot_its_vote() -> None:
    world = World(2, devices=4, behaviours={"coordinator": Silent("proposal", "certificate")}, checkers=(OneAnswer,))
    world.start()
    world.until("vote")
    world.settle(100)
    world.stop("coordinator")
    backup = world.backup("party/2")
    hand(world, "party/2", proposal(world, range(4)))
    world.restore("party/2", backup)
    with pytest.raises(AssertionError, match="party/2 signs two different votes"):
        hand(world, "party/2", proposal(world, range(3)))


def test_one_answer_finds_a_device_that_forgot_its_upload() -> None:
    world = World(2, devices=4, behaviours={"device/d-0003": Silent("header")}, checkers=(OneAnswer, OneUpload))
    world.start()
    world.until("upload")  # which lasts, since one device is awaited
    backup = world.backup("device/d-0001")
    world.until(lambda: world.happened("uploading", "device/d-0001"))
    world.restore("device/d-0001", backup)
    with pytest.raises(AssertionError, match="device/d-0001 s"):
        world.finish()


def test_one_upload_finds_a_second_vector() -> None:
    world = played(OneUpload)
    other = World(2, devices=4, checkers=(), upload_ms=29_000)
    other.run()
    with pytest.raises(AssertionError, match="more vectors than uploads"):
        for header in other.round.bodies.headers.values():
            rows = other.actors["coordinator"].store.scan(f"blob/{header.body.id.hex()}/")
            for index, (_, data) in enumerate(rows):
                world.checkers[0].sent(world, "device/d-0001", "chunk", encode_chunk(header.body.id, index, data))


def test_cohort_kept_finds_an_opening_below_the_minimum() -> None:
    world = played(CohortKept, dropped_permille=300)
    for name, field in (("opened", "survivors"), ("round-finished", "count")):
        event = Event(name, {"task": "sum", "round": 1, field: 2})
        with pytest.raises(AssertionError, match="opens 2 devices, least is 3"):
            world.checkers[0].stored(world, "party/1", Step(events=(event,)))


def test_honest_unblamed_finds_a_false_word_in_events_and_refusals() -> None:
    world = played(HonestUnblamed)
    for step in (
        Step(events=(Event("fault", {"culprit": "device/d-0001", "code": "edge-false"}),)),
        Step(refused=Refused("second-join", "device/d-0001")),
    ):
        with pytest.raises(AssertionError, match="blames"):
            world.checkers[0].stored(world, "coordinator", step)


def test_transcripts_finds_one_altered_byte() -> None:
    world = played(Transcripts)
    transcript = bytearray(world.results[0].transcript)
    transcript[len(transcript) // 2] ^= 1
    world.results[0].transcript = bytes(transcript)
    with pytest.raises(AssertionError, match="round 1"):
        world.check()


@pytest.mark.parametrize(
    ("role", "row", "match"),
    [
        ("party/1", "state/old", "of a round that is over"),
        ("device/d-0001", "round/sum/1", "of a round that is over"),
        ("party/1", "blob/00/000000", "keeps 2 blobs"),
    ],
)
def test_rounds_forgotten_finds_a_row_that_was_left(role: str, row: str, match: str) -> None:
    world = played(RoundsForgotten)
    world.actors[role].store.rows[row] = b"left"
    with pytest.raises(AssertionError, match=match):
        world.check()


def test_rounds_forgotten_finds_a_seed_that_was_left() -> None:
    world = played(RoundsForgotten)
    world.actors["device/d-0001"].store.rows["spent/other"] = b"x" + world.drawn["device/d-0001"][2]
    with pytest.raises(AssertionError, match="secrets of its own"):
        world.check()


def test_forged_messages_are_genuine() -> None:
    """What the forgeries sign is refused for what it says, never for how it is signed."""
    world = played(ExactSums)
    header = world.round.bodies.raw(0)
    again = world.fleet.resign(header, altered(body_of(header, Header), edges=b""))
    assert again != header and len(again) < len(header)
    assert world.fleet.resign(header, body_of(header, Header)) == header
