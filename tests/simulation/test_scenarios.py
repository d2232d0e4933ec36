"""Rounds of all shapes under all faults. A scenario follows from its number; `scripts/soak` plays many more of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from blindsum.protocol.machines.step import Step, Write
from blindsum.testing.checkers import CHECKERS, Checker
from blindsum.testing.faults import Faults
from blindsum.testing.scenario import MIXES, scenario
from blindsum.testing.world import World

SEEDS = range(42)
REPRODUCTIONS = Path(__file__).parent / "reproductions"
FAULTS_OF_MIXES = {
    "network": {"loss", "duplicate", "delay_ms", "skew_ms", "partition"},
    "crashes": {"crash_before_commit", "crash_after_commit"},
    "flips": {"flip"},
    "disks": {"disk_full"},
    "backups": {"amnesia", "old_backup"},
    "dropouts": {"drop_join", "drop_roster", "drop_upload", "away"},
}
TELL = """
import json
from blindsum.testing.scenario import scenario
for seed in {seeds}:
    world = scenario(seed).play()
    sums = [(result.number, result.survivors, result.total.hex()) for result in world.results]
    data = [sorted((k, str(v)) for k, v in event.data.items() if k not in ("model", "digest")) for _, event in world.events]
    events = [(who, event.name, facts) for (who, event), facts in zip(world.events, data)]
    print(json.dumps([seed, sums, events, world.now, world.played]))
