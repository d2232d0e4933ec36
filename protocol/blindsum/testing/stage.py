"""Roles on a network in virtual time: what a driver does with a machine's steps, for all roles at once and with faults."""

from __future__ import annotations

import random
from collections.abc import Callable

from blindsum.protocol.codec import encode_chunk
from blindsum.protocol.machines.step import ChunkOut, Event, Listen, Message, Outgoing, Step
from blindsum.protocol.messages import chunk_key
from blindsum.testing.actor import Actor
from blindsum.testing.faults import Faults
from blindsum.testing.fleet import START
from blindsum.testing.network import Network
from blindsum.testing.store import DictStore

__all__ = ["Stage"]

EVENTS_MAX = 300_000
"""More than this in one world means that machines keep each other busy for nothing."""
DISK_FULL_MS = (100, 20_000)
"""How long it takes until somebody makes room."""
BACKUPS = 0.05
"""Of the steps of a role whose host makes backups, after how many it does."""


class Stage:
    """Actors, the messages between them, and when each wants to be woken. A subclass says what is to be seen of it (`_shown`,
    `_stored`, `_happened`) and who dies in the middle of an upload (`_dies_sending`)."""

    def __init__(self, seed: int, faults: Faults) -> None:
        self.seed = seed
        self.now = START
        self.faults = faults
        self.faults_end = START + faults.until
        self.dice = random.Random(seed)
        self.network = Network(faults, self.dice, ends_at=self.faults_end)
        self.actors: dict[str, Actor] = {}
        self.played = 0
        self._wakes: dict[str, int] = {}

    # -- playing ----------------------------------------------------------------------------------------------------------

    def settle(self, ms: int = 5_000) -> None:
        """Let `ms` of virtual time pass."""
        until = self.now + ms
        while (at := self._next_at()) is not None and at <= until:
            self.step()
        self.now = until

    def calm(self) -> None:
        """From now on nothing goes wrong by chance."""
        self.faults_end = self.network.ends_at = self.now

    def step(self) -> None:
        """Let the next thing happen."""
        self.played += 1
        assert self.played < EVENTS_MAX, "machines keep each other busy for nothing"
        at, wake = self.network.next_at, min(self._wakes.values(), default=None)
        if at is not None and (wake is None or at <= wake):
            delivery = self.network.pop()
            self.now = max(self.now, delivery.at)
            actor = self.actors[delivery.target]
            if actor.alive:
                self.apply(actor, actor.machine.receive(delivery.body, self.now + actor.skew_ms))
        else:
            assert wake is not None, "nothing is left to happen"
            name = min(self._wakes, key=lambda key: (self._wakes[key], key))
            self.now = max(self.now, self._wakes.pop(name))
            actor = self.actors[name]
            actor.alive = True  # there is room on its disk again, if it was down
            self.apply(actor, actor.machine.wake(self.now + actor.skew_ms))

    def play(self, over: Callable[[], object], limit_ms: int) -> None:
        """Let things happen until `over()`. AssertionError after `limit_ms`."""
        until = self.now + limit_ms
        while not over():
            self.step()
            assert self.now < until, f"nothing more after {limit_ms} ms"

    def apply(self, actor: Actor, step: Step, *, faulty: bool = True) -> None:
        """What a driver does with a step, unless (`faulty`) it dies in the middle."""
        faulty = faulty and self.now < self.faults_end
        if step.refused is not None:
            actor.refusals[step.refused.code] += 1
        if faulty and self.dice.random() < self.faults.crash_before_commit:
            self.crash(actor.name)
            return
        if (
            faulty
            and self.faults.disk_full
            and (step.writes or step.messages)
            and self.dice.random() < self.faults.disk_full
        ):
            self.crash(actor.name)  # whoever looks at it meanwhile sees what is stored
            actor.alive = False
            self._wakes[actor.name] = self.now + self.dice.randint(*DISK_FULL_MS)
            return
        actor.store.commit(step.writes)
        self._stored(actor, step)
        if faulty and self.dice.random() < self.faults.crash_after_commit:
            self.crash(actor.name)
        else:
            for out in step.messages:
                self._send(actor, out)
            deadline = actor.machine.deadline
            self._wakes.pop(actor.name, None)
            if deadline is not None and actor.alive:
                self._wakes[actor.name] = max(deadline - actor.skew_ms, self.now)
        if faulty and actor.forgetful:
            self._lose(actor)
        for event in step.events:
            self._happened(actor, event)

    # -- meddling ---------------------------------------------------------------------------------------------------------

    def give(self, name: str, body: bytes) -> Step:
        """Hand bytes to a role this moment, whoever sent them, and let it act on them. Returns its step."""
        actor = self.actors[name]
        step = actor.machine.receive(body, self.now + actor.skew_ms)
        self.apply(actor, step, faulty=False)
        return step

    def stop(self, name: str) -> None:
        """Switch a role off: what is sent to it is lost."""
        self.actors[name].alive = False
        self._wakes.pop(name, None)

    def crash(self, name: str) -> None:
        """Kill a role and begin its next life from its store."""
        self.actors[name].restart()
        self._wakes[name] = self.now

    def backup(self, name: str) -> DictStore:
        """A copy of a role's store as it is now."""
        return DictStore(self.actors[name].store.rows)

    def restore(self, name: str, store: DictStore) -> None:
        """Put a role's store back to an older copy and begin its next life from that."""
        self.actors[name].store = DictStore(store.rows)
        self.crash(name)

    # -- what a subclass says ---------------------------------------------------------------------------------------------

    def _shown(self, actor: Actor, kind: str, body: bytes, targets: list[str]) -> list[tuple[str, bytes]]:
        """What goes to whom where `actor` sends `body` to `targets`."""
        return [(target, body) for target in targets]

    def _stored(self, actor: Actor, step: Step) -> None:
        """A step is committed."""

    def _happened(self, actor: Actor, event: Event) -> None:
        """A committed step has told of this."""

    def _dies_sending(self, actor: Actor, out: ChunkOut) -> bool:
        """Whether a role ends here and now."""
        return False

    # -- machinery --------------------------------------------------------------------------------------------------------

    def _lose(self, actor: Actor) -> None:
        """What a careless host does to a role that has just sent something."""
        if self.dice.random() < BACKUPS:
            actor.backup = self.backup(actor.name)
        if self.dice.random() < self.faults.amnesia:
            self.restore(actor.name, DictStore())
        elif self.dice.random() < self.faults.old_backup:
            self.restore(actor.name, actor.backup)

    def _next_at(self) -> int | None:
        times = list(self._wakes.values())
        if self.network.next_at is not None:
            times.append(self.network.next_at)
        return min(times, default=None)

    def _send(self, actor: Actor, out: Outgoing) -> None:
        if isinstance(out, Listen):
            self._listen(actor, out)
            return
        if isinstance(out, ChunkOut):
            data = actor.store.get(chunk_key(out.blob, out.index))
            retained = self.network.retained.setdefault(out.blob, {})
            if data is None:
                retained.pop(out.index, None)
                return
            if self._dies_sending(actor, out):
                self.stop(actor.name)
            if not actor.alive:
                return
            kind, body = "chunk", encode_chunk(out.blob, out.index, data)
            if out.to.startswith("all/"):
                retained[out.index] = body
                targets = [name for name, each in self.actors.items() if out.blob in each.listening]
            else:
                targets = [out.to]
        else:
            kind, body, targets = out.kind, out.body, self._targets(actor, out)
        for target, shown in self._shown(actor, kind, body, targets):
            self.network.send(actor.name, target, shown, self.now)

    def _listen(self, actor: Actor, out: Listen) -> None:
        if not out.on:
            actor.listening.discard(out.blob)
        elif out.blob not in actor.listening:
            actor.listening.add(out.blob)
            for body in list(self.network.retained.get(out.blob, {}).values()):
                self.network.send("broker", actor.name, body, self.now)

    def _targets(self, actor: Actor, out: Message) -> list[str]:
        if out.to.startswith("all/"):
            return [name for name in self.actors if name != actor.name]
        if out.to == "parties":
            return [name for name in self.actors if name.startswith("party/")]
        return [out.to]
