"""A coordinator's side of its workers: leaving chunks to those who live, and hearing what they have stored."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Any, Final

import psycopg

from blindsum.backend.database import connect
from blindsum.backend.postgres import PostgresStore
from blindsum.backend.service import Reporter
from blindsum.backend.workerstore import STORED
from blindsum.protocol.errors import BlindsumError
from blindsum.runtime.driver import Driver
from blindsum.runtime.ports import Link
from blindsum.runtime.topics import Topics

__all__ = ["Crew"]

HEAR_S: Final = 0.2
CALL_TIMEOUT_S: Final = 60.0
OTHER_KINDS: Final = ("join", "header", "ask")
"""What devices say besides chunks: for the coordinator alone."""


class Crew:
    """`turn` now and then while the driver runs. What no worker has said it stored is asked for again, so a word that is lost costs
    a moment and nothing else."""

    def __init__(self, store: PostgresStore, driver: Driver, link: Link, topics: Topics, reporter: Reporter) -> None:
        self._store, self._driver, self._link, self._topics = store, driver, link, topics
        self._reporter = reporter
        self._workers: tuple[str, ...] = ()
        self._closing = threading.Event()
        self._db = connect(store.url)
        self._db.execute(f"LISTEN {STORED}")
        self._thread = threading.Thread(target=self._hear, name="crew", daemon=True)

    def turn(self) -> None:
        """Raises BlindsumError "lease-lost"."""
        self._store.lease.check()
        if not self._thread.is_alive() and self._driver.running:
            with suppress(RuntimeError):  # it has ended with the database, as the driver will
                self._thread.start()
        workers = self._store.lease.workers
        if workers == self._workers:
            return
        everything = self._topics.uploads("+")
        others = [self._topics.uploads(kind) for kind in OTHER_KINDS]
        if bool(workers) != bool(self._workers):
            for topic_filter in others if workers else [everything]:
                self._link.subscribe(topic_filter)
            for topic_filter in [everything] if workers else others:
                self._link.unsubscribe(topic_filter)
        self._workers = workers
        self._reporter.line("workers", workers=list(workers))

    def close(self) -> None:
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(CALL_TIMEOUT_S)
        self._db.close()

    def _hear(self) -> None:
        with suppress(psycopg.Error, BlindsumError):
            while not self._closing.is_set():
                blobs = sorted(
                    {bytes.fromhex(word.payload) for word in self._db.notifies(timeout=HEAR_S, stop_after=1)}
                )
                if blobs:
                    self._tell(blobs)

    def _tell(self, blobs: list[bytes]) -> None:
        def stored(machine: Any, now: int) -> Any:
            return machine.stored(blobs, now)

        self._driver.call(stored).result(CALL_TIMEOUT_S)
