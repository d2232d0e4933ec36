"""Stores of many roles in one process: small rows in memory, large ones in a file without a name, equal blobs once."""

from __future__ import annotations

import os
import sys
import tempfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from blindsum.protocol.machines.step import Write

__all__ = ["Kept", "Shelf", "ShelfStore"]

LARGE_SIZE: Final = 2_048
"""Values from this size on go to the file."""
RECENT_MAX: Final = 8
"""Blob chunks kept in memory beside the file: those that every device reads (model, plan, roster)."""

WRITTEN_MAX: Final = 32
"""Values written last that are known again: a header reaches coordinator and parties within moments, and without a roster devices
store the same."""


@dataclass(slots=True)
class Place:
    """Where the file keeps a value, and for how many."""

    offset: int
    size: int
    held: int = 1


Kept = bytes | Place


@dataclass(slots=True)
class _Chunk:
    """A blob's chunk and how many stores hold it. A blob's name commits to its content, so one copy serves all."""

    key: str
    held: int
    value: Kept


class Shelf:
    """What the stores of one process share. Freed places are used again for values of the same size."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (lives as long as the process does)
        self._number = self._file.fileno()
        self._end = 0
        self._free: dict[int, list[int]] = {}
        self._chunks: dict[str, _Chunk] = {}
        self._recent: OrderedDict[str, bytes] = OrderedDict()
        self._written: OrderedDict[bytes, Place] = OrderedDict()

    def keep(self, value: bytes) -> Kept:
        """The value itself, or where it was written to: once for all who are given the same."""
        if len(value) < LARGE_SIZE:
            return value
        known = self._written.get(value)
        if known is not None and known.held:
            known.held += 1
            self._written.move_to_end(value)
            return known
        place = self._written[value] = self._write(value)
        self._written.move_to_end(value)
        if len(self._written) > WRITTEN_MAX:
            self._written.popitem(last=False)
        return place

    def keep_alone(self, value: bytes) -> Kept:
        """As `keep`, for what nobody else is given: to know it again would take as long as to write it."""
        return value if len(value) < LARGE_SIZE else self._write(value)

    def read(self, value: Kept) -> bytes:
        return os.pread(self._number, value.size, value.offset) if isinstance(value, Place) else value

    def free(self, value: Kept) -> None:
        if isinstance(value, Place):
            value.held -= 1
            if not value.held:
                self._free.setdefault(value.size, []).append(value.offset)

    def hold(self, key: str, value: bytes) -> str:
        """One more store holds this chunk. Returns its key, one object for all of them."""
        chunk = self._chunks.get(key)
        if chunk is None:
            chunk = self._chunks[key] = _Chunk(key, 0, self.keep_alone(value))
        chunk.held += 1
        return chunk.key

    def chunk(self, key: str) -> bytes:
        value = self._recent.get(key)
        if value is None:
            chunk = self._chunks[key]
            value = self.read(chunk.value)
            if chunk.held > 1:
                self._recent[key] = value
                if len(self._recent) > RECENT_MAX:
                    self._recent.popitem(last=False)
        return value

    def release(self, key: str) -> None:
        """One store less holds this chunk."""
        chunk = self._chunks[key]
        chunk.held -= 1
        if chunk.held == 0:
            self.free(chunk.value)
            del self._chunks[key]
            self._recent.pop(key, None)

    def _write(self, value: bytes) -> Place:
        size = len(value)
        free = self._free.get(size)
        offset = free.pop() if free else self._end
        if offset == self._end:
            self._end += size
        os.pwrite(self._number, value, offset)
        return Place(offset, size)


class ShelfStore:
    """A role's `Store` on a shelf. Rows lie by folder, so that no reading walks over those of others."""

    __slots__ = ("_blobs", "_folders", "_shelf")

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._folders: dict[str, dict[str, Kept]] = {}
        self._blobs: dict[str, tuple[str, ...] | set[str]] = {}  # one chunk, or more

    def get(self, key: str) -> bytes | None:
        folder, _, _ = key.rpartition("/")
        if key.startswith("blob/"):
            return self._shelf.chunk(key) if key in self._blobs.get(folder, ()) else None
        value = self._folders.get(folder, {}).get(key)
        return None if value is None else self._shelf.read(value)

    def keys(self, prefix: str) -> Iterator[str]:
        return iter(sorted(self._found(prefix)))

    def scan(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        for key in self.keys(prefix):
            value = self.get(key)
            assert value is not None
            yield key, value

    def commit(self, writes: Iterable[Write]) -> None:
        for write in writes:
            key, value = write.key, write.value
            folder, _, _ = key.rpartition("/")
            if key.startswith("blob/"):
                self._commit_chunk(folder, key, value)
                continue
            rows = self._folders.get(folder)
            if rows is None:  # the names of first rows and of their folders are those of many devices
                rows, key = self._folders.setdefault(sys.intern(folder), {}), sys.intern(key)
            before = rows.pop(key, None)
            if before is not None:
                self._shelf.free(before)
            if value is not None:
                rows[key] = self._shelf.keep(value)
            elif not rows:
                del self._folders[folder]

    @property
    def unfinished(self) -> bool:
        """Whether a round is under way for the role."""
        return bool(self._folders.get("state"))

    def contents(self) -> tuple[dict[str, bytes], list[str]]:
        """(all rows, the names of the blob chunks)."""
        rows = {key: self._shelf.read(value) for rows in self._folders.values() for key, value in rows.items()}
        return rows, sorted(key for keys in self._blobs.values() for key in keys)

    def rows(self) -> Iterator[tuple[str, bytes]]:
        """Everything in this store."""
        return self.scan("")

    def _commit_chunk(self, folder: str, key: str, value: bytes | None) -> None:
        held = self._blobs.get(folder, ())
        if value is not None and key not in held:
            key = self._shelf.hold(key, value)
            if not held:
                self._blobs[sys.intern(folder)] = (key,)
            elif isinstance(held, set):
                held.add(key)
            else:
                self._blobs[folder] = {*held, key}
        elif value is None and key in held:
            self._shelf.release(key)
            if len(held) == 1:
                del self._blobs[folder]
            else:
                assert isinstance(held, set)
                held.remove(key)

    def _found(self, prefix: str) -> Iterator[str]:
        folder = prefix.rstrip("/")
        if prefix.startswith("blob/") and prefix.count("/") >= 2:
            yield from (key for key in self._blobs.get(prefix.rpartition("/")[0], ()) if key.startswith(prefix))
            return
        if prefix.startswith("blob/") or not prefix:
            yield from (key for keys in self._blobs.values() for key in keys)
        for name, rows in self._folders.items():
            if name == folder or name.startswith(prefix) or prefix.startswith(name):
                yield from (key for key in rows if key.startswith(prefix))
