"""The virtual world: production machines on a seeded discrete-event network with named faults.

Time is virtual, every delivery is an event in a heap, and one seed gives one history. Devices add random updates that the world
remembers, so `World.check` can compare each published sum with the plain ring sum over exactly its survivor set.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from blindsum.protocol.blobs import read_blob
from blindsum.protocol.codec import convert, encode_chunk
from blindsum.protocol.keys import box_seal
from blindsum.protocol.machines.coordinator import CoordinatorMachine
from blindsum.protocol.machines.device import DeviceMachine, Floor
from blindsum.protocol.machines.party import PartyFloor, PartyMachine
from blindsum.protocol.machines.step import ChunkOut, Event, Listen, Machine, Message, Step
from blindsum.protocol.messages import Result, chunk_key
from blindsum.protocol.params import Committee
from blindsum.protocol.ring import add_packed, pack, reduce, zeros
from blindsum.protocol.update import encode_update
from blindsum.protocol.view import open_message
from blindsum.testing.entropy import Entropy
from blindsum.testing.fleet import START, TestFleet, make_fleet, make_task
from blindsum.testing.store import DictStore

__all__ = ["Faults", "World"]

EVENTS_MAX = 300_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What goes wrong, as probabilities per message or step, and times in ms. All of it stops at `until`."""

    loss: float = 0.0
    duplicate: float = 0.0
    delay_ms: tuple[int, int] = (1, 20)
    crash_before_commit: float = 0.0
    crash_after_commit: float = 0.0
    flip: float = 0.0
    drop_join: float = 0.0
    drop_roster: float = 0.0
    drop_upload: float = 0.0
    until: int = 10**15


@dataclass(slots=True)
class Actor:
    """One role: its store, and how to make its machine from it."""

    name: str
    make: Callable[[DictStore], Machine]
    store: DictStore
    machine: Machine
    alive: bool = True
    listening: set[bytes] = field(default_factory=set)
    refusals: Counter[str] = field(default_factory=Counter)


