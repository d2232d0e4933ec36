"""A device whose certificate was taken back: the coordinator refuses its join, and parties a roster that names it."""

from __future__ import annotations

import pytest

from blindsum.protocol.machines.coordinator import CoordinatorMachine
from blindsum.protocol.machines.party import PartyFloor, PartyMachine
from blindsum.protocol.revocation import certificate_serial, revocations_issue
from blindsum.testing.world import World

REVOKED = "d-0002"


def revocations(world: World, *devices: str, number: int = 1) -> bytes:
    serials = {
        certificate_serial(identity.certificate): world.now
        for identity in world.fleet.devices
        if identity.name in devices
    }
    fleet = world.fleet
    return revocations_issue(issuer="test", issuer_key=fleet.ca, number=number, revoked=serials, now=world.now)


def tell(world: World, roles: list[str], raw: bytes) -> None:
    for role in roles:
        actor = world.actors[role]
        assert isinstance(actor.machine, PartyMachine | CoordinatorMachine)
        world.apply(actor, actor.machine.revoke(raw), faulty=False)


def test_revoked_device_is_refused_counted_told_and_not_in_the_sum() -> None:
    world = World(6, devices=5)
    world.run()
    assert REVOKED in world.results[0].survivors
    tell(world, ["coordinator", *(f"party/{number}" for number in (1, 2, 3, 4))], revocations(world, REVOKED))
    for role in ("coordinator", "party/1"):
        world.crash(role)
    world.run()
    assert world.results[1].survivors == tuple(name for name in world.devices if name != REVOKED)
    assert world.actors["coordinator"].refusals["certificate-revoked"] >= 1
    assert world.happened("round-abandoned", f"device/{REVOKED}")[-1].data["code"] == "certificate-revoked"
    world.check()


def test_device_that_joined_before_it_was_revoked_is_taken_out_of_the_round() -> None:
    world = World(6, devices=5, devices_max=9, join_ms=10_000)
    world.start()
    world.until(lambda: REVOKED in world.round.joins)
    tell(world, ["party/1", "party/2", "party/3", "party/4", "coordinator"], revocations(world, REVOKED))
    world.finish()
    assert world.results[0].survivors == tuple(name for name in world.devices if name != REVOKED)
    world.check()


@pytest.mark.parametrize("knowing", [1, 2])
def test_coordinator_that_hides_a_list_gets_no_vote_of_a_party_that_has_it(knowing: int) -> None:
    """One party of four cannot stop a round; where f + 1 know, no roster with the device has a quorum."""
    world = World(6, devices=5, faulty=["coordinator"])
    told = [f"party/{number}" for number in range(1, knowing + 1)]
    tell(world, told, revocations(world, REVOKED))
    world.run()
    for name in told:
        assert world.actors[name].refusals["certificate-revoked"] >= 1
        assert not world.happened("opened", name)
    assert len(world.results) == (1 if knowing == 1 else 0)
    if knowing == 2:
        assert world.failure == "votes-too-few"


def test_list_has_no_say_over_a_round_whose_roster_is_settled() -> None:
    """Everybody came to one verdict when the roster was voted on; a restart does not look again."""
    world = World(6, devices=5)
    world.start()
    world.until("upload")
    tell(world, ["coordinator", "party/1", "party/2"], revocations(world, REVOKED))
    for role in ("coordinator", "party/1", "party/2"):
        world.crash(role)
    world.finish()
    assert REVOKED in world.results[0].survivors
    world.check()


def test_party_may_insist_that_a_task_reckons_with_sybils() -> None:
    """Whoever enrols can enrol accomplices. A party's floor is the share of them that a task must allow for."""
    world = World(6, devices=5, corrupt_permille=100)
    floor = PartyFloor(corrupt_permille=101)
    for number in (1, 2):
        machine = world.actors[f"party/{number}"].machine
        assert isinstance(machine, PartyMachine)
        machine._floor = floor
    world.run()
    assert world.failure == "offers-too-few"
    assert world.actors["party/1"].refusals["policy-floor"] >= 1
    assert PartyFloor(corrupt_permille=100).corrupt_permille <= world.base.threat.corrupt_permille
