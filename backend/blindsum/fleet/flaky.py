"""A link that fails on purpose: the connection is cut in the middle of an upload."""

from __future__ import annotations

import threading
from collections.abc import Callable

from blindsum.runtime.ports import Link, LinkAround, Outcome

__all__ = ["FlakyLink"]


class FlakyLink(LinkAround):
    """A `Link` that, once armed, lets `chunks` more chunks through and then goes dead without a word until it is closed."""

    def __init__(self, link: Link) -> None:
        super().__init__(link)
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
    def room(self) -> int:
        return 0 if self._dead else super().room

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
        return super().publish(topic, body, retain=retain, done=done)
