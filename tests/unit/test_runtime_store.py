"""`SqliteStore`, `PostgresStore` and `MemoryStore` keep one contract; the file keeps its promises to the disk."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from blindsum.backend import postgres as postgres_module
from blindsum.backend.postgres import PostgresStore
from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.machines.step import ChunkOut, Listen, Message, Write
from blindsum.runtime import memory, sqlite
from blindsum.runtime.memory import MemoryStore
from blindsum.runtime.sqlite import SqliteStore

BLOB = bytes(32)
Store = SqliteStore | MemoryStore | PostgresStore


@pytest.fixture(params=["sqlite", "memory", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    match request.param:
        case "sqlite":
            made: Store = SqliteStore(tmp_path / "role.sqlite")
        case "memory":
            made = MemoryStore()
        case _:
            made = PostgresStore(request.getfixturevalue("postgres").database())
    yield made
    made.close()


def put(key: str, value: bytes = b"v") -> Write:
    return Write(key, value)


# -- the contract of both -------------------------------------------------------------------------------------------------


def test_commit_writes_overwrites_and_deletes(store: Store) -> None:
    store.commit([put("a", b"1"), put("b", b"2"), put("a", b"3")])
    store.commit([Write("b", None), Write("never", None)])
    assert store.get("a") == b"3"
    assert store.get("b") is None
    assert store.get("c") is None


def test_empty_value_is_a_value(store: Store) -> None:
    store.commit([put("a", b"")])
    assert store.get("a") == b""


def test_scan_yields_one_prefix_in_key_order(store: Store) -> None:
    keys = [f"blob/{number:06d}" for number in range(100)]
    store.commit([put(key) for key in [*reversed(keys), "blo", "blob", "blob0", "bloc", "a", "z"]])
    assert [key for key, _ in store.scan("blob/")] == keys
    assert [key for key, _ in store.scan("blob/0000")] == keys
    assert len(list(store.scan(""))) == 106
    assert list(store.scan("none/")) == []


def test_scan_allows_writing_between_rows(store: Store) -> None:
    store.commit([put(f"k/{number:03d}") for number in range(80)])
    for key, _ in store.scan("k/"):
        store.commit([Write(key, None)])
    assert list(store.scan("k/")) == []


def test_staged_rows_show_and_a_rollback_takes_them_back(store: Store) -> None:
    store.commit([put("a", b"old"), put("d")], [Message("kept", "parties", b"")])
    store.stage(
        [put("a", b"new"), put("b"), Write("d", None)], [Message("lost", "parties", b""), ChunkOut("x", BLOB, 1)]
    )
    assert (store.get("a"), store.get("b"), store.get("d")) == (b"new", b"v", None)
    assert [key for key, _ in store.scan("")] == ["a", "b"]
    store.rollback()
    assert (store.get("a"), store.get("b"), store.get("d")) == (b"old", None, b"v")
    assert [row.out for row in store.outbox()] == [Message("kept", "parties", b"")]
    store.commit([], [ChunkOut("x", BLOB, 1)])
    assert len(store.outbox()) == 2


def test_outbox_keeps_order_and_all_fields(store: Store) -> None:
    out: list[Message | ChunkOut | Listen] = [
        Message("vote", "coordinator", b"body"),
        ChunkOut("all/t1", BLOB, 7, retain=True),
        Message("manifest", "all/t1", b"", retain=True),
        Listen("t1", BLOB),
        Message("vote", "coordinator", b"body"),
    ]
    store.commit([], out)
    rows = store.outbox()
    assert [row.out for row in rows] == [out[0], out[1], out[2], out[4]]
    assert [row.seq for row in rows] == sorted({row.seq for row in rows})
    assert [row.out for row in store.outbox(chunks=True)] == [out[1]]
    assert [row.out for row in store.outbox(chunks=False)] == [out[0], out[2], out[4]]
    assert [row.out for row in store.outbox(after=rows[1].seq, limit=1)] == [out[2]]


def test_sent_rows_are_gone_and_their_numbers_do_not_return(store: Store) -> None:
    store.commit([], [Message("a", "parties", b""), Message("b", "parties", b"")])
    last = store.outbox()[-1].seq
    store.sent([row.seq for row in store.outbox()] + [last + 100])
    assert store.outbox() == []
    store.commit([], [Message("c", "parties", b"")])
    assert store.outbox()[0].seq > last


def test_chunk_that_waits_is_not_added_again_but_may_go_again_later(store: Store) -> None:
    chunk = ChunkOut("coordinator", BLOB, 3)
    store.commit([], [chunk, ChunkOut("device/d", BLOB, 3), ChunkOut("coordinator", BLOB, 4), chunk])
    store.commit([], [chunk])
    assert len(store.outbox()) == 3
    store.sent([store.outbox()[0].seq])
    store.commit([], [chunk])
    assert len(store.outbox()) == 3


def test_full_outbox_lets_the_oldest_go_and_counts_them(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "OUTBOX_MAX", 3)
    monkeypatch.setattr(memory, "OUTBOX_MAX", 3)
    monkeypatch.setattr(postgres_module, "OUTBOX_MAX", 3)
    store.commit([], [Message(f"m{number}", "parties", b"") for number in range(5)])
    assert [row.out.kind for row in store.outbox() if isinstance(row.out, Message)] == ["m2", "m3", "m4"]
    assert store.dropped == 2


class BothStores(RuleBasedStateMachine):
    """Whatever is done to both, they answer alike."""

    KEYS = st.sampled_from(["a", "a/1", "a/2", "a0", "b", "b/x"])
    WRITES = st.lists(st.builds(Write, KEYS, st.one_of(st.none(), st.binary(max_size=3))), max_size=4)
    MESSAGES = st.lists(
        st.one_of(
            st.builds(Message, st.sampled_from(["k", "l"]), st.just("parties"), st.binary(max_size=2)),
            st.builds(ChunkOut, st.sampled_from(["x", "y"]), st.just(BLOB), st.integers(0, 2)),
            st.just(Listen("t", BLOB)),
        ),
        max_size=3,
    )

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "x.sqlite"
        self.disk, self.ram = SqliteStore(self.path), MemoryStore()
        self.clean = True

    @rule(writes=WRITES, messages=MESSAGES)
    def stage(self, writes: list[Write], messages: list[Message]) -> None:
        self.clean = False
        for one in (self.disk, self.ram):
            one.stage(writes, messages)

    @rule()
    def commit(self) -> None:
        self.clean = True
        for one in (self.disk, self.ram):
            one.commit()

    @rule()
    def rollback(self) -> None:
        self.clean = True
        for one in (self.disk, self.ram):
            one.rollback()

    @rule()
    def sent_first(self) -> None:
        if self.clean:
            self.disk.sent([row.seq for row in self.disk.outbox(limit=1)])
            self.ram.sent([row.seq for row in self.ram.outbox(limit=1)])

    @rule()
    def restart(self) -> None:
        self.disk.close()
        self.disk = SqliteStore(self.path)
        self.ram.rollback()
        self.clean = True

    @invariant()
    def alike(self) -> None:
        assert list(self.disk.scan("")) == list(self.ram.scan(""))
        assert list(self.disk.scan("a/")) == list(self.ram.scan("a/"))
        assert [row.out for row in self.disk.outbox()] == [row.out for row in self.ram.outbox()]

    def teardown(self) -> None:
        self.disk.close()
        self.folder.cleanup()


BothStores.TestCase.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)
TestStoresAnswerAlike = BothStores.TestCase

# -- the file ------------------------------------------------------------------------------------------------------------


def test_rows_and_outbox_survive_a_restart(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "r.sqlite")
    store.commit([put("a", b"1")], [Message("vote", "parties", b"x")])
    store.stage([put("b")], [Message("never", "parties", b"")])
    store.close()
    again = SqliteStore(tmp_path / "r.sqlite")
    assert [*again.scan("")] == [("a", b"1")]
    assert [row.out for row in again.outbox()] == [Message("vote", "parties", b"x")]
    again.close()


def test_committed_rows_survive_sigkill_and_uncommitted_do_not(tmp_path: Path) -> None:
    program = """
