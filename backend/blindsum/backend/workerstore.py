"""What a worker may write to a coordinator's database: chunks of bodies that the coordinator wants, while it does."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Final

import psycopg

from blindsum.backend.database import connect, told
from blindsum.backend.lease import Lease, fenced
from blindsum.protocol.machines.bodies import WANT
from blindsum.protocol.machines.step import Outgoing, Write
from blindsum.runtime.ports import OutboxRow

__all__ = ["STORED", "WorkerStore"]

STORED: Final = "blindsum_stored"
"""Where a commit names the blobs that it has chunks of."""
LOCK_TIMEOUT_MS: Final = 200
"""Shorter than the server takes to look for a deadlock: the coordinator is never the one that gives way."""
TRIES: Final = 20
PAUSE_S: Final = 0.05

_KEEP: Final = """
WITH wanted AS (SELECT FROM blindsum.kv WHERE key = %s FOR KEY SHARE)
INSERT INTO blindsum.kv SELECT %s, %s FROM wanted ON CONFLICT DO NOTHING
"""
"""The lock keeps the coordinator from giving up the body meanwhile; afterwards nothing of it is stored any more."""


class WorkerStore:
    """A `DurableStore` whose rows are others'. It sends nothing. Raises BlindsumError with a database's code, "database-in-use"
    where the lease `name` is somebody's, and "lease-lost"."""

    dropped = 0

    def __init__(self, url: str, name: str) -> None:
        self._db = connect(url)
        self._staged: dict[str, bytes] = {}
        try:
            self.lease = Lease(url, name)
        except BaseException:
            self._db.close()
            raise

    def get(self, key: str) -> bytes | None:
        with told():
            row = self._db.execute("SELECT value FROM blindsum.kv WHERE key = %s", (key,), binary=True).fetchone()
        return bytes(row[0]) if row else None

    def scan(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        """Rows whose key starts with `prefix`, in key order."""
        for key in self.keys(prefix):
            if (value := self.get(key)) is not None:
                yield key, value

    def keys(self, prefix: str) -> Iterator[str]:
        """The keys alone, as `scan`."""
        with told():
            rows = self._db.execute(
                "SELECT key FROM blindsum.kv WHERE starts_with(key, %s) ORDER BY key", (prefix,)
            ).fetchall()
        return (key for (key,) in rows)

    def stage(self, writes: Iterable[Write], messages: Iterable[Outgoing]) -> None:
        """Chunks only; they show once they are committed."""
        for write in writes:
            assert write.value is not None, "a worker deletes nothing"
            self._staged[write.key] = write.value
        assert not list(messages), "a worker sends nothing"

    def commit(self, writes: Iterable[Write] = (), messages: Iterable[Outgoing] = ()) -> None:
        """Where the coordinator holds the rows for too long they are left out: it asks for those chunks again."""
        self.stage(writes, messages)
        rows, self._staged = sorted(self._staged.items()), {}  # in one order, so that workers never wait in a circle
        for _ in range(TRIES if rows else 0):
            try:
                self._keep(rows)
                return
            except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
                time.sleep(PAUSE_S)

    def rollback(self) -> None:
        self._staged = {}

    def outbox(self, *, after: int = 0, chunks: bool | None = None, limit: int = 64) -> list[OutboxRow]:
        """Nothing."""
        return []

    def sent(self, seqs: Iterable[int]) -> None:
        """Nothing was."""
        assert not list(seqs)

    def close(self) -> None:
        self._db.close()
        self.lease.close()

    def _keep(self, rows: list[tuple[str, bytes]]) -> None:
        """Raises LockNotAvailable or DeadlockDetected."""
        blobs = {key: key.split("/")[1] for key, _ in rows}
        try:
            with self._db.transaction():
                self._db.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_MS}ms'")
                fenced(self._db, self.lease.fence)
                with self._db.pipeline(), self._db.cursor() as cursor:
                    for key, value in rows:
                        cursor.execute(_KEEP, (f"{WANT}{blobs[key]}", key, value))
                    for blob in sorted(set(blobs.values())):
                        cursor.execute("SELECT pg_notify(%s, %s)", (STORED, blob))
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
            raise
        except psycopg.Error:
            with told():
                raise