"""


@pytest.mark.parametrize("seed", SEEDS)
def test_rounds_keep_every_rule_under_faults_and_finish_without(seed: int) -> None:
    world = scenario(seed).play()
    assert world.results, scenario(seed)


def test_scenarios_differ_in_everything_they_can() -> None:
    made = [scenario(seed) for seed in SEEDS]
    assert {one.mix for one in made} == set(MIXES)
    assert {one.parties for one in made} == {4, 7}
    assert {one.width for one in made} == {16, 24, 32, 64}
    assert {one.suite for one in made} == {"aes128-ctr", "chacha20"}
    assert {one.rotate for one in made} == {True, False}
    assert {one.sparse for one in made} == {True, False}


def test_every_fault_occurs_in_some_scenario_alone_and_with_all_others() -> None:
    quiet = asdict(Faults())
    occurring: dict[str, set[str]] = {mix: set() for mix in MIXES}
    for one in map(scenario, SEEDS):
        faults = asdict(one.world().faults)
        occurring[one.mix] |= {name for name in faults if faults[name] != quiet[name] and name != "until"}
    assert occurring == {"calm": set(), "byzantine": set(), **FAULTS_OF_MIXES, "all": quiet.keys() - {"until"}}


@pytest.mark.parametrize("role", ["coordinator", "party/2", "device/d-0001"])
def test_role_whose_disk_is_full_stores_nothing_is_down_until_there_is_room_and_goes_on(role: str) -> None:
    world = World(7, devices=4, faults=Faults(disk_full=1.0), upload_ms=120_000, decide_ms=60_000)
    world.calm()
    world.start()
    world.until("upload")
    actor = world.actors[role]
    before, lives = dict(actor.store.rows), actor.lives
    world.faults_end = world.now + 1
    world.apply(actor, Step(writes=(Write("state", b"new"),)))
    assert not actor.alive and actor.store.rows == before
    world.calm()
    world.finish()
    assert actor.alive and actor.lives == lives + 1
    assert world.phase == "done" and world.results[0].count == 4


def test_sparse_scenarios_have_a_sparse_graph() -> None:
    made = next(one for one in map(scenario, SEEDS) if one.sparse)
    world = made.world()
    world.calm()
    world.run()
    assert not world.roster.graph.complete


def test_seeds_that_failed_once_keep_the_rules() -> None:
    for path in sorted(REPRODUCTIONS.glob("*.json")):
        kept = json.loads(path.read_text())
        scenario(kept["seed"]).play(kept["rounds"])


def test_soak_goes_on_where_it_was_left(tmp_path: Path) -> None:
    """Two runs of one scenario each are one soak of two."""
    script = Path(__file__).parents[2] / "scripts" / "soak"
    told = [
        subprocess.run(
            [
                sys.executable,
                script,
                "--seeds",
                "1",
                "--rounds",
                "1",
                "--start",
                "1008",
                "--state",
                tmp_path / "soak.json",
            ],
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for _ in range(2)
    ]
    assert told[0].startswith("1 scenarios, 2 rounds") and told[1].startswith("2 scenarios, 4 rounds")
    assert json.loads((tmp_path / "soak.json").read_text())["next"] == 1010


def test_same_seed_gives_the_same_history_under_two_hash_seeds() -> None:
    """Sums, survivors, every event of every role, and the virtual time it all took; what is in sealed boxes is random."""
    told = [
        subprocess.run(
            [sys.executable, "-c", TELL.format(seeds=[1, 2, 3, 6])],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert told[0] == told[1]
    assert len(told[0].splitlines()) == 4


# -- liveness ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_round_under_way_finishes_when_the_storm_is_over(seed: int) -> None:
    """Nothing gets through and everybody crashes all the time, in the middle of a round. Then it stops."""
    storm = Faults(loss=0.9, crash_before_commit=0.2, crash_after_commit=0.2, until=1)
    world = World(seed, devices=5, faults=storm, join_ms=60_000, upload_ms=600_000, decide_ms=600_000)
    world.start()
    for phase in ("join", "upload", "check", "open"):
        world.until(phase)
        world.faults_end = world.network.ends_at = world.now + 20_000
        world.settle(20_000)
    world.finish()
    assert world.phase == "done", world.failure
    assert world.results[0].count == 5
    world.check()


def test_every_role_may_die_after_every_one_of_its_steps() -> None:
    """No role lives for more than one step that stores anything."""
    world = World(7, devices=4, checkers=(*CHECKERS, OneStep))
    world.start()
    while world.round.active:
        world.step()
        for checker in world.checkers:
            if isinstance(checker, OneStep):
                checker.kill(world)
    assert world.phase == "done", world.failure
    assert world.results[0].count == 4
    assert sum(actor.lives for actor in world.actors.values()) > 50
    world.check()


class OneStep(Checker):
    """Notes who has stored something."""

    def __init__(self) -> None:
        self._doomed: list[str] = []

    def stored(self, world: World, role: str, step: Step) -> None:
        if step.writes:
            self._doomed.append(role)

    def kill(self, world: World) -> None:
        for role in self._doomed:
            world.crash(role)
        self._doomed.clear()


@pytest.mark.parametrize("phase", ["offer", "manifest", "join", "roster", "upload", "check", "vote", "open"])
def test_coordinator_that_dies_in_a_phase_goes_on_from_there(phase: str) -> None:
    world = World(7, devices=5, ballots=True)
    world.start()
    world.until(phase)
    world.crash("coordinator")
    assert world.phase == phase
    world.finish()
    assert world.phase == "done"
    world.check()


@pytest.mark.parametrize("phase", ["offer", "manifest", "join", "roster", "upload", "check", "vote", "open"])
def test_party_that_is_away_from_a_phase_on_stops_nothing(phase: str) -> None:
    world = World(7, devices=5)
    world.start()
    world.until(phase)
    world.stop("party/2")
    world.finish()
    assert world.phase == "done"
    world.run()
    assert world.phase == "done", "nor when it is back"
    world.check()


@pytest.mark.parametrize("phase", ["join", "roster", "upload", "check", "vote", "open"])
def test_devices_that_vanish_in_a_phase_are_left_out_or_were_heard_in_time(phase: str) -> None:
    world = World(7, devices=6, ballots=True, join_ms=10_000, devices_max=7)
    world.start()
    world.until(phase)
    for device in ("d-0001", "d-0004"):
        world.stop(f"device/{device}")
    world.finish()
    assert world.phase == "done"
    gone = {"d-0001", "d-0004"} - set(world.results[0].survivors)
    assert gone == ({"d-0001", "d-0004"} if phase in ("join", "roster", "upload") else set())
    world.check()


def test_stores_do_not_grow_with_the_rounds() -> None:
    world = World(7, devices=4)
    world.run(18)
    world.settle()
    before = {name: len(actor.store.rows) for name, actor in world.actors.items()}
    world.run(6)
    world.settle()
    assert len(world.results) == 24
    for name, actor in world.actors.items():
        assert len(actor.store.rows) <= before[name] + 2, name  # an opening may be in one part more or less
    world.check()
