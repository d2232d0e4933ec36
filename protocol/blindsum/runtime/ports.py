"""What a driver needs from the world: a durable store and a link to the other roles. Real ones: `sqlite`, `mqtt`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from blindsum.protocol.machines.step import ChunkOut, Message, Outgoing, Write

__all__ = ["DurableStore", "Inbound", "Link", "LinkAround", "LinkState", "OutboxRow", "Outcome", "Token"]


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """A committed message that has not left yet. `seq` grows and is never used twice."""

    seq: int
    out: Message | ChunkOut


@dataclass(frozen=True, slots=True)
class Token:
    """Names one delivery for `Link.ack`. It is void once the connection it came over is gone."""

    connection: int
    mid: int
    qos: int


@dataclass(frozen=True, slots=True)
class Inbound:
    """One message as it arrived. `topic` is a hint, never evidence."""

    topic: str
    body: bytes = field(repr=False)
    token: Token


class Outcome(Enum):
    """What became of a publish."""

    SENT = "sent"  # the broker acknowledged it, which says nothing about the other role
    LOST = "lost"  # the connection ended first: publish it again
    REFUSED = "refused"  # the broker will not have it (access list, quota): again would be no better


@dataclass(frozen=True, slots=True)
class LinkState:
    """`code` is a key of the error catalogue that says why there is no connection, "" before the first attempt."""

    connected: bool
    code: str = ""
    detail: str = ""


class DurableStore(Protocol):
    """A role's rows and its outbox. `stage` shows at once to `get` and `scan`; nothing lasts before `commit`.

    Every method raises BlindsumError with a database code where the disk fails. After that the open transaction is gone.
    """

    @property
    def dropped(self) -> int:
        """How many messages left the outbox unsent because it was full."""
        ...

    def get(self, key: str) -> bytes | None: ...

    def scan(self, prefix: str) -> Iterator[tuple[str, bytes]]: ...

    def keys(self, prefix: str) -> Iterator[str]: ...

    def stage(self, writes: Iterable[Write], messages: Iterable[Outgoing]) -> None:
        """Add to the open transaction. `Listen` is not stored; a chunk that already waits for the same `to` is not added."""
        ...

    def commit(self, writes: Iterable[Write] = (), messages: Iterable[Outgoing] = ()) -> None:
        """Stage these too, then make everything staged durable, all of it or nothing."""
        ...

    def rollback(self) -> None:
        """Forget what is staged."""
        ...

    def outbox(self, *, after: int = 0, chunks: bool | None = None, limit: int = 64) -> list[OutboxRow]:
        """Up to `limit` rows in order of `seq`; only chunks or only messages where `chunks` says so."""
        ...

    def sent(self, seqs: Iterable[int]) -> None:
        """Delete rows. Not durable by itself: after a crash a message may go twice."""
        ...


class Link(Protocol):
    """A connection that comes back by itself. Callbacks run on its own thread and must only enqueue."""

    @property
    def max_packet_size(self) -> int: ...

    def open(
        self,
        subscriptions: Iterable[str],
        *,
        on_message: Callable[[Inbound], bool],
        on_state: Callable[[LinkState], None],
    ) -> None:
        """Start connecting, for ever. `on_message` returns False when it is full: the link stops reading until `resume`."""
        ...

    def ignore(self, unheard: Callable[[bytes], bool]) -> None:
        """Acknowledge and drop what comes on a topic for which `unheard(topic)` is true: it is asked for each message, on the
        link's own thread. Before `open`."""
        ...

    def publish(self, topic: str, body: bytes, *, retain: bool, done: Callable[[Outcome], None]) -> bool:
        """Whether it was taken; if so `done` is called exactly once. False: not connected or the window is full.

        Raises BlindsumError "packet-too-large" for what the broker would cut the connection for.
        """
        ...

    @property
    def named(self) -> bool:
        """Whether clients show the broker who they are, so that its access list can keep each to topics of its own."""
        ...

    @property
    def room(self) -> int:
        """How many messages `publish` would take now."""
        ...

    def subscribe(self, topic_filter: str) -> None: ...

    def unsubscribe(self, topic_filter: str) -> None: ...

    def ack(self, *tokens: Token) -> None:
        """These have been dealt with, in the order of their arrival: MQTT asks for it."""
        ...

    def resume(self) -> None: ...

    def close(self, timeout_s: float = 2.0) -> None: ...


class LinkAround:
    """A `Link` that hands everything on to another; subclasses change what is different with them."""

    def __init__(self, link: Link) -> None:
        self._link = link

    @property
    def max_packet_size(self) -> int:
        return self._link.max_packet_size

    @property
    def named(self) -> bool:
        return self._link.named

    @property
    def room(self) -> int:
        return self._link.room

    def open(
        self,
        subscriptions: Iterable[str],
        *,
        on_message: Callable[[Inbound], bool],
        on_state: Callable[[LinkState], None],
    ) -> None:
        self._link.open(subscriptions, on_message=on_message, on_state=on_state)

    def ignore(self, unheard: Callable[[bytes], bool]) -> None:
        self._link.ignore(unheard)

    def publish(self, topic: str, body: bytes, *, retain: bool, done: Callable[[Outcome], None]) -> bool:
        return self._link.publish(topic, body, retain=retain, done=done)

    def subscribe(self, topic_filter: str) -> None:
        self._link.subscribe(topic_filter)

    def unsubscribe(self, topic_filter: str) -> None:
        self._link.unsubscribe(topic_filter)

    def ack(self, *tokens: Token) -> None:
        self._link.ack(*tokens)

    def resume(self) -> None:
        self._link.resume()

    def close(self, timeout_s: float = 2.0) -> None:
        self._link.close(timeout_s)
