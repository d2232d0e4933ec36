"""Databases of real roles in the middle of a round, altered by hand or by a failing disk: the role refuses them, with a code."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from blindsum.protocol.errors import CATALOGUE, BlindsumError
from blindsum.protocol.machines.step import Step
from blindsum.runtime.checkup import examine_file
from blindsum.runtime.sqlite import STORE_CODES, SqliteStore
from blindsum.testing.checkers import Checker
from blindsum.testing.world import World

ROLES = ("coordinator", "party/1", "device/d-0000")
TABLES = {
    "kv": ("key", "mark", "value"),
    "wire": ("key", "mark", "value"),
    "outbox": ("to", "retain", "kind", "body", "blob", "idx", "mark"),
    "whole": ("owner", "sum"),
}
SCHEMA_1 = """
CREATE TABLE kv (key TEXT NOT NULL UNIQUE, value BLOB NOT NULL) STRICT;
CREATE TABLE wire (key TEXT NOT NULL UNIQUE, value BLOB NOT NULL) STRICT;
CREATE TABLE outbox (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, chunk INTEGER NOT NULL, "to" TEXT NOT NULL, retain INTEGER NOT NULL,
  kind TEXT, body BLOB, blob BLOB, idx INTEGER, UNIQUE ("to", blob, idx)
) STRICT;
CREATE INDEX outbox_order ON outbox (chunk, seq);
PRAGMA application_id = 0x626C7331;
PRAGMA user_version = 1;
"""


class OnDisk(Checker):
    """Keeps what each of the three roles stores in files too, and lets some messages wait."""

    folder: Path

    def __init__(self) -> None:
        self.stores: dict[str, SqliteStore] = {}

    def stored(self, world: World, role: str, step: Step) -> None:
        if role in ROLES and (step.writes or step.messages):
            if role not in self.stores:
                place = self.folder / role.replace("/", "-")
                self.stores[role] = SqliteStore(place, owner=world.fleet.trust.owner(role))
            store = self.stores[role]
            store.commit(step.writes, step.messages)
            store.sent([row.seq for row in store.outbox(limit=1_000)[8:]])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Files of a round that is being closed; beside each, as `-old`, what it was a little earlier in the round."""
    folder = tmp_path_factory.mktemp("roles")
    OnDisk.folder = folder
    world = World(5, devices=4, length=3000, checkers=[OnDisk])
    disks = world.checkers[0]
    assert isinstance(disks, OnDisk)
    world.run(1)
    world.start()
    for phase in ("join", "check"):
        world.until(phase)
        for role in ROLES:
            disks.stores.pop(role).close()
            if phase == "join":
                shutil.copy(file_of(role), file_of(role).with_name(f"{file_of(role).name}-old"))
            disks.stores[role] = SqliteStore(file_of(role))
    for store in disks.stores.values():
        store.close()
    return world


def file_of(role: str) -> Path:
    return OnDisk.folder / role.replace("/", "-")


def read(path: Path, owner: str = "") -> list[object]:
    """All that a role can read there. Raises BlindsumError."""
    with closing(SqliteStore(path, owner=owner)) as store:
        return [*store.scan(""), *store.outbox(limit=1_000_000)]


def refusal(path: Path, owner: str = "") -> str:
    try:
        read(path, owner)
    except BlindsumError as error:
        assert error.code in STORE_CODES
        assert CATALOGUE[error.code].remedy
        return error.code
    return ""


def rows(path: Path, table: str) -> list[int]:
    with closing(sqlite3.connect(path)) as db:
        return [number for (number,) in db.execute(f"SELECT rowid FROM {table} ORDER BY rowid")]


def some(path: Path, table: str) -> list[int]:
    """Up to four rows of a table."""
    found = rows(path, table)
    return random.Random(str(path)).sample(found, min(4, len(found)))


def altered(value: object) -> object:
    match value:
        case bytes():
            return value[:-1] + bytes([value[-1] ^ 1]) if value else b"\0"
        case str():
            return value + "~"
        case int():
            return value ^ 1 << 20
        case _:
            return None


def changes(path: Path) -> Iterator[tuple[str, str, tuple[object, ...]]]:
    """(what, statement, parameters): every column of some rows of every table, and rows gone."""
    for table, columns in TABLES.items():
        for number in some(path, table):
            with closing(sqlite3.connect(path)) as db:
                named = ", ".join(f'"{column}"' for column in columns)
                held = db.execute(f"SELECT {named} FROM {table} WHERE rowid = ?", (number,)).fetchone()
            for column, value in zip(columns, held, strict=True):
                if value is not None:
                    change = f'UPDATE {table} SET "{column}" = ? WHERE rowid = ?'
                    yield f"{table}.{column}", change, (altered(value), number)
                if isinstance(value, str):
                    change = f'UPDATE {table} SET "{column}" = CAST(? AS TEXT) WHERE rowid = ?'
                    yield f"{table}.{column}", change, (b"\xff\xfe", number)
            if table != "outbox":  # what is missing there is sent again when it is asked for
                yield f"{table} without a row", f"DELETE FROM {table} WHERE rowid = ?", (number,)
        yield f"no {table}", f"DROP TABLE {table}", ()


