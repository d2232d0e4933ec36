"""A newer version goes on with the round that an older one left; what it cannot read it refuses before it does anything."""

from __future__ import annotations

from typing import Any

import pytest

from blindsum.protocol.codec import decode, encode
from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.machines.coordinatorround import CoordinatorState
from blindsum.protocol.machines.partyround import PartyState
from blindsum.runtime.driver import Driver
from blindsum.runtime.topics import Principal, Topics
from blindsum.testing.world import World

LATER = {"coordinator": CoordinatorState, "party/1": PartyState}
"""Fields that a state has got since have a default."""


def without(world: World, role: str, *fields: str) -> None:
    """Take fields out of the row of a role's round, as a version wrote it that did not know them."""
    store = world.actors[role].store
    row = decode(store.get("state/sum"))
    assert all(field in row for field in fields)
    store.rows["state/sum"] = encode({name: value for name, value in row.items() if name not in fields})


@pytest.mark.parametrize("role", LATER)
def test_round_goes_on_with_a_database_that_lacks_what_states_have_got_since(role: str) -> None:
    world = World(3, devices=5, length=5)
    world.start()
    world.until("manifest")
    state = LATER[role]
    later = state.__struct_fields__[len(state.__struct_fields__) - len(state.__struct_defaults__) :]
    row: dict[str, Any] = decode(world.actors[role].store.get("state/sum"))
    without(world, role, *(name for name in later if not row[name]))
    world.crash(role)
    world.finish()
    assert world.phase == "done"
    world.check()


@pytest.mark.parametrize("role", LATER)
def test_database_that_an_older_version_wrote_otherwise_is_refused(role: str) -> None:
    world = World(4, devices=5, length=5)
    world.start()
    world.until("manifest")
    without(world, role, "number")
    actor = world.actors[role]
    before = dict(actor.store.rows)
    topics = Topics("test", Principal("party", "1"))
    driver = Driver(lambda: actor.make(actor.store, 2), actor.store, None, topics)  # type: ignore[arg-type]
    with pytest.raises(BlindsumError, match="database-older"):
        driver.start()
    assert actor.store.rows == before
