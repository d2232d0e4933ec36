"""A link that fails on purpose: the connection is cut in the middle of an upload."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from blindsum.runtime.ports import Inbound, Link, LinkState, Outcome, Token

__all__ = ["FlakyLink"]


class FlakyLink:
    """A `Link` that, once armed, lets `chunks` more chunks through and then goes dead without a word until it is closed."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._lock = threading.Lock()
        self._left: int | None = None
        self._dead = False

    def arm(self, chunks: int) -> None:
        with self._lock:
            self._left = chunks

    @property
    def cut(self) -> bool:
        """Whether the connection was cut."""
        return self._dead

    @property
    def max_packet_size(self) -> int:
        return self._link.max_packet_size

    @property
    def room(self) -> int:
        return 0 if self._dead else self._link.room

    def open(
        self,
        subscriptions: Iterable[str],
        *,
        on_message: Callable[[Inbound], bool],
        on_state: Callable[[LinkState], None],
    ) -> None:
        self._link.open(subscriptions, on_message=on_message, on_state=on_state)

    def publish(self, topic: str, body: bytes, *, retain: bool, done: Callable[[Outcome], None]) -> bool:
        with self._lock:
            if topic.endswith("/chunk") and self._left is not None and not self._dead:
                if self._left == 0:
                    self._dead = True
                    threading.Thread(target=self._link.close, daemon=True).start()
                else:
                    self._left -= 1
            if self._dead:
                return False
        return self._link.publish(topic, body, retain=retain, done=done)

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
