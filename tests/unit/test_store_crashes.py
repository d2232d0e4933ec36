"""Power cuts and full disks under real roles: what they stored in two rounds goes through files that are torn or cannot grow."""

from __future__ import annotations

import random
import shutil
from functools import cache
from pathlib import Path

import pytest

from blindsum.protocol.codec import decode
from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.machines.step import Machine, Message, Step, Write
from blindsum.runtime.sqlite import SqliteStore
from blindsum.testing.actor import make_machine
from blindsum.testing.behaviours import Behaviour
from blindsum.testing.checkers import Checker
from blindsum.testing.entropy import Entropy
from blindsum.testing.world import World

ROLES = ("coordinator", "party/1", "device/d-0000")
PAGE = 4096


class Recorder(Checker):
    """Keeps the steps of every role."""

    def __init__(self) -> None:
        self.steps: dict[str, list[Step]] = {}

    def stored(self, world: World, role: str, step: Step) -> None:
        if step.writes or step.messages:
            self.steps.setdefault(role, []).append(step)


@cache
def played() -> tuple[World, dict[str, list[Step]]]:
    world = World(5, devices=4, length=3000, checkers=[Recorder])
    world.run(2)
    recorder = world.checkers[0]
    assert isinstance(recorder, Recorder)
    return world, recorder.steps


def rows_after(role: str, count: int) -> dict[str, bytes]:
    rows: dict[str, bytes] = {}
    for step in played()[1][role][:count]:
        for write in step.writes:
            if write.value is None:
                rows.pop(write.key, None)
            else:
                rows[write.key] = write.value
    return rows


def machine_of(role: str, store: SqliteStore) -> Machine:
    world, _ = played()
    willing = lambda _view: ""  # noqa: E731
    parts = {"random": Entropy(1, "next life"), "behaviour": Behaviour(), "willing": willing}
    return make_machine(world.fleet, role, store, tasks=frozenset({world.task}), **parts)  # type: ignore[arg-type]


def begin(folder: Path, role: str, count: int) -> SqliteStore:
    """A store that has taken the role's first `count` steps."""
    folder.mkdir()
    store = SqliteStore(folder / "role.db")
    for step in played()[1][role][:count]:
        store.commit(step.writes, step.messages)
    return store


def commit_and_die(store: SqliteStore, step: Step) -> None:
    """The commit, and not the emptying of the log that may follow it."""
    store.stage(step.writes, step.messages)
    store._erased = False
    store.commit()


def copy(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to / "role.db"


def test_every_database_is_opened_as_the_decision_says(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "r.db")
    wanted = {
        "journal_mode": "wal",
        "synchronous": 2,  # FULL
        "fullfsync": 1,
        "checkpoint_fullfsync": 1,
        "secure_delete": 1,
        "locking_mode": "exclusive",
    }
    found = {name: store._db.execute(f"PRAGMA {name}").fetchone()[0] for name in wanted}
    assert found == wanted
    store.commit([], [Message("vote", "parties", b"")])
    store.sent([1])  # which alone need not wait for the disk
    assert store._db.execute("PRAGMA synchronous").fetchone()[0] == 2
    store.close()


@pytest.mark.parametrize("role", ROLES)
def test_power_cut_in_a_commit_leaves_all_of_it_or_nothing_and_the_role_goes_on(tmp_path: Path, role: str) -> None:
    """The log ends anywhere in what the last commit added to it, or holds anything from there on."""
    dice = random.Random(role)
    steps = played()[1][role]
    whole = 0
    for number in sorted(dice.sample(range(len(steps)), 6)):
        store = begin(tmp_path / f"{number}", role, number)
        log = tmp_path / f"{number}" / "role.db-wal"
        before = log.stat().st_size
        commit_and_die(store, steps[number])
        data = log.read_bytes()
        for cut in range(3):
            torn = copy(tmp_path / f"{number}", tmp_path / f"{number}-{cut}")
            at = dice.randint(before, len(data)) if cut else len(data)
            tail = dice.randbytes(len(data) - at) if cut == 2 else b""
            torn.with_name("role.db-wal").write_bytes(data[:at] + tail)
            again = SqliteStore(torn)
            rows = dict(again.scan(""))
            assert rows in (rows_after(role, number), rows_after(role, number + 1))
            whole += rows == rows_after(role, number + 1)
            assert torn.with_name("role.db-wal").stat().st_size == 0, "what was erased is in no log"
            machine_of(role, again).wake(played()[0].now)
            again.close()
        store.close()
    assert whole >= 6, "a whole log is taken whole"


@pytest.mark.parametrize("role", ROLES)
def test_power_cut_while_the_log_is_emptied_loses_nothing(tmp_path: Path, role: str) -> None:
    """Pages that go from the log into the database are there, half there, or not."""
    dice = random.Random(role)
    steps = played()[1][role]
    for number in sorted(dice.sample(range(len(steps)), 4)):
        store = begin(tmp_path / f"{number}", role, number)
        commit_and_die(store, steps[number])
        torn = copy(tmp_path / f"{number}", tmp_path / f"{number}-torn")
        store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        old, new = torn.read_bytes(), (tmp_path / f"{number}" / "role.db").read_bytes()
        pages = []
        for at in range(0, len(new), PAGE):
            page, was = new[at : at + PAGE], old[at : at + PAGE].ljust(PAGE, b"\0")
            pages.append(dice.choice([page, was, page[:512] + was[512:]]))
        torn.write_bytes(b"".join(pages))
        again = SqliteStore(torn)
        assert dict(again.scan("")) == rows_after(role, number + 1)
        again.close()
        store.close()


def test_seed_that_was_erased_when_the_process_died_is_in_no_file_after_the_next_start(tmp_path: Path) -> None:
    seed = random.Random(1).randbytes(32)
    (tmp_path / "killed").mkdir()
    store = SqliteStore(tmp_path / "killed" / "role.db")
    store.commit([Write("seed", seed)])
    commit_and_die(store, Step(writes=(Write("seed", None),)))
    left = copy(tmp_path / "killed", tmp_path / "left")
    assert seed in left.with_name("role.db-wal").read_bytes()
    SqliteStore(left).close()
    assert not any(seed in path.read_bytes() for path in left.parent.iterdir())
    store.close()


@pytest.mark.parametrize("role", ROLES)
def test_role_whose_disk_is_full_says_so_loses_nothing_and_goes_on_when_there_is_room(
    tmp_path: Path, role: str
) -> None:
    dice = random.Random(role)
    steps = played()[1][role]
    store = begin(tmp_path / "r", role, 0)
    place, full = 0, 0
    while place < len(steps):
        if dice.random() < 0.2:
            pages = store._db.execute("PRAGMA page_count").fetchone()[0]
            store._db.execute(f"PRAGMA max_page_count = {pages}")  # SQLite then fails as it does on a full disk
        try:
            store.commit(steps[place].writes, steps[place].messages)
        except BlindsumError as error:
            assert error.code == "disk-full"
            full += 1
            store.close()
            store = SqliteStore(tmp_path / "r" / "role.db")
            assert dict(store.scan("")) == rows_after(role, place)
            machine_of(role, store).wake(played()[0].now)
        else:
            place += 1
    assert full >= 2
    assert dict(store.scan("")) == rows_after(role, len(steps))
    said = [out for step in steps for out in step.messages if isinstance(out, Message)]
    assert [row.out for row in store.outbox(chunks=False, limit=len(said) + 1)] == said
    store.close()
    assert decode(rows_after(role, len(steps)).get(f"last/{played()[0].task}", b"\x02")) == 2
