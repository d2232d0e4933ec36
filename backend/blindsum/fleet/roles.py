"""The roles of a simulated fleet: production machines, each with a store, randomness that repeats, and a behaviour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Protocol

from blindsum.fleet.identities import Identities, device_name
from blindsum.fleet.learner import Floats, Learned, Learner
from blindsum.fleet.shelf import Shelf, ShelfStore
from blindsum.protocol.codec import convert, decode, encode
from blindsum.protocol.machines.coordinator import CoordinatorMachine
from blindsum.protocol.machines.device import DeviceIdentity, DeviceMachine, Floor
from blindsum.protocol.machines.deviceround import open_until
from blindsum.protocol.machines.late import LateUpdate
from blindsum.protocol.machines.party import PartyFloor, PartyMachine
from blindsum.protocol.machines.step import Machine, Step, Write
from blindsum.protocol.ring import Lane
from blindsum.protocol.update import encode_update, statistic_max
from blindsum.protocol.view import RoundView
from blindsum.testing.behaviours import Behaviour
from blindsum.testing.entropy import Entropy

__all__ = ["DEVICE", "CoordinatorRole", "DeviceRole", "Job", "PartyRole", "Role", "RoundEntropy"]

DEVICE: Final = 16
"""The id of device number 0: above the coordinator's 0 and every party's number."""
LOSS_SCALE: Final = 1e6
LEARNT: Final = "learnt"
"""The row of a device's store with a training that later rounds may take, before it is done in virtual time."""


class RoundEntropy:
    """A role's randomness, begun afresh with every round: what happened before a round has no part in its bytes."""

    __slots__ = ("_drawn", "_name", "_number", "_seed", "_stream")

    def __init__(self, seed: int, name: str) -> None:
        self._seed, self._name = seed, name
        self._stream: Entropy | None = None
        self._number = self._drawn = 0

    def begin(self, number: int) -> None:
        self._number, self._stream, self._drawn = number, None, 0

    def rest(self) -> None:
        """Put the stream away, to go on where it stands when it is needed again."""
        self._stream = None

    def __call__(self, size: int) -> bytes:
        if self._stream is None:
            self._stream = Entropy(self._seed, f"{self._name}/{self._number}")
            self._stream(self._drawn)
        self._drawn += size
        return self._stream(size)


class World(Protocol):
    """What byzantine behaviours may look at."""

    fleet: Identities

    @property
    def roster(self) -> Any: ...


class Role:
    """One role. `counter` numbers its messages within a round, `last_at` is when a device's last one arrives; `wake_at` is when
    its machine wants to be woken, `wake_due` when the next wake comes, not later."""

    __slots__ = (
        "_machine",
        "alive",
        "behaviour",
        "counter",
        "entropy",
        "id",
        "last_at",
        "listening",
        "store",
        "wake_at",
        "wake_due",
    )

    def __init__(self, number: int, name: str, *, seed: int, shelf: Shelf, behaviour: Behaviour) -> None:
        self.id = number
        self.behaviour = behaviour
        self.store = ShelfStore(shelf)
        self.entropy = RoundEntropy(seed, name)
        self.alive = True
        self.counter = 0
        self.last_at = 0
        self.wake_at: int | None = None
        self.wake_due: int | None = None
        self.listening: tuple[bytes, ...] = ()
        self._machine: Machine | None = None

    @property
    def machine(self) -> Machine:
        """Made when it is first needed, from what is stored."""
        if self._machine is None:
            self._machine = self._make()
        return self._machine

    def begin(self, number: int) -> None:
        """A round begins."""
        self.counter = self.last_at = 0
        self.wake_due = None
        self.entropy.begin(number)

    def stop(self) -> None:
        """The role is down: what is sent to it is lost."""
        self.alive = False
        self.wake_at = None

    def restart(self) -> None:
        """Begin a new life from what is stored."""
        self.alive = True
        self._machine = None
        self.listening = ()

    def _make(self) -> Machine:
        raise NotImplementedError


class CoordinatorRole(Role):
    """The coordinator, always honest here: a dishonest one has the tests' world."""

    __slots__ = ("_identities", "_threads")

    def __init__(self, identities: Identities, *, shelf: Shelf, threads: int) -> None:
        super().__init__(0, "coordinator", seed=identities.seed, shelf=shelf, behaviour=Behaviour())
        self._identities, self._threads = identities, threads

    def _make(self) -> CoordinatorMachine:
        return CoordinatorMachine(
            key=self._identities.coordinator,
            box_private=self._identities.coordinator_box[0],
            trust=self._identities.trust,
            store=self.store,
            random=self.entropy,
            threads=self._threads,
        )


class PartyRole(Role):
    """Party `number`, from 1."""

    __slots__ = ("_identities", "_threads")

    def __init__(
        self, number: int, identities: Identities, *, shelf: Shelf, behaviour: Behaviour, threads: int
    ) -> None:
        super().__init__(number, f"party/{number}", seed=identities.seed, shelf=shelf, behaviour=behaviour)
        self._identities, self._threads = identities, threads

    def _make(self) -> PartyMachine:
        return PartyMachine(
            number=self.id,
            key=self._identities.party_keys[self.id - 1],
            trust=self._identities.trust,
            store=self.store,
            random=self.entropy,
            seal=self.behaviour.seal,
            floor=PartyFloor(),
            threads=self._threads,
        )


@dataclass(slots=True)
class Job:
    """A device's training for round `number`, done `at` that virtual time: `step` is the upload made of it when the island had
    time; `learnt`: where a later round may take it, it lies in the device's store; `failed`: why nothing came of it."""

    at: int
    number: int
    device: DeviceRole
    step: Step | None = None
    learnt: bool = False
    failed: str = ""


