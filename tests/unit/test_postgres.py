"""A coordinator's database on a real PostgreSQL server: one owner, crashes, restarts, what must be refused."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from blindsum.backend.postgres import PostgresStore
from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.machines.step import ChunkOut, Message, Write


def test_second_coordinator_is_refused_until_the_first_is_gone(postgres: Any) -> None:
    url = postgres.database()
    first = PostgresStore(url)
    with pytest.raises(BlindsumError, match="database-in-use"):
        PostgresStore(url)
    first.close()
    PostgresStore(url).close()


@pytest.mark.parametrize("url", ["postgres//who:word@db/x", "mysql://who:word@db/x"])
def test_what_is_no_url_of_a_database_is_an_error_of_the_settings_and_is_not_shown(url: str) -> None:
    with pytest.raises(BlindsumError, match="config-invalid") as caught:
        PostgresStore(url)
    assert "word" not in str(caught.value)


def test_coordinator_whose_lease_ran_out_cannot_write_once_another_has_it(postgres: Any) -> None:
    url = postgres.database()
    first = PostgresStore(url)
    first.commit([Write("a", b"1")], [Message("vote", "parties", b"x")])
    first.stage([Write("a", b"staged")], [])
    second = take_over(url, first)
    assert second.get("a") == b"1"
    second.commit([Write("a", b"2")])
    for write in (
        lambda: first.stage([Write("a", b"3")], []),
        lambda: first.commit([Write("a", b"3")]),
        lambda: first.sent([1]),
    ):
        with pytest.raises(BlindsumError, match="lease-lost"):
            write()
    assert second.get("a") == b"2"
    assert len(second.outbox()) == 1
    assert first.lease.lost.wait(30)
    second.close()
    first.close()
    PostgresStore(url).close()  # what the first gave back was not its own any more, and the second's is free


def test_what_a_coordinator_has_written_holds_off_the_next_one_until_it_is_committed(postgres: Any) -> None:
    url = postgres.database()
    first = PostgresStore(url)
    first.stage([Write("a", b"1")], [])
    taken: list[PostgresStore] = []
    thread = threading.Thread(target=lambda: taken.append(take_over(url, None)))
    thread.start()
    with psycopg.connect(url, autocommit=True) as admin:
        waiting = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        until = time.monotonic() + 30
        while not admin.execute(waiting).rowcount:
            assert time.monotonic() < until
    first.commit()
    thread.join(30)
    assert taken[0].get("a") == b"1"
    taken[0].close()
    first.close()


def test_database_of_the_first_schema_is_brought_up_to_date(postgres: Any) -> None:
    url = postgres.database()
    store = PostgresStore(url)
    store.commit([Write("a", b"1")], [Message("vote", "parties", b"x")])
    store.close()
    with psycopg.connect(url) as admin:
        admin.execute("DROP TABLE blindsum.span, blindsum.job, blindsum.lease; UPDATE blindsum.about SET version = 1")
    with psycopg.connect(url, autocommit=True) as old:
        old.execute("SELECT pg_advisory_lock(%s)", (0x626C7331,))  # as a coordinator of that time
        with pytest.raises(BlindsumError, match="database-in-use"):
            PostgresStore(url)
    store = PostgresStore(url)
    assert store.get("a") == b"1"
    assert len(store.outbox()) == 1
    store.close()


def test_owner_that_lost_its_connection_cannot_write_any_more(postgres: Any) -> None:
    """A holder whose connection the server has ended is gone, and a second owner is never met by a late write of the first."""
    url = postgres.database()
    first = PostgresStore(url)
    first.commit([Write("a", b"1")])
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'blindsum' AND datname = current_database()"
        )
    second = PostgresStore(url)
    second.commit([Write("a", b"2")])
    for _ in range(2):
        with pytest.raises(BlindsumError, match="database-unreachable"):
            first.commit([Write("a", b"3")])
    assert second.get("a") == b"2"
    second.close()
    first.close()


def test_server_that_crashes_keeps_what_was_committed_and_nothing_that_was_staged(postgres: Any) -> None:
    url = postgres.database()
    store = PostgresStore(url)
    store.commit([Write(f"k/{number}", bytes(10_000)) for number in range(20)], [Message("vote", "parties", b"x")])
    store.stage([Write("late", b"z")], [Message("never", "parties", b"")])
    postgres.stop("immediate")
    try:
        with pytest.raises(BlindsumError, match="database-unreachable"):
            store.commit()
        with pytest.raises(BlindsumError, match="database-unreachable"):
            PostgresStore(url)
    finally:
        postgres.start()
    again = PostgresStore(url)
    assert len(list(again.keys("k/"))) == 20
    assert again.get("late") is None
    assert [row.out for row in again.outbox()] == [Message("vote", "parties", b"x")]
    again.close()


def test_newer_schema_and_another_program_are_refused(postgres: Any) -> None:
    url = postgres.database()
    PostgresStore(url).close()
    with psycopg.connect(url) as admin:
        admin.execute("UPDATE blindsum.about SET version = 99")
    with pytest.raises(BlindsumError, match="database-newer"):
        PostgresStore(url)
    url = postgres.database()
    with psycopg.connect(url) as admin:
        admin.execute("CREATE SCHEMA blindsum")
    with pytest.raises(BlindsumError, match="database-unwritable"):
        PostgresStore(url)


def test_server_that_does_not_flush_is_refused(postgres: Any) -> None:
    url = postgres.database()
    try:
        _set(url, "fsync", "off")
        with pytest.raises(BlindsumError, match=r"database-unwritable.*fsync"):
            PostgresStore(url)
    finally:
        _set(url, "fsync", "on")
    PostgresStore(url).close()


def test_wrong_url_is_told_without_its_password(postgres: Any) -> None:
    for url in ("postgresql://nobody:geheim@127.0.0.1:1/x", postgres.database().replace("test", "absent")):
        with pytest.raises(BlindsumError, match="database-unreachable") as error:
            PostgresStore(url)
        assert "geheim" not in str(error.value)


def test_backup_by_the_documented_commands_holds_all_of_it(
    postgres: Any, pytestconfig: pytest.Config, tmp_path: Path
) -> None:
    url, copy = postgres.database(), postgres.database()
    store = PostgresStore(url)
    store.commit([Write(f"k/{number}", os.urandom(5000)) for number in range(20)], [ChunkOut("x", bytes(32), 1)])
    block = re.search(
        r"```bash\n(pg_dump.*?)```", (pytestconfig.rootpath / "docs" / "OPERATING.md").read_text(), re.DOTALL
    )
    assert block
    programs = f"{postgres.programs}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": programs, "DATABASE": url, "NEW_DATABASE": copy}
    subprocess.run(["bash", "-ec", block.group(1)], cwd=tmp_path, env=environment, check=True)
    restored = PostgresStore(copy)
    assert list(restored.scan("")) == list(store.scan(""))
    assert restored.outbox() == store.outbox()
    restored.commit([], [Message("more", "parties", b"")])
    restored.close()
    store.close()


def take_over(url: str, first: PostgresStore | None) -> PostgresStore:
    """The store of a second coordinator, as if the first had been paused for longer than a lease."""
    with psycopg.connect(url, autocommit=True) as admin:
        until = time.monotonic() + 30
        while True:
            assert time.monotonic() < until
            if first is not None:
                first.rollback()
            admin.execute("UPDATE blindsum.lease SET expires = clock_timestamp() - interval '1 s'")
            with contextlib.suppress(BlindsumError):  # renewed in between
                return PostgresStore(url)


def _set(url: str, name: str, value: str) -> None:
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(f"ALTER SYSTEM SET {name} = {value}")  # type: ignore[arg-type]
        admin.execute("SELECT pg_reload_conf()")
        while admin.execute(f"SHOW {name}").fetchone() != (value,):  # type: ignore[arg-type]
            pass
