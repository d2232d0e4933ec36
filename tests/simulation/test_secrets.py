"""What somebody reads who gets hold of a role's database, or of everything the broker carried."""

from __future__ import annotations

import numpy as np
import pytest

from blindsum.protocol.codec import decode
from blindsum.protocol.keys import BOX_PRIVATE_SIZE
from blindsum.protocol.params import Committee
from blindsum.testing.behaviours import Silent
from blindsum.testing.checkers import CHECKERS, Unreadable
from blindsum.testing.world import World


def party_names(world: World) -> list[str]:
    return [name for name in world.actors if name.startswith("party/")]


def device_secrets(world: World) -> list[bytes]:
    """Everything the devices have drawn: keys of the round and seeds of both layers."""
    return [secret for device in world.devices for secret in world.drawn[f"device/{device}"]]


@pytest.mark.parametrize("f", [1, 2])
def test_party_holds_seeds_until_it_opens_and_none_afterwards(f: int) -> None:
    world = World(13, devices=5, committee=Committee.for_f(f))
    world.start()
    world.until("vote")
    world.settle(10)
    holding = [name for name in party_names(world) if any(map(world.actors[name].store.holds, device_secrets(world)))]
    assert holding == party_names(world), "before the opening every party holds seeds: the search can find them"
    world.finish()
    for name in party_names(world):
        assert world.happened("opened", name)
        store = world.actors[name].store
        assert not any(store.holds(secret) for secret in device_secrets(world)), name
        mine = world.drawn[name]
        assert {len(secret) for secret in mine} == {32, BOX_PRIVATE_SIZE}
        boxes = [secret for secret in mine if len(secret) == BOX_PRIVATE_SIZE]
        assert not any(store.holds(secret[:32]) or store.holds(secret[64:]) for secret in boxes), name
    world.check()


def test_f_parties_never_hold_all_seeds_of_a_device() -> None:
    """Before the opening, from any one database, one self-mask seed of each device is missing."""
    world = World(13, devices=5)
    world.start()
    world.until("vote")
    world.settle(10)
    subsets = world.base.self_subsets
    for party in (1, 2, 3, 4):
        store = world.actors[f"party/{party}"].store
        for index, device in enumerate(world.roster.devices):
            seeds = world.drawn[f"device/{device}"][1 : 1 + len(subsets)]
            held = [subset for subset, seed in enumerate(seeds) if store.holds(seed)]
            assert held == [subset for subset, outside in enumerate(subsets) if party not in outside]
            row = decode(store.rows[f"round/{world.task}/header/{index:06d}"])
            assert sorted(row[2].values()) == sorted(seeds[subset] for subset in held)
    world.finish()


@pytest.mark.parametrize("ending", ["result", "failure", "expiry", "superseded"])
def test_round_leaves_no_secret_however_it_ends(ending: str) -> None:
    behaviours = {"coordinator": Silent("proposal", "failure")} if ending in ("expiry", "superseded") else {}
    if ending == "failure":
        behaviours = {"coordinator": Silent("proposal")}
    world = World(13, devices=5, behaviours=behaviours)
    world.start()
    world.until("vote")
    assert any(world.actors["party/2"].store.holds(secret) for secret in device_secrets(world))
    secrets = device_secrets(world)
    if ending == "superseded":
        world.finish()
        world.start()
        world.settle(200)
    else:
        world.finish()
        if ending == "expiry":
            world.settle(world.view.manifest.expires_at - world.now + 1)
        world.settle(1_000)
    why = {event.data["why"] for event in world.happened("round-over")}
    assert why == {{"result": "finished", "failure": "votes-too-few", "expiry": "expired"}.get(ending, ending)}
    for name, actor in world.actors.items():
        assert not any(actor.store.holds(secret) for secret in secrets), name


def test_device_erases_its_key_when_it_has_uploaded() -> None:
    world = World(13, devices=4)
    world.start()
    world.until("upload")
    world.until(lambda: world.happened("uploading", "device/d-0000"))
    assert decode(world.actors["device/d-0000"].store.rows[f"state/{world.task}"])["key"] == b""
    store = world.actors["device/d-0000"].store
    assert not any(store.holds(secret) for secret in world.drawn["device/d-0000"])
    world.finish()
    world.check()


@pytest.mark.parametrize(("width", "suite"), [(24, "aes128-ctr"), (64, "chacha20")])
def test_neither_traffic_nor_any_database_but_its_own_shows_a_devices_vector(width: int, suite: str) -> None:
    """All messages and chunks on the wire, all rows ever stored by parties and coordinator, over two rounds with a dropout."""
    world = World(
        13,
        devices=5,
        behaviours={"device/d-0003": Silent("chunk")},
        checkers=(*CHECKERS, Unreadable),
        width=width,
        suite=suite,
        statistics=3,
    )
    world.run(2)
    assert len(world.truth) == 10, "the search knew what to look for"
    world.check()


def test_coordinate_that_one_device_alone_touches_stands_in_the_sum_as_it_is() -> None:
    """The stated limit: a sum hides nobody where everybody else adds zero."""

    def update(device: str, number: int) -> np.ndarray:
        values = np.zeros(50, np.float32)
        if device == "d-0002":
            values[[7, 30]] = 0.25, -0.125
        return values

    world = World(13, devices=6, updates=update)
    world.run()
    size = world.base.segments[0].packed_size
    assert world.results[0].count == 6
    assert world.results[0].total[:size] == world.truth[1, "d-0002"][:size] != bytes(size)
    world.check()


def test_the_search_for_vectors_would_find_one() -> None:
    """The checker sees the plain vector where a device really publishes it."""
    world = World(13, devices=4, checkers=(Unreadable,))
    world.run()
    packed = next(iter(world.truth.values()))
    with pytest.raises(AssertionError, match="shows the update"):
        world.checkers[0].sent(world, "device/d-0000", "chunk", b"head" + packed)
