"""The coordinator's memory in PostgreSQL: the contract of `SqliteStore`, for those who run and back up a server already.

One database a coordinator. The one connection holds an advisory lock for as long as it lives, and every write goes over it: who has
lost the lock has lost the connection too, so two coordinators never write to one database. A commit that returned is on the
server's disk (synchronous_commit, fsync). When the server goes away every call raises "database-unreachable"; the process ends and
whoever supervises it starts it again, as after a crash: what was committed is there, what was staged is not.

Unlike the SQLite file nothing is overwritten when it is deleted. A coordinator holds no secret that opens an update.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, LiteralString

import psycopg

from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.machines.step import ChunkOut, Listen, Message, Outgoing, Write
from blindsum.runtime.ports import OutboxRow
from blindsum.runtime.sqlite import OUTBOX_MAX

__all__ = ["PostgresStore"]

LOCK: Final = 0x626C7331  # "bls1"
SCHEMA_VERSION: Final = 1
SCAN_PAGE: Final = 64
CONNECT_TIMEOUT_S: Final = 10

_SCHEMA: Final = """
CREATE SCHEMA blindsum;
CREATE TABLE blindsum.about (version integer NOT NULL);
CREATE TABLE blindsum.kv (key text COLLATE "C" PRIMARY KEY, value bytea NOT NULL);
ALTER TABLE blindsum.kv ALTER COLUMN value SET STORAGE EXTERNAL;
CREATE TABLE blindsum.outbox (
  seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, chunk boolean NOT NULL, recipient text NOT NULL, retain boolean NOT NULL,
  kind text, body bytea, blob bytea, idx bigint, UNIQUE (recipient, blob, idx)
);
CREATE INDEX outbox_order ON blindsum.outbox (chunk, seq);
"""
_PUT: Final = "INSERT INTO blindsum.kv VALUES (%s, %s) ON CONFLICT (key) DO UPDATE SET value = EXCLUDED.value"
_DELETE: Final = "DELETE FROM blindsum.kv WHERE key = %s"

_CODES: Final = {
    "08": "database-unreachable",
    "28": "database-unreachable",
    "3D": "database-unreachable",
    "57": "database-unreachable",
    "25": "database-unwritable",
    "42": "database-unwritable",
    "53": "disk-failed",
    "58": "disk-failed",
    "XX": "database-corrupted",
}
"""Class of SQLSTATE -> code; the one exception is below."""
_DISK_FULL: Final = "53100"


class PostgresStore:
    """The store in the database at `url` (`postgresql://user@host/database?sslmode=verify-full`, or a "key=value" string of libpq;
    the password best in a `.pgpass` file). Its tables are made when they are not there. Any thread may read; one thread writes.

    Raises BlindsumError: "database-unreachable", "database-in-use" (another coordinator), "database-newer", "database-unwritable"
    (also where the server does not flush to disk), "database-corrupted", "disk-full", "disk-failed".
    """

    def __init__(self, url: str) -> None:
        self.dropped = 0
        self._pending = 0  # rows in the outbox
        self._lock = threading.RLock()
        with self._guard():
            self._db = psycopg.connect(
                url, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S, application_name="blindsum"
            )
        try:
            with self._guard():
                self._prepare()
        except BaseException:
            self._db.close()
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
                self._db.execute("BEGIN")
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
            # a lost deletion only repeats a message, so it need not wait for the disk
            self._db.execute("SET LOCAL synchronous_commit = off")
            self._pending -= self._db.execute("DELETE FROM blindsum.outbox WHERE seq = ANY(%s)", (list(seqs),)).rowcount

    def close(self) -> None:
        """Give the database up. What is staged and not committed is gone."""
        with self._lock:
            self._db.close()

    @property
    def _open(self) -> bool:
        return self._db.info.transaction_status != psycopg.pq.TransactionStatus.IDLE

    def _prepare(self) -> None:
        db = self._db
        if not db.execute("SELECT pg_try_advisory_lock(%s)", (LOCK,)).fetchone()[0]:  # type: ignore[index]
            raise BlindsumError("database-in-use", f"{self._name}: another coordinator holds it")
        db.execute("SET synchronous_commit = on")
        if db.execute("SHOW fsync").fetchone() != ("on",):
            raise BlindsumError("database-unwritable", f"{self._name}: the server runs with fsync off")
        with db.transaction():
            if not db.execute("SELECT 1 FROM pg_namespace WHERE nspname = 'blindsum'").fetchone():
                db.execute(_SCHEMA)
                db.execute("INSERT INTO blindsum.about VALUES (%s)", (SCHEMA_VERSION,))
        (version,) = db.execute("SELECT version FROM blindsum.about").fetchone() or (None,)
        if version != SCHEMA_VERSION:
            raise BlindsumError(
                "database-newer", f"{self._name} has schema {version}, this version reads {SCHEMA_VERSION}"
            )
        self._pending = self._count()

    @property
    def _name(self) -> str:
        return f"{self._db.info.dbname} on {self._db.info.host}"

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
        with self._lock:
            try:
                yield
            except psycopg.Error as error:
                state = error.sqlstate or ""
                lost = not state and isinstance(error, psycopg.OperationalError)
                with suppress(AttributeError, psycopg.Error):  # no connection yet, or one that is gone
                    if self._open:
                        self._db.execute("ROLLBACK")
                if state == _DISK_FULL:
                    code = "disk-full"
                else:
                    code = "database-unreachable" if lost else _CODES.get(state[:2], "disk-failed")
                raise BlindsumError(code, str(error).strip()) from error
