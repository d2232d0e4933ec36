"""A simulated fleet at work: its islands, one here and the others in processes of their own, round after round."""

from __future__ import annotations

import gc
import multiprocessing
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Final, Self

from blindsum.fleet.bridge import Bridge
from blindsum.fleet.checkpoint import IslandState
from blindsum.fleet.conditions import Population
from blindsum.fleet.identities import START, Identities, device_number
from blindsum.fleet.island import BROKER, HOP_MS, Island, Post
from blindsum.fleet.learner import Learner
from blindsum.fleet.ledger import Ledger, Notes
from blindsum.fleet.pairs import Pairs, paired
from blindsum.fleet.roles import DEVICE, CoordinatorRole, DeviceRole, PartyRole, Role
from blindsum.fleet.shelf import Shelf
from blindsum.protocol.blobs import read_blob
from blindsum.protocol.codec import convert
from blindsum.protocol.envelope import open_envelope
from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.machines.coordinator import CoordinatorMachine
from blindsum.protocol.machines.coordinatorround import CoordinatorRound
from blindsum.protocol.memo import sharing
from blindsum.protocol.messages import Result
from blindsum.protocol.ring import pack, unpack
from blindsum.protocol.update import exact_sums
from blindsum.protocol.view import TaskView
from blindsum.testing.behaviours import Behaviour

__all__ = ["Engine", "Outcome", "Setup"]

WINDOWS_MAX: Final = 10_000_000
"""More windows of virtual time than this in one round mean that machines keep each other busy for nothing."""
GARBAGE_MIN: Final = 100_000
"""New objects after which a worker looks for cycles among them: machines make many objects and next to no cycles."""
STOP_S: Final = 30.0
"""How long a worker that is told to end may take, training included, before it is killed."""


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


STEP_MS: Final = 1000
"""Where nothing is left to happen but what real devices do, they are waited for so long at a time."""
HONEST: Final = Behaviour()


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a round ended. `code`: why it failed, or "". `statistics`: the exact sums (weight first). `exact`: whether the opened sum
    is byte for byte the plain ring sum of the survivors' vectors. Times in virtual ms."""

    number: int
    code: str
    began: int
    ended: int
    joined: int
    rostered: int
    degree: int
    survivors_min: int
    survivors: tuple[int, ...] = field(repr=False)
    excluded: Mapping[int, str]
    phases: Mapping[str, int]
    statistics: tuple[int, ...]
    exact: bool
    faults: tuple[tuple[str, str], ...]
    model: bytes = field(repr=False)
    notes: Notes = field(repr=False)


