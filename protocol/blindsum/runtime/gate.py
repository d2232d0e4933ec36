"""Who is not heard for now: senders of which more comes to nothing than a role looks at.

Looking costs a role 0.1 to 0.3 ms a message, and handing over one that is then not looked at still some 0.03 ms. A sender that has
used up its share is therefore not heard at all for `MUTE_S`: the link's thread knows it by the topic and drops what it says.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Final

from blindsum.protocol.machines.allowance import Shares
from blindsum.protocol.machines.step import Event
from blindsum.runtime.topics import writer_of

__all__ = ["MUTED_MAX", "MUTE_S", "Gate"]

MUTE_S: Final = 1.0
"""How long a sender that is over its share is not heard. What it may say again after that is what its share has gained since."""
MUTED_MAX: Final = 1000
"""Senders that are not heard at a time; beyond that the one that was muted first is heard again."""
TELL_MS: Final = 10_000
"""A flood is told of no more often than this."""


class Gate:
    """`ignores` is for the link's thread, all else for the machine's."""

    def __init__(self) -> None:
        self._shares = Shares()
        self._muted: dict[bytes, float] = {}
        self._lock = threading.Lock()  # guards the next
        self._unread: Counter[bytes] = Counter()
        self._told = 0

    def admits(self, sender: str, now: int) -> bool:
        """Whether a message on a topic of `sender` is to be looked at. If not, nothing that it says is heard for a while."""
        if self._shares.left(sender, now):
            return True
        name = sender.encode()
        self._muted.pop(name, None)
        if len(self._muted) >= MUTED_MAX:
            del self._muted[next(iter(self._muted))]
        self._muted[name] = time.monotonic() + MUTE_S
        return False

    def charge(self, sender: str, now: int) -> None:
        """A message of `sender` came to nothing."""
        self._shares.charge(sender, now)

    def ignores(self, topic: bytes) -> bool:
        """Whether what comes on `topic` is to be dropped unread; it is counted."""
        if not self._muted:
            return False
        writer = writer_of(topic)
        until = self._muted.get(writer)
        if until is None or until < time.monotonic():
            return False
        with self._lock:
            self._unread[writer] += 1
        return True

    def flood(self, now: int, *, at_once: bool = False) -> Event | None:
        """What was dropped since this was last told, now and then or `at_once`: how much, of how many senders, and the worst of
        them."""
        if (0 <= now - self._told < TELL_MS and not at_once) or not self._unread:
            return None
        self._told = now
        with self._lock:
            unread, self._unread = self._unread, Counter()
        (worst, most), *_ = unread.most_common(1)
        data = {"unread": unread.total(), "senders": len(unread), "worst": worst.decode(), "of_worst": most}
        return Event("flood", data)
