"""An upload that breaks off goes on where it was: after a crash a device sends the chunks that are missing, and no others."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blindsum.protocol.blobs import bits
from blindsum.protocol.machines.device import DeviceMachine
from blindsum.protocol.machines.step import ChunkOut
from blindsum.protocol.messages import Ask
from blindsum.testing.world import World

DEVICE = "device/d-0001"


def uploading(world: World) -> DeviceMachine:
    machine = world.actors[DEVICE].machine
    assert isinstance(machine, DeviceMachine)
    return machine


@pytest.fixture(scope="module")
def world() -> World:
    world = World(3, devices=4, length=5_000, faulty=("coordinator",))
    world.start()
    world.until(lambda: uploading(world).phase("sum") == "uploading")
    return world


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_device_that_was_killed_sends_what_is_missing_and_nothing_else(world: World, data: st.DataObject) -> None:
    body = uploading(world)._rounds["sum"].body
    assert body is not None and body.count == 15
    have = data.draw(st.sets(st.integers(0, body.count - 1)))
    window = data.draw(st.integers(1, 64))
    world.crash(DEVICE)
    ask = world.forge("ask", "coordinator", DEVICE, Ask(blob=body.id, have=bits(have, body.count), window=window))
    sent = [out.index for out in world.give(DEVICE, ask).messages if isinstance(out, ChunkOut)]
    assert sent == sorted(set(range(body.count)) - have)[:window]
