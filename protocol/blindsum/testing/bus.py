"""A broker in memory for roles that share a process: the `Link` of each, retained messages, and what can go wrong on the way."""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable, Iterable

from blindsum.protocol.errors import BlindsumError
from blindsum.runtime.ports import Inbound, LinkState, Outcome, Token

__all__ = ["Bus", "BusLink"]

PACKET_SIZE_MAX = 525_312
WINDOW_MAX = 64
TOKEN = Token(0, 0, 1)


class Bus:
    """Hands every publication to all links that subscribe to it, before `publish` returns; the last one retained on a topic also
    to whoever subscribes later. `lose` and `cut` disturb it. Any thread may call any method."""

    def __init__(self, seed: int = 0) -> None:
        self._lock = threading.Lock()
        self._links: dict[str, BusLink] = {}
        self._retained: dict[str, bytes] = {}
        self._dice, self._loss = random.Random(seed), 0.0

    def link(self, name: str) -> BusLink:
        """A link for `name`; an earlier one of that name is gone."""
        with self._lock:
            self._links[name] = link = BusLink(self)
        return link

    def lose(self, share: float) -> None:
        """From now on lose this share of all deliveries. What matters is sent again, after 1.5 seconds at first."""
        self._loss = share

    def cut(self, name: str) -> None:
        """Take the connection of `name` away until `mend`."""
        self._links[name].turn(connected=False)

    def mend(self, name: str) -> None:
        link = self._links[name]
        link.turn(connected=True)
        self.repeat(link, link.filters)

    def spread(self, topic: str, body: bytes, retain: bool) -> None:
        """For links: deliver a publication."""
        with self._lock:
            if retain and body:
                self._retained[topic] = body
            elif retain:
                self._retained.pop(topic, None)
            targets = [link for link in self._links.values() if any(matches(one, topic) for one in link.filters)]
            targets = [link for link in targets if not self._loss or self._dice.random() >= self._loss]
        for link in targets:
            link.deliver(Inbound(topic, body, TOKEN))

    def repeat(self, link: BusLink, filters: Iterable[str]) -> None:
        """For links: what is retained on topics of `filters`."""
        wanted = list(filters)
        with self._lock:
            kept = [
                (topic, body) for topic, body in self._retained.items() if any(matches(one, topic) for one in wanted)
            ]
        for topic, body in kept:
            link.deliver(Inbound(topic, body, TOKEN))


class BusLink:
    """One role's end of a `Bus`."""

    max_packet_size = PACKET_SIZE_MAX
    named = False

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._lock = threading.RLock()
        self._waiting: deque[Inbound] = deque()  # what a full inbox has not taken yet
        self._connected = False
        self._unheard: Callable[[bytes], bool] = lambda _topic: False
        self.filters: tuple[str, ...] = ()

    @property
    def room(self) -> int:
        return WINDOW_MAX if self._connected else 0

    def open(
        self,
        subscriptions: Iterable[str],
        *,
        on_message: Callable[[Inbound], bool],
        on_state: Callable[[LinkState], None],
    ) -> None:
        self._on_message, self._on_state = on_message, on_state
        self.filters = tuple(subscriptions)
        self.turn(connected=True)
        self._bus.repeat(self, self.filters)

    def ignore(self, unheard: Callable[[bytes], bool]) -> None:
        self._unheard = unheard

    def turn(self, *, connected: bool) -> None:
        """Connect or disconnect."""
        with self._lock:
            self._connected = connected
            self._waiting.clear()
        self._on_state(LinkState(connected, "" if connected else "broker-unreachable"))

    def publish(self, topic: str, body: bytes, *, retain: bool, done: Callable[[Outcome], None]) -> bool:
        if len(topic) + len(body) > self.max_packet_size:
            raise BlindsumError("packet-too-large", f"{len(body)} bytes")
        if not self._connected:
            return False
        self._bus.spread(topic, body, retain)
        done(Outcome.SENT)
        return True

    def deliver(self, inbound: Inbound) -> None:
        with self._lock:
            if self._connected and not self._unheard(inbound.topic.encode()):
                self._waiting.append(inbound)
                self._flush()

    def subscribe(self, topic_filter: str) -> None:
        if topic_filter not in self.filters:
            self.filters = (*self.filters, topic_filter)
            self._bus.repeat(self, [topic_filter])

    def unsubscribe(self, topic_filter: str) -> None:
        self.filters = tuple(one for one in self.filters if one != topic_filter)

    def ack(self, *tokens: Token) -> None:
        """Nothing is delivered twice."""

    def resume(self) -> None:
        with self._lock:
            self._flush()

    def close(self, timeout_s: float = 2.0) -> None:
        self.filters, self._connected = (), False

    def _flush(self) -> None:
        while self._waiting and self._on_message(self._waiting[0]):
            self._waiting.popleft()


def matches(topic_filter: str, topic: str) -> bool:
    """Whether a filter (with `+` for any one level) covers a topic."""
    levels, parts = topic_filter.split("/"), topic.split("/")
    return len(levels) == len(parts) and all(level in ("+", part) for level, part in zip(levels, parts, strict=True))
