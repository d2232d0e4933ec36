"""The store of a simulated role: `SqliteStore`'s contract in memory. A crash is `rollback`, amnesia a new one."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import Final

from blindsum.protocol.machines.step import ChunkOut, Listen, Outgoing, Write
from blindsum.runtime.ports import OutboxRow

__all__ = ["MemoryStore"]

OUTBOX_MAX: Final = 100_000


class MemoryStore:
    """Rows and outbox that last as long as the object. Not for more than one thread."""

    def __init__(self) -> None:
        self.dropped = 0
        self._rows: dict[str, bytes] = {}
        self._keys: list[str] | None = []  # sorted; None after a key came or went
        self._outbox: dict[int, OutboxRow] = {}
        self._waiting: set[tuple[str, bytes, int]] = set()
        self._seq = 0
        self._undo: list[tuple[str, bytes | None]] = []
        self._staged_after: int | None = None

    def get(self, key: str) -> bytes | None:
        return self._rows.get(key)

    def scan(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        return ((key, self._rows[key]) for key in self.keys(prefix))

    def keys(self, prefix: str) -> Iterator[str]:
        if self._keys is None:
            self._keys = sorted(self._rows)
        keys = self._keys
        for at in range(bisect_left(keys, prefix), len(keys)):
            key = keys[at]
            if not key.startswith(prefix):
                return
            if key in self._rows:
                yield key

    def stage(self, writes: Iterable[Write], messages: Iterable[Outgoing]) -> None:
        if self._staged_after is None:
            self._staged_after = self._seq
        for write in writes:
            self._undo.append((write.key, self._rows.get(write.key)))
            self._put(write.key, write.value)
        for out in messages:
            if isinstance(out, Listen):
                continue
            if isinstance(out, ChunkOut):
                if (out.to, out.blob, out.index) in self._waiting:
                    continue
                self._waiting.add((out.to, out.blob, out.index))
            self._seq += 1
            self._outbox[self._seq] = OutboxRow(self._seq, out)
            if len(self._outbox) > OUTBOX_MAX:
                self.sent([next(iter(self._outbox))])
                self.dropped += 1

    def commit(self, writes: Iterable[Write] = (), messages: Iterable[Outgoing] = ()) -> None:
        self.stage(writes, messages)
        self._undo.clear()
        self._staged_after = None

    def rollback(self) -> None:
        for key, value in reversed(self._undo):
            self._put(key, value)
        self._undo.clear()
        if self._staged_after is not None:
            self.sent(range(self._staged_after + 1, self._seq + 1))
        self._staged_after = None

    def outbox(self, *, after: int = 0, chunks: bool | None = None, limit: int = 64) -> list[OutboxRow]:
        rows: list[OutboxRow] = []
        for seq, row in self._outbox.items():
            if len(rows) == limit:
                break
            if seq > after and (chunks is None or isinstance(row.out, ChunkOut) == chunks):
                rows.append(row)
        return rows

    def sent(self, seqs: Iterable[int]) -> None:
        for seq in seqs:
            row = self._outbox.pop(seq, None)
            if row is not None and isinstance(row.out, ChunkOut):
                self._waiting.discard((row.out.to, row.out.blob, row.out.index))

    def close(self) -> None:
        """Nothing to give up."""

    def _put(self, key: str, value: bytes | None) -> None:
        if (value is None) == (key in self._rows):
            self._keys = None
        if value is None:
            self._rows.pop(key, None)
        else:
            self._rows[key] = value