class World:
    """A fleet in one process. `run(rounds)` plays rounds of the task until they are finished or have failed."""

    def __init__(
        self,
        seed: int,
        *,
        devices: int = 8,
        committee: Committee | None = None,
        faults: Faults | None = None,
        updates: Callable[[str, int], np.ndarray] | None = None,
        **task: object,
    ) -> None:
        self.seed = seed
        self.faults = faults or Faults()
        self.dice = random.Random(seed)
        self.now = START
        self.events: list[tuple[str, Event]] = []
        self.truth: dict[tuple[int, str], bytes] = {}
        self.committee = committee or Committee.for_f(1)
        self.fleet: TestFleet = make_fleet(seed, parties=self.committee.parties, devices=devices)
        settings: dict[str, object] = {"committee": self.committee, "devices_max": devices, **task}
        self.task_raw, self.plan, self.model = make_task(self.fleet, **settings)  # type: ignore[arg-type]
        self.results: list[tuple[Result, bytes]] = []
        self.sets: dict[int, list[int]] = {}
        self.tap: Callable[[str, str, bytes], bytes | None] | None = None
        self._updates = updates
        self._heap: list[tuple[int, int, str, bytes]] = []
        self._sequence = 0
        self._retained: dict[bytes, dict[int, bytes]] = {}
        self._wakes: dict[str, int] = {}
        self.actors: dict[str, Actor] = {}
        self._build()

    # -- running --------------------------------------------------------------------------------------------------

    def run(self, rounds: int = 1, *, limit_ms: int = 3_600_000) -> None:
        """Play `rounds` rounds. Raises AssertionError where they do not end within `limit_ms` of virtual time."""
        for _ in range(rounds):
            for actor in self.actors.values():
                if not actor.alive:
                    actor.alive = True
                    self.crash(actor.name)
            coordinator = self.actors["coordinator"]
            self._apply(coordinator, coordinator.machine.start("sum", self.now))  # type: ignore[attr-defined]
            until = self.now + limit_ms
            while not self._over():
                assert self.step(), "nothing left to happen"
                assert self.now < until, f"round not over after {limit_ms} ms: {self.phase()}"

    def settle(self, ms: int = 5_000) -> None:
        """Let `ms` of virtual time pass."""
        until = self.now + ms
        while (at := self._next_time()) is not None and at <= until:
            self.step()
        self.now = until

    def step(self) -> bool:
        """Let the next thing happen. False where nothing is left."""
        at = self._next_time()
        if at is None:
            return False
        self._sequence += 1
        assert self._sequence < EVENTS_MAX, "a machine spins"
        if self._heap and self._heap[0][0] <= min(self._wakes.values(), default=at):
            self.now = max(self.now, self._heap[0][0])
            _, _, name, body = heapq.heappop(self._heap)
            actor = self.actors[name]
            if actor.alive:
                self._apply(actor, actor.machine.receive(body, self.now))
        else:
            name = min(self._wakes, key=lambda key: (self._wakes[key], key))
            self.now = max(self.now, self._wakes.pop(name))
            actor = self.actors[name]
            if actor.alive:
                self._apply(actor, actor.machine.wake(self.now))
        return True

    def phase(self) -> str:
        round_ = self.actors["coordinator"].machine.round("sum")  # type: ignore[attr-defined]
        return f"{round_.state.phase} {round_.state.code}" if round_ else "none"

    def inject(self, name: str, body: bytes) -> None:
        """Deliver bytes to an actor now, whoever sent them."""
        self._push(name, body, 0)

    def crash(self, name: str) -> None:
        """Kill a role and make it anew from its store."""
        actor = self.actors[name]
        actor.machine = actor.make(actor.store)
        actor.listening.clear()
        self._wakes[name] = self.now

    # -- checking -------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Every published sum equals the plain ring sum over its survivor set, bit for bit."""
        base = self.actors["coordinator"].machine.base("sum")  # type: ignore[attr-defined]
        for number, (result, total) in enumerate(self.results):
            survivors = self.sets[number]
            assert result.count == len(survivors)
            lanes = zeros(base.segments)
            for index in survivors:
                add_packed(base.segments, lanes, self.truth[number, self.names(number)[index]])
            reduce(base.segments, lanes)
            assert pack(base.segments, lanes) == total, "the opened sum is not the plain ring sum"

    def names(self, number: int) -> tuple[str, ...]:
        return self._rosters[number]

    # -- plumbing -------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        self._rosters: dict[int, tuple[str, ...]] = {}
        fleet, trust = self.fleet, self.fleet.trust

        def coordinator(store: DictStore) -> Machine:
            return CoordinatorMachine(
                key=fleet.coordinator,
                box_private=fleet.coordinator_box,
                trust=trust,
                store=store,
                random=Entropy(self.seed, f"coordinator{self._sequence}"),
            )

        self._add("coordinator", coordinator)
        step = self.actors["coordinator"].machine.add_task(self.task_raw, plan=self.plan, model=self.model)  # type: ignore[attr-defined]
        self._apply(self.actors["coordinator"], step)
        for number, key in enumerate(fleet.parties, 1):

            def party(store: DictStore, number: int = number, key: object = key) -> Machine:
                return PartyMachine(
                    number=number,
                    key=key,  # type: ignore[arg-type]
                    trust=trust,
                    store=store,
                    random=Entropy(self.seed, f"party{number}/{self._sequence}"),
                    seal=box_seal,
                    floor=PartyFloor(),
                )

            self._add(f"party/{number}", party)
        for identity in fleet.devices:

            def device(store: DictStore, identity: object = identity) -> Machine:
                return DeviceMachine(
                    identity=identity,  # type: ignore[arg-type]
                    trust=trust,
                    tasks=frozenset({"sum"}),
                    store=store,
                    random=Entropy(self.seed, f"{identity.name}/{self._sequence}"),  # type: ignore[attr-defined]
                    seal=box_seal,
                    floor=Floor(),
                    willing=lambda view, name=identity.name: self._unwilling(name, view.number),  # type: ignore[attr-defined,misc]
                )

            self._add(f"device/{identity.name}", device)

    def _add(self, name: str, make: Callable[[DictStore], Machine]) -> None:
        store = DictStore()
        self.actors[name] = Actor(name, make, store, make(store))

    def _apply(self, actor: Actor, step: Step) -> None:
        if step.refused is not None:
            actor.refusals[step.refused.code] += 1
        faulty = self.now - START < self.faults.until
        if faulty and self.dice.random() < self.faults.crash_before_commit:
            self.crash(actor.name)
            return
        actor.store.commit(step.writes)
        if faulty and self.dice.random() < self.faults.crash_after_commit:
            self.crash(actor.name)
            self._observe(actor, step)
            return
        for out in step.messages:
            self._send(actor, out)
        deadline = actor.machine.deadline
        if deadline is not None:
            self._wakes[actor.name] = max(deadline, self.now)
        else:
            self._wakes.pop(actor.name, None)
        self._observe(actor, step)

    def _observe(self, actor: Actor, step: Step) -> None:
        for event in step.events:
            self.events.append((actor.name, event))
            if event.name == "train":
                self._train(actor, event)
            elif event.name == "round-finished" and actor.name == "coordinator":
                self._record(actor)

    def _record(self, actor: Actor) -> None:
        round_ = actor.machine.round("sum")  # type: ignore[attr-defined]
        signed = open_message(self.fleet.trust, round_.state.result)
        result = convert(signed.payload, Result)  # type: ignore[union-attr]
        total = read_blob(actor.store, result.sum)
        assert total is not None
        number = len(self.results)
        self.results.append((result, total))
        self.sets[number] = sorted(round_.bodies.complete)
        self._rosters[number] = round_.roster.devices
        for device in round_.roster.devices:
            key = (-round_.state.number, device)
            if key in self.truth:
                self.truth[number, device] = self.truth.pop(key)

    def _train(self, actor: Actor, event: Event) -> None:
        machine = actor.machine
        assert isinstance(machine, DeviceMachine)
        view = machine.view("sum")
        if view is None or view.number != event.data["round"] or machine.phase("sum") != "training":
            return
        name = actor.name.removeprefix("device/")
        if self._chance("roster", name, view.number) < self.faults.drop_roster:
            return
        length = view.base.segments[0].length
        dice = np.random.default_rng([self.seed, view.number, int(name[2:])])
        update = dice.normal(0, 0.1, length).astype(np.float32)
        if self._updates is not None:
            update = self._updates(name, view.number)
        statistics = [int(dice.integers(0, 1000)) for _ in range(view.base.segments[1].length - 1)]
        lanes = encode_update(
            view.base,
            update,
            weight=1 + int(name[2:]) % view.task.codec.weight_max,
            statistics=statistics,
            rotation=view.manifest.rotation,
            key=Entropy(self.seed, f"rounding/{name}/{view.number}")(32),
        )
        self.truth[-view.number, name] = pack(view.base.segments, lanes)
        self._apply(actor, machine.upload("sum", view.number, lanes, self.now))

    def _unwilling(self, name: str, number: int) -> str:
        return "not now" if self._chance("join", name, number) < self.faults.drop_join else ""

    def _chance(self, what: str, name: str, number: int) -> float:
        return random.Random(f"{self.seed}/{what}/{name}/{number}").random()

    def _send(self, actor: Actor, out: Message | ChunkOut | Listen) -> None:
        if isinstance(out, Listen):
            if not out.on:
                actor.listening.discard(out.blob)
            elif out.blob not in actor.listening:
                actor.listening.add(out.blob)
                for body in list(self._retained.get(out.blob, {}).values()):
                    self._deliver(actor.name, actor.name, body)
            return
        if isinstance(out, ChunkOut):
            data = actor.store.get(chunk_key(out.blob, out.index))
            if data is None:
                self._retained.get(out.blob, {}).pop(out.index, None)
                return
            body = encode_chunk(out.blob, out.index, data)
            if out.to.startswith("all/"):
                self._retained.setdefault(out.blob, {})[out.index] = body
                targets = [a.name for a in self.actors.values() if out.blob in a.listening]
            else:
                targets = [out.to]
            name = actor.name.removeprefix("device/")
            if actor.name.startswith("device/") and self._chance("upload", name, out.index) < self.faults.drop_upload:
                actor.alive = False
                return
        else:
            body = out.body
            targets = self._targets(actor, out)
        for target in targets:
            self._deliver(actor.name, target, body)

    def _targets(self, actor: Actor, out: Message) -> list[str]:
        parties = [name for name in self.actors if name.startswith("party/")]
        if out.to.startswith("all/"):
            return [name for name in self.actors if name != actor.name]
        if out.kind == "header" and actor.name.startswith("device/"):
            return ["coordinator", *parties]
        return [out.to]

    def _deliver(self, source: str, target: str, body: bytes) -> None:
        if self.tap is not None:
            tapped = self.tap(source, target, body)
            if tapped is None:
                return
            body = tapped
        faults = self.faults
        low, high = faults.delay_ms
        if self.now - START < faults.until:
            if self.dice.random() < faults.loss:
                return
            if self.dice.random() < faults.flip and body:
                at = self.dice.randrange(len(body))
                body = body[:at] + bytes([body[at] ^ (1 << self.dice.randrange(8))]) + body[at + 1 :]
            if self.dice.random() < faults.duplicate:
                self._push(target, body, self.dice.randint(low, high))
        self._push(target, body, self.dice.randint(low, high))

    def _push(self, target: str, body: bytes, delay: int) -> None:
        self._sequence += 1
        heapq.heappush(self._heap, (self.now + delay, self._sequence, target, body))

    def _next_time(self) -> int | None:
        times = [*self._wakes.values()]
        if self._heap:
            times.append(self._heap[0][0])
        return min(times, default=None)

    def _over(self) -> bool:
        round_ = self.actors["coordinator"].machine.round("sum")  # type: ignore[attr-defined]
        return not round_.active
