"""Some roles of a simulated fleet in one process: production machines, the messages between them, and virtual time.

A fleet is cut into islands. Whatever goes from one island to another takes at least `HOP_MS`, so each may play `HOP_MS` of virtual
time without hearing from the others. Everything that a role sees comes in an order that depends on times, senders and counters
only: the same seed gives the same history however the fleet is cut.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from blindsum.fleet.checkpoint import IslandState, Retained
from blindsum.fleet.conditions import FATES, Population, chance
from blindsum.fleet.copies import Copies, Flight
from blindsum.fleet.identities import Identities, device_number
from blindsum.fleet.learner import Learner
from blindsum.fleet.ledger import Ledger, Notes
from blindsum.fleet.links import HOP_MS, Links
from blindsum.fleet.pairs import Pairs
from blindsum.fleet.roles import DEVICE, DeviceRole, Job, Role
from blindsum.fleet.surroundings import Surroundings
from blindsum.fleet.trainings import Trainings
from blindsum.protocol.codec import encode_chunk
from blindsum.protocol.machines.coordinator import CoordinatorMachine
from blindsum.protocol.machines.device import DeviceMachine
from blindsum.protocol.machines.step import ChunkOut, Event, Listen, Message, Step, Write
from blindsum.protocol.messages import chunk_key
from blindsum.testing.behaviours import Behaviour

__all__ = ["MESSAGE", "Island", "Post"]

NEAR_MS: Final = 2
"""The least time of a message between coordinator and parties."""
RESTING_FROM: Final = 16_384
"""From so many devices on their machines are put away while nothing is left for them to do: they are made again in less time than
they take memory."""
BROKER: Final = -1
MESSAGE, _JOB, _WAKE = 0, 1, 2


class Post(NamedTuple):
    """`body` reaches role `target` at `at` ms; `BROKER`: whoever listens in the whole fleet. The first five order the history.
    Chunks for everybody are retained by `blob` and `place`; an empty body takes one away."""

    at: int
    target: int
    kind: int
    source: int
    counter: int
    body: bytes
    blob: bytes = b""
    place: int = 0


class Island:
    """Roles by id: the coordinator is 0, party p is p, device number d is `DEVICE` + d. `events`: what the coordinator and the
    parties told, with the time; whoever reads them clears them."""

    def __init__(
        self,
        roles: Iterable[Role],
        population: Population,
        ledger: Ledger,
        identities: Identities,
        *,
        learner: Learner,
        pairs: Pairs,
        task: str,
    ) -> None:
        self.roles = {role.id: role for role in roles}
        self._devices = [role for role in self.roles.values() if isinstance(role, DeviceRole)]
        self._resting = len(self._devices) >= RESTING_FROM
        self.events: list[tuple[int, int, Event]] = []
        self.task = task
        self.now = 0
        self._learner = learner
        self._ledger = ledger
        self._number = 0
        self._population = population
        self._identities = identities
        self._seed = identities.seed
        self._parties = range(1, identities.parties + 1)
        self._loss, self._duplicate = population.conditions.loss, population.conditions.duplicate
        self._doubles = self._loss + self._duplicate > 0  # what is lost is asked for, and may come after all
        self._links = Links(population)
        self._copies = Copies(
            population.size,
            [device.number for device in self._devices],
            arrives=self._arrives,
            longest=self._links.longest_down_ms,
        )
        self._world = Surroundings(identities, roster=self._roster, send=self._pass)
        self._heap: list[Post] = []
        self._trainings = Trainings(task, ledger, pairs)
        self._retained: dict[bytes, dict[int, bytes]] = {}
        self._out: list[Post] = []
        self._post = Post(0, 0, MESSAGE, 0, 0, b"")  # what happens

    # -- time -------------------------------------------------------------------------------------------------------------

    @property
    def next_at(self) -> int | None:
        """When something happens here next."""
        return self._heap[0].at if self._heap else None

    def begin(self, number: int, now: int) -> None:
        """A round begins at `now`: every role starts anew from what it has stored, every device meets its new fate, and nothing of
        the last round is on its way any more."""
        self._number, self.now = number, now
        self._heap = []
        self._links.begin()
        self._trainings.begin()
        fates = self._population.fates(number, now)
        self._ledger.begin(now, fates)
        self._received = self._ledger.down
        self._copies.begin(self._received)
        for role in self.roles.values():
            role.begin(number)
            role.restart()
            if isinstance(role, DeviceRole):
                role.fate = FATES[fates[role.number]]
                if role.fate == "away":
                    role.stop()
                    continue
                if role.job is not None:
                    self._wait_for(role.job)
            if not isinstance(role, DeviceRole) or role.store.unfinished:
                self._wake_at(role, now)

    def close(self, survivors: Sequence[int], now: int) -> Notes:
        """What this island noted of the round that is over: everything before `now` has been played."""
        self._copies.close(now)
        self._trainings.close(self._devices, self._number)
        return self._ledger.close(survivors)

    def state(self) -> IslandState:
        """What is stored here between two rounds."""
        rows, held, chunks = {}, {}, {}
        for role in self.roles.values():
            rows[role.id], held[role.id] = role.store.contents()
            chunks.update({name: role.store.get(name) or b"" for name in held[role.id] if name not in chunks})
        retained = [
            Retained(blob, place, body) for blob, all_ in self._retained.items() for place, body in all_.items()
        ]
        devices = self._devices
        return IslandState(
            rows=rows,
            held=held,
            chunks=chunks,
            learnt=self._learner.memories([role.number for role in devices]),
            training={
                role.number: (role.job.at, role.job.number)
                for role in devices
                if role.job is not None and role.job.learnt
            },
            retained=retained,
        )

    def memories(self, devices: Sequence[int]) -> dict[int, bytes]:
        """What the learner here remembers of `devices`."""
        return self._learner.memories(devices)

    def resume(self, state: IslandState) -> None:
        """Go on from what `state` gave, in whichever process."""
        for role in self.roles.values():
            role.store.commit(Write(key, value) for key, value in state.rows[role.id].items())
            role.store.commit(Write(name, state.chunks[name]) for name in state.held[role.id])
        for each in state.retained:
            self._retained.setdefault(each.blob, {})[each.place] = each.body
        self._learner.remember(state.learnt)
        for device in self._devices:
            if device.number in state.training:
                device.job = Job(*state.training[device.number], device, learnt=True)

    def take(self, posts: Iterable[Post]) -> None:
        """What other islands sent here."""
        for post in posts:
            heapq.heappush(self._heap, post)

    def advance(self, until: int) -> list[Post]:
        """Play everything before `until`. Returns what goes to other islands."""
        while self._heap and self._heap[0].at < until:
            post = self._post = heapq.heappop(self._heap)
            at, target, kind, _, counter, body, _, _ = post
            self.now = max(self.now, at)
            if target == BROKER:
                self._spread(post)
                continue
            role = self.roles[target]
            if kind == _WAKE:
                self._wake(role, at)
            elif role.alive and kind == _JOB:
                assert isinstance(role, DeviceRole)
                self.apply(role, self._trainings.done(role, counter, self.now))
            elif role.alive and isinstance(role, DeviceRole):
                self._hear_of(role, body)
            elif role.alive:
                self.apply(role, role.machine.receive(body, self.now))
        out, self._out = self._out, []
        return out

    def apply(self, role: Role, step: Step) -> None:
        """What a driver does with a step."""
        if step.refused is not None:
            self._ledger.refusals[step.refused.code] += 1
        if step.writes:
            role.store.commit(step.writes)
        self._give_out(role, step)

    def work(self) -> bool:
        """Train for one device before its time. False where there is nothing to do, or enough is done."""
        return self._trainings.work()

    # -- what happens -----------------------------------------------------------------------------------------------------

    def _hear_of(self, device: DeviceRole, body: bytes) -> None:
        """A message reaches a device."""
        self._received[device.number] += len(body)
        if not device.knows(body):
            step = device.machine.receive(body, self.now)
            self.apply(device, step)
            if self._resting and device.alive:
                self._put_away(device, body)
            if device.away_until and step.refused is None:
                self._copies.heard(device.number, body, away_until=device.away_until)
        if device.alive and device.knows(body):
            self._copies.heard(device.number, body)

    def _give_out(self, role: Role, step: Step) -> None:
        for out in step.messages:
            if not role.alive:
                return
            if isinstance(out, Listen):
                self._listen(role, out)
            else:
                self._send(role, out)
        if not role.alive:
            return
        deadline = role.machine.deadline
        if deadline is None:
            role.wake_at = None
        elif deadline != role.wake_at:
            self._wake_at(role, max(deadline, self.now))
        for event in step.events:
            if isinstance(role, DeviceRole):
                self._hear(role, event)
            else:
                self.events.append((self.now, role.id, event))

    def _put_away(self, device: DeviceRole, last: bytes) -> None:
        """Have a device rest after message `last` where nothing is left for it to do but to train, or to hear of the sum."""
        machine = device.machine
        assert isinstance(machine, DeviceMachine)
        phase = machine.phase(self.task)
        if phase == "uploaded":
            device.rest(last)
        elif phase == "training" and (device.job is None or device.job.step is None) and not self._doubles:
            device.rest()  # where chunks come twice it would refuse the second, having begun anew

    def _wake_at(self, role: Role, at: int) -> None:
        """Most deadlines move on before they come: a wake that is on its way already sees to that."""
        role.wake_at = at
        if role.wake_due is None or at < role.wake_due:
            role.wake_due = at
            heapq.heappush(self._heap, Post(at, role.id, _WAKE, 0, 0, b""))

    def _wake(self, role: Role, at: int) -> None:
        role.wake_due = None if at == role.wake_due else role.wake_due
        if role.wake_at == at and role.alive:
            role.wake_at = None
            self.apply(role, role.machine.wake(self.now))
        elif role.wake_at is not None and role.wake_due is None:
            self._wake_at(role, role.wake_at)

    def _hear(self, device: DeviceRole, event: Event) -> None:
        if event.name == "uploaded":
            self._ledger.uploaded(device.number, self.now)
            device.uploaded()
        elif event.name in ("round-finished", "round-abandoned"):
            for post in self._recalled(device):
                heapq.heappush(self._heap, post)
        elif event.name == "train":
            machine = device.machine
            assert isinstance(machine, DeviceMachine)
            view = machine.view(self.task)
            if view is None or view.number != self._number:
                return  # it died in an earlier round, and has only now come back
            if device.fate == "after roster":
                self._stop(device)
                return
            late = machine.late.fit(view)
            if late is not None:
                self.apply(device, self._trainings.contribute(device, view, late, self.now))
                return
            at = self.now + int(self._population.train_ms[device.number])
            if device.fate == "slow" or (at >= view.manifest.upload_until and not view.base.staleness_max):
                self._ledger.late += not device.fate
                return
            self._wait_for(self._trainings.add(device, view, at))

    def _stop(self, device: DeviceRole) -> None:
        device.stop()
        self._recalled(device)

    def _recalled(self, device: DeviceRole) -> list[Post]:
        """The copies that are on their way to a device which knows nothing of them any more."""
        posts = []
        for at, flight in self._copies.recall(device.number):
            post = Post(at, device.id, MESSAGE, flight.source, flight.counter, flight.body)
            if post > self._post:
                self._copies.uncount(device.number, flight)
                posts.append(post)
        return posts

    def _wait_for(self, job: Job) -> None:
        heapq.heappush(self._heap, Post(max(job.at, self.now), job.device.id, _JOB, 0, job.number, b""))

    # -- messages ---------------------------------------------------------------------------------------------------------

    def _send(self, role: Role, out: Message | ChunkOut) -> None:
        if isinstance(out, ChunkOut):
            data = role.store.get(chunk_key(out.blob, out.index))
            kind, body = "chunk", b"" if data is None else encode_chunk(out.blob, out.index, data)
            if isinstance(role, DeviceRole):
                if role.fate == "mid upload":
                    self._stop(role)
                    return
                if role.fate == "corrupted":
                    body = body[:-1] + bytes([body[-1] ^ 1])
                if self._links.waiting(role.number, out.blob, out.index, self.now):
                    return
        else:
            kind, body = out.kind, out.body
        role.counter += 1
        if out.to.startswith("all/"):
            blob, index = (out.blob, out.index) if isinstance(out, ChunkOut) else (b"", 0)
            post = Post(self.now + HOP_MS, BROKER, MESSAGE, role.id, role.counter, body, blob, index)
            heapq.heappush(self._heap, post)
            self._out.append(post)
            return
        if not body:
            return
        size = len(body)
        if isinstance(role, DeviceRole):
            # boxes are sealed with the system's randomness, and by the chain of results they decide the graphs of later rounds; so
            # that no time depends on it, every header counts as one of the graph's degree
            size -= role.extra if kind == "header" else 0
            self._ledger.up[role.number] += size
        luck = chance(self._seed, self._number, role.id, role.counter)
        for target in self._targets(out.to):
            sent: bytes | None = body
            if type(role.behaviour) is not Behaviour:
                name = "coordinator" if target == 0 else f"party/{target}"
                sent = role.behaviour.send(self._world, name, kind, body)  # type: ignore[arg-type]
            if sent is not None:
                self._deliver(role, target, sent, size, luck)
        if isinstance(role, DeviceRole) and isinstance(out, ChunkOut):
            self._links.sent(role.number, out.blob, out.index, self.now)

    def _roster(self) -> Any:
        coordinator = self.roles[0].machine
        assert isinstance(coordinator, CoordinatorMachine)
        round_ = coordinator.round(self.task)
        return None if round_ is None else round_.roster

    def _pass(self, source: str, target: str, body: bytes) -> None:
        """What a byzantine device sends to a party of its choice."""
        role = self.roles[DEVICE + device_number(source.removeprefix("device/"))]
        role.counter += 1
        self._deliver(role, int(target.removeprefix("party/")), body, len(body), 0.0)

    def _targets(self, to: str) -> Sequence[int]:
        name, _, rest = to.partition("/")
        if name == "parties":
            return self._parties
        if name == "coordinator":
            return (0,)
        return (int(rest),) if name == "party" else (DEVICE + device_number(rest),)

    def _deliver(self, role: Role, target: int, body: bytes, size: int, luck: float) -> None:
        """From one role to another, with what its way takes and does to it."""
        device = max(role.id, target) - DEVICE
        if device < 0:
            at = self.now + int(NEAR_MS + 8 * luck)
        elif role.id >= DEVICE:
            at = self.now + int(self._links.up_ms(device, size, luck, self.now))
        else:
            at = self.now + int(self._links.tell_ms(device, size, luck, self.now))
        if role.id >= DEVICE:  # one connection: what is sent later does not overtake
            at = role.last_at = max(at, role.last_at)
        for copy in range(1 if device < 0 else self._copied(role.id, role.counter, target)):
            post = Post(at + 7 * copy, target, MESSAGE, role.id, role.counter, body)
            if target in self.roles:
                heapq.heappush(self._heap, post)
            else:
                self._out.append(post)

    def _copied(self, *what: int) -> int:
        if not (self._loss or self._duplicate):
            return 1
        fortune = chance(self._seed, self._number, *what)
        return 0 if fortune < self._loss else 2 if fortune < self._loss + self._duplicate else 1

    def _spread(self, post: Post) -> None:
        """Something for everybody has reached the broker."""
        if post.blob and not post.body:
            self._retained.pop(post.blob, None)
            return
        if post.blob:
            self._retained.setdefault(post.blob, {})[post.place] = post.body
        listening = self.roles.values() if post.blob or self._doubles else self._unaware(post)
        for role in listening:
            if role.alive and role.id != post.source and (not post.blob or post.blob in role.listening):
                self._hand(role, post.body, post.source, post.counter)

    def _unaware(self, post: Post) -> Iterable[Role]:
        """The roles for whom a broadcast is no copy, or which see for themselves."""
        numbers = self._copies.leave(Flight(self.now, post.source, post.counter, post.body))
        yield from (role for role in self.roles.values() if not isinstance(role, DeviceRole))
        yield from (self.roles[DEVICE + number] for number in numbers)

    def _listen(self, role: Role, out: Listen) -> None:
        if not out.on:
            role.listening = tuple(blob for blob in role.listening if blob != out.blob)
        elif out.blob not in role.listening:
            role.listening = (*role.listening, out.blob)
            before = 0
            for index, body in sorted(self._retained.get(out.blob, {}).items()):
                role.counter += 1
                self._hand(role, body, BROKER, role.counter + index, before)
                before += len(body)

    def _hand(self, role: Role, body: bytes, source: int, counter: int, before: int = 0) -> None:
        """From the broker to a role, after `before` bytes that go the same way."""
        copies = 1
        if isinstance(role, DeviceRole):
            at = self._arrives(role.number, Flight(self.now, source, counter, body), before)
            copies = self._copied(role.id, source + 1, counter, 1)
        else:
            luck = chance(self._seed, self._number, role.id, source + 1, counter)
            at = self.now + 1 + int(NEAR_MS + 8 * luck)
        for copy in range(copies):
            heapq.heappush(self._heap, Post(at + 7 * copy, role.id, MESSAGE, source, counter, body))

    def _arrives(self, device: int, flight: Flight, before: int = 0) -> int:
        """When a broadcast reaches a device."""
        luck = chance(self._seed, self._number, DEVICE + device, flight.source + 1, flight.counter)
        return flight.left + 1 + int(self._links.down_ms(device, before + len(flight.body), luck) - HOP_MS)
