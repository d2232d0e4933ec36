"""The step in progress: a machine writes, sends and reports here, and reads its own uncommitted writes back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from heapq import merge
from typing import Final

from blindsum.protocol.codec import encode
from blindsum.protocol.errors import Refused
from blindsum.protocol.machines.step import ChunkOut, Event, Listen, Message, Outgoing, Step, Store, Write
from blindsum.protocol.secret import Secret

__all__ = ["Journal", "evidence_key"]

NOTHING: Final = Step()
EVIDENCE_MAX: Final = 256
"""Pieces of evidence kept of one task; of further ones there is the event alone."""
EVIDENCE_SIZE_MAX: Final = 1 << 26
"""Bytes that they may take together."""


def evidence_key(task: str, number: int, code: str, culprit: str) -> str:
    """The row that holds [culprit, first message, second message or nothing, join of a device or context or nothing]."""
    return f"evidence/{task}/{number:08d}/{code}/{culprit}"


class Journal(Secret):
    """A `Store` with the pending step on top. `take` hands the step over and starts the next one."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._pending: dict[str, bytes | None] = {}
        self._messages: list[Outgoing] = []
        self._events: list[Event] = []

    def get(self, key: str) -> bytes | None:
        if key in self._pending:
            return self._pending[key]
        return self._store.get(key)

    def scan(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        fresh = sorted(
            (key, value) for key, value in self._pending.items() if key.startswith(prefix) and value is not None
        )
        stored = ((key, value) for key, value in self._store.scan(prefix) if key not in self._pending)
        return merge(stored, fresh) if fresh else stored

    def keys(self, prefix: str) -> Iterator[str]:
        fresh = sorted(key for key, value in self._pending.items() if key.startswith(prefix) and value is not None)
        stored = (key for key in self._store.keys(prefix) if key not in self._pending)
        return merge(stored, fresh) if fresh else stored

    def put(self, key: str, value: bytes) -> None:
        self._pending[key] = value

    def write(self, writes: Iterable[Write]) -> None:
        for write in writes:
            self._pending[write.key] = write.value

    def delete(self, key: str) -> None:
        self._pending[key] = None

    def delete_all(self, prefix: str) -> None:
        """Delete every row under `prefix`."""
        for key in list(self.keys(prefix)):
            self._pending[key] = None

    def send(self, kind: str, to: str, body: bytes, *, retain: bool = False) -> None:
        self._messages.append(Message(kind, to, body, retain))

    def send_chunks(self, to: str, blob: bytes, indices: Iterable[int], *, retain: bool = False) -> None:
        self._messages.extend(ChunkOut(to, blob, index, retain) for index in indices)

    def listen(self, task: str, blob: bytes, *, on: bool = True) -> None:
        self._messages.append(Listen(task, blob, on))

    def event(self, name: str, **data: object) -> None:
        self._events.append(Event(name, data))

    def accuse(
        self, task: str, number: int, code: str, culprit: str, first: bytes, second: bytes, join: bytes = b""
    ) -> Refused:
        """Keep what two signed messages prove about `culprit`, and refuse the second. `join` shows the key of a device. Where
        `second` is empty the first is wrong by itself, and `join` is what it is held to."""
        key = evidence_key(task, number, code, culprit)
        if self.get(key) is None:
            row = encode([culprit, first, second, join])
            rows = [len(held) for _, held in self.scan(f"evidence/{task}/")]
            if len(rows) < EVIDENCE_MAX and sum(rows) + len(row) <= EVIDENCE_SIZE_MAX:
                self.put(key, row)
            self.event("evidence", task=task, round=number, culprit=culprit, code=code)
        return Refused(code, culprit)

    def take(self, refused: Refused | None = None) -> Step:
        if refused is None and not (self._pending or self._messages or self._events):
            return NOTHING
        step = Step(
            tuple(map(Write, self._pending, self._pending.values())),
            tuple(self._messages),
            tuple(self._events),
            refused,
        )
        self._pending, self._messages, self._events = {}, [], []
        return step
