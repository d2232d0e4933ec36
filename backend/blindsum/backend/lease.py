"""Who may write to a PostgreSQL database, and until when: leases with a number that fences off whoever had them before
(docs/adr/0026-workers.md).

A lease is a row: its name, its holder, when it expires, and a fence, which grows each time that somebody else takes the lease. Its
holder renews it from a connection and a thread of its own. It may be taken when it has expired (its holder is paused, or cut off)
or when the server sees its holder's connection gone (it has ended). Every write of a holder locks the row with its own fence for
the length of its transaction (`fenced`), and who takes the lease changes the fence, which waits for that lock: so nothing of an
earlier holder is written after a later one has begun.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Final

import psycopg

from blindsum.backend.database import CONNECT_TIMEOUT_S, Connection, connect, name_of, told
from blindsum.protocol.errors import BlindsumError
from blindsum.runtime.topics import WORKERS_MAX

__all__ = ["COORDINATOR", "LEASE_S", "LIVING", "WORKERS", "Fence", "Lease", "fenced"]

COORDINATOR: Final = "coordinator"
WORKERS: Final = "worker/"
"""Begins the names of the leases of workers."""
LEASE_S: Final = 10
"""How long a paused holder keeps what it has; where it was paused within a transaction, until the server ends that."""
RENEW_S: Final = 1.0

_LENGTH: Final = f"interval '{LEASE_S} s'"
_HELD: Final = """
SELECT FROM pg_stat_activity AS holder
WHERE holder.pid = lease.pid AND holder.datname = current_database()
  AND (holder.backend_start = lease.began OR holder.backend_start IS NULL)
"""
"""The start of another user's session is hidden; a restored copy of the database is nobody's."""
_TAKE: Final = f"""
INSERT INTO blindsum.lease (name, fence, pid, began, expires)
SELECT %s, 1, pid, backend_start, clock_timestamp() + {_LENGTH} FROM pg_stat_activity WHERE pid = pg_backend_pid()
ON CONFLICT (name) DO UPDATE
SET fence = lease.fence + 1, pid = EXCLUDED.pid, began = EXCLUDED.began, expires = EXCLUDED.expires
WHERE lease.expires < clock_timestamp() OR NOT EXISTS ({_HELD})
RETURNING fence
"""
_RENEW: Final = f"UPDATE blindsum.lease SET expires = clock_timestamp() + {_LENGTH} WHERE name = %s AND fence = %s"
_RELEASE: Final = (
    "UPDATE blindsum.lease SET expires = clock_timestamp() - interval '1 s' WHERE name = %s AND fence = %s"
)
_FENCED: Final = "SELECT FROM blindsum.lease WHERE name = %s AND fence = %s FOR KEY SHARE"
LIVING: Final = f"expires > clock_timestamp() AND EXISTS ({_HELD})"
"""Whether a row of blindsum.lease is somebody's now."""
_WORKERS: Final = f"SELECT name FROM blindsum.lease WHERE name LIKE 'worker/%%' AND {LIVING} ORDER BY name LIMIT %s"

Fence = tuple[str, int]
"""Name of a lease and the number it was given with."""


def fenced(db: Connection, fence: Fence) -> None:
    """Make sure that the open transaction of `db` is the lease holder's until it ends. Raises BlindsumError "lease-lost"."""
    if db.execute(_FENCED, fence).rowcount != 1:
        raise BlindsumError("lease-lost", fence[0])


class Lease:
    """A lease on the database at `url`, which has its tables, from now until `close`. `lost` is set when somebody else has it, or
    the server is out of reach. Raises BlindsumError "database-in-use" where somebody holds it.

    `workers` are the leases of workers whose holders live, in order, as of the last renewal.
    """

    def __init__(self, url: str, name: str) -> None:
        self._db = connect(url)
        try:
            with told():
                taken = self._db.execute(_TAKE, (name,)).fetchone()
                if taken is None:
                    raise BlindsumError("database-in-use", f"{name_of(self._db)}: somebody else holds the lease {name}")
                self.fence: Fence = (name, int(taken[0]))
                self.workers = self._living()
        except BaseException:
            self._db.close()
            raise
        self.lost = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._renew, name=f"lease-{name}", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises BlindsumError "lease-lost"."""
        if self.lost.is_set():
            raise BlindsumError("lease-lost", self.fence[0])

    def close(self) -> None:
        """Give the lease back."""
        self._closing.set()
        self._thread.join(CONNECT_TIMEOUT_S)
        with suppress(psycopg.Error):  # it ends with the connection in any case
            self._db.execute(_RELEASE, self.fence)
        self._db.close()

    def _renew(self) -> None:
        while not self._closing.wait(RENEW_S):
            try:
                if self._db.execute(_RENEW, self.fence).rowcount != 1:
                    break
                self.workers = self._living()
            except psycopg.Error:
                break
        else:
            return
        self.lost.set()

    def _living(self) -> tuple[str, ...]:
        return tuple(name for (name,) in self._db.execute(_WORKERS, (WORKERS_MAX,)).fetchall())
