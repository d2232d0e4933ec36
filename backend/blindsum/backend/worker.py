"""A worker as a process: it stores chunks of uploads and adds up spans of sums for a coordinator (docs/adr/0026-workers.md).

It has the database and a place at the broker, and no key of anybody: it signs nothing and reads nothing that is sealed. What it
stores is what a signed header promised, byte for byte, or nothing.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict, deque
from pathlib import Path
from typing import Final

from blindsum.backend.database import connect
from blindsum.backend.lease import WORKERS, Fence
from blindsum.backend.service import Reporter, WebSettings, run_until_stopped, stand_by, stop_signal
from blindsum.backend.spans import work
from blindsum.backend.workerstore import WorkerStore
from blindsum.protocol.codec import DecodeError, convert, decode, decode_chunk
from blindsum.protocol.envelope import peek
from blindsum.protocol.errors import BlindsumError, Refused
from blindsum.protocol.machines.bodies import WANT
from blindsum.protocol.machines.step import Event, Step, Store, Write
from blindsum.protocol.messages import CHUNK_MESSAGE_SIZE_MAX, BlobRef, chunk_key
from blindsum.runtime.driver import Driver
from blindsum.runtime.kit import BrokerSettings, make_link
from blindsum.runtime.ports import Link
from blindsum.runtime.settings import Settings, load_settings
from blindsum.runtime.system import now_ms
from blindsum.runtime.topics import SHARDS, WORKERS_MAX, Principal, Topics

__all__ = ["Porter", "WorkerSettings", "open_worker", "read_settings", "run_worker"]

EARLY_MS: Final = 1500
"""How long a chunk is held whose header the coordinator has not looked at yet; after that its device is asked for it again."""
EARLY_MAX: Final = 512
"""Chunks that are held so: as many as devices may send unasked, and more. Each is looked up again until its time is over."""
RETRY_MS: Final = 50
REFS_MAX: Final = 4096
IDLE_S: Final = 0.1
"""How often an idle worker looks for a sum to take part in."""


class WorkerSettings(Settings, frozen=True):
    """`worker.toml`. `database` is the coordinator's."""

    fleet: str
    worker: int
    broker: BrokerSettings
    database: str = ""
    web: WebSettings = WebSettings()


def read_settings(kit: Path) -> WorkerSettings:
    """What stands in the kit's `worker.toml`. Raises BlindsumError "config-missing" or "config-invalid"."""
    settings = load_settings(kit / "worker.toml", WorkerSettings)
    if not settings.database or not 1 <= settings.worker <= WORKERS_MAX:
        detail = f'a worker needs the coordinator\'s database = "postgresql://…" and a number from 1 to {WORKERS_MAX}'
        raise BlindsumError("config-invalid", f"{kit / 'worker.toml'}: {detail}")
    return settings


def open_worker(settings: WorkerSettings) -> WorkerStore:
    """The worker's lease on the database. Raises BlindsumError as `WorkerStore`."""
    return WorkerStore(settings.database, _name(settings))


def run_worker(kit: Path) -> int:
    """Run the worker of `kit` until SIGTERM. Raises BlindsumError for a kit or database that cannot be used."""
    settings = read_settings(kit)
    topics = Topics(settings.fleet, Principal("worker", str(settings.worker)))
    reporter, stopped = Reporter(f"worker/{settings.worker}"), stop_signal()
    store = stand_by(lambda: open_worker(settings), reporter, stopped)
    if store is None:
        return 0
    link = make_link(kit, settings.broker, topics)

    stored = 0

    def heard(event: Event) -> None:
        nonlocal stored
        if event.name != "chunk":
            reporter.event(event)
            return
        stored += 1
        reporter.board.tell(now_ms(), event.name, dict(event.data))
        if stored & (stored - 1) == 0:  # the 1st, 2nd, 4th, 8th…
            reporter.line("chunks", count=stored)

    driver = Driver(lambda: Porter(store), store, link, topics, on_event=heard, on_refused=reporter.refused)
    shards = _Shards(link, topics, _name(settings))
    try:
        adder = _Adder(settings.database, store.lease.fence, reporter)

        def turn() -> None:
            store.lease.check()
            adder.check()
            shards.turn(store.lease.workers)

        try:
            return run_until_stopped(driver, reporter, settings.web, turn, stopped=stopped)
        finally:
            adder.close()
    finally:
        store.close()


