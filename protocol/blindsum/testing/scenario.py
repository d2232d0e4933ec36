"""A world for every seed: shape, faults and malicious roles follow from one number, so a failure is replayed by naming it."""

from __future__ import annotations

import random
from dataclasses import dataclass

from blindsum.protocol.messages import NoRoster
from blindsum.protocol.params import Committee
from blindsum.testing.behaviours import (
    Behaviour,
    FalseComplaints,
    GarbageBox,
    Silent,
    TwoHeaders,
    WithheldSums,
    WrongSeeds,
    WrongShares,
    WrongSums,
)
from blindsum.testing.faults import Faults
from blindsum.testing.world import World

__all__ = ["MIXES", "ROUNDS_UNDER_FAULTS", "Scenario", "scenario"]

MIXES = ("calm", "dropouts", "network", "crashes", "flips", "disks", "backups", "byzantine", "all")
"""What goes wrong, by seed modulo their number."""
FAULTS_MS = 120_000
"""Faults stop after so long for each round under faults."""
ROUNDS_UNDER_FAULTS = 2
ATTEMPTS_MAX = 1
"""When faults have stopped, a round must finish. Devices that were lost in the middle are back in the next one."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """The world of a seed, and what it is made of."""

    seed: int
    mix: str
    parties: int
    devices: int
    width: int
    suite: str
    rotate: bool
    sparse: bool
    no_roster: bool = False
    staleness: int = 0

    def __str__(self) -> str:
        graph = "no roster" if self.no_roster else "sparse" if self.sparse else "complete"
        rotation = " rotated" if self.rotate else ""
        shape = f"P={self.parties} n={self.devices} w={self.width} {self.suite}{rotation} {graph}"
        return f"seed {self.seed}: {self.mix}, {shape}"

    def world(self, rounds: int = ROUNDS_UNDER_FAULTS) -> World:
        """The world before its first round of `rounds` under faults."""
        dice = random.Random(f"roles/{self.seed}")
        committee = Committee.for_f((self.parties - 1) // 3)
        behaviours: dict[str, Behaviour] = {}
        if self.mix in ("backups", "byzantine", "all"):
            behaviours = _behaviours(dice, committee, self.devices)
        if self.mix == "backups":  # they count as malicious, and do as they should until their host forgets something
            behaviours = dict.fromkeys(behaviours, Behaviour())
        corrupt, dropped = (25, 100) if self.sparse else (200, 500)
        return World(
            self.seed,
            devices=self.devices,
            committee=committee,
            faults=_faults(self.mix, dice, until=FAULTS_MS * rounds),
            behaviours=behaviours,
            ballots=self.seed % 2 == 0,
            length=dice.choice((1, 17, 50, 200)),
            width=self.width,
            suite=self.suite,
            rotate=self.rotate,
            corrupt_permille=corrupt,
            dropped_permille=dropped,
            weight_max=dice.choice((1, 8)),
            join_ms=15_000,
            upload_ms=60_000,
            no_roster=NoRoster(staleness_max=self.staleness) if self.no_roster else None,
            slow=[f"d-{number:04d}" for number in range(self.devices // 3)] if self.staleness else (),
        )

    def play(self, rounds: int = ROUNDS_UNDER_FAULTS) -> World:
        """`rounds` under faults, then one without, which must finish; then every checker."""
        world = self.world(rounds)
        world.run(rounds)
        world.calm()
        for _ in range(ATTEMPTS_MAX):
            world.run()
            if world.results and world.results[-1].number == world.number:
                break
        else:
            raise AssertionError(f"no round finishes though nothing goes wrong any more: {world.failure}")
        world.check()
        return world


def scenario(seed: int, *, no_roster: bool = False, staleness: int = 0) -> Scenario:
    """The scenario of a seed. Where there is `staleness`, a third of the devices trains for longer than a round."""
    dice = random.Random(f"shape/{seed}")
    mix = MIXES[seed % len(MIXES)]
    sparse = seed % 16 == 5
    parties = 4 if sparse or dice.random() < 0.7 else 7
    return Scenario(
        seed=seed,
        mix=mix,
        parties=parties,
        devices=40 if sparse else dice.randint(4, 10),
        width=dice.choice((16, 24, 32, 64)),
        suite=dice.choice(("aes128-ctr", "chacha20")),
        rotate=dice.random() < 0.3,
        sparse=sparse,
        no_roster=no_roster,
        staleness=staleness,
    )


def _faults(mix: str, dice: random.Random, *, until: int) -> Faults:
    dropouts = {"drop_join": 0.1, "drop_roster": 0.1, "drop_upload": 0.1, "away": 0.15}
    network = {
        "loss": dice.choice((0.05, 0.2)),
        "duplicate": 0.2,
        "delay_ms": (1, dice.choice((50, 500, 3000))),
        "skew_ms": 500,
        "partition": dice.choice((0.0, 0.002)),
    }
    often = dice.choice((0.01, 0.04))
    crashes = {"crash_before_commit": often, "crash_after_commit": often}
    chosen: dict[str, object] = {}
    if mix in ("dropouts", "all"):
        chosen.update(dropouts)
    if mix in ("network", "all"):
        chosen.update(network)
    if mix in ("crashes", "all"):
        chosen.update(crashes)
    if mix in ("flips", "all"):
        chosen["flip"] = 0.03
    if mix in ("disks", "all"):
        chosen["disk_full"] = dice.choice((0.005, 0.02))
    if mix in ("backups", "all"):
        chosen.update({"amnesia": 0.01, "old_backup": 0.05})
    return Faults(until=until, **chosen)  # type: ignore[arg-type]


def _behaviours(dice: random.Random, committee: Committee, devices: int) -> dict[str, Behaviour]:
    """As many malicious parties as the committee withstands, and a malicious device where the threat model allows one."""
    everybody = range(1, committee.parties + 1)
    out: dict[str, Behaviour] = {}
    for party in dice.sample(everybody, committee.equivocators):
        out[f"party/{party}"] = dice.choice(
            (WrongSums(), WrongShares(), WithheldSums(), FalseComplaints(), Silent("vote"), Silent("opening", "check"))
        )
    for device in dice.sample(range(devices), 1 if devices >= 5 else 0):
        party = dice.choice(everybody)
        out[f"device/d-{device:04d}"] = dice.choice((GarbageBox(party), WrongSeeds(party), TwoHeaders(party)))
    return out
