"""What the islands of a fleet are made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from blindsum.fleet.conditions import Population
from blindsum.fleet.identities import Identities
from blindsum.fleet.island import Island
from blindsum.fleet.learner import Learner
from blindsum.fleet.ledger import Ledger
from blindsum.fleet.pairs import Pairs
from blindsum.fleet.roles import CoordinatorRole, DeviceRole, PartyRole, Role
from blindsum.fleet.shelf import Shelf
from blindsum.protocol.view import TaskView
from blindsum.testing.behaviours import Behaviour

__all__ = ["Setup"]

HONEST: Final = Behaviour()


@dataclass(frozen=True, slots=True)
class Setup:
    """All that the islands of a fleet are made from."""

    identities: Identities
    base: TaskView
    plan: bytes = field(repr=False)
    model: bytes = field(repr=False)
    population: Population = field(repr=False)
    learner: Learner = field(repr=False)
    behaviours: Mapping[str, Behaviour]
    pairs: Pairs
    transport: str = ""
    """The broker of the real devices, see `Bridge`."""
    real: tuple[int, ...] = ()
    """Numbers of the devices that are clients of it."""

    def island(self, devices: Sequence[int], *, backends: bool, threads: int = 1) -> Island:
        shelf, task, parties = Shelf(), self.base.name, self.identities.parties
        roles: list[Role] = []
        if backends:
            roles.append(CoordinatorRole(self.identities, shelf=shelf, threads=threads))
            for number in range(1, parties + 1):
                behaviour = self.behaviours.get(f"party/{number}", Behaviour())
                roles.append(PartyRole(number, self.identities, shelf=shelf, behaviour=behaviour, threads=threads))
        for number in devices:
            behaviour = self.behaviours.get(f"device/{number}", HONEST)
            roles.append(
                DeviceRole(number, self.identities, shelf=shelf, behaviour=behaviour, learner=self.learner, task=task)
            )
        ledger = Ledger(devices, self.population.size, self.base.segments, shelf, keeps=bool(self.behaviours))
        return Island(
            roles, self.population, ledger, self.identities, learner=self.learner, pairs=self.pairs, task=task
        )
