"""From the outbox to the link: messages first, few chunks at a time, a row deleted only when the broker has it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from blindsum.protocol.codec import encode_chunk
from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.keys import chunk_seal
from blindsum.protocol.machines.step import ChunkOut
from blindsum.protocol.messages import chunk_key
from blindsum.runtime.ports import DurableStore, Link, OutboxRow, Outcome
from blindsum.runtime.topics import Topics

__all__ = ["CHUNK_WINDOW_MAX", "Courier"]

CHUNK_WINDOW_MAX: Final = 4
"""Chunks in flight on one link; the rest of its window is for messages, which overtake."""


class Courier:
    """Belongs to the driver's thread, but for the link's `done` calls, which end in `landed` under `changed`.

    With a `broadcast_key` chunks are sealed against the broker on their way out (the coordinator's are).
    `undeliverable(code, kind, to)` is told of what the broker will never take.
    """

    def __init__(
        self,
        store: DurableStore,
        link: Link,
        topics: Topics,
        changed: threading.Condition,
        undeliverable: Callable[[str, str, str], None],
        broadcast_key: bytes,
    ) -> None:
        self._store, self._link, self._topics = store, link, topics
        self._changed, self._undeliverable = changed, undeliverable
        self._broadcast_key = broadcast_key
        self.landed: deque[tuple[int, Outcome]] = deque()  # bounded by the link's window
        self._flying: dict[int, OutboxRow] = {}
        self._cursor = {True: 0, False: 0}  # the last row looked at, of chunks and of messages

    def settle(self) -> None:
        """Take note of what became of publishes."""
        with self._changed:
            landed = list(self.landed)
            self.landed.clear()
        gone: list[int] = []
        for seq, outcome in landed:
            row = self._flying.pop(seq)
            if outcome is Outcome.LOST:
                chunk = _is_chunk(row)
                self._cursor[chunk] = min(self._cursor[chunk], seq - 1)
                continue
            gone.append(seq)
            if outcome is Outcome.REFUSED:
                self._undeliverable("publish-refused", _kind(row), row.out.to)
        if gone:
            self._store.sent(gone)

    def pump(self) -> None:
        """Hand the link what it has room for."""
        gone: list[int] = []
        for chunk in (False, True):
            while (room := self._room(chunk)) > 0:
                rows = self._store.outbox(after=self._cursor[chunk], chunks=chunk, limit=room)
                if not all(self._pass(row, gone) for row in rows) or len(rows) < room:
                    break
        if gone:
            self._store.sent(gone)

    def _room(self, chunk: bool) -> int:
        room = self._link.room
        return min(room, CHUNK_WINDOW_MAX - sum(map(_is_chunk, self._flying.values()))) if chunk else room

    def _pass(self, row: OutboxRow, gone: list[int]) -> bool:
        """Whether this row needs no more attention now: it flies, or it joined `gone`, the rows that never can."""
        if row.seq not in self._flying and not self._send(row, gone):
            return False
        self._cursor[_is_chunk(row)] = row.seq
        return True

    def _send(self, row: OutboxRow, gone: list[int]) -> bool:
        out = row.out
        if isinstance(out, ChunkOut):
            data = self._store.get(chunk_key(out.blob, out.index))
            if data is None and not out.retain:  # the machine has deleted the blob since
                gone.append(row.seq)
                return True
            if data is not None and self._broadcast_key:
                data = chunk_seal(self._broadcast_key, out.blob, out.index, data)
            # an empty retained message takes the broker's copy away
            body = b"" if data is None else encode_chunk(out.blob, out.index, data)
        else:
            body = out.body
        self._flying[row.seq] = row
        try:
            taken = self._link.publish(
                self._topics.route(out), body, retain=out.retain, done=lambda outcome: self._land(row.seq, outcome)
            )
        except BlindsumError as error:
            del self._flying[row.seq]
            gone.append(row.seq)
            self._undeliverable(error.code, _kind(row), out.to)
            return True
        if not taken:
            del self._flying[row.seq]
        return taken

    def _land(self, seq: int, outcome: Outcome) -> None:
        with self._changed:
            self.landed.append((seq, outcome))
            self._changed.notify()


def _is_chunk(row: OutboxRow) -> bool:
    return isinstance(row.out, ChunkOut)


def _kind(row: OutboxRow) -> str:
    return "chunk" if isinstance(row.out, ChunkOut) else row.out.kind
