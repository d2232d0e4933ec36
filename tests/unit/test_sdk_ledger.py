"""The ledger of what left a device: kept across processes, bounded, and readable while the device runs."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from blindsum.protocol.errors import BlindsumError
from blindsum.sdk import Use, ledger
from blindsum.sdk.ledger import DAY_MS, LEDGER_FILE, Ledger

NOW = 1_800_000_000_000


def use(number: int, what: str = "update", at: int = NOW, task: str = "t") -> Use:
    return Use(at, task, number, what, 100, "charging")


def test_uses_come_newest_first_and_survive_the_process(tmp_path: Path) -> None:
    first = Ledger(tmp_path / "l.db")
    for number in (1, 2, 3):
        first.record(use(number), issued_at=NOW + number)
    first.close()
    again = Ledger(tmp_path / "l.db")
    assert [found.round for found in again.uses()] == [3, 2, 1]
    assert again.uses(1) == [use(3)]
    assert again.last("t") == (3, NOW + 3)
    assert again.last("other") == (0, 0)
    again.close()


def test_retracted_use_did_not_happen(tmp_path: Path) -> None:
    book = Ledger(tmp_path / "l.db")
    book.record(use(1), issued_at=1)
    book.retract(book.record(use(2), issued_at=2))
    assert book.uses() == [use(1)] and book.last("t") == (1, 1)


def test_joins_are_no_updates(tmp_path: Path) -> None:
    book = Ledger(tmp_path / "l.db")
    book.record(use(9, "join"), issued_at=9)
    assert book.last("t") == (0, 0) and book.updates(NOW) == 0


def test_oldest_uses_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "USES_MAX", 5)
    book = Ledger(tmp_path / "l.db")
    for number in range(20):
        book.record(use(number), issued_at=number)
    assert [found.round for found in book.uses(100)] == [19, 18, 17, 16, 15]


def test_clock_set_back_frees_no_budget_and_one_far_ahead_does_not_lock_it(tmp_path: Path) -> None:
    book = Ledger(tmp_path / "l.db")
    book.record(use(1), issued_at=1)
    book.add_traffic(600, 400, NOW)
    for jump in (-DAY_MS // 2, 0, DAY_MS // 2):
        assert (book.updates(NOW + jump), book.traffic(NOW + jump)) == (1, 1000)
    for jump in (-2 * DAY_MS, 2 * DAY_MS):
        assert (book.updates(NOW + jump), book.traffic(NOW + jump)) == (0, 0)


def test_switches_keep_numbers(tmp_path: Path) -> None:
    book = Ledger(tmp_path / "l.db")
    assert book.switch("paused") is None
    for value in (1, 0):
        book.set_switch("paused", value)
        assert book.switch("paused") == value


def test_another_process_reads_it_meanwhile(tmp_path: Path) -> None:
    book = Ledger(tmp_path / LEDGER_FILE)
    book.record(use(7), issued_at=1)
    command = [sys.executable, "-m", "blindsum.sdk", "uses", str(tmp_path)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert shown == "2027-01-15 08:00:00Z  t, round 7: update, 100 bytes; charging\n"
    as_json = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout
    assert json.loads(as_json) == dataclasses.asdict(use(7))
    book.record(use(8), issued_at=2)  # and writing goes on
    read, write = os.pipe()
    os.close(read)  # as `head` does when it has seen enough
    gone = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (gone.returncode, gone.stderr) == (0, "")


def test_ledger_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "l.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(BlindsumError, match="database-corrupted"):
        Ledger(tmp_path / "l.db")
