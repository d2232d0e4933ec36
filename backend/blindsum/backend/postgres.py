"""The coordinator's memory in PostgreSQL: the contract of `SqliteStore`, for those who run and back up a server already.

One coordinator at a time has the database: it holds the lease of that name, and every transaction in which it writes makes sure of
that (`lease`). A commit that returned is on the server's disk (synchronous_commit, fsync). When the server goes away every call
raises "database-unreachable", when somebody else has taken the lease "lease-lost"; the process ends and whoever supervises it
starts it again, as after a crash: what was committed is there, what was staged is not.

Unlike the SQLite file nothing is overwritten when it is deleted. A coordinator holds no secret that opens an update.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, LiteralString

import psycopg

from blindsum.backend.database import connect, told
from blindsum.backend.lease import COORDINATOR, Lease, fenced
from blindsum.backend.spans import SharedSums
from blindsum.protocol.machines.step import ChunkOut, Listen, Message, Outgoing, Write
from blindsum.runtime.ports import OutboxRow
from blindsum.runtime.sqlite import OUTBOX_MAX

__all__ = ["PostgresStore"]

SCAN_PAGE: Final = 64
STEP_MAX_S: Final = 60
"""What a machine may take for one input while the transaction of the group is open."""

_PUT: Final = "INSERT INTO blindsum.kv VALUES (%s, %s) ON CONFLICT (key) DO UPDATE SET value = EXCLUDED.value"
_DELETE: Final = "DELETE FROM blindsum.kv WHERE key = %s"


class PostgresStore:
    """The store in the database at `url` (`database.connect`). Any thread may read; one thread writes.

    Raises BlindsumError: "database-unreachable", "database-in-use" (another coordinator), "lease-lost", "database-newer",
    "database-unwritable", "database-corrupted", "disk-full", "disk-failed".
    """

    def __init__(self, url: str) -> None:
        self.dropped = 0
        self.url = url
        self._sums: SharedSums | None = None
        self._lock = threading.RLock()
        self._db = connect(url, pause_s=STEP_MAX_S)
        try:
            self.lease = Lease(url, COORDINATOR)
        except BaseException:
            self._db.close()
            raise
        try:
            with self._guard():
                self._pending = self._count()  # rows in the outbox
        except BaseException:
            self.close()
            raise

    def get(self, key: str) -> bytes | None:
        row = self._rows("SELECT value FROM blindsum.kv WHERE key = %s", key)
        return bytes(row[0][0]) if row else None

    def scan(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        """Rows whose key starts with `prefix`, in key order, read in pages: what is written meanwhile may or may not show."""
        return self._pages(
            "SELECT key, value FROM blindsum.kv WHERE key >= %s AND key < %s ORDER BY key LIMIT %s", prefix
        )

    def keys(self, prefix: str) -> Iterator[str]:
        """The keys alone, as `scan`."""
        pages = self._pages("SELECT key FROM blindsum.kv WHERE key >= %s AND key < %s ORDER BY key LIMIT %s", prefix)
        return (key for (key,) in pages)

    def stage(self, writes: Iterable[Write], messages: Iterable[Outgoing]) -> None:
        with self._guard():
            if not self._open:
                self._begin()
            with self._db.pipeline(), self._db.cursor() as cursor:
                for write in writes:
                    if write.value is None:
                        cursor.execute(_DELETE, (write.key,))
                    else:
                        cursor.execute(_PUT, (write.key, write.value))
            for out in messages:
                self._enqueue(out)

    def commit(self, writes: Iterable[Write] = (), messages: Iterable[Outgoing] = ()) -> None:
        with self._guard():
            self.stage(writes, messages)
            self._db.execute("COMMIT")

    def rollback(self) -> None:
        with self._guard():
            if self._open:
                self._db.execute("ROLLBACK")
            self._pending = self._count()

    def outbox(self, *, after: int = 0, chunks: bool | None = None, limit: int = 64) -> list[OutboxRow]:
        rows = self._rows(
            "SELECT seq, recipient, retain, kind, body, blob, idx FROM blindsum.outbox "
            "WHERE (%s::boolean IS NULL OR chunk = %s) AND seq > %s ORDER BY seq LIMIT %s",
            chunks,
            chunks,
            after,
            limit,
        )
        return [
            OutboxRow(
                seq,
                Message(kind, to, bytes(body), retain) if blob is None else ChunkOut(to, bytes(blob), idx, retain),
            )
            for seq, to, retain, kind, body, blob, idx in rows
        ]

    def sent(self, seqs: Iterable[int]) -> None:
        with self._guard(), self._db.transaction():
            fenced(self._db, self.lease.fence)
            # a lost deletion only repeats a message, so it need not wait for the disk
            self._db.execute("SET LOCAL synchronous_commit = off")
            self._pending -= self._db.execute("DELETE FROM blindsum.outbox WHERE seq = ANY(%s)", (list(seqs),)).rowcount

    def shared_sums(self, threads: int) -> SharedSums:
        """Sums for the machine of this store that workers help with."""
        self._sums = SharedSums(self.url, self.lease.fence, threads=threads, meanwhile=self._touch)
        return self._sums

    def close(self) -> None:
        """Give the database up. What is staged and not committed is gone."""
        with self._lock:
            self._db.close()
            if self._sums is not None:
                self._sums.close()
            self.lease.close()

    @property
    def _open(self) -> bool:
        return self._db.info.transaction_status != psycopg.pq.TransactionStatus.IDLE

    def _touch(self) -> None:
        """Say to the server that the open transaction is not a paused one's."""
        with self._guard():
            if self._open:
                self._db.execute("SELECT")

    def _begin(self) -> None:
        self._db.execute("BEGIN")
        fenced(self._db, self.lease.fence)

    def _rows(self, query: LiteralString, *values: object) -> list[Any]:
        with self._guard():
            return self._db.execute(query, values, binary=True).fetchall()

    def _pages(self, query: LiteralString, prefix: str) -> Iterator[Any]:
        end = prefix[:-1] + chr(ord(prefix[-1]) + 1) if prefix else "\U0010ffff"
        start = prefix
        while True:
            rows = self._rows(query, start, end, SCAN_PAGE)
            yield from rows
            if len(rows) < SCAN_PAGE:
                return
            start = rows[-1][0] + "\x01"  # the least text that comes after it, as PostgreSQL has no \0

    def _enqueue(self, out: Outgoing) -> None:
        match out:
            case Listen():
                return
            case Message():
                row: tuple[object, ...] = (False, out.to, out.retain, out.kind, out.body, None, None)
            case ChunkOut():
                row = (True, out.to, out.retain, None, None, out.blob, out.index)
        self._pending += self._db.execute(
            "INSERT INTO blindsum.outbox (chunk, recipient, retain, kind, body, blob, idx) "
            "VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
            row,
        ).rowcount
        if self._pending > OUTBOX_MAX:
            self._db.execute("DELETE FROM blindsum.outbox WHERE seq = (SELECT min(seq) FROM blindsum.outbox)")
            self._pending -= 1
            self.dropped += 1

    def _count(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM blindsum.outbox").fetchone()[0])  # type: ignore[index]

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """One thread at a time, and the server's errors as the catalogue's."""
        with self._lock, told():
            try:
                yield
            except BaseException:
                with suppress(psycopg.Error):  # a connection that is gone
                    if self._open:
                        self._db.execute("ROLLBACK")
                raise
