"""A link that counts what goes over it: the budget of a day is kept in bytes that were really sent and received."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from blindsum.runtime.ports import Inbound, Link, LinkAround, LinkState, Outcome

__all__ = ["MeteredLink"]


class MeteredLink(LinkAround):
    """`link`, counted. Topics and payloads count, the few bytes of MQTT and TLS around them do not."""

    def __init__(self, link: Link) -> None:
        super().__init__(link)
        self._sent = self._received = 0  # each written by one thread
        self._told = (0, 0)

    def take(self) -> tuple[int, int]:
        """Bytes sent and received since the last call. For one thread."""
        before, self._told = self._told, (self._sent, self._received)
        return self._told[0] - before[0], self._told[1] - before[1]

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

        super().open(subscriptions, on_message=counted, on_state=on_state)

    def publish(self, topic: str, body: bytes, *, retain: bool, done: Callable[[Outcome], None]) -> bool:
        taken = super().publish(topic, body, retain=retain, done=done)
        if taken:
            self._sent += len(topic) + len(body)
        return taken
