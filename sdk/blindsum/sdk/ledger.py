"""What left this device, when and why, and the user's switches: a small database that the app and its user may read at any time.

It holds no secrets and no data, and is written before anything leaves: a use that is listed may have been stopped by a crash,
none that happened is missing. Bounded: the oldest uses go first.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from blindsum.protocol.errors import BlindsumError
from blindsum.runtime.sqlite import code_of

__all__ = ["DAY_MS", "LEDGER_FILE", "Ledger", "Use"]

LEDGER_FILE: Final = "ledger.db"
USES_MAX: Final = 10_000
HOURS_MAX: Final = 24 * 40
BUSY_TIMEOUT_S: Final = 5.0
HOUR_MS: Final = 3_600_000
DAY_MS: Final = 24 * HOUR_MS

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS uses (
  id INTEGER PRIMARY KEY AUTOINCREMENT, at INTEGER NOT NULL, task TEXT NOT NULL, round INTEGER NOT NULL, issued_at INTEGER NOT NULL,
  what TEXT NOT NULL, bytes INTEGER NOT NULL, why TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS uses_task ON uses (what, task, round);
CREATE TABLE IF NOT EXISTS traffic (hour INTEGER PRIMARY KEY, sent INTEGER NOT NULL, received INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS switches (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT
"""


@dataclass(frozen=True, slots=True)
class Use:
    """One thing that left this device. `what`: "join" (its name, certificate and a one-time key) or "update" (a masked vector).
    `at`: milliseconds since 1970, by this device's clock. `why`: what allowed it, for people."""

    at: int
    task: str
    round: int
    what: str
    bytes: int
    why: str

    def __str__(self) -> str:
        when = f"{datetime.fromtimestamp(self.at / 1000, UTC):%Y-%m-%d %H:%M:%S}Z"
        return f"{when}  {self.task}, round {self.round}: {self.what}, {self.bytes} bytes; {self.why}"


class Ledger:
    """The ledger at `path`, made where there is none. Any thread, and other processes may read meanwhile.

    Every method raises BlindsumError with a database code where the disk fails.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._connected: sqlite3.Connection | None = None
        with self._guard():
            pass

    def record(self, use: Use, *, issued_at: int) -> int:
        """Note, durably, that something is about to leave. `issued_at`: the manifest's. Returns a number for `retract`."""
        row = (use.at, use.task, use.round, issued_at, use.what, use.bytes, use.why)
        with self._guard():
            found = self._db.execute(
                "INSERT INTO uses (at, task, round, issued_at, what, bytes, why) VALUES (?, ?, ?, ?, ?, ?, ?)", row
            )
            number = int(found.lastrowid or 0)
            self._db.execute("DELETE FROM uses WHERE id <= ?", (number - USES_MAX,))
        return number

    def retract(self, number: int) -> None:
        """It did not leave after all."""
        with self._guard():
            self._db.execute("DELETE FROM uses WHERE id = ?", (number,))

    def uses(self, limit: int = USES_MAX) -> list[Use]:
        """The newest `limit` uses, newest first."""
        with self._guard():
            rows = self._db.execute(
                "SELECT at, task, round, what, bytes, why FROM uses ORDER BY id DESC LIMIT ?", (limit,)
            ).fetchall()
        return [Use(*row) for row in rows]

    def last(self, task: str) -> tuple[int, int]:
        """(round, issued_at) of the last update for `task`, zeros where there is none."""
        query = "SELECT round, issued_at FROM uses WHERE what = 'update' AND task = ? ORDER BY round DESC LIMIT 1"
        with self._guard():
            row = self._db.execute(query, (task,)).fetchone()
        return (row[0], row[1]) if row else (0, 0)

    def updates(self, now: int) -> int:
        """Updates within a day of `now`, on either side of it: a clock that is set back frees nothing, one that was far ahead
        for a while does not lock the device out for ever."""
        query = "SELECT count(*) FROM uses WHERE what = 'update' AND at BETWEEN ? AND ?"
        with self._guard():
            return int(self._db.execute(query, (now - DAY_MS, now + DAY_MS)).fetchone()[0])

    def add_traffic(self, sent: int, received: int, now: int) -> None:
        """Bytes that went over the link since the last call."""
        hour = now // HOUR_MS
        with self._guard():
            self._db.execute(
                "INSERT INTO traffic VALUES (?, ?, ?) ON CONFLICT (hour) DO UPDATE SET "
                "sent = sent + excluded.sent, received = received + excluded.received",
                (hour, sent, received),
            )
            self._db.execute("DELETE FROM traffic WHERE hour < ?", (hour - HOURS_MAX,))

    def traffic(self, now: int) -> int:
        """Bytes both ways within a day of `now`, on either side of it."""
        query = "SELECT coalesce(sum(sent + received), 0) FROM traffic WHERE hour BETWEEN ? AND ?"
        with self._guard():
            row = self._db.execute(query, ((now - DAY_MS) // HOUR_MS + 1, (now + DAY_MS) // HOUR_MS)).fetchone()
        return int(row[0])

    def switch(self, name: str) -> int | None:
        """A number kept under a name, None where there is none."""
        with self._guard():
            row = self._db.execute("SELECT value FROM switches WHERE name = ?", (name,)).fetchone()
        return None if row is None else int(row[0])

    def set_switch(self, name: str, value: int) -> None:
        with self._guard():
            self._db.execute(
                "INSERT INTO switches VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value", (name, value)
            )

    def close(self) -> None:
        """Give the file back. What is asked later opens it again."""
        with self._lock:
            connected, self._connected = self._connected, None
            if connected is not None:
                connected.close()

    @property
    def _db(self) -> sqlite3.Connection:
        assert self._connected is not None, "inside of _guard"
        return self._connected

    def _connect(self) -> None:
        self._connected = sqlite3.connect(
            self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        self._db.execute("PRAGMA synchronous = FULL")
        for statement in _SCHEMA.split(";\n"):
            self._db.execute(statement)

    @contextmanager
    def _guard(self) -> Iterator[None]:
        with self._lock:
            try:
                if self._connected is None:
                    self._connect()
                yield
            except sqlite3.Error as error:
                self.close()  # a connection from when the disk was read-only stays so for ever
                if not (code := code_of(error)):
                    raise
                raise BlindsumError(code, f"{self.path}: {error}") from error
