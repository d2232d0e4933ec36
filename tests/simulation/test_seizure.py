"""Forward secrecy: whoever seizes the files of parties after a round learns nothing of it, whatever traffic he recorded.

Each party writes what the virtual world stores and sends to a real SQLite file as well. The seizure is of bytes: the database with
its free pages, the write-ahead log, the anchor, and the kit's keys, of all parties at once, with the coordinator's box key. The
view checker, which is told that each party holds every 32-byte string that lies anywhere in its files, says what follows.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from blindsum.protocol.keys import BOX_PRIVATE_SIZE, SEED_SIZE
from blindsum.protocol.machines.step import Step
from blindsum.runtime.sqlite import SqliteStore
from blindsum.testing.checkers import Checker, OnlySums
from blindsum.testing.closure import Round, rounds
from blindsum.testing.elimination import MODULUS
from blindsum.testing.world import World

PARTIES = (1, 2, 3, 4)


class OnDisk(Checker):
    """Keeps the rows and the outbox of each party in SQLite files too, as its driver would."""

    folder: Path

    def __init__(self) -> None:
        self.stores: dict[str, SqliteStore] = {}

    def stored(self, world: World, role: str, step: Step) -> None:
        if not role.startswith("party/"):
            return
        place = self.folder / role.replace("/", "-")
        if role not in self.stores:
            place.mkdir()
            self.stores[role] = SqliteStore(place / "party.db", anchor=place / "party.anchor")
        store = self.stores[role]
        store.commit(step.writes, step.messages)
        store.sent([row.seq for row in store.outbox(limit=1_000)])


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(OnDisk, "folder", tmp_path, raising=False)
    return World(8, devices=4, checkers=(OnlySums, OnDisk), length=16)


def seize(world: World, tmp_path: Path) -> dict[str, bytes]:
    """Every byte that lies on the disks of the parties, by party."""
    out = {}
    for number in PARTIES:
        key = world.fleet.parties[number - 1].private_bytes(
            serialization.Encoding.Raw, serialization.PrivateFormat.Raw, serialization.NoEncryption()
        )
        files = sorted((tmp_path / f"party-{number}").iterdir())
        assert {path.name for path in files} >= {"party.db", "party.anchor"}
        out[f"party/{number}"] = key + b"".join(path.read_bytes() for path in files)
    return out


def learned(world: World, seized: dict[str, bytes]) -> set[tuple[frozenset[str], int]]:
    """What broker, coordinator and the holder of these bytes compute of the last round, as (devices, coefficient)."""
    drawn = dict(world.drawn)
    for party, data in seized.items():
        whole = [draw for draw in drawn[party] if len(draw) == BOX_PRIVATE_SIZE and draw in data]
        world.drawn[party] = [*whole, *(data[shift:] for shift in range(SEED_SIZE))]
    try:
        tap = next(each for each in world.checkers if isinstance(each, OnlySums)).tap
        round_: Round = rounds(world, tap)[-1]
    finally:
        world.drawn = drawn
    out = set()
    for combination in round_.derivable(tuple(seized)):
        values = {min(value, MODULUS - value) for value in combination.values()}
        out.update((frozenset(round_.uploads[header] for header in combination), value) for value in values)
    return out


def test_files_of_all_parties_seized_after_a_round_with_all_traffic_say_no_more_than_the_sum(
    world: World, tmp_path: Path
) -> None:
    world.start()
    world.until("vote")
    world.settle(10)
    during = seize(world, tmp_path)
    world.finish()
    world.settle()
    after = seize(world, tmp_path)
    everybody = frozenset(f"device/{device}" for device in world.devices)
    singles = {(frozenset({device}), 1) for device in everybody}
    assert learned(world, during) == singles, "seized in the round they give everything away: the search can find it"
    assert learned(world, after) == {(everybody, 1)}


def test_files_seized_when_a_round_has_failed_or_expired_say_nothing_of_it(world: World, tmp_path: Path) -> None:
    world.start()
    world.until("vote")
    world.stop("coordinator")
    world.settle(world.view.manifest.expires_at - world.now + 1_000)
    assert learned(world, seize(world, tmp_path)) == set()


def test_round_keys_of_a_party_are_never_the_same_and_none_is_left(world: World, tmp_path: Path) -> None:
    world.run(3)
    world.settle()
    for party, data in seize(world, tmp_path).items():
        boxes = [draw for draw in world.drawn[party] if len(draw) == BOX_PRIVATE_SIZE]
        assert len(set(boxes)) == 3
        assert not [box for box in boxes if box[:32] in data or box[32:64] in data or box[64:] in data]