class Engine:
    """Rounds of the fleet of `setup`, with `workers` processes for the devices (0: all in this one). A context manager."""

    def __init__(
        self, setup: Setup, *, workers: int, on_event: Callable[[int, str, Mapping[str, object]], None]
    ) -> None:
        size = setup.population.size
        self._setup = setup
        self._on_event = on_event
        real, parts = frozenset(setup.real), max(workers, 1)
        shares = [[device for device in range(each, size, parts) if device not in real] for each in range(parts)]
        self._remotes: list[_Remote] = []
        for share in shares if workers else ():
            self._remotes.append(_Remote(setup, share, self._remotes))
        self._bridge = self._make_bridge() if real else None  # after the workers: it has threads
        self._own = [] if workers else shares[0]
        self._local = setup.island(self._own, backends=True, threads=2 if workers else 1)
        self._now = self._played = START
        self._number = 0
        self._local.apply(
            self._local.roles[0], self._coordinator.add_task(setup.base.raw, plan=setup.plan, model=setup.model)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for remote in self._remotes:
            remote.stop()
        if self._bridge is not None:
            self._bridge.stop()

    @property
    def model(self) -> bytes:
        """The current model."""
        return self._coordinator.model(self._setup.base.name)

    def run_round(self) -> Outcome:
        """Play the next round to its end, and then the pause after it."""
        name, began = self._setup.base.name, self._now
        self._number = number = self._number + 1
        self._local.begin(number, began)
        for remote in self._remotes:
            remote.begin(number, began)
        if self._bridge is not None:
            self._bridge.begin(number, began)
        self._local.apply(self._local.roles[0], self._coordinator.start(name, began))
        phases: dict[str, int] = {}
        faults: list[tuple[str, str]] = []
        self._play(None, phases, faults)
        round_ = self._coordinator.round(name)
        assert round_ is not None
        if self._bridge is not None:
            self._bridge.rest()
        ended = phases["done" if "done" in phases else "failed"]
        # to the next full ten seconds: how long an opening takes depends on the graph (see Island), what comes after must not
        self._now = ended - (ended - began) % -10_000 + int(1000 * self._setup.population.conditions.pause_s)
        self._play(self._now - 2 * HOP_MS, phases, faults)
        self._local.apply(self._local.roles[0], self._coordinator.clear(name))
        self._play(self._now, phases, faults)
        return self._outcome(round_, began, ended, phases, faults)

    @property
    def now(self) -> int:
        """When the next round begins, in virtual ms."""
        return self._now

    def state(self) -> IslandState:
        """What everybody has stored, between two rounds."""
        for remote in self._remotes:
            remote.ask("state")
        whole = self._local.state()
        for remote in self._remotes:
            whole.add(remote.answer())
        return whole

    def memories(self) -> dict[int, bytes]:
        """What the learner remembers of the devices, by number."""
        whole = self._setup.learner.memories(self._own)
        for remote in self._remotes:
            remote.ask("memories", list(remote.devices))
            whole |= remote.answer()
        return whole

    def resume(self, number: int, now: int, state: IslandState) -> None:
        """Go on at `now`, after round `number`, from what `state` gave: before the first round here."""
        self._number, self._now = number, now
        for remote in self._remotes:
            remote.ask("resume", state.part([DEVICE + each for each in remote.devices], remote.devices))
        self._local.resume(state.part(self._local.roles, self._own))
        for remote in self._remotes:
            remote.answer()

    @property
    def _coordinator(self) -> CoordinatorMachine:
        machine = self._local.roles[0].machine
        assert isinstance(machine, CoordinatorMachine)
        return machine

    # -- virtual time -----------------------------------------------------------------------------------------------------

    def _play(self, until: int | None, phases: dict[str, int], faults: list[tuple[str, str]]) -> None:
        """Let time pass: to `until`, or to the end of the round."""
        for _ in range(WINDOWS_MAX):
            times = [self._local.next_at, *(remote.next_at for remote in self._remotes)]
            now = min((at for at in times if at is not None), default=None)
            if until is None and ("done" in phases or "failed" in phases):
                return
            if until is not None and (now is None or now >= until):
                return
            if self._bridge is not None:
                now = self._wait(self._bridge, now)
            assert now is not None, "nothing is left to happen"
            self._played = horizon = now + HOP_MS if until is None else min(now + HOP_MS, until)
            busy = [remote for remote in self._remotes if remote.next_at is not None and remote.next_at < horizon]
            for remote in busy:
                remote.send(horizon)
            self._route(None, self._local.advance(horizon))
            for remote in busy:
                self._route(remote, remote.receive())
            self._hear(phases, faults)
        raise AssertionError("machines keep each other busy for nothing")

    def _wait(self, bridge: Bridge, now: int | None) -> int:
        """Give real devices the time up to `now`, when something happens next; what they say may come before."""
        due = self._played + STEP_MS if now is None else now
        posts = bridge.wait(due, self._played)
        self._local.take(posts)
        return min((post.at for post in posts), default=due)

    def _make_bridge(self) -> Bridge:
        setup = self._setup
        try:
            return Bridge(
                setup.real,
                setup.transport,
                identities=setup.identities,
                population=setup.population,
                learner=setup.learner,
                segments=setup.base.segments,
                task=setup.base.name,
                now=START,
            )
        except BaseException:
            for remote in self._remotes:
                remote.stop()
            raise

    def _route(self, source: _Remote | None, posts: list[Post]) -> None:
        for post in posts:
            if post.target == BROKER:
                for remote in self._remotes:
                    if remote is not source:
                        remote.take(post)
                if self._bridge is not None:
                    self._bridge.take(post)
            elif self._bridge is not None and post.target - DEVICE in self._bridge:
                self._bridge.take(post)
            elif post.target >= DEVICE and self._remotes:
                self._remotes[(post.target - DEVICE) % len(self._remotes)].take(post)
            else:
                self._local.take([post])

    def _hear(self, phases: dict[str, int], faults: list[tuple[str, str]]) -> None:
        for at, role, event in self._local.events:
            if role == 0 and event.name == "phase":
                phases[str(event.data["phase"])] = at
            elif role == 0 and event.name == "fault":
                faults.append((str(event.data["culprit"]), str(event.data["code"])))
            if role == 0:
                self._on_event(at, event.name, event.data)
        self._local.events.clear()

    # -- results ----------------------------------------------------------------------------------------------------------

    def _outcome(
        self,
        round_: CoordinatorRound,
        began: int,
        ended: int,
        phases: dict[str, int],
        faults: list[tuple[str, str]],
    ) -> Outcome:
        state, roster, bodies = round_.state, round_.roster, round_.bodies
        survivors: tuple[int, ...] = ()
        if state.phase == "done":
            assert roster is not None and bodies is not None
            survivors = tuple(device_number(roster.devices[index]) for index in roster.in_order(list(bodies.complete)))
        for remote in self._remotes:
            remote.ask("close", survivors)
        notes = self._local.close(survivors)
        for remote in self._remotes:
            notes.add(remote.answer())
        if self._bridge is not None:
            notes.add(self._bridge.close(survivors))
        statistics: tuple[int, ...] = ()
        exact = False
        if state.phase == "done":
            base = self._setup.base
            total = read_blob(self._local.roles[0].store, convert(open_envelope(state.result).payload, Result).sum)
            assert total is not None
            exact = pack(base.segments, notes.plain) == total
            statistics = tuple(exact_sums(base, unpack(base.segments, total)).tolist())
        return Outcome(
            number=state.number,
            code=state.code,
            began=began,
            ended=ended,
            joined=len(round_.joins),
            rostered=roster.size if roster else 0,
            degree=roster.degree if roster else 0,
            survivors_min=roster.survivors_min if roster else 0,
            survivors=survivors,
            excluded=dict(state.excluded),
            phases=phases,
            statistics=statistics,
            exact=exact,
            faults=tuple(faults),
            model=self.model,
            notes=notes,
        )


class _Remote:
    """An island in a process of its own, as seen from here."""

    def __init__(self, setup: Setup, devices: Sequence[int], others: Sequence[_Remote]) -> None:
        forks = "fork" in multiprocessing.get_all_start_methods()
        context: Any = multiprocessing.get_context("fork" if forks else "spawn")
        self._pipe, theirs = context.Pipe()
        # a forked process holds our ends, too, and while anybody does nobody learns that we have gone
        inherited = [self._pipe, *(other._pipe for other in others)] if forks else []
        self._process = context.Process(target=_serve, args=(theirs, setup, devices, inherited), daemon=True)
        self._process.start()
        theirs.close()
        self.devices = devices
        self._posts: list[Post] = []
        self._first: int | None = None
        self._next: int | None = None

    @property
    def next_at(self) -> int | None:
        """When something happens there next, as far as it has been told."""
        return min((at for at in (self._next, self._first) if at is not None), default=None)

    def take(self, post: Post) -> None:
        self._posts.append(post)
        self._first = post.at if self._first is None else min(self._first, post.at)

    def begin(self, number: int, now: int) -> None:
        self._posts, self._first = [], None
        self.ask("begin", number, now)
        self._next = self.answer()

    def send(self, horizon: int) -> None:
        self.ask("advance", horizon, self._posts)
        self._posts, self._first = [], None

    def receive(self) -> list[Post]:
        posts, self._next = self.answer()
        return posts  # type: ignore[no-any-return]

    def ask(self, *what: object) -> None:
        self._pipe.send(what)

    def answer(self) -> Any:
        try:
            good, value = self._pipe.recv()
        except EOFError:
            raise BlindsumError("simulation-worker-died", f"exit status {self._process.exitcode}") from None
        if not good:
            raise value
        return value

    def stop(self) -> None:
        self._pipe.close()
        self._process.join(STOP_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join(STOP_S)


def _serve(pipe: Connection, setup: Setup, devices: Sequence[int], inherited: Sequence[Connection]) -> None:
    """The life of a worker process."""
    for theirs in inherited:
        theirs.close()
    gc.freeze()
    gc.set_threshold(GARBAGE_MIN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent tells when to end
    with sharing(), paired(setup.pairs):
        _work(pipe, setup, devices)


def _work(pipe: Connection, setup: Setup, devices: Sequence[int]) -> None:
    """Answer. While nothing is asked, make uploads before their time."""
    island = setup.island(devices, backends=False)
    failed: Exception | None = None
    while True:
        try:
            while failed is None and not pipe.poll(0) and island.work():
                pass
        except Exception as error:  # told when the next question comes
            failed = error
        try:
            what, *arguments = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            if failed is not None:
                raise failed
            pipe.send((True, _answer(island, what, arguments)))
        except Exception as error:
            pipe.send((False, error))


def _answer(island: Island, what: str, arguments: list[Any]) -> object:
    if what == "begin":
        island.begin(*arguments)
        return island.next_at
    if what == "advance":
        horizon, posts = arguments
        island.take(posts)
        return island.advance(horizon), island.next_at
    if what == "state":
        return island.state()
    if what == "memories":
        return island.memories(*arguments)
    if what == "resume":
        island.resume(*arguments)
        return None
    assert what == "close"
    return island.close(*arguments)