class DeviceRole(Role):
    """Device `number`, from 0. `fate` is what happens to it in this round, `job` what it trains, `extra` by how many bytes its
    header is longer than one of a device with as many neighbours as the graph's degree. Where it is away it declines a round as
    often as it hears of it, until `away_until` (ms)."""

    __slots__ = (
        "_identities",
        "_identity",
        "_known",
        "_learner",
        "_made",
        "away_until",
        "extra",
        "fate",
        "job",
        "number",
        "task",
    )

    def __init__(
        self, number: int, identities: Identities, *, shelf: Shelf, behaviour: Behaviour, learner: Learner, task: str
    ) -> None:
        name = f"device/{device_name(number)}"
        super().__init__(DEVICE + number, name, seed=identities.seed, shelf=shelf, behaviour=behaviour)
        self._identities, self._learner = identities, learner
        self.number, self.task, self.fate = number, task, ""
        self.job: Job | None = None
        self.extra = self.away_until = 0
        self._identity: DeviceIdentity | None = None
        self._made: tuple[RoundView, int, list[Lane]] | None = None
        self._known: list[bytes] = []

    def begin(self, number: int) -> None:
        super().begin(number)
        if self.job is not None and not self.job.learnt:
            self.job = None
        self._made = None
        self.away_until = 0

    def stop(self) -> None:
        super().stop()
        self._machine = None
        self.entropy.rest()

    def restart(self) -> None:
        super().restart()
        self._known = []

    def knows(self, body: bytes) -> bool:
        """Whether nothing would come of `body`, because it is a copy of what the device has had."""
        if self._machine is None:
            return body in self._known
        assert isinstance(self._machine, DeviceMachine)
        return self._machine.knows(body)

    def rest(self, last: bytes = b"") -> None:
        """Put the machine away while all of it is stored and nothing is on its way to it but copies, such as those of `last`: it is
        made again when something else comes."""
        assert isinstance(self._machine, DeviceMachine)
        self._known = [*self._machine.known, *([last] if last else ())]
        self._machine = None
        self.entropy.rest()

    def lanes(self, view: RoundView) -> list[Lane]:
        """What the device means to add to the sum. Raises BlindsumError where its training fails."""
        machine = self.machine
        assert isinstance(machine, DeviceMachine)
        plan, model = machine.blob(view.task.plan), machine.blob(view.manifest.model)
        assert plan is not None and model is not None
        learned = self._learner.learn(view, self.number, plan, model)
        lanes = self._encoded(view, learned.update, learned.weight, _statistics(view, learned))
        if view.task.algorithm.name == "scaffold":
            self._made = view, learned.weight, [lane.copy() for lane in lanes]
        return lanes

    def learn(self, view: RoundView, plan: bytes, model: bytes) -> None:
        """Store what the device adds to the round of `view`, or to a later one. Raises BlindsumError where its training fails."""
        learned = self._learner.learn(view, self.number, plan, model)
        self._learner.uploading(self.number)
        weight, statistics = learned.weight, _statistics(view, learned)
        late = LateUpdate.of(view, learned.update, weight=weight, examples=learned.examples, statistics=statistics)
        self.store.commit([Write(LEARNT, encode(late))])

    def take_learnt(self) -> LateUpdate:
        """What `learn` has stored, once."""
        raw = self.store.get(LEARNT)
        assert raw is not None
        self.store.commit([Write(LEARNT, None)])
        return convert(decode(raw), LateUpdate)

    def lanes_of(self, view: RoundView, late: LateUpdate, tau: int) -> list[Lane]:
        """What `learn` gave, τ rounds later."""
        return self._encoded(view, late.discounted(tau), late.weight, late.statistics)

    def uploading(self) -> None:
        """What `lanes` gave last leaves."""
        self._learner.uploading(self.number)

    def uploaded(self) -> None:
        """The coordinator holds what `lanes` gave last."""
        if self._made is not None:
            view, weight, lanes = self._made
            self._learner.uploaded(view, self.number, weight, lanes)
            self._made = None

    def _encoded(self, view: RoundView, update: Floats, weight: int, statistics: list[int]) -> list[Lane]:
        rotation = view.manifest.rotation
        return encode_update(
            view.base, update, weight=weight, statistics=statistics, rotation=rotation, key=self.entropy(32)
        )

    def _willing(self, view: RoundView) -> str:
        if self.fate == "before join":
            self.away_until = open_until(view)
            return "away"
        if self.job is not None and self.job.learnt:
            if view.number - self.job.number <= view.base.staleness_max:
                return "training"
            self.job = None  # nobody would take it any more
        return ""

    def _make(self) -> DeviceMachine:
        if self._identity is None:
            self._identity = self._identities.device(self.number)
        machine = DeviceMachine(
            identity=self._identity,
            trust=self._identities.trust,
            tasks=frozenset({self.task}),
            store=self.store,
            random=self.entropy,
            seal=self.behaviour.seal,
            floor=Floor(roster=False),
            willing=self._willing,
        )
        if self._known:  # it has rested: what it tells of itself when it begins anew was told before
            machine.receive(self._known[0], 0)
            self._known = []
        return machine


def _statistics(view: RoundView, learned: Learned) -> list[int]:
    """What goes into the exact segment after the weight."""
    most = statistic_max(view.task.devices_max)
    sums = [round(value * learned.examples * LOSS_SCALE) for value in learned.metrics or (learned.loss,)]
    return [learned.examples, *(min(max(value, 0), most) for value in sums)]