@pytest.mark.parametrize("role", ROLES)
def test_database_in_which_any_column_was_changed_or_a_row_is_gone_is_refused(
    world: World, tmp_path: Path, role: str
) -> None:
    owner, copy = world.fleet.trust.owner(role), tmp_path / "r.db"
    assert refusal(file_of(role), owner) == "" and examine_file(file_of(role))[1].ok
    tried = set()
    for what, statement, parameters in changes(file_of(role)):
        shutil.copy(file_of(role), copy)
        with closing(sqlite3.connect(copy, isolation_level=None)) as db:
            db.execute("PRAGMA synchronous = OFF")
            db.execute(statement, parameters)
        wanted = "database-foreign" if what == "whole.owner" else "database-corrupted"
        if what.startswith("kv") or what.endswith("without a row"):
            assert not examine_file(copy)[1].ok, f"the doctor finds {what} sound"
        assert refusal(copy, owner) == wanted, f"{what}: {statement} {parameters}"
        tried.add(what)
    assert {"kv.key", "kv.value", "wire.value", "whole.sum", "outbox.to", "kv without a row"} <= tried


@pytest.mark.parametrize("role", ROLES)
def test_row_brought_back_from_an_older_copy_is_refused(world: World, tmp_path: Path, role: str) -> None:
    """A vote, a spent round, a counter as it was: whole in itself, and no part of this database."""
    old, copy = file_of(role).with_name(f"{file_of(role).name}-old"), tmp_path / "r.db"
    with closing(sqlite3.connect(old)) as db:
        before = db.execute("SELECT key, mark, value FROM kv").fetchall()
    with closing(sqlite3.connect(file_of(role))) as db:
        now = dict(db.execute("SELECT key, mark FROM kv"))
    back = 0
    for row in before:
        if now.get(row[0]) != row[1]:
            shutil.copy(file_of(role), copy)
            with closing(sqlite3.connect(copy, isolation_level=None)) as db:
                db.execute("INSERT OR REPLACE INTO kv (key, mark, value) VALUES (?, ?, ?)", row)
            assert refusal(copy) == "database-corrupted", row[0]
            back += 1
    assert back


@pytest.mark.parametrize("role", ROLES)
def test_database_of_another_role_or_fleet_is_refused(world: World, tmp_path: Path, role: str) -> None:
    for other in {*ROLES, "party/2", "device/d-0001"} - {role}:
        assert refusal(file_of(role), world.fleet.trust.owner(other)) == "database-foreign"
    assert refusal(file_of(role), World(6, devices=4).fleet.trust.owner(role)) == "database-foreign"


@pytest.mark.parametrize("role", ROLES)
def test_any_changed_byte_of_a_file_is_refused_or_changes_nothing(world: World, tmp_path: Path, role: str) -> None:
    data, whole, copy = file_of(role).read_bytes(), read(file_of(role)), tmp_path / "r.db"
    dice = random.Random(role)
    with closing(SqliteStore(file_of(role))) as store:
        starts = [value[:32] for key, value in store.scan("") if len(value) >= 32 and not key.startswith("blob/")]
    live = [data.find(row) + 10 for row in starts if data.count(row) == 1][:20]  # on no free page besides
    assert live
    for at in [*live, *(dice.randrange(len(data)) for _ in range(60))]:
        copy.write_bytes(data[:at] + bytes([data[at] ^ 1 << dice.randrange(8)]) + data[at + 1 :])
        if not refusal(copy):
            assert at not in live, "a row that is read"
            assert read(copy) == whole


def test_database_of_the_schema_before_is_taken_over_whole(world: World, tmp_path: Path) -> None:
    store = SqliteStore(file_of("party/1"))
    kept = [*store.scan(""), *store.outbox(limit=1_000)]
    store.close()
    with closing(sqlite3.connect(tmp_path / "r.db")) as db:
        db.executescript(SCHEMA_1)
        db.execute("ATTACH ? AS new", (str(file_of("party/1")),))
        for table in ("kv", "wire"):
            db.execute(f"INSERT INTO main.{table} SELECT key, value FROM new.{table}")
        db.execute('INSERT INTO main.outbox SELECT seq, chunk, "to", retain, kind, body, blob, idx FROM new.outbox')
        db.commit()
    assert read(tmp_path / "r.db", "party/1") == kept
    assert read(tmp_path / "r.db", "party/1") == kept
    assert refusal(tmp_path / "r.db", "party/2") == "database-foreign"
