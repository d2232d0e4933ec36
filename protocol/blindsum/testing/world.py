"""The virtual world: production machines on a seeded discrete-event network with named faults.

Time is virtual, every delivery is an event in a heap, and one seed gives one history. Devices add random updates that the world
remembers, so that its checkers can compare every published sum with the plain ring sum over exactly its survivors.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from blindsum.protocol.blobs import read_blob
from blindsum.protocol.codec import convert
from blindsum.protocol.envelope import open_envelope
from blindsum.protocol.machines.coordinator import CoordinatorMachine
from blindsum.protocol.machines.coordinatorround import CoordinatorRound
from blindsum.protocol.machines.device import DeviceMachine
from blindsum.protocol.machines.late import LateUpdate
from blindsum.protocol.machines.step import ChunkOut, Event, Machine, Step
from blindsum.protocol.messages import Payload, Result
from blindsum.protocol.params import Committee
from blindsum.protocol.ring import Segment, pack
from blindsum.protocol.roster import RosterView
from blindsum.protocol.transcript import write_records
from blindsum.protocol.update import encode_update
from blindsum.protocol.view import RoundView, TaskView
from blindsum.testing.actor import Actor, make_machine
from blindsum.testing.behaviours import Behaviour
from blindsum.testing.checkers import CHECKERS, Checker
from blindsum.testing.entropy import Entropy
from blindsum.testing.faults import Faults
from blindsum.testing.fleet import TestFleet, make_fleet, make_task
from blindsum.testing.stage import Stage
from blindsum.testing.store import DictStore

__all__ = ["Finished", "World"]

STARTS_MAX = 100
LIMIT_MS = 3_600_000
REST_MS = 2 * 3_600_000
"""Longer than any round or offer lasts."""


@dataclass(slots=True)
class Finished:
    """A round with a result: who is in the sum, and its packed bytes. The transcript is taken when the next round begins."""

    number: int
    count: int
    survivors: tuple[str, ...]
    total: bytes = field(repr=False)
    segments: tuple[Segment, ...] = field(repr=False)
    transcript: bytes = field(default=b"", repr=False)


class World(Stage):
    """A fleet in one process.

    `behaviours` makes roles malicious by name, `faulty` names others that the test itself will speak for; `ballots` lets
    every device add 1 in an exact coordinate of its own; devices in `slow` finish no training before the next round begins, and
    `began` says for which round each upload was trained; `**task` goes to `make_task`. `run` plays rounds, `check` holds
    them to the rules; for a closer look there are `start`, `until`, `give` and `finish`.
    """

    def __init__(
        self,
        seed: int,
        *,
        devices: int = 8,
        committee: Committee | None = None,
        faults: Faults | None = None,
        behaviours: Mapping[str, Behaviour] | None = None,
        faulty: Iterable[str] = (),
        checkers: Iterable[type[Checker]] = CHECKERS,
        updates: Callable[[str, int], np.ndarray] | None = None,
        ballots: bool = False,
        slow: Iterable[str] = (),
        name: str = "sum",
        **task: object,
    ) -> None:
        super().__init__(seed, faults or Faults())
        self.task = name
        self.number = 0
        self.faulty = frozenset(faulty) | frozenset(behaviours or {})
        self.ballots = ballots
        self.committee = committee or Committee.for_f(1)
        self.fleet: TestFleet = make_fleet(seed, parties=self.committee.parties, devices=devices)
        self.devices = [identity.name for identity in self.fleet.devices]
        self.checkers = [kind() for kind in checkers]
        self.events: list[tuple[str, Event]] = []
        self.truth: dict[tuple[int, str], bytes] = {}
        self.began: dict[tuple[int, str], int] = {}
        self.slow = frozenset(slow)
        self._trained: dict[str, LateUpdate] = {}
        self.results: list[Finished] = []
        self.failed: dict[int, bytes] = {}
        self.rosters: dict[int, tuple[str, ...]] = {}
        self.drawn: dict[str, list[bytes]] = {}
        self._updates = updates
        settings: dict[str, object] = {"committee": self.committee, "devices_max": devices, **task}
        if ballots:
            settings["statistics"] = devices
        self.task_raw, self.plan, self.model = make_task(self.fleet, name=name, **settings)  # type: ignore[arg-type]
        parties = [f"party/{number}" for number in range(1, self.committee.parties + 1)]
        for role in ["coordinator", *parties, *(f"device/{device}" for device in self.devices)]:
            self._add(role, (behaviours or {}).get(role, Behaviour()))
        self._command(lambda: self.coordinator.add_task(self.task_raw, plan=self.plan, model=self.model))

    # -- looking ----------------------------------------------------------------------------------------------------------

    @property
    def coordinator(self) -> CoordinatorMachine:
        machine = self.actors["coordinator"].machine
        assert isinstance(machine, CoordinatorMachine)
        return machine

    @property
    def base(self) -> TaskView:
        base = self.coordinator.base(self.task)
        assert base is not None
        return base

    @property
    def round(self) -> CoordinatorRound:
        """The coordinator's current or last round."""
        round_ = self.coordinator.round(self.task)
        assert round_ is not None, "no round has begun"
        return round_

    @property
    def view(self) -> RoundView:
        assert self.round.view is not None, "no manifest yet"
        return self.round.view

    @property
    def roster(self) -> RosterView:
        assert self.round.roster is not None, "no roster yet"
        return self.round.roster

    @property
    def phase(self) -> str:
        return self.round.state.phase

    @property
    def failure(self) -> str:
        """The code that the last round failed with, or ""."""
        return self.round.state.code

    def happened(self, name: str, role: str = "") -> list[Event]:
        """All events of this name (by one role, or anybody)."""
        return [event for who, event in self.events if event.name == name and role in ("", who)]

    def refused(self, code: str) -> int:
        """How often anybody refused a message with this code."""
        return sum(actor.refusals[code] for actor in self.actors.values())

    # -- playing ----------------------------------------------------------------------------------------------------------

    def run(self, rounds: int = 1, *, limit_ms: int = LIMIT_MS) -> None:
        """Play `rounds` rounds. AssertionError where one does not end within `limit_ms` of virtual time."""
        for _ in range(rounds):
            self.start()
            self.finish(limit_ms=limit_ms)

    def start(self) -> None:
        """Begin the next round; everybody who was down is up again, but for the parties that `Faults.away` keeps away."""
        self._file()
        for name, actor in self.actors.items():
            if not actor.alive:
                self.crash(name)
        parties = [name for name in self.actors if name.startswith("party/")]
        away = [name for name in parties if self.now < self.faults_end and self.dice.random() < self.faults.away]
        for name in away[: self.committee.parties - self.committee.quorum]:
            self.stop(name)
        self._finish_trainings()
        self.number += 1
        for _ in range(STARTS_MAX):
            if not self.actors["coordinator"].alive:  # its disk was full
                self.crash("coordinator")
            round_ = self.coordinator.round(self.task)
            if round_ is not None and round_.state.number == self.number:
                return
            self._command(lambda: self.coordinator.start(self.task, self.now))
        raise AssertionError("the coordinator cannot begin a round")

    def finish(self, *, limit_ms: int = LIMIT_MS) -> None:
        """Play until the round is over."""
        self.play(lambda: not self.round.active, limit_ms)

    def until(self, reached: str | Callable[[], object], *, limit_ms: int = LIMIT_MS) -> None:
        """Play until the coordinator is in a phase, or a condition holds. AssertionError where the round ends before."""
        condition = reached if callable(reached) else lambda: self.phase == reached
        self.play(lambda: condition() or not self.round.active, limit_ms)
        assert condition(), f"the round ended before: {self.phase} {self.failure}"

    def rest(self) -> None:
        """Everybody is up, nothing goes wrong any more, and time passes until whatever can expire has."""
        self._file()
        self.calm()
        for name, actor in self.actors.items():
            if not actor.alive:
                self.crash(name)
        self.settle(REST_MS)

    def check(self) -> None:
        """Hold everything that happened to the rules."""
        self._file()
        for checker in self.checkers:
            checker.ended(self)

    def forge(self, kind: str, sender: str, to: str, payload: Payload, *, number: int | None = None) -> bytes:
        """A message of the current round (or round `number`) that `sender` signs whatever its machine does."""
        return self.fleet.forge(
            kind, sender, to, payload, task=self.task, number=self.number if number is None else number
        )

    # -- machinery --------------------------------------------------------------------------------------------------------

    def _add(self, name: str, behaviour: Behaviour) -> None:
        drawn = self.drawn.setdefault(name, [])

        def make(store: DictStore, life: int) -> Machine:
            return make_machine(
                self.fleet,
                name,
                store,
                random=Entropy(self.seed, f"{name}/{life}", drawn=drawn),
                behaviour=behaviour,
                willing=lambda view: self._unwilling(name, view.number),
                tasks=frozenset({self.task}),
            )

        store = DictStore()
        actor = Actor(name, make, behaviour, store, make(store, 1))
        if name != "coordinator":
            actor.skew_ms = self.dice.randint(-self.faults.skew_ms, self.faults.skew_ms)
            actor.forgetful = name in self.faulty and self.faults.amnesia + self.faults.old_backup > 0
        self.actors[name] = actor

    def _command(self, command: Callable[[], Step]) -> None:
        self.apply(self.actors["coordinator"], command(), faulty=self.number > 0)

    def _shown(self, actor: Actor, kind: str, body: bytes, targets: list[str]) -> list[tuple[str, bytes]]:
        shown: list[tuple[str, bytes]] = []
        for target in targets:
            sent = actor.behaviour.send(self, target, kind, body)
            if sent is None:
                continue
            if all(sent != other for _, other in shown):
                for checker in self.checkers:
                    checker.sent(self, actor.name, kind, sent)
            shown.append((target, sent))
        return shown

    def _stored(self, actor: Actor, step: Step) -> None:
        for checker in self.checkers:
            checker.stored(self, actor.name, step)

    def _happened(self, actor: Actor, event: Event) -> None:
        self.events.append((actor.name, event))
        if event.name == "train":
            self._train(actor, event)
        elif event.name == "phase" and event.data["phase"] == "upload":
            self.rosters[self.number] = tuple(self.roster.devices)
        elif event.name == "round-finished" and actor.name == "coordinator":
            self._record(actor)

    # -- devices ----------------------------------------------------------------------------------------------------------

    def _unwilling(self, name: str, number: int) -> str:
        return "not now" if self._chance("join", name, number) < self.faults.drop_join else ""

    def _dies_sending(self, actor: Actor, out: ChunkOut) -> bool:
        if not actor.name.startswith("device/") or self.now >= self.faults_end:
            return False
        return self._chance(f"upload {out.index}", actor.name, self.number) < self.faults.drop_upload

    def _chance(self, what: str, name: str, number: int) -> float:
        if self.now >= self.faults_end:
            return 1.0
        return random.Random(f"{self.seed}/{what}/{name}/{number}").random()

    def _train(self, actor: Actor, event: Event) -> None:
        machine = actor.machine
        assert isinstance(machine, DeviceMachine)
        view = machine.view(self.task)
        if view is None or view.number != event.data["round"] or machine.phase(self.task) != "training":
            return  # it died after this was stored and has said so again
        if self._chance("roster", actor.name, view.number) < self.faults.drop_roster:
            return
        name = actor.name.removeprefix("device/")
        late = machine.late.fit(view)
        made = self._drawn_for(view, name) if late is None else late
        if late is None and name in self.slow:
            self._trained[name] = made
            return
        tau = made.staleness(view) or 0
        lanes = encode_update(
            view.base,
            made.discounted(tau),
            weight=made.weight,
            statistics=made.statistics,
            rotation=view.manifest.rotation,
            key=Entropy(self.seed, f"rounding/{name}/{view.number}")(32),
        )
        self.truth[view.number, name] = pack(view.base.segments, lanes)
        self.began[view.number, name] = made.began
        kept = made if view.base.staleness_max and late is None else None
        self.apply(actor, machine.upload(self.task, view.number, lanes, self.now + actor.skew_ms, kept))

    def _drawn_for(self, view: RoundView, name: str) -> LateUpdate:
        """What a device trains for a round."""
        place = self.devices.index(name)
        dice = np.random.default_rng([self.seed, view.number, place])
        segments = view.base.segments
        update = dice.normal(0, 0.1, segments[0].length).astype(np.float32)
        if self._updates is not None:
            update = self._updates(name, view.number)
        statistics = dice.integers(0, 1000, segments[1].length - 1).tolist()
        if self.ballots:
            statistics = [int(place == other) for other in range(len(self.devices))]
        weight = 1 + place % view.task.codec.weight_max
        return LateUpdate.of(view, update, weight=weight, examples=weight, statistics=statistics)

    def _finish_trainings(self) -> None:
        """Slow devices are done with what they began in the last round."""
        for name, late in self._trained.items():
            actor = self.actors[f"device/{name}"]
            machine = actor.machine
            assert isinstance(machine, DeviceMachine)
            self.apply(actor, machine.keep(self.task, late, self.now + actor.skew_ms))
        self._trained = {}

    # -- results ----------------------------------------------------------------------------------------------------------

    def _record(self, actor: Actor) -> None:
        round_ = self.round
        assert round_.view is not None and round_.bodies is not None
        result = convert(open_envelope(round_.state.result).payload, Result)
        total = read_blob(actor.store, result.sum)
        assert total is not None
        survivors = tuple(self.roster.devices[index] for index in self.roster.in_order(list(round_.bodies.complete)))
        self.results.append(Finished(round_.state.number, result.count, survivors, total, round_.base.segments))

    def _file(self) -> None:
        """Take the last round's transcript, as late as it can be had."""
        round_ = self.coordinator.round(self.task)
        if round_ is not None and round_.state.phase == "failed":
            self.failed[round_.state.number] = b"".join(write_records(self.coordinator.records(self.task)))
        if self.results and self.results[-1].number == self.number and not self.results[-1].transcript:
            self.results[-1].transcript = b"".join(write_records(self.coordinator.records(self.task)))
