"""A connection to a coordinator's database in PostgreSQL: its tables, made and brought up to date, and its errors as codes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg
import psycopg.conninfo

from blindsum.protocol.errors import BlindsumError

__all__ = ["CONNECT_TIMEOUT_S", "PAUSE_S", "SCHEMA_VERSION", "Connection", "connect", "name_of", "told"]

SCHEMA_VERSION: Final = 2
CONNECT_TIMEOUT_S: Final = 10
PAUSE_S: Final = 5
"""A transaction whose client does nothing for so long is ended by the server: it may hold what others wait for."""

LOCK: Final = 0x626C7331  # "bls1"; a coordinator of schema 1 holds it for as long as it is connected

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
INSERT INTO blindsum.about VALUES (1);
"""
_FROM_1: Final = """
CREATE TABLE blindsum.lease (
  name text PRIMARY KEY, fence bigint NOT NULL, pid integer NOT NULL, began timestamptz NOT NULL, expires timestamptz NOT NULL,
  UNIQUE (name, fence)
);
CREATE TABLE blindsum.job (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, spec bytea NOT NULL);
CREATE TABLE blindsum.span (
  job bigint NOT NULL REFERENCES blindsum.job ON DELETE CASCADE, number integer NOT NULL,
  holder text NOT NULL DEFAULT '', fence bigint NOT NULL DEFAULT 0, total bytea, PRIMARY KEY (job, number)
);
UPDATE blindsum.about SET version = 2;
"""
"""To schema 2: leases and the work that is shared out. The lease's second key makes a change of its fence wait for who locks it."""

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
"""Class of SQLSTATE -> code; the exceptions are below."""
_EXCEPTIONS: Final = {"53100": "disk-full", "25P03": "lease-lost"}
"""Disk full; the server ended the transaction of a client that did nothing in it for so long."""

Connection = psycopg.Connection[Any]


def connect(url: str, *, pause_s: int = PAUSE_S) -> Connection:
    """A connection to the database at `url` (`postgresql://user@host/database?sslmode=verify-full`, or a "key=value" string of
    libpq; the password best in a `.pgpass` file), whose tables are made or brought up to date where they are not. Its
    transactions may pause for `pause_s`.

    Raises BlindsumError: "config-invalid" (no such URL), "database-unreachable", "database-in-use" (a coordinator of an earlier
    version has it), "database-newer", "database-unwritable" (also where the server does not flush to disk).
    """
    try:
        psycopg.conninfo.conninfo_to_dict(url)
    except psycopg.ProgrammingError:  # whose words show all of it, and a password may be in it
        raise BlindsumError("config-invalid", "database is not such as postgresql://user@host/name") from None
    with told():
        db: Connection = psycopg.connect(
            url, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S, application_name="blindsum"
        )
    try:
        with told():
            db.execute("SET synchronous_commit = on")
            db.execute(f"SET idle_in_transaction_session_timeout = '{pause_s}s'")
            if db.execute("SHOW fsync").fetchone() != ("on",):
                raise BlindsumError("database-unwritable", f"{name_of(db)}: the server runs with fsync off")
            if _version(db) != SCHEMA_VERSION:
                _migrate(db)
    except BaseException:
        db.close()
        raise
    return db


def name_of(db: Connection) -> str:
    return f"{db.info.dbname} on {db.info.host}"


@contextmanager
def told() -> Iterator[None]:
    """The server's errors as the catalogue's."""
    try:
        yield
    except psycopg.Error as error:
        state = error.sqlstate or ""
        lost = not state and isinstance(error, psycopg.OperationalError)
        code = "database-unreachable" if lost else _EXCEPTIONS.get(state) or _CODES.get(state[:2], "disk-failed")
        raise BlindsumError(code, str(error).strip()) from error


def _version(db: Connection) -> int:
    """0 where there are no tables."""
    if not db.execute("SELECT FROM pg_namespace WHERE nspname = 'blindsum'").rowcount:
        return 0
    row = db.execute("SELECT version FROM blindsum.about").fetchone()
    return int(row[0]) if row else 0


def _migrate(db: Connection) -> None:
    with db.transaction():
        row = db.execute("SELECT pg_try_advisory_xact_lock(%s)", (LOCK,)).fetchone()
        if row != (True,):
            raise BlindsumError("database-in-use", f"{name_of(db)}: another coordinator holds it")
        version = _version(db)
        if version > SCHEMA_VERSION:
            raise BlindsumError(
                "database-newer", f"{name_of(db)} has schema {version}, this version reads {SCHEMA_VERSION}"
            )
        if version < 1:
            db.execute(_SCHEMA)
        if version < SCHEMA_VERSION:
            db.execute(_FROM_1)
