"""A role's audit log: a line of JSON for each thing it did, chained by hashes, so that a line changed or taken out shows.

Each record holds its number and the SHA-256 of the line before. Files of `FILE_SIZE_MAX` follow one another under one chain, and
the oldest go. The file `head` beside them says how far the log has come: a log that ends before it was cut. Whoever may write all
of it can begin a new chain from any place; that shows against a head noted elsewhere, so every start reports it.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.report import Report

__all__ = ["FILES_MAX", "FILE_SIZE_MAX", "RECORD_SIZE_MAX", "AuditLog", "is_audit", "verify_audit"]

FILE_SIZE_MAX: Final = 4 << 20
FILES_MAX: Final = 64
RECORD_SIZE_MAX: Final = 16 << 10
"""Longer data is left out of its record, which says so."""
HEAD_FILE: Final = "head"
START: Final = "0" * 64
"""What the first record ever names as the hash before it."""
_PATTERN: Final = "audit-*.jsonl"


class AuditLog:
    """The log of `role` in `folder`; one process writes it. Safe from any thread. Raises BlindsumError "audit-unwritable".

    A line that was torn when its host died is taken off at the next start. Anything else that is wrong stays as it is, for
    `verify_audit` to say.
    """

    def __init__(self, folder: Path, role: str) -> None:
        self._folder, self._role = folder, role
        self._lock = threading.Lock()
        self._number, self._hash = 0, START
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            files = _files(folder)
            self._path = files[-1] if files else folder / _name(1)
            self._resume()
        except OSError as error:
            raise BlindsumError("audit-unwritable", f"{folder}: {error.strerror}") from error

    @property
    def head(self) -> str:
        """Number and hash of the last record: worth noting elsewhere."""
        return f"{self._number} {self._hash}"

    def add(self, at: int, event: str, data: Mapping[str, object]) -> None:
        """Write a record down, durably. `at` is in ms."""
        with self._lock:
            record: dict[str, object] = {"n": self._number + 1, "prev": self._hash, "at": at, "role": self._role}
            line = _line({**record, "event": event, "data": data})
            if len(line) > RECORD_SIZE_MAX:
                line = _line({**record, "event": event, "data": {"left_out": len(line)}})
            try:
                if self._path.exists() and self._path.stat().st_size + len(line) > FILE_SIZE_MAX:
                    self._turn_over()
                with self._path.open("ab") as file:
                    file.write(line)
                    file.flush()
                    os.fsync(file.fileno())
                self._number, self._hash = self._number + 1, _hash(line)
                self._write_head()
            except OSError as error:
                raise BlindsumError("audit-unwritable", f"{self._path}: {error.strerror}") from error

    def recent(self) -> Iterator[tuple[int, str, dict[str, Any]]]:
        """(ms, event, data) of the newest records, the oldest first, of one file at most. What is no record is passed over."""
        data = self._path.read_bytes() if self._path.exists() else b""
        for line in data.splitlines():
            record = _record(line)
            at, event, facts = record.get("at"), record.get("event"), record.get("data")
            if isinstance(at, int) and isinstance(event, str) and isinstance(facts, dict):
                yield at, event, facts

    def _resume(self) -> None:
        """Go on after the last whole line."""
        data = self._path.read_bytes() if self._path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.truncate(self._path, len(whole))
        head = _read_head(self._folder)
        if whole:
            last = whole[whole.rfind(b"\n", 0, -1) + 1 :]
            number = _record(last).get("n")
            self._number, self._hash = number if isinstance(number, int) else 0, _hash(last)
        if head is not None and head[0] > self._number:
            # cut: the chain goes on behind the gap, where it shows for ever
            self._number, self._hash = head

    def _turn_over(self) -> None:
        number = int(self._path.stem.removeprefix("audit-"))
        self._path = self._folder / _name(number + 1)
        for old in _files(self._folder)[: -(FILES_MAX - 1)]:
            old.unlink()

    def _write_head(self) -> None:
        partial = self._folder / f"{HEAD_FILE}.partial"
        partial.write_text(f"{self.head}\n", "ascii")
        partial.replace(self._folder / HEAD_FILE)


def is_audit(path: Path) -> bool:
    """Whether `path` is the folder of an audit log."""
    return path.is_dir() and bool(_files(path) or (path / HEAD_FILE).exists())


def verify_audit(folder: Path) -> Report:
    """Check the chain of a log. Faults are "audit-altered" and "audit-cut", each with the file and line; facts are the role, the
    first and last number, and the head. Raises BlindsumError "audit-unwritable" where it cannot be read."""
    report = Report()
    role, number, before, first = "", 0, "", 0
    try:
        head = _read_head(folder)
        for path in _files(folder):
            for row, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
                place = f"{path.name} line {row}"
                record = _record(line)
                found = record.get("n")
                if not isinstance(found, int) or not isinstance(record.get("role"), str):
                    report.blame(role or "unknown", "audit-altered", f"{place} is no record")
                    before = ""
                    continue
                role, first = str(record["role"]), first or found
                if number and found > number + 1:
                    report.blame(role, "audit-cut", f"{place}: records {number + 1} to {found - 1} are missing")
                elif (number and found != number + 1) or (found == 1 and record.get("prev") != START):
                    report.blame(role, "audit-altered", f"{place} is record {found} after {number}")
                elif number and record.get("prev") != before:
                    report.blame(
                        role, "audit-altered", f"{place}: record {number} before it is not the one that was written"
                    )
                number, before = found, _hash(line)
                if head is not None and head[0] == number and head[1] != before:
                    report.blame(role, "audit-altered", f"{place} is not the one that was written")
    except OSError as error:
        raise BlindsumError("audit-unwritable", f"{folder}: {error.strerror}") from error
    if head is None or head[0] > number:
        missing = f"records {number + 1} to {head[0]} are missing at the end" if head else "the file head is missing"
        report.blame(role or "unknown", "audit-cut", missing)
    report.facts = {"role": role, "first": first, "last": number, "head": f"{number} {before}"}
    return report


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob(_PATTERN))


def _name(number: int) -> str:
    return f"audit-{number:08d}.jsonl"


def _line(record: Mapping[str, object]) -> bytes:
    return json.dumps(record, default=str).encode() + b"\n"


def _hash(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def _record(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _read_head(folder: Path) -> tuple[int, str] | None:
    path = folder / HEAD_FILE
    words = path.read_text("ascii", "replace").split() if path.exists() else []
    return (int(words[0]), words[1]) if len(words) == 2 and words[0].isdecimal() else None
