"""A role's memory in one SQLite file: rows by key and the outbox, committed together.

WAL with synchronous=FULL, past the drive's cache where fsync stops before it (fullfsync, macOS): a commit that returned survives
power loss (docs/adr/0020-power-cuts.md). secure_delete overwrites what is deleted or replaced and a commit that does either also
empties the write-ahead log, as does every start, so an erased seed is not left in either file (a copy that the file system or the
flash controller made is out of reach). Rows under "blob/" are excepted: they hold only what goes over the wire as
it is. Every row carries its mark and the database their sum (`marks`): a row that was damaged, lost or put in shows. One process at
a time owns the file.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.machines.step import ChunkOut, Listen, Message, Outgoing, Write
from blindsum.runtime.anchor import Anchor
from blindsum.runtime.marks import EMPTY, mark, with_row, without_row
from blindsum.runtime.ports import OutboxRow

__all__ = ["OUTBOX_MAX", "STORE_CODES", "SqliteStore", "code_of", "damage_of"]

OUTBOX_MAX: Final = 100_000
"""Messages that may wait to leave. Beyond it the oldest go: what the other role lacks, its machine will be asked for again."""

STORE_CODES: Final = frozenset(
    {
        "database-corrupted",
        "database-foreign",
        "database-in-use",
        "database-newer",
        "database-older",
        "database-rolled-back",
        "database-unreachable",
        "database-unwritable",
        "disk-failed",
        "disk-full",
        "lease-lost",
    }
)
"""The codes that mean the store cannot be used; nothing may be acknowledged or sent after one."""

APPLICATION_ID: Final = 0x626C7331  # "bls1"
SCHEMA_VERSION: Final = 2
SCAN_PAGE: Final = 32
WIRE_PREFIX: Final = "blob/"  # of rows that hold chunks as they are sent
WAL_SIZE_MAX: Final = 16 << 20

_SCHEMA: Final = """
CREATE TABLE kv (key TEXT NOT NULL UNIQUE, mark BLOB NOT NULL, value BLOB NOT NULL) STRICT;
CREATE TABLE wire (key TEXT NOT NULL UNIQUE, mark BLOB NOT NULL, value BLOB NOT NULL) STRICT;
CREATE TABLE outbox (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, chunk INTEGER NOT NULL, "to" TEXT NOT NULL, retain INTEGER NOT NULL,
  kind TEXT, body BLOB, blob BLOB, idx INTEGER, mark BLOB NOT NULL, UNIQUE ("to", blob, idx)
) STRICT;
CREATE INDEX outbox_order ON outbox (chunk, seq);
CREATE TABLE whole (owner TEXT NOT NULL, sum BLOB NOT NULL) STRICT;
INSERT INTO whole VALUES ('', zeroblob(32));
"""

_FROM_1: Final = """
ALTER TABLE kv ADD COLUMN mark BLOB NOT NULL DEFAULT x'';
ALTER TABLE wire ADD COLUMN mark BLOB NOT NULL DEFAULT x'';
ALTER TABLE outbox ADD COLUMN mark BLOB NOT NULL DEFAULT x'';
UPDATE kv SET mark = mark(key, value);
UPDATE wire SET mark = mark(key, value);
UPDATE outbox SET mark = mark("to", retain, kind, body, blob, idx);
CREATE TABLE whole (owner TEXT NOT NULL, sum BLOB NOT NULL) STRICT;
INSERT INTO whole VALUES ('', zeroblob(32));
"""

_CODES: Final = {
    sqlite3.SQLITE_FULL: "disk-full",
    sqlite3.SQLITE_BUSY: "database-in-use",
    sqlite3.SQLITE_LOCKED: "database-in-use",
    sqlite3.SQLITE_ERROR: "database-corrupted",  # a table or column is not there
    sqlite3.SQLITE_CORRUPT: "database-corrupted",
    sqlite3.SQLITE_NOTADB: "database-corrupted",
    sqlite3.SQLITE_READONLY: "database-unwritable",
    sqlite3.SQLITE_CANTOPEN: "database-unwritable",
    sqlite3.SQLITE_PERM: "database-unwritable",
}

_Row = tuple[str, int, str | None, bytes | None, bytes | None, int | None]


class SqliteStore:
    """The store at `path`, created with mode 0600 if it is not there. Any thread may read; one thread writes.

    With `owner`, the database is that role's from now on, and one of another role is refused. With `anchor`, a file that says how
    far the database has come, one that is older than that is refused. `behind` takes it all the same, for a role that knows it
    has forgotten: what waited to leave is dropped, and the anchor holds from here on.

    Raises BlindsumError: "database-corrupted" (damaged, or not a blindsum database; also later, when a row is read),
    "database-foreign" (another role's), "database-newer", "database-in-use" (another process), "database-rolled-back",
    "database-unwritable", "disk-full", "disk-failed".
    """

    def __init__(self, path: Path | str, *, owner: str = "", anchor: Path | None = None, behind: bool = False) -> None:
        self.path = Path(path)
        self.dropped = 0
        self._pending = 0  # rows in the outbox
        self._queued = 0  # the highest number of a row that ever was in it
        self._erased = False  # whether the open transaction deletes or replaces rows
        self._overwrites = False
        self._sum = EMPTY  # of the marks of all rows, as the open transaction leaves it
        self._lock = threading.RLock()
        try:
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
            self.path.chmod(0o600)
        except OSError as error:
            raise BlindsumError("database-unwritable", f"{self.path}: {error.strerror}") from error
        with self._guard():
            self._db = sqlite3.connect(self.path, timeout=0, isolation_level=None, check_same_thread=False)
            self._db.text_factory = lambda data: data.decode("utf-8", "replace")  # what is no text fits no mark
        try:
            with self._guard():
                self._prepare()
                self._own(owner)
                self._anchor = None if anchor is None else self._anchored(Anchor(anchor), behind=behind)
        except BaseException:
            self._db.close()
            raise

    def get(self, key: str) -> bytes | None:
        with self._guard():
            row = self._db.execute(f"SELECT mark, value FROM {_table(key)} WHERE key = ?", (key,)).fetchone()
        return None if row is None else self._whole(key, *row)

    def scan(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        """Rows whose key starts with `prefix`, in key order, read in pages: what is written meanwhile may or may not show."""
        return ((key, self._whole(key, found, value)) for key, found, value in self._pages("key, mark, value", prefix))

    def keys(self, prefix: str) -> Iterator[str]:
        """The keys alone, as `scan`."""
        return (key for (key,) in self._pages("key", prefix))

    def _pages(self, columns: str, prefix: str) -> Iterator[Any]:
        end = prefix[:-1] + chr(ord(prefix[-1]) + 1) if prefix else "\U0010ffff"
        both = WIRE_PREFIX.startswith(prefix) and prefix != WIRE_PREFIX
        table = f"(SELECT {columns} FROM kv UNION ALL SELECT {columns} FROM wire)" if both else _table(prefix)
        query = f"SELECT {columns} FROM {table} WHERE key {{}} ? AND key < ? ORDER BY key LIMIT ?"
        start, compare = prefix, ">="
        while True:
            with self._guard():
                rows = self._db.execute(query.format(compare), (start, end, SCAN_PAGE)).fetchall()
            yield from rows
            if len(rows) < SCAN_PAGE:
                return
            start, compare = rows[-1][0], ">"

    def stage(self, writes: Iterable[Write], messages: Iterable[Outgoing]) -> None:
        with self._guard():
            if not self._db.in_transaction:
                self._db.execute("BEGIN IMMEDIATE")
                self._sum = self._stored_sum()
            for write in writes:
                self._write(write.key, write.value)
            for out in messages:
                self._enqueue(out)

    def commit(self, writes: Iterable[Write] = (), messages: Iterable[Outgoing] = ()) -> None:
        with self._guard():
            self.stage(writes, messages)
            self._db.execute("UPDATE whole SET sum = ? WHERE sum != ?", (self._sum, self._sum))
            self._db.execute("COMMIT")
            if self._erased:
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                self._erased = False
            if self._anchor is not None:
                self._anchor.advance(self._queued)

    def rollback(self) -> None:
        with self._guard():
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            self._pending, self._queued = self._count(), self._sequence()
            self._erased = False

    def outbox(self, *, after: int = 0, chunks: bool | None = None, limit: int = 64) -> list[OutboxRow]:
        where = "" if chunks is None else f"chunk = {int(chunks)} AND"
        query = f'SELECT seq, mark, "to", retain, kind, body, blob, idx FROM outbox WHERE {where} seq > ? ORDER BY seq LIMIT ?'
        with self._guard():
            rows = self._db.execute(query, (after, limit)).fetchall()
        for seq, found, *fields in rows:
            if found != mark(*fields):
                raise BlindsumError("database-corrupted", f"{self.path}: message {seq} is not what was written")
        return [
            OutboxRow(
                seq, Message(kind, to, body, bool(retain)) if blob is None else ChunkOut(to, blob, idx, bool(retain))
            )
            for seq, _, to, retain, kind, body, blob, idx in rows
        ]

    def sent(self, seqs: Iterable[int]) -> None:
        with self._guard():
            # A lost deletion only repeats a message, so it need not wait for the disk.
            self._db.execute("PRAGMA synchronous = NORMAL")
            try:
                self._db.execute("BEGIN IMMEDIATE")
                removed = [self._db.execute("DELETE FROM outbox WHERE seq = ?", (seq,)).rowcount for seq in seqs]
                self._db.execute("COMMIT")
            finally:
                self._db.execute("PRAGMA synchronous = FULL")
            self._pending -= sum(removed)

    def close(self) -> None:
        """Give the file up. What is staged and not committed is gone."""
        with self._lock:
            self._db.close()

    def _prepare(self) -> None:
        db = self._db
        db.execute("PRAGMA locking_mode = EXCLUSIVE")  # one owner; also spares the shared-memory file
        if db.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
            raise BlindsumError("database-unwritable", f"{self.path}: this file system cannot hold a write-ahead log")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA fullfsync = ON")
        db.execute("PRAGMA checkpoint_fullfsync = ON")
        self._overwrite(True)
        db.execute(f"PRAGMA journal_size_limit = {WAL_SIZE_MAX}")
        db.execute("BEGIN IMMEDIATE")  # takes the lock that the exclusive mode then keeps
        application = db.execute("PRAGMA application_id").fetchone()[0]
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if application == version == 0 and db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
            for statement in _SCHEMA.split(";\n"):
                db.execute(statement)
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        elif application != APPLICATION_ID:
            raise BlindsumError("database-corrupted", f"{self.path} is another program's database")
        elif version not in (1, SCHEMA_VERSION):
            raise BlindsumError(
                "database-newer", f"{self.path} has schema {version}, this version reads {SCHEMA_VERSION}"
            )
        found = db.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if found != "ok":
            raise BlindsumError("database-corrupted", f"{self.path}: {found}")
        if version == 1:
            self._convert()
        db.execute("COMMIT")
        if damage := damage_of(db):
            raise BlindsumError("database-corrupted", f"{self.path}: {damage}")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # the last life may have ended between an erasure and this
        self._pending, self._queued = self._count(), self._sequence()

    def _convert(self) -> None:
        """Mark the rows of a database of schema 1."""
        self._db.create_function("mark", -1, mark, deterministic=True)
        for statement in _FROM_1.split(";\n"):
            self._db.execute(statement)
        self._db.execute("UPDATE whole SET sum = ?", (_sum_of(self._db),))
        self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _own(self, owner: str) -> None:
        """Hold the database to its role, from the first time on that it is told one."""
        held = self._db.execute("SELECT owner FROM whole").fetchone()[0]
        if owner and not held:
            self._db.execute("UPDATE whole SET owner = ?", (owner,))
        elif owner and held != owner:
            raise BlindsumError("database-foreign", f"{self.path} is of {held}, not of {owner}")

    def _whole(self, key: str, found: bytes, value: bytes) -> bytes:
        if found != mark(key, value):
            raise BlindsumError("database-corrupted", f"{self.path}: row {key} is not what was written")
        return value

    def _stored_sum(self) -> bytes:
        return bytes(self._db.execute("SELECT sum FROM whole").fetchone()[0])

    def _anchored(self, anchor: Anchor, *, behind: bool) -> Anchor:
        """Hold the database to its anchor, and the anchor to the database from now on."""
        if behind:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute("DELETE FROM outbox")
            self._db.execute("DELETE FROM sqlite_sequence WHERE name = 'outbox'")
            self._db.execute(
                "INSERT INTO sqlite_sequence VALUES ('outbox', ?)", (max(self._queued, anchor.value, 0) + 1,)
            )
            self._db.execute("COMMIT")
            self._pending, self._queued = self._count(), self._sequence()
        elif anchor.value > self._queued:
            raise BlindsumError(
                "database-rolled-back",
                f"{self.path} has sent {self._queued} messages, {anchor.path} says {anchor.value}",
            )
        elif anchor.damaged or anchor.value < 0 < self._queued:
            raise BlindsumError(
                "database-rolled-back",
                f"{anchor.path} is {'damaged' if anchor.damaged else 'gone'}: nothing shows how old it is",
            )
        anchor.advance(self._queued)
        return anchor

    def _write(self, key: str, value: bytes | None) -> None:
        # What goes through the broker is no secret, and there can be hundreds of megabytes of it. It has a table of its own:
        # SQLite moves rows between a table's pages, and where it does not overwrite, a moved secret would leave a copy.
        table = _table(key)
        wiped = table == "kv"
        if wiped != self._overwrites:
            self._overwrite(wiped)
        old = self._db.execute(f"SELECT mark FROM {table} WHERE key = ?", (key,)).fetchone()
        if old is not None:
            self._sum = without_row(self._sum, mark(key, old[0]))
        if value is None:
            self._db.execute(f"DELETE FROM {table} WHERE key = ?", (key,))
        else:
            new = mark(key, value)
            self._sum = with_row(self._sum, mark(key, new))
            if old is None:
                self._db.execute(f"INSERT INTO {table} (key, mark, value) VALUES (?, ?, ?)", (key, new, value))
            else:
                self._db.execute(f"UPDATE {table} SET mark = ?, value = ? WHERE key = ?", (new, value, key))
        self._erased |= wiped and old is not None

    def _overwrite(self, on: bool) -> None:
        self._db.execute(f"PRAGMA secure_delete = {int(on)}")
        self._overwrites = on

    def _enqueue(self, out: Outgoing) -> None:
        match out:
            case Listen():
                return
            case Message():
                row: _Row = (out.to, int(out.retain), out.kind, out.body, None, None)
            case ChunkOut():
                row = (out.to, int(out.retain), None, None, out.blob, out.index)
        cursor = self._db.execute(
            'INSERT OR IGNORE INTO outbox (chunk, mark, "to", retain, kind, body, blob, idx) VALUES (?, ?, ?, ?, ?, ?, ?, ?)',
            (int(isinstance(out, ChunkOut)), mark(*row), *row),
        )
        self._pending += cursor.rowcount
        if cursor.rowcount:
            self._queued = cursor.lastrowid or self._queued
        if self._pending > OUTBOX_MAX:
            self._db.execute("DELETE FROM outbox WHERE seq = (SELECT min(seq) FROM outbox)")
            self._pending -= 1
            self.dropped += 1

    def _sequence(self) -> int:
        """The highest number that the outbox has ever given to a message."""
        row = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'outbox'").fetchone()
        return 0 if row is None else int(row[0])

    def _count(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM outbox").fetchone()[0])

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """One thread at a time, and SQLite's errors as the catalogue's."""
        with self._lock:
            try:
                yield
            except sqlite3.Error as error:
                with suppress(AttributeError, sqlite3.Error):  # no connection yet, or one beyond help
                    if self._db.in_transaction:
                        self._db.execute("ROLLBACK")
                if not (code := code_of(error)):
                    raise
                raise BlindsumError(code, f"{self.path}: {error}") from error


def code_of(error: sqlite3.Error) -> str:
    """The catalogue's code for what SQLite says of a disk or a file, "" where it has none: a misuse, which is ours."""
    number = getattr(error, "sqlite_errorcode", None)
    return "" if number is None else _CODES.get(number & 0xFF, "disk-failed")


def damage_of(db: sqlite3.Connection) -> str:
    """What shows that a database is not as it was written, or nothing. Values under "blob/" are held to their marks when they are
    read: there can be hundreds of megabytes of them."""
    if db.execute("SELECT sum FROM whole").fetchall() != [(_sum_of(db),)]:
        return "rows are missing, or of another time than the rest"
    for key, found, value in db.execute("SELECT key, mark, value FROM kv"):
        if found != mark(key, value):
            return f"row {key} is not what was written"
    return ""


def _sum_of(db: sqlite3.Connection) -> bytes:
    total = EMPTY
    for key, found in db.execute("SELECT key, mark FROM kv UNION ALL SELECT key, mark FROM wire"):
        total = with_row(total, mark(key, found))
    return total


def _table(key: str) -> str:
    return "wire" if key.startswith(WIRE_PREFIX) else "kv"
