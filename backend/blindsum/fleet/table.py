"""A table of small values that the processes of a simulated fleet share."""

from __future__ import annotations

import hashlib
import mmap
from typing import Final

__all__ = ["Table"]

CHECK_SIZE: Final = 16
LENGTH_SIZE: Final = 2


class Table:
    """`entries` places for values of up to `size` bytes, each found by its key: 32 bytes that look random. Where two keys meet in
    one place the first value is lost. A process that is forked writes to the same table; any other begins with an empty one."""

    def __init__(self, entries: int, size: int) -> None:
        self._entries, self._size = entries, size
        self._step = CHECK_SIZE + LENGTH_SIZE + size
        self._room = mmap.mmap(-1, entries * self._step)

    def __reduce__(self) -> tuple[type[Table], tuple[int, int]]:
        return Table, (self._entries, self._size)

    def get(self, key: bytes) -> bytes | None:
        """The value of `key`, where it is still there."""
        start = self._place(key)
        entry = self._room[start : start + self._step]
        length = int.from_bytes(entry[CHECK_SIZE : CHECK_SIZE + LENGTH_SIZE], "big")
        value = entry[CHECK_SIZE + LENGTH_SIZE :][:length]
        # a process may be writing there at this moment: what it has not finished does not fit its check
        return value if entry[:CHECK_SIZE] == _check(key, value) else None

    def put(self, key: bytes, value: bytes) -> None:
        """Keep `value`, of at most the table's size."""
        assert len(value) <= self._size, "a value over the table's size"
        start, entry = self._place(key), _check(key, value) + len(value).to_bytes(LENGTH_SIZE, "big") + value
        self._room[start : start + len(entry)] = entry

    def _place(self, key: bytes) -> int:
        return int.from_bytes(key[:8], "big") % self._entries * self._step


def _check(key: bytes, value: bytes) -> bytes:
    return hashlib.sha256(key + value).digest()[:CHECK_SIZE]
