"""A table of small values that the processes of a simulated fleet share."""

from __future__ import annotations

import mmap
from typing import Final
from zlib import crc32

__all__ = ["Table"]

TAG_SIZE: Final = 16
CHECK_SIZE: Final = 4
LENGTH_SIZE: Final = 2
HEAD_SIZE: Final = TAG_SIZE + CHECK_SIZE + LENGTH_SIZE
_FREE: Final = bytes(HEAD_SIZE)


class Table:
    """`entries` places for values of up to `size` bytes, each found by its key: 32 bytes that look random. A key has a choice of
    two places; where both are taken one of the values there is lost. A process that is forked writes to the same table; any other
    begins with an empty one."""

    def __init__(self, entries: int, size: int) -> None:
        assert entries >= 2 and entries % 2 == 0, "places come in twos"
        self._entries, self._size = entries, size
        self._step = HEAD_SIZE + size
        self._room = mmap.mmap(-1, entries * self._step)

    def __reduce__(self) -> tuple[type[Table], tuple[int, int]]:
        return Table, (self._entries, self._size)

    def get(self, key: bytes) -> bytes | None:
        """The value of `key`, where it is still there."""
        room, tag, start = self._room, key[:TAG_SIZE], self._start(key)
        for at in (start, start + self._step):
            if room[at : at + TAG_SIZE] == tag:
                return self._read(at)
        return None

    def take(self, key: bytes) -> bytes | None:
        """The value of `key`, where it is still there, and free its place: for what is needed once."""
        room, tag, start = self._room, key[:TAG_SIZE], self._start(key)
        for at in (start, start + self._step):
            if room[at : at + TAG_SIZE] == tag:
                value = self._read(at)
                room[at : at + HEAD_SIZE] = _FREE
                return value
        return None

    def put(self, key: bytes, value: bytes) -> None:
        """Keep `value`, of at most the table's size."""
        size = len(value)
        assert size <= self._size, "a value over the table's size"
        room, tag, at = self._room, key[:TAG_SIZE], self._start(key)
        first, second = room[at : at + TAG_SIZE], room[at + self._step : at + self._step + TAG_SIZE]
        if first not in (_FREE[:TAG_SIZE], tag) and (second in (_FREE[:TAG_SIZE], tag) or key[-1] & 1):
            at += self._step
        head = tag + crc32(value).to_bytes(CHECK_SIZE, "big") + size.to_bytes(LENGTH_SIZE, "big")
        room[at : at + HEAD_SIZE + size] = head + value

    def _start(self, key: bytes) -> int:
        """Where the first of a key's two places begins."""
        return int.from_bytes(key[TAG_SIZE : TAG_SIZE + 8], "big") % (self._entries // 2) * 2 * self._step

    def _read(self, at: int) -> bytes | None:
        head = self._room[at + TAG_SIZE : at + HEAD_SIZE]
        value = self._room[at + HEAD_SIZE : at + HEAD_SIZE + int.from_bytes(head[CHECK_SIZE:], "big")]
        # a process may be writing there at this moment: what it has not finished does not fit its check
        return value if crc32(value).to_bytes(CHECK_SIZE, "big") == head[:CHECK_SIZE] else None
