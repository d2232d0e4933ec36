"""A party whose database was brought back from a copy notices, refuses, and is back when nothing that it forgot is alive."""

from __future__ import annotations

import pytest

from blindsum.protocol.codec import decode
from blindsum.protocol.machines.memory import hold_ms
from blindsum.protocol.machines.party import PartyMachine
from blindsum.protocol.messages import Certificate, OfferRequest
from blindsum.testing.checkers import CHECKERS
from blindsum.testing.world import World


def forgets(world: World, moment: str) -> None:
    """Put party 2 back to what it knew before the round, while the round goes on."""
    backup = world.backup("party/2")
    world.start()
    if moment == "over":
        world.finish()
        world.settle(20_000)
    else:
        world.until(moment)
        world.settle(30)
    world.restore("party/2", backup)


@pytest.mark.parametrize("moment", ["join", "upload", "vote", "open"])
def test_party_from_an_old_copy_sees_its_own_signature_and_refuses_to_go_on(moment: str) -> None:
    world = World(5, devices=5, checkers=CHECKERS, faulty=["party/2"])
    world.run()
    forgets(world, moment)
    while not world.happened("memory-lost", "party/2"):
        world.step()
        assert world.round.active, "the coordinator repeats what it signed before the round is over"
    assert world.actors["party/2"].refusals["memory-lost"] == 1
    world.finish()
    assert len(world.results) == 2, "the others finish the round"
    assert not world.happened("evidence"), "it has signed nothing twice"
    world.run()
    assert len(world.results) == 3
    assert world.actors["party/2"].refusals["memory-lost"] > 1, "it gives no offer for the next round either"
    world.settle(hold_ms(world.base))
    world.run()
    assert len(world.view.members) == 4 and world.happened("opened", "party/2")[-1].data["round"] == world.number
    world.check()


def test_party_that_sits_out_remembers_it_across_restarts_and_follows_results() -> None:
    world = World(5, devices=4)
    world.run()
    world.settle()
    forgets(world, "upload")
    while not world.happened("memory-lost", "party/2"):
        world.step()
    world.crash("party/2")
    world.finish()
    world.settle()
    assert [event.data["round"] for event in world.happened("followed", "party/2")] == [1, 2]
    world.run()
    assert not world.view.member(2)
    world.check()


def test_coordinator_that_asks_again_for_a_forgotten_round_gets_no_second_offer() -> None:
    """Without being shown a signature of its own, once its host has told it that it forgot."""
    world = World(5, devices=4, faulty=["party/2"])
    world.run()
    forgets(world, "over")
    actor = world.actors["party/2"]
    assert isinstance(actor.machine, PartyMachine)
    world.apply(actor, actor.machine.forget(world.now))
    request = world.forge("offer-request", "coordinator", "party/2", OfferRequest(task=world.task_raw))
    step = world.give("party/2", request)
    assert step.refused is not None and step.refused.code == "memory-lost" and not step.messages
    world.settle(hold_ms(world.base))
    assert not world.give("party/2", request).refused, "by now that round has expired at every party"


def test_what_a_party_remembers_or_never_signed_is_no_sign_of_forgetting() -> None:
    """Restarts at any time, late and repeated messages, rounds it took no part in: none of it."""
    world = World(5, devices=5)
    world.run()
    world.start()
    world.stop("party/2")
    world.until("upload")
    world.crash("party/2")
    world.finish()
    for _ in range(2):
        world.start()
        for moment in ("join", "upload", "vote"):
            world.until(moment)
            world.crash("party/2")
        world.finish()
    assert not world.happened("memory-lost")
    world.check()


def test_signature_of_another_task_round_or_party_is_no_sign_of_forgetting() -> None:
    world = World(5, devices=4, faulty=["coordinator", "party/2"], checkers=())
    world.run()
    old = world.round.state
    votes = [*old.set_votes.values(), *old.manifest_votes.values()]
    forged = Certificate(proposal=old.proposal, votes=votes)
    raw = world.forge("certificate", "coordinator", "parties", forged, number=9)
    assert world.give("party/2", raw).refused.code == "round-stale"
    assert not world.happened("memory-lost")


def test_party_that_lost_everything_takes_note_of_each_round_it_had_forgotten() -> None:
    """It does not even know the task any more. What it sees later does not lengthen the wait."""
    world = World(5, devices=4)
    empty = world.backup("party/2")
    world.run()
    first = world.round.state.announcement
    world.run()
    world.stop("coordinator")
    world.restore("party/2", empty)
    actor = world.actors["party/2"]
    for raw, number in ((first, 1), (world.round.state.announcement, 2)):
        world.settle(1_000)
        refused = world.give("party/2", raw).refused
        assert refused is not None and refused.code == "memory-lost"
        assert world.give("party/2", raw).refused.code == "task-unknown", "said once"
        assert decode(actor.store.rows[f"last/{world.task}"]) == number
    world.crash("coordinator")
    world.run()
    assert not world.view.member(2)
