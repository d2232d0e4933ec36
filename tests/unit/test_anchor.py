"""A database that was brought back from a copy is behind its anchor and is not opened."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.machines.step import Message, Write
from blindsum.runtime.anchor import SLOT_SIZE, Anchor
from blindsum.runtime.sqlite import SqliteStore

VOTE = Message("vote", "coordinator", b"signed")


def opened(folder: Path, *, behind: bool = False) -> SqliteStore:
    return SqliteStore(folder / "party.db", anchor=folder / "party.anchor", behind=behind)


def code_of_opening(folder: Path) -> str:
    with pytest.raises(BlindsumError) as caught:
        opened(folder).close()
    return caught.value.code


def vote(folder: Path, times: int = 1) -> None:
    store = opened(folder)
    for number in range(times):
        store.commit([Write(f"state/{number}", b"voted")], [VOTE])
    store.close()


@pytest.mark.parametrize("forgotten", [1, 7])
def test_database_from_an_old_copy_is_refused(tmp_path: Path, forgotten: int) -> None:
    vote(tmp_path)
    shutil.copy(tmp_path / "party.db", tmp_path / "copy.db")
    vote(tmp_path, forgotten)
    shutil.copy(tmp_path / "copy.db", tmp_path / "party.db")
    assert code_of_opening(tmp_path) == "database-rolled-back"
    assert code_of_opening(tmp_path) == "database-rolled-back", "asking twice changes nothing"


def test_database_that_is_gone_is_refused_where_it_was_in_use(tmp_path: Path) -> None:
    vote(tmp_path)
    (tmp_path / "party.db").unlink()
    assert code_of_opening(tmp_path) == "database-rolled-back"


def test_database_without_its_anchor_is_refused_where_it_was_in_use(tmp_path: Path) -> None:
    opened(tmp_path).close()
    (tmp_path / "party.anchor").unlink()
    vote(tmp_path)  # nothing had left yet
    (tmp_path / "party.anchor").unlink()
    assert code_of_opening(tmp_path) == "database-rolled-back"


def test_damaged_anchor_is_refused(tmp_path: Path) -> None:
    vote(tmp_path)
    (tmp_path / "party.anchor").write_bytes(os.urandom(2 * SLOT_SIZE))
    assert code_of_opening(tmp_path) == "database-rolled-back"


def test_torn_anchor_keeps_the_number_before(tmp_path: Path) -> None:
    anchor = Anchor(tmp_path / "a")
    for value in range(1, 6):
        anchor.advance(value)
        data = (tmp_path / "a").read_bytes()
        for slot in (0, 1):
            torn = bytearray(data.ljust(2 * SLOT_SIZE, b"\0"))
            torn[slot * SLOT_SIZE + 20] ^= 1
            (tmp_path / "torn").write_bytes(torn)
            assert Anchor(tmp_path / "torn").value in ({value, value - 1} if value > 1 else {1, -1})
        (tmp_path / "a").write_bytes(data)
    assert Anchor(tmp_path / "a").value == 5


def test_anchor_is_ahead_of_everything_that_may_leave(tmp_path: Path) -> None:
    """It holds as soon as a commit returns; a message that is still staged is not counted."""
    store = opened(tmp_path)
    for _ in range(3):
        store.stage([], [VOTE])
        before = Anchor(tmp_path / "party.anchor").value
        store.commit()
        assert Anchor(tmp_path / "party.anchor").value == before + 1 == store.outbox()[-1].seq
    store.stage([], [VOTE])
    store.rollback()
    store.commit([Write("k", b"v")])
    assert Anchor(tmp_path / "party.anchor").value == 3
    store.close()


def test_database_that_died_between_commit_and_anchor_is_taken(tmp_path: Path) -> None:
    vote(tmp_path, 3)
    held = (tmp_path / "party.anchor").read_bytes()
    vote(tmp_path)
    (tmp_path / "party.anchor").write_bytes(held)
    opened(tmp_path).close()
    assert Anchor(tmp_path / "party.anchor").value == 4


def test_role_that_knows_it_has_forgotten_goes_on_and_its_older_copies_do_not(tmp_path: Path) -> None:
    vote(tmp_path)
    shutil.copy(tmp_path / "party.db", tmp_path / "copy.db")
    vote(tmp_path, 5)
    shutil.copy(tmp_path / "copy.db", tmp_path / "party.db")
    store = opened(tmp_path, behind=True)
    assert store.outbox() == [], "what the copy would have sent again is dropped"
    assert store.get("state/0") == b"voted", "the model chain and the rest are kept"
    store.close()
    vote(tmp_path)
    shutil.copy(tmp_path / "copy.db", tmp_path / "party.db")
    assert code_of_opening(tmp_path) == "database-rolled-back"
    for loss in ("party.anchor", "party.db"):
        (tmp_path / loss).unlink()
        opened(tmp_path, behind=True).close()
        opened(tmp_path).close()
