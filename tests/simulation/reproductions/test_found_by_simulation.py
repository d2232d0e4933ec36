"""Bugs that simulation found, in their shortest form. (Others stand among the attacks, where their rule is.)"""

from __future__ import annotations

import pytest

from blindsum.protocol.envelope import open_envelope, peek
from blindsum.protocol.keys import box_seal
from blindsum.protocol.machines.device import DeviceMachine, Floor
from blindsum.protocol.messages import Failure
from blindsum.testing.behaviours import Silent
from blindsum.testing.entropy import Entropy
from blindsum.testing.world import World


def blobs(world: World, name: str) -> set[str]:
    return {key.split("/")[1] for key in world.actors[name].store.rows if key.startswith("blob/")}


def test_party_that_restarts_while_it_fetches_keeps_nothing_of_the_round() -> None:
    """It had forgotten which blobs an earlier life had begun to fetch, and kept their chunks for ever."""
    world = World(1, devices=6)
    world.start()
    world.until("roster")
    world.until(lambda: len(blobs(world, "party/1")) > 1)
    world.crash("party/1")
    world.finish()
    world.settle()
    assert len(blobs(world, "party/1")) == 1, "the current model"
    world.check()


def test_opening_that_arrives_after_the_result_is_no_part_of_the_transcript() -> None:
    """It was written into the transcript, which then did not fit the result any more."""
    late: list[bytes] = []

    def broker(source: str, target: str, body: bytes) -> bytes | None:
        if (source, target) == ("party/2", "coordinator") and not peek(body) and world.phase == "open":
            late.append(body)
            return None
        return body

    world = World(1, devices=4)
    world.network.tap = broker
    world.run()
    assert world.phase == "done" and late
    for body in late:
        world.give("coordinator", body)
    world.check()


def test_coordinator_that_restarts_after_a_failed_opening_clears_its_chunks() -> None:
    world = World(1, devices=4, behaviours={"party/1": Silent("opening"), "party/2": Silent("opening")})
    cut = False

    def broker(source: str, target: str, body: bytes) -> bytes | None:
        nonlocal cut
        if source in ("party/3", "party/4") and target == "coordinator" and not peek(body):
            cut, dropped = True, cut
            return None if dropped else body
        return body

    world.network.tap = broker
    world.run()
    assert world.failure == "openings-too-few" and cut
    world.crash("coordinator")
    world.network.tap = None
    world.start()
    world.settle(50)
    kept = blobs(world, "coordinator")
    bodies = {header.body.id.hex() for _, header in (world.round.bodies.headers.values() if world.round.bodies else ())}
    assert len(kept - bodies) <= 5, "plan, model, and the joins, entries and survivors of the round under way"


def test_device_that_leaves_one_task_keeps_what_another_task_shares_with_it() -> None:
    """Two tasks began from the same model. Leaving the round of one deleted the model that the other was waiting for."""
    other = World(31, devices=3, name="another")
    other.start()
    other.until("join")
    world = World(31, devices=3, join_ms=10_000)
    assert world.model == other.model and world.fleet.trust == other.fleet.trust
    name = "device/d-0000"
    actor = world.actors[name]
    actor.machine = DeviceMachine(
        identity=world.fleet.devices[0],
        trust=world.fleet.trust,
        tasks=frozenset({"sum", "another"}),
        store=actor.store,
        random=Entropy(31, "both"),
        seal=box_seal,
        floor=Floor(),
        willing=lambda view: "",
    )
    world.start()
    world.until("join")
    world.give(name, other.round.state.announcement)
    world.give(name, world.round.state.announcement)
    world.until("upload")
    world.give(name, world.round.state.roster)
    failed = other.forge("failure", "coordinator", "all", Failure(manifest=other.view.digest, code="deadline"))
    world.give(name, failed)
    world.finish()
    assert "d-0000" in world.results[0].survivors


@pytest.mark.parametrize("away", [2, 5])
def test_party_that_missed_many_rounds_catches_up_in_one(away: int) -> None:
    """It followed one result a round, and so was for ever one behind: with two such parties no manifest had a quorum."""
    world = World(1, devices=4)
    for _ in range(away):
        world.start()
        world.stop("party/3")
        world.finish()
    world.run()
    world.settle()
    followed = [event.data["round"] for event in world.happened("followed", "party/3")]
    assert followed == list(range(1, away + 2))
    world.check()


def test_two_parties_that_missed_rounds_one_after_the_other_stop_nothing() -> None:
    world = World(1, devices=4)
    for absent in ("party/1", "party/1", "party/2", "party/2", "party/3", "party/3"):
        world.start()
        world.stop(absent)
        world.finish()
        assert world.phase == "done", world.failure
    votes = [open_envelope(raw).head.sender for raw in world.round.state.manifest_votes.values()]
    assert len(votes) == 3
    world.check()