def _name(settings: WorkerSettings) -> str:
    return f"{WORKERS}{settings.worker:02d}"


class Porter:
    """A machine that takes chunks of bodies, and nothing else. Rows `want/<blob>` say which; the coordinator writes them as headers
    come, and a chunk may be here sooner."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._refs: OrderedDict[bytes, BlobRef] = OrderedDict()
        self._early: deque[tuple[int, bytes, int, bytes]] = deque()

    @property
    def deadline(self) -> int | None:
        return self._early[0][0] + RETRY_MS if self._early else None

    def receive(self, body: bytes, now: int) -> Step:
        if peek(body) or len(body) > CHUNK_MESSAGE_SIZE_MAX:
            return Step(refused=Refused("message-misplaced", detail=f"{len(body)} bytes"))
        try:
            blob, index, data = decode_chunk(body)
        except DecodeError:
            return Step(refused=Refused("message-malformed", detail="chunk"))
        ref = self._ref(blob)
        if ref is not None:
            return _kept(ref, blob, index, data)
        if len(self._early) >= EARLY_MAX:
            return Step(refused=Refused("chunk-unexpected"))
        self._early.append((now, blob, index, data))
        return Step()

    def wake(self, now: int) -> Step:
        """Look again for who wants what came early."""
        writes: list[Write] = []
        events: list[Event] = []
        known = {blob: self._ref(blob) for blob in {blob for _, blob, _, _ in self._early}}
        early, self._early = self._early, deque()
        for at, blob, index, data in early:
            ref = known[blob]
            if ref is not None:
                step = _kept(ref, blob, index, data)
                writes += step.writes
                events += step.events
            elif 0 <= now - at < EARLY_MS:
                self._early.append((at, blob, index, data))
        return Step(writes=tuple(writes), events=tuple(events))

    def _ref(self, blob: bytes) -> BlobRef | None:
        """The reference of a body that is wanted, or was lately: the store keeps nothing of one that is not any more."""
        ref = self._refs.get(blob)
        if ref is None and (row := self._store.get(f"{WANT}{blob.hex()}")) is not None:
            ref = self._refs[blob] = convert(decode(row), BlobRef)
            if len(self._refs) > REFS_MAX:
                self._refs.popitem(last=False)
        return ref


class _Shards:
    """Reads the shards of devices that are this worker's: they are dealt out in turn to those who live."""

    def __init__(self, link: Link, topics: Topics, name: str) -> None:
        self._link, self._topics, self._name = link, topics, name
        self._mine = set(topics.subscriptions)

    def turn(self, workers: tuple[str, ...]) -> None:
        dealt = {shard: workers[shard % len(workers)] for shard in range(SHARDS)} if workers else {}
        mine = {self._topics.uploads("chunk", f"{shard:02x}") for shard, who in dealt.items() if who == self._name}
        for topic_filter in sorted(mine - self._mine):
            self._link.subscribe(topic_filter)
        for topic_filter in sorted(self._mine - mine):
            self._link.unsubscribe(topic_filter)
        self._mine = mine


class _Adder:
    """A thread that takes part in sums."""

    def __init__(self, url: str, fence: Fence, reporter: Reporter) -> None:
        self._db, self._fence, self._reporter = connect(url), fence, reporter
        self._closing = threading.Event()
        self._failure: BlindsumError | None = None
        self._thread = threading.Thread(target=self._run, name="adder", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises what ended the thread."""
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        self._closing.set()
        self._thread.join()
        self._db.close()

    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                done = work(self._db, self._fence, threads=os.cpu_count() or 1)
                if done is None:
                    self._closing.wait(IDLE_S)
                else:
                    self._reporter.line("span", job=done[0], span=done[1])
        except BlindsumError as error:
            self._failure = error


def _kept(ref: BlobRef, blob: bytes, index: int, data: bytes) -> Step:
    if not ref.accepts(index, data):
        return Step(refused=Refused("chunk-wrong", detail=f"chunk {index}"))
    return Step(writes=(Write(chunk_key(blob, index), data),), events=(Event("chunk"),))
