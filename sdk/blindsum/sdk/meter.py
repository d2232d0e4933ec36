"""A link that counts what goes over it: the budget of a day is kept in bytes that were really sent and received."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from blindsum.runtime.ports import Inbound, Link, LinkState, Outcome, Token

__all__ = ["MeteredLink"]


class MeteredLink:
    """`link`, counted. Topics and payloads count, the few bytes of MQTT and TLS around them do not."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._sent = self._received = 0  # each written by one thread
        self._told = (0, 0)

    def take(self) -> tuple[int, int]:
        """Bytes sent and received since the last call. For one thread."""
        before, self._told = self._told, (self._sent, self._received)
        return self._told[0] - before[0], self._told[1] - before[1]

    @property
    def max_packet_size(self) -> int:
        return self._link.max_packet_size

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
        def counted(inbound: Inbound) -> bool:
            taken = on_message(inbound)
            if taken:
                self._received += len(inbound.topic) + len(inbound.body)
            return taken

        self._link.open(subscriptions, on_message=counted, on_state=on_state)

    def publish(self, topic: str, body: bytes, *, retain: bool, done: Callable[[Outcome], None]) -> bool:
        taken = self._link.publish(topic, body, retain=retain, done=done)
        if taken:
            self._sent += len(topic) + len(body)
        return taken

    def subscribe(self, topic_filter: str) -> None:
        self._link.subscribe(topic_filter)

    def unsubscribe(self, topic_filter: str) -> None:
        self._link.unsubscribe(topic_filter)

    def ack(self, token: Token) -> None:
        self._link.ack(token)

    def resume(self) -> None:
        self._link.resume()

    def close(self, timeout_s: float = 2.0) -> None:
        self._link.close(timeout_s)
