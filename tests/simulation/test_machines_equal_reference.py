"""The straight-line round and the machines do the same work: same randomness in, same bytes out."""

from __future__ import annotations

import pytest

from blindsum.protocol.blobs import read_blob
from blindsum.protocol.params import Committee
from blindsum.protocol.reference import run_round
from blindsum.protocol.ring import packed_size, unpack
from blindsum.testing.world import World

DEVICES = 8
GONE = 3


class Draws:
    """What the devices of a world drew, as the reference asks for it: everybody's key, all self seeds, all cap seeds."""

    def __init__(self, world: World, committee: Committee) -> None:
        drawn = [world.drawn[f"device/{name}"] for name in world.devices]
        few, many = 1 + len(committee.self_subsets), 1 + len(committee.self_subsets) + len(committee.cap_subsets)
        drawn[GONE] = drawn[GONE][:1] + [bytes(32)] * (many - 1)  # it left before it had any seeds
        assert all(len(own) == many for own in drawn)
        parts = ((0, 1), (1, few), (few, many))
        self._left = [secret for start, end in parts for own in drawn for secret in own[start:end]]

    def __call__(self, size: int) -> bytes:
        secret = self._left.pop(0)
        assert len(secret) == size
        return secret


@pytest.mark.parametrize(("f", "suite"), [(1, "aes128-ctr"), (2, "chacha20")])
def test_machines_make_the_bytes_of_the_reference_round(f: int, suite: str) -> None:
    committee = Committee.for_f(f)
    world = World(11, devices=DEVICES, committee=committee, suite=suite)
    world.start()
    world.until("upload")
    world.stop(f"device/{world.devices[GONE]}")
    world.finish()
    world.check()
    survivors = [index for index in range(DEVICES) if index != GONE]
    segments = world.base.segments
    told = run_round(
        segments,
        [unpack(segments, world.truth.get((1, name), bytes(packed_size(segments)))) for name in world.devices],
        survivors,
        committee=committee,
        degree=world.roster.degree,
        manifest=world.view.digest,
        roster=world.roster.digest,
        random=Draws(world, committee),
        suite=suite,
    )
    bodies = world.round.bodies
    assert bodies is not None and sorted(bodies.complete) == survivors
    store = world.actors["coordinator"].store
    for index in survivors:
        assert read_blob(store, bodies.headers[index].body) == told.bodies[index]
    opened = {
        subset: vector for parts in world.round.contents.values() for part in parts for subset, vector in part.vectors
    }
    assert [opened[subset] for subset in range(len(told.openings))] == list(told.openings)
    assert sorted(mine for mine, _, _ in told.edges) == list(world.roster.neighbours(GONE)), (
        "each of these lost an edge"
    )
    assert world.results[0].total == told.total
