"""Receiving blobs: which chunks are held, which are missing, when to ask again (SPEC.md section 6).

The receiver drives: it learns a `BlobRef` from a signed message, takes chunks in any order and any number of times, and asks
for what it lacks. The sender keeps nothing about anybody's progress.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from blindsum.protocol.codec import DecodeError, decode_chunk
from blindsum.protocol.errors import Refused
from blindsum.protocol.keys import chunk_open
from blindsum.protocol.machines.step import Store, Write
from blindsum.protocol.messages import CHUNK_MESSAGE_SIZE_MAX, Ask, BlobRef, chunk_key

__all__ = ["RESEND_MS", "WINDOW", "Fetch", "Fetches", "bits", "bits_set", "read_blob", "read_own", "write_blob"]

WINDOW: Final = 4
"""Chunks a receiver lets be in flight to it per blob."""
RESEND_MS: Final = 1_500
"""How long anybody waits for an answer before asking again; doubled at each repetition up to `RESEND_MAX_MS`."""
RESEND_MAX_MS: Final = 12_000
NEVER: Final = 1 << 62
"""When a fetch that is all there is asked for again, in ms."""


@dataclass(slots=True)
class Fetch:
    """One blob on its way. `owner` is the principal to ask, `overdue_at` when an answer that has not come is asked for again,
    `came_at` when the last chunk came, or when the first began to come (0: unknown)."""

    ref: BlobRef
    id: bytes
    owner: str
    have: set[int] = field(default_factory=set)
    outstanding: int = 0
    asked_at: int = 0
    wait_ms: int = RESEND_MS
    count: int = field(init=False)
    overdue_at: int = field(init=False)
    came_at: int = field(init=False)

    def __post_init__(self) -> None:
        self.count = self.ref.count
        self.came_at = max(self.asked_at, 0)
        self._wait(self.wait_ms)

    @property
    def complete(self) -> bool:
        return len(self.have) == self.count

    def ask(self, now: int) -> Ask:
        """The question to send now; counts as asked."""
        self.outstanding = min(WINDOW, self.ref.count - len(self.have))
        self.asked_at = now
        self._wait(min(2 * self.wait_ms, RESEND_MAX_MS))
        return Ask(blob=self.id, have=bits(self.have, self.ref.count), window=WINDOW)

    def came(self, chunks: set[int]) -> None:
        """Chunks that were not here are."""
        self.have |= chunks
        self.outstanding = max(0, self.outstanding - len(chunks))
        self._wait(RESEND_MS)

    def keep_pace(self, now: int) -> None:
        """A chunk came: those that follow it may take twice as long before they are asked for."""
        took = now - self.came_at if self.came_at else 0
        self.came_at = self.asked_at = now
        self._wait(min(max(RESEND_MS, 2 * took), RESEND_MAX_MS))

    def _wait(self, wait_ms: int) -> None:
        self.wait_ms = wait_ms
        self.overdue_at = NEVER if self.complete else self.asked_at + wait_ms


class Fetches:
    """All blobs a role is receiving. Chunks of any other blob are refused, so nobody can fill the store with junk.

    `broadcast_key`: the fleet's, where the sender is the coordinator, who seals its chunks against the broker with it; empty
    where chunks come as they are.
    """

    def __init__(self, store: Store, broadcast_key: bytes = b"") -> None:
        self._store = store
        self._broadcast_key = broadcast_key
        self._fetches: dict[bytes, Fetch] = {}

    def want(self, ref: BlobRef, owner: str, now: int, *, pushed: int = 0) -> Fetch:
        """Start (or go on) receiving `ref`. `pushed` chunks are expected without asking; 0 asks at the next `due`."""
        blob = ref.id
        fetch = self._fetches.get(blob)
        if fetch is None:
            prefix = f"blob/{blob.hex()}/"
            have = {int(key[len(prefix) :]) for key in self._store.keys(prefix)}
            fetch = Fetch(ref, blob, owner, have, pushed, now if pushed else now - RESEND_MS)
            self._fetches[blob] = fetch
        return fetch

    def drop(self, blob: bytes) -> None:
        self._fetches.pop(blob, None)

    def get(self, blob: bytes) -> Fetch | None:
        return self._fetches.get(blob)

    def accept(self, raw: bytes) -> tuple[Fetch, Write | None] | Refused:
        """Take a chunk: its fetch, and the write that keeps it (None for one already held)."""
        if len(raw) > CHUNK_MESSAGE_SIZE_MAX:
            return Refused("message-too-large")
        try:
            blob, index, data = decode_chunk(raw)
        except DecodeError:
            return Refused("message-malformed", detail="chunk")
        fetch = self._fetches.get(blob)
        if fetch is None:
            return Refused("chunk-unexpected")
        if index in fetch.have:
            return fetch, None
        if self._broadcast_key:
            data = chunk_open(self._broadcast_key, blob, index, data) or b""
        if not fetch.ref.accepts(index, data):
            return Refused("chunk-wrong", detail=f"chunk {index}")
        fetch.came({index})
        return fetch, Write(chunk_key(blob, index), data)

    def look(self, fetch: Fetch) -> bool:
        """Take note of chunks that others have put into the store; whether there are any."""
        prefix = f"blob/{fetch.id.hex()}/"
        new = {int(key[len(prefix) :]) for key in self._store.keys(prefix)} - fetch.have
        if new:
            fetch.came(new)
        return bool(new)

    def due(self, now: int, *, whole: bool = False) -> Iterator[Fetch]:
        """Fetches to ask for now: their window is used up, or the answer is overdue; and with `whole` those that are all there."""
        for fetch in self._fetches.values():
            if fetch.overdue_at == NEVER:
                if whole:
                    yield fetch
            elif fetch.outstanding == 0 or fetch.overdue_at <= now:
                yield fetch

    @property
    def deadline(self) -> int | None:
        soonest = min([fetch.overdue_at for fetch in self._fetches.values()], default=NEVER)
        return None if soonest == NEVER else soonest


def write_blob(ref: BlobRef, chunks: list[bytes]) -> tuple[Write, ...]:
    """The rows that keep a blob one has made oneself."""
    blob = ref.id
    return tuple(Write(chunk_key(blob, index), chunk) for index, chunk in enumerate(chunks))


def read_blob(store: Store, ref: BlobRef) -> bytes | None:
    """The bytes of a blob all of whose chunks are in the store, else None."""
    blob = ref.id
    parts: list[bytes] = []
    for index in range(ref.count):
        part = store.get(chunk_key(blob, index))
        if part is None:
            return None
        parts.append(part)
    return b"".join(parts)


def read_own(store: Store, blob: bytes) -> bytes:
    """The bytes of a blob that was written whole here, known by its id alone; b"" where it has none."""
    parts: list[bytes] = []
    while (part := store.get(chunk_key(blob, len(parts)))) is not None:
        parts.append(part)
    return b"".join(parts)


def bits(indices: set[int], count: int) -> bytes:
    """A bitmap of `count` bits, bit i in byte i // 8, low bit first."""
    out = bytearray(-(-count // 8))
    for index in indices:
        out[index >> 3] |= 1 << (index & 7)
    return bytes(out)


def bits_set(bitmap: bytes, count: int) -> set[int]:
    """The indices below `count` whose bit is set; a bitmap that is too short has zeros."""
    return {index for index in range(min(count, 8 * len(bitmap))) if bitmap[index >> 3] >> (index & 7) & 1}