import os, signal, sys
from blindsum.protocol.machines.step import Message, Write
from blindsum.runtime.sqlite import SqliteStore
store = SqliteStore(sys.argv[1])
store.commit([Write(f"k/{n}", b"x" * 10_000) for n in range(50)], [Message("vote", "parties", b"y")])
store.stage([Write("late", b"z")], [])
os.kill(os.getpid(), signal.SIGKILL)
"""
    path = tmp_path / "r.sqlite"
    assert subprocess.run([sys.executable, "-c", program, str(path)], check=False).returncode == -9
    store = SqliteStore(path)
    assert len([*store.scan("k/")]) == 50
    assert store.get("late") is None
    assert len(store.outbox()) == 1
    store.close()


def test_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    path.touch(mode=0o666)
    store = SqliteStore(path)
    store.commit([put("a")])
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o600}
    store.close()


def test_erased_secret_is_in_no_file(tmp_path: Path) -> None:
    secret = os.urandom(32)
    store = SqliteStore(tmp_path / "r.sqlite")
    store.commit([put("seed", secret), put("other", b"x" * 5000)])
    store.commit([put("more", b"y" * 5000)])
    assert any(secret in file.read_bytes() for file in tmp_path.iterdir())
    store.commit([Write("seed", None)])
    assert not any(secret in file.read_bytes() for file in tmp_path.iterdir())
    store.close()


def test_secret_is_erased_also_after_chunks_were_deleted_in_the_same_step(tmp_path: Path) -> None:
    """Chunks are deleted without being overwritten; that must not carry over to what comes next."""
    secrets = [os.urandom(6000) for _ in range(4)]
    store = SqliteStore(tmp_path / "r.sqlite")
    store.commit([put(f"seed/{number}", secret) for number, secret in enumerate(secrets)])
    store.commit([put(f"blob/x/{number}", os.urandom(6000)) for number in range(4)])
    last = [Write("blob/x/0", None), put("seed/0", b"short"), Write("blob/x/1", None), Write("seed/1", None)]
    store.commit(
        [*last, Write("blob/x/2", None), Write("seed/2", None), Write("seed/3", None), Write("blob/x/3", None)]
    )
    left = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert not any(secret[at : at + 16] in left for secret in secrets for at in range(0, 6000, 1000))
    store.close()


def test_second_process_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    store = SqliteStore(path)
    program = f"from blindsum.runtime.sqlite import SqliteStore; SqliteStore({str(path)!r})"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "database-in-use" in result.stderr
    store.commit([put("a")])
    store.close()
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False).returncode == 0


def test_second_store_in_one_process_is_refused(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "r.sqlite")
    with pytest.raises(BlindsumError, match="database-in-use"):
        SqliteStore(tmp_path / "r.sqlite")
    store.close()


def _damage_middle(path: Path) -> None:
    store = SqliteStore(path)
    store.commit([put(f"k/{number}", os.urandom(3000)) for number in range(200)])
    store.close()
    data = bytearray(path.read_bytes())
    for at in range(8192, len(data), 4096):
        data[at : at + 64] = bytes(64)
    path.write_bytes(data)


def _truncate(path: Path) -> None:
    _damage_middle(path)
    path.write_bytes(path.read_bytes()[: 4096 * 20 + 100])


def _foreign(path: Path) -> None:
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE theirs (x)")
    other.close()


@pytest.mark.parametrize(
    "spoil", [lambda path: path.write_text("not a database, " * 1000), _damage_middle, _truncate, _foreign]
)
def test_damaged_or_foreign_file_is_refused_and_left_as_it_is(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    path = tmp_path / "r.sqlite"
    spoil(path)
    before = path.read_bytes()
    with pytest.raises(BlindsumError, match="database-corrupted"):
        SqliteStore(path)
    assert path.read_bytes()[4096:] == before[4096:]


def test_newer_schema_is_refused(tmp_path: Path) -> None:
    SqliteStore(tmp_path / "r.sqlite").close()
    with sqlite3.connect(tmp_path / "r.sqlite") as db:
        db.execute("PRAGMA user_version = 3")
    db.close()
    with pytest.raises(BlindsumError, match="database-newer"):
        SqliteStore(tmp_path / "r.sqlite")


def test_full_disk_is_told_and_nothing_of_the_step_stays(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "r.sqlite")
    store.commit([put("a", b"1")])
    store._db.execute("PRAGMA max_page_count = 40")  # SQLite then fails as it does when the disk is full
    with pytest.raises(BlindsumError, match="disk-full"):
        store.commit([put("a", b"2"), put("large", bytes(1_000_000))], [Message("vote", "parties", b"")])
    assert store.get("a") == b"1"
    assert store.outbox() == []
    store.commit([put("b", b"small")])
    assert store.get("b") == b"small"
    store.close()


def test_missing_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(BlindsumError, match="database-unwritable"):
        SqliteStore(tmp_path / "none" / "r.sqlite")


def test_read_only_file_is_told() -> None:
    """As a user who may not write there: root may write everywhere."""
    program = """
import os, sys
from blindsum.backend import postgres as postgres_module
from blindsum.backend.postgres import PostgresStore
from blindsum.protocol.errors import BlindsumError
from blindsum.runtime.sqlite import SqliteStore
if os.geteuid() == 0:
    os.seteuid(65534)
try:
    SqliteStore(sys.argv[1])
except BlindsumError as error:
    print(error.code)
"""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r.sqlite"
        SqliteStore(path).close()
        path.chmod(0o444)
        Path(folder).chmod(0o555)
        result = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=False)
        Path(folder).chmod(0o755)
    assert result.stdout.strip() == "database-unwritable", result.stderr


def test_any_thread_may_read_while_another_writes(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    store = SqliteStore(tmp_path / "r.sqlite")

    def read() -> int:
        return max(len(list(store.scan("k/"))) for _ in range(50))

    with ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(read) for _ in range(3)]
        for number in range(100):
            store.commit([put(f"k/{number}")])
        assert all(0 <= reader.result() <= 100 for reader in readers)
    store.close()
