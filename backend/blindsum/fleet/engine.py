"""A simulated fleet at work: its islands, one here and the others in processes of their own, round after round."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Self

from blindsum.fleet.bridge import Bridge
from blindsum.fleet.checkpoint import IslandState
from blindsum.fleet.cluster import Cluster
from blindsum.fleet.identities import START, device_number
from blindsum.fleet.island import BROKER, Post
from blindsum.fleet.ledger import Notes
from blindsum.fleet.links import HOP_MS
from blindsum.fleet.remote import Forked, Remote, collect_seldom
from blindsum.fleet.roles import DEVICE
from blindsum.fleet.setup import Setup
from blindsum.protocol.blobs import read_blob
from blindsum.protocol.codec import convert
from blindsum.protocol.envelope import open_envelope
from blindsum.protocol.machines.coordinator import CoordinatorMachine
from blindsum.protocol.machines.coordinatorround import CoordinatorRound
from blindsum.protocol.messages import Result
from blindsum.protocol.params import arrivals_min
from blindsum.protocol.ring import pack, unpack
from blindsum.protocol.update import exact_sums

__all__ = ["Engine", "Outcome"]

WINDOWS_MAX: Final = 10_000_000
"""More windows of virtual time than this in one round mean that machines keep each other busy for nothing."""
WINDOW_MS: Final = 100
"""How far in virtual ms islands go before they exchange what they have, at most: far less than the least pause between rounds."""
JOIN_STEP_MS: Final = 4
"""How far devices go at once while they join: all do at one time, and the coordinator begins with the first meanwhile."""
STEP_MS: Final = 1000
"""Where nothing is left to happen but what real devices do, they are waited for so long at a time."""


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
    """Rounds of the fleet of `setup`, with `workers` processes for the devices (0: all in this one), here or on the Ray cluster at
    an address. A context manager."""

    def __init__(
        self,
        setup: Setup,
        *,
        workers: int,
        on_event: Callable[[int, str, Mapping[str, object]], None],
        cluster: str = "",
    ) -> None:
        size = setup.population.size
        self._setup = setup
        self._on_event = on_event
        base = setup.base
        self._least = (
            base.task.devices_min
            if base.has_roster
            else arrivals_min(base.task.devices_min, base.task.devices_max, base.threat)
        )
        self._now = self._played = setup.population.opening(START, self._least)
        real, parts = frozenset(setup.real), max(workers, 1)
        shares = [[device for device in range(each, size, parts) if device not in real] for each in range(parts)]
        self._remotes: list[Remote] = []
        self._cluster = Cluster(cluster, workers) if cluster else None
        for share in shares if workers else ():
            remote = self._cluster.island(setup, share) if self._cluster else Forked(setup, share, self._remotes)
            self._remotes.append(remote)
        self._bridge = self._make_bridge() if real else None  # after the workers: it has threads
        self._own = [] if workers else shares[0]
        self._local = setup.island(self._own, backends=True, threads=2 if workers else 1)
        self._number = 0
        self._device_ms = HOP_MS + int(setup.population.latency_ms.min())
        self._local.apply(
            self._local.roles[0], self._coordinator.add_task(setup.base.raw, plan=setup.plan, model=setup.model)
        )

    def __enter__(self) -> Self:
        self._thresholds = gc.get_threshold()
        collect_seldom()
        return self

    def __exit__(self, *_: object) -> None:
        gc.set_threshold(*self._thresholds)
        gc.unfreeze()
        self._stop_islands()
        if self._bridge is not None:
            self._bridge.stop()

    @property
    def model(self) -> bytes:
        """The current model."""
        return self._coordinator.model(self._setup.base.name)

    def run_round(self) -> Outcome:
        """Play the next round to its end, and then the pause after it, which lasts until enough devices can be expected."""
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
        whole = 10_000 if self._setup.base.has_roster else 1
        population = self._setup.population
        self._now = ended - (ended - began) % -whole + int(1000 * population.conditions.pause_s)
        self._now = population.opening(self._now, self._least)
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

    @property
    def _joining(self) -> bool:
        round_ = self._coordinator.round(self._setup.base.name)
        return round_ is not None and round_.state.phase == "join"

    # -- virtual time -----------------------------------------------------------------------------------------------------

    def _play(self, until: int | None, phases: dict[str, int], faults: list[tuple[str, str]]) -> None:
        """Let time pass: to `until`, or to the end of the round."""
        for _ in range(WINDOWS_MAX):
            here = self._local.next_at
            there = min((at for remote in self._remotes if (at := remote.next_at) is not None), default=None)
            now = min((at for at in (here, there) if at is not None), default=None)
            if until is None and ("done" in phases or "failed" in phases):
                return
            if until is not None and (now is None or now >= until):
                return
            if self._bridge is not None:
                now = self._wait(self._bridge, now)
            assert now is not None, "nothing is left to happen"
            self._played, ours, theirs = self._horizons(now, here, there, until)
            busy = [remote for remote in self._remotes if remote.next_at is not None and remote.next_at < theirs]
            for remote in busy:
                remote.send(theirs)
            self._route(None, self._local.advance(ours))
            for remote in busy:
                self._route(remote, remote.receive())
            self._hear(phases, faults)
        raise AssertionError("machines keep each other busy for nothing")

    def _horizons(self, now: int, here: int | None, there: int | None, until: int | None) -> tuple[int, int, int]:
        """(by when all is played, how far the island here may go, how far the others), where something happens next at `here` and
        `there`. Only roles here send to roles of other islands, and what a device sends takes its link's latency on top."""
        end = now + WINDOW_MS if until is None else min(now + WINDOW_MS, until)
        if self._bridge is not None:
            ours = theirs = now + HOP_MS
        else:
            ours = end if there is None else there + self._device_ms
            theirs = min(ours, end if here is None else here) + HOP_MS
            if there is not None and self._joining:
                theirs = min(theirs, there + JOIN_STEP_MS)
        ours, theirs = min(ours, end), min(theirs, end)
        return min(ours, theirs), ours, theirs

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
                now=self._now,
            )
        except BaseException:
            self._stop_islands()
            raise

    def _stop_islands(self) -> None:
        for remote in self._remotes:
            remote.stop()
        if self._cluster is not None:
            self._cluster.stop()

    def _route(self, source: Remote | None, posts: list[Post]) -> None:
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
            remote.ask("close", survivors, self._now)
        notes = self._local.close(survivors, self._now)
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
