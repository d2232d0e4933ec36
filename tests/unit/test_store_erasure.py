"""What a role erases is in none of its files, whatever else the store was made to do meanwhile."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from blindsum.protocol.machines.step import Write
from blindsum.runtime.sqlite import SqliteStore


def left_in(folder: Path, secrets: list[bytes]) -> list[bytes]:
    data = b"".join(path.read_bytes() for path in folder.iterdir())
    return [secret for secret in secrets if secret in data]


@pytest.mark.parametrize("seed", range(6))
def test_erased_and_replaced_secrets_are_gone_after_any_history(tmp_path: Path, seed: int) -> None:
    """Rows of every size come, grow, shrink and go, among chunks that are deleted without being overwritten."""
    dice = random.Random(seed)
    store = SqliteStore(tmp_path / "role.db")
    live: dict[str, bytes] = {}
    for _ in range(40):
        writes, erased = [], []
        for _ in range(dice.randint(1, 6)):
            chunk, row = f"blob/{dice.randrange(5)}/{dice.randrange(30):06d}", f"state/{dice.randrange(6)}"
            what = dice.random()
            if what < 0.4:
                writes.append(Write(chunk, dice.randbytes(dice.choice([100, 1000, 2000, 5000, 16384]))))
                continue
            if what < 0.6:
                writes.append(Write(chunk, None))
                continue
            if row in live:
                erased.append(live.pop(row))
            if what < 0.85:
                live[row] = dice.randbytes(32)
                around = bytes(dice.choice([0, 50, 600, 3000])), bytes(dice.choice([0, 300, 6000]))
                writes.append(Write(row, live[row].join(around)))
            else:
                writes.append(Write(row, None))
        store.commit(writes)
        assert not left_in(tmp_path, erased)
    assert len(left_in(tmp_path, list(live.values()))) == len(live) > 0  # the search finds what is there
    store.commit([Write(row, None) for row in live])
    assert not left_in(tmp_path, list(live.values()))
    store.close()


def test_replaced_secret_is_in_no_file(tmp_path: Path) -> None:
    """A device's state goes on without the key of the round as soon as it has uploaded."""
    secret = os.urandom(32)
    store = SqliteStore(tmp_path / "r.db")
    store.commit([Write("state/t", b"training" + secret)])
    store.commit([Write("state/t", b"uploading"), Write("blob/x/0", bytes(5000))])
    assert not left_in(tmp_path, [secret])
    store.close()


@pytest.mark.parametrize(
    ("prefix", "keys"),
    [
        ("", ["blo", "blob", "blob/1", "blob/2", "blob0", "state"]),
        ("blob", ["blob", "blob/1", "blob/2", "blob0"]),
        ("blob/", ["blob/1", "blob/2"]),
        ("blob/1", ["blob/1"]),
        ("blob0", ["blob0"]),
        ("s", ["state"]),
    ],
)
def test_chunks_and_other_rows_are_one_store(tmp_path: Path, prefix: str, keys: list[str]) -> None:
    store = SqliteStore(tmp_path / "r.db")
    store.commit([Write(key, key.encode()) for key in ("state", "blob/2", "blob0", "blo", "blob/1", "blob")])
    assert list(store.scan(prefix)) == [(key, key.encode()) for key in keys]
    assert list(store.keys(prefix)) == keys
    assert all(store.get(key) == key.encode() for key in keys)
    store.close()
