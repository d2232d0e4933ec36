"""What a role shows of its secrets besides the protocol: in memory, in print, in pickles, in sizes and counts."""

from __future__ import annotations

import gc
import pickle
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import pytest

from blindsum.protocol.envelope import peek
from blindsum.protocol.keys import BOX_PRIVATE_SIZE, SEED_SIZE
from blindsum.protocol.machines.step import Machine
from blindsum.protocol.secret import Secret
from blindsum.testing.store import DictStore
from blindsum.testing.world import World


def reachable(start: object) -> list[Any]:
    """Everything that a machine refers to, but for its store, the world's own records, classes, functions and modules."""
    seen: dict[int, Any] = {}
    frontier = [start]
    while frontier:
        thing = frontier.pop()
        if id(thing) in seen or isinstance(thing, DictStore | World | type | FunctionType | ModuleType):
            continue
        if type(thing).__module__.startswith("blindsum.testing"):
            continue
        seen[id(thing)] = thing
        frontier += gc.get_referents(thing)
    return list(seen.values())


def held(machine: Machine, secrets: list[bytes]) -> set[bytes]:
    """The secrets that lie in the memory of a machine."""
    found = b"\0".join(thing for thing in reachable(machine) if isinstance(thing, bytes | bytearray))
    return {secret for secret in secrets if secret in found}


def secrets_of(world: World) -> dict[str, list[bytes]]:
    """All that roles drew and that is secret, whole: keys, seeds, box keys. (Beacons are revealed, rotations are public.)"""
    devices = [draw for device in world.devices for draw in world.drawn[f"device/{device}"] if len(draw) >= SEED_SIZE]
    boxes = [
        draw
        for party in range(1, world.committee.parties + 1)
        for draw in world.drawn[f"party/{party}"]
        if len(draw) == BOX_PRIVATE_SIZE
    ]
    return {"device": devices, "party": boxes}


def before_the_opening(**settings: Any) -> World:
    world = World(9, devices=4, **settings)
    world.start()
    world.until("vote")
    world.settle(10)
    return world


def test_machines_drop_every_secret_of_a_round_when_it_is_opened_or_uploaded() -> None:
    world = before_the_opening()
    secrets = secrets_of(world)
    everything = secrets["device"] + secrets["party"]
    assert held(world.actors["party/1"].machine, secrets["device"]), "the search finds seeds where they are"
    assert held(world.actors["party/1"].machine, secrets["party"]), "and a box key"
    for device in world.devices:
        assert not held(world.actors[f"device/{device}"].machine, everything), "it has uploaded"
    world.finish()
    world.settle()
    gc.collect()
    for name, actor in world.actors.items():
        assert not held(actor.machine, everything), name
    world.check()


def printed(thing: object) -> Iterator[str]:
    yield repr(thing)
    yield str(thing)
    yield f"{thing}"


def test_nothing_of_ours_that_holds_a_secret_prints_it_or_is_pickled() -> None:
    world = before_the_opening()
    secrets = [secret for kind in secrets_of(world).values() for secret in kind]
    holders = set()
    for name in ("party/2", "device/d-0001", "coordinator"):
        for thing in reachable(world.actors[name].machine):
            if not type(thing).__module__.startswith("blindsum.protocol"):
                continue
            for text in printed(thing):
                assert not any(repr(secret)[2:-1] in text or secret.hex() in text for secret in secrets), type(thing)
            try:
                data = pickle.dumps(thing)
            except Exception:
                holders.add(type(thing).__name__)
                continue
            assert not any(secret in data for secret in secrets), type(thing)
    assert {
        "PartyState",
        "HeaderRow",
        "Seeds",
        "PartyRound",
        "PartyMachine",
        "DeviceIdentity",
        "DeviceMachine",
    } <= holders


def test_record_of_secrets_says_that_it_is_not_pickled() -> None:
    world = before_the_opening()
    records = [thing for thing in reachable(world.actors["party/2"].machine) if isinstance(thing, Secret)]
    assert len({type(record) for record in records}) >= 4
    for record in records:
        assert repr(record) == f"{type(record).__name__}(secret)"
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            with pytest.raises(TypeError, match="holds secrets"):
                pickle.dumps(record, protocol)


def traffic(scale: float) -> list[tuple[str, str, int, bool]]:
    """(from, to, size, signed or chunk) of every message in two rounds in which devices' updates are of a size."""

    def update(device: str, number: int) -> np.ndarray:
        dice = np.random.default_rng([len(device), number, int(scale * 1000)])
        values = dice.normal(0, 1, 200).astype(np.float32) * np.float32(scale)
        values[::3] = 0
        return values

    world = World(9, devices=5, updates=update, length=200, statistics=2)
    seen: list[tuple[str, str, int, bool]] = []

    def tap(source: str, target: str, body: bytes) -> bytes:
        seen.append((source, target, len(body), peek(body)))
        return body

    world.network.tap = tap
    world.run(2)
    return seen


def test_sizes_counts_and_order_of_messages_are_the_same_whatever_the_data() -> None:
    """Zeros, small updates, and ones far above the clip norm."""
    silent = traffic(0.0)
    assert len(silent) > 200
    assert silent == traffic(0.01) == traffic(1e6)
