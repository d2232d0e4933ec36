"""What a machine hands back: state to write, messages to send, events to show (SPEC.md section 8).

A driver commits `writes` and the outbox rows of `messages` in one transaction, then publishes, then deletes the rows.
Nothing leaves before it is stored. A machine that restarts derives from its state whatever is still outstanding, so the
driver owes it at-least-once delivery of a committed message and nothing more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from blindsum.protocol.errors import Refused

__all__ = ["ChunkOut", "Event", "Listen", "Machine", "Message", "Outgoing", "Step", "Store", "Write"]


# tuples with names, which are made in a fraction of the time that a frozen dataclass takes: a step has many of them


class Write(NamedTuple):
    """One row of the role's key-value store: `value` None deletes. Keys are paths such as "round/t1/7/state"."""

    key: str
    value: bytes | None

    def __repr__(self) -> str:
        return f"Write({self.key!r})"


class Message(NamedTuple):
    """A signed message for `to`: "coordinator", "party/<id>", "parties", "device/<id>" or "all/<task>".

    `kind` is the message type and the last level of the topic. `retain` asks the broker to keep it for late comers;
    nothing depends on that.
    """

    kind: str
    to: str
    body: bytes
    retain: bool = False

    def __repr__(self) -> str:
        return f"Message({self.kind!r}, {self.to!r}, retain={self.retain})"


@dataclass(frozen=True, slots=True)
class ChunkOut:
    """Chunk `index` of blob `blob` (32-byte id) for `to`, read from the store when it is published, never copied before."""

    to: str
    blob: bytes
    index: int
    retain: bool = False


@dataclass(frozen=True, slots=True)
class Listen:
    """Subscribe to (or, with `on` False, leave) the broadcast chunks of `blob` in `task`. Idempotent, never stored."""

    task: str
    blob: bytes
    on: bool = True


Outgoing = Message | ChunkOut | Listen


class Event(NamedTuple):
    """Something the owner of the machine may want to know or must act on. `name` is stable; `data` is never secret."""

    name: str
    data: Mapping[str, object] = {}


class Step(NamedTuple):
    """The atomic outcome of one input: all of `writes`, then all of `messages`; `events` after both. `refused` says why the input
    was not taken; there may be writes all the same (evidence against its sender)."""

    writes: tuple[Write, ...] = ()
    messages: tuple[Outgoing, ...] = ()
    events: tuple[Event, ...] = ()
    refused: Refused | None = None


class Store(Protocol):
    """What a machine may read back of what it wrote. Reading is not an effect; writing happens only through `Step`."""

    def get(self, key: str) -> bytes | None: ...

    def scan(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        """Rows whose key starts with `prefix`, in key order."""
        ...

    def keys(self, prefix: str) -> Iterator[str]:
        """The keys alone: rows may be large."""
        ...


class Machine(Protocol):
    """A role's sans-I/O core. `now` is integer milliseconds since the Unix epoch, given by the driver."""

    @property
    def deadline(self) -> int | None:
        """When `wake` wants to be called next, in milliseconds since the epoch, or None."""
        ...

    def receive(self, body: bytes, now: int) -> Step: ...

    def wake(self, now: int) -> Step: ...
