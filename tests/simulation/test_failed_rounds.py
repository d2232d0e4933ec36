"""A round that fails leaves a record that anybody can judge: why it failed, who was silent, who lied."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from unittest.mock import patch

import numpy as np
import pytest

from blindsum.protocol.masks import Lanes
from blindsum.protocol.messages import Failure
from blindsum.protocol.report import Report
from blindsum.protocol.transcript import verify, write_records
from blindsum.protocol.update import encode_update
from blindsum.protocol.view import TaskView
from blindsum.testing import world as world_module
from blindsum.testing.behaviours import Behaviour, FalseCaps, Silent, WrongOpening, WrongSeeds
from blindsum.testing.faults import Faults
from blindsum.testing.forgery import altered
from blindsum.testing.world import World

Records = list[tuple[str, bytes]]
Made = Callable[[], World]


def silent(*kinds: str, parties: int = 2, **more: object) -> World:
    """So many parties never say something of these kinds."""
    behaviours = {f"party/{number}": Silent(*kinds) for number in range(1, parties + 1)}
    return played(World(5, devices=4, checkers=(), behaviours=behaviours, **more))  # type: ignore[arg-type]


def played(world: World) -> World:
    world.run()
    assert world.phase == "failed", world.phase
    return world


class NoVote(Behaviour):
    """A party that answers every question but one."""

    def __init__(self, phase: str) -> None:
        self._phase = phase

    def send(self, world: World, target: str, kind: str, body: bytes) -> bytes | None:
        return None if kind == "vote" and world.phase == self._phase else body


def voteless(phase: str) -> World:
    return played(World(5, devices=4, checkers=(), behaviours={f"party/{n}": NoVote(phase) for n in (1, 2)}))


def without_devices() -> World:
    return played(World(5, devices=4, checkers=(), faults=Faults(drop_join=1.0, until=10**9)))


def without_uploads() -> World:
    return played(World(5, devices=4, checkers=(), faults=Faults(drop_upload=1.0, until=10**9)))


def bad_devices() -> World:
    bad = {f"device/d-000{number}": WrongSeeds(1, 2, 3, 4) for number in range(3)}
    return played(World(5, devices=4, checkers=(), behaviours=bad))


def false_caps() -> World:
    world = World(
        11, devices=6, checkers=(), behaviours={"device/d-0001": FalseCaps()}, dropped_permille=500, corrupt_permille=0
    )
    world.start()
    world.until("upload")
    world.stop(f"device/{world.roster.devices[world.roster.neighbours(1)[0]]}")
    world.finish()
    assert world.phase == "failed", world.phase
    return world


class OwnSums(WrongOpening):
    """Vouches for sums that nobody else has."""

    def __init__(self, party: int) -> None:
        super().__init__(
            lambda content: altered(content, hashes=[(s, bytes([party] * 32)) for s, _ in content.hashes], vectors=[])
        )


def disagreeing() -> World:
    """More liars than were promised, each with another lie."""
    behaviours = {f"party/{number}": OwnSums(number) for number in (1, 2, 3)}
    return played(World(5, devices=4, checkers=(), behaviours=behaviours))


def malformed_sum() -> World:
    """A device that takes as much weight away as the others bring."""

    def encoded(base: TaskView, update: np.ndarray, *, weight: int, **named: object) -> Lanes:
        lanes = encode_update(base, update, weight=weight, **named)  # type: ignore[arg-type]
        if weight == 4:
            lanes[-1] -= np.array([10, *[0] * (len(lanes[-1]) - 1)], np.uint64)
        return lanes

    with patch.object(world_module, "encode_update", encoded):
        return played(World(5, devices=4, checkers=()))


CASES: dict[str, tuple[Made, str, str, list[str]]] = {
    # name: (world, phase, code, who was silent)
    "offers": (lambda: silent("offer"), "offer", "offers-too-few", ["party/1", "party/2"]),
    "manifest": (lambda: voteless("manifest"), "manifest", "votes-too-few", ["party/1", "party/2"]),
    "join": (without_devices, "join", "cohort-too-small", []),
    "roster": (lambda: voteless("roster"), "roster", "votes-too-few", ["party/1", "party/2"]),
    "upload": (without_uploads, "upload", "survivors-too-few", []),
    "check": (lambda: silent("check"), "check", "checks-too-few", ["party/1", "party/2"]),
    "refused": (bad_devices, "check", "survivors-too-few", []),
    "vote": (lambda: voteless("vote"), "vote", "votes-too-few", ["party/1", "party/2"]),
    "open": (lambda: silent("opening", parties=3), "open", "openings-too-few", ["party/1", "party/2", "party/3"]),
    "disagree": (disagreeing, "open", "openings-disagree", []),
    "sum": (malformed_sum, "open", "sum-malformed", []),
    "edge": (false_caps, "open", "edge-false", []),
}


@lru_cache(maxsize=len(CASES))
def world_of(name: str) -> World:
    return CASES[name][0]()


def records_of(world: World) -> Records:
    return list(world.coordinator.records("sum"))


def judged(world: World, records: Records) -> Report:
    return verify(b"".join(write_records(records)), trust=world.fleet.trust)


@pytest.mark.parametrize("name", CASES)
def test_record_of_a_failed_round_says_why_and_who_was_silent(name: str) -> None:
    _, phase, code, quiet = CASES[name]
    world = world_of(name)
    report = judged(world, records_of(world))
    assert (report.facts["failed"], report.facts["phase"]) == (code, phase)
    assert report.facts.get("silent", []) == quiet
    named = {(fault.principal, fault.code) for fault in report.faults}
    assert named == {
        "refused": {(f"device/d-000{number}", "commitment-differs") for number in range(3)},
        "edge": {("device/d-0001", "edge-false")},
        "disagree": set(),
    }.get(name, set())
    assert world.failure == code


@pytest.mark.parametrize("name", CASES)
def test_coordinator_that_gives_another_reason_than_the_record_shows_is_named(name: str) -> None:
    world = world_of(name)
    records = records_of(world)
    manifest = world.round.view.digest if world.round.view else bytes(32)
    codes = {code for _, _, code, _ in CASES.values()}
    for code in codes - {CASES[name][2]}:
        forged = world.forge("failure", "coordinator", "all", Failure(manifest=manifest, code=code))
        other = [(kind, forged if kind == "failure" else data) for kind, data in records]
        assert ("coordinator", "failure-differs") in {(f.principal, f.code) for f in judged(world, other).faults}
    forged = world.forge("failure", "coordinator", "all", Failure(manifest=b"\1" * 32, code=CASES[name][2]))
    other = [(kind, forged if kind == "failure" else data) for kind, data in records]
    assert [(f.principal, f.code) for f in judged(world, other).faults][-1] == ("coordinator", "failure-differs")


@pytest.mark.parametrize("name", CASES)
def test_every_record_of_a_failed_round_counts(name: str) -> None:
    """Whatever is left out, put twice or altered shows, but for answers that the round could do without."""
    world = world_of(name)
    records = records_of(world)
    whole = judged(world, records)
    for at, (kind, data) in enumerate(records):
        spoilt = data[:-1] + bytes([data[-1] ^ 1]) if data else b"x"
        for changed in ([*records[:at], (kind, spoilt), *records[at + 1 :]], [*records, (kind, data)]):
            report = judged(world, changed)
            assert not report.valid, (kind, "altered or twice")
            assert report.faults != whole.faults or report.facts != whole.facts
        without = judged(world, [*records[:at], *records[at + 1 :]])
        assert not without.valid or kind in ("offer", "vote", "check", "header", "opening", "content", "evidence"), kind


def test_record_is_the_same_after_the_coordinator_died() -> None:
    for name in ("open", "vote", "refused"):
        world = world_of(name)
        before = records_of(world)
        world.crash("coordinator")
        assert records_of(world) == before


def test_transcript_of_a_finished_round_that_is_said_to_have_failed_is_refused() -> None:
    world = World(5, devices=4, checkers=())
    world.run()
    failure = world.forge("failure", "coordinator", "all", Failure(manifest=world.view.digest, code="openings-too-few"))
    finished = list(world.coordinator.records("sum"))
    assert not judged(world, [*finished, ("failure", failure)]).valid
    kept = ("trust", "announcement", "roster", "joins", "certificate", "survivors", "header", "opening", "content")
    records = [(kind, data) for kind, data in finished if kind in kept]
    faults = judged(world, [*records, ("failure", failure)]).faults
    assert [(fault.principal, fault.code) for fault in faults] == [("coordinator", "failure-differs")]
