"""The roles of a virtual world: production machines, each with a store, a clock and randomness of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from blindsum.protocol.machines.coordinator import CoordinatorMachine
from blindsum.protocol.machines.device import DeviceIdentity, DeviceMachine, Floor
from blindsum.protocol.machines.party import PartyFloor, PartyMachine
from blindsum.protocol.machines.step import Machine
from blindsum.protocol.view import RoundView
from blindsum.testing.behaviours import Behaviour
from blindsum.testing.entropy import Entropy
from blindsum.testing.fleet import TestFleet
from blindsum.testing.store import DictStore

__all__ = ["Actor", "make_machine"]


@dataclass(slots=True)
class Actor:
    """One role. `make` restores its machine from its store; `lives` counts how often it began; `skew_ms` is its clock's error;
    `forgetful` says that its host may lose its store or bring `backup`, an older copy, back; `refusals` counts what it refused,
    by code."""

    name: str
    make: Callable[[DictStore, int], Machine]
    behaviour: Behaviour
    store: DictStore
    machine: Machine
    skew_ms: int = 0
    lives: int = 1
    alive: bool = True
    forgetful: bool = False
    backup: DictStore = field(default_factory=DictStore)
    listening: set[bytes] = field(default_factory=set)
    refusals: Counter[str] = field(default_factory=Counter)

    def restart(self) -> None:
        """Begin a new life from what is stored."""
        self.lives += 1
        self.alive = True
        self.machine = self.make(self.store, self.lives)
        self.listening.clear()


def make_machine(
    fleet: TestFleet,
    name: str,
    store: DictStore,
    *,
    random: Entropy,
    behaviour: Behaviour,
    willing: Callable[[RoundView], str],
    tasks: frozenset[str],
) -> Machine:
    """The production machine of role `name`: "coordinator", "party/<n>" or "device/<id>"."""
    role, _, rest = name.partition("/")
    if role == "coordinator":
        return CoordinatorMachine(
            key=fleet.coordinator, box_private=fleet.coordinator_box, trust=fleet.trust, store=store, random=random
        )
    if role == "party":
        return PartyMachine(
            number=int(rest),
            key=fleet.parties[int(rest) - 1],
            keys=fleet.steps[int(rest) - 1],
            trust=fleet.trust,
            store=store,
            random=random,
            seal=behaviour.seal,
            floor=PartyFloor(),
        )
    identity: DeviceIdentity = next(each for each in fleet.devices if each.name == rest)
    return DeviceMachine(
        identity=identity,
        trust=fleet.trust,
        tasks=tasks,
        store=store,
        random=random,
        seal=behaviour.seal,
        floor=Floor(roster=False),
        willing=willing,
    )
