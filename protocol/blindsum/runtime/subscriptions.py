"""What a link subscribes to, and what the broker's session may still think it does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from paho.mqtt import client as paho
from paho.mqtt.enums import MQTTProtocolVersion
from paho.mqtt.subscribeoptions import SubscribeOptions

__all__ = ["Subscriptions", "subscribe"]

FILTERS_MAX: Final = 1024
BATCH: Final = 8  # filters per packet, AWS IoT Core's limit


class Subscriptions:
    """The filters of one link over all its connections. The caller guards it: its users are on two threads."""

    def __init__(self) -> None:
        self._filters: dict[str, None] = {}
        self._left: dict[str, None] = {}
        self._known = False  # whether a session of this process is at the broker

    def add(self, topic_filters: Iterable[str]) -> list[str]:
        """Those of `topic_filters` that are new."""
        new = [name for name in topic_filters if name not in self._filters]
        for name in new:
            self._filters[name] = None
            self._left.pop(name, None)
        assert len(self._filters) <= FILTERS_MAX
        return new

    def remove(self, topic_filter: str) -> bool:
        """Whether it was there."""
        if topic_filter not in self._filters:
            return False
        del self._filters[topic_filter]
        self._left[topic_filter] = None
        if len(self._left) > BATCH:  # older ones had their UNSUBSCRIBE long ago
            self._left.pop(next(iter(self._left)))
        return True

    def renew(self, client: paho.Client, *, session_present: bool) -> set[int]:
        """Bring a fresh connection up to date; the packet ids whose SUBACK is awaited.

        A session of this process knows the filters; one of an earlier process may know others. Subscribing again has the
        broker send every retained message once more, so it is not done without need.
        """
        if session_present and self._left:
            client.unsubscribe(list(self._left))
        self._left.clear()
        filters = [] if session_present and self._known else list(self._filters)
        batches = [filters[at : at + BATCH] for at in range(0, len(filters), BATCH)]
        return {mid for batch in batches if (mid := subscribe(client, batch)) is not None}

    def settled(self) -> None:
        """Every SUBACK is here."""
        self._known = True


def subscribe(client: paho.Client, filters: list[str]) -> int | None:
    """Ask for `filters` at QoS 1; the packet's id."""
    if client.protocol == MQTTProtocolVersion.MQTTv5:
        return client.subscribe([(name, SubscribeOptions(qos=1)) for name in filters])[1]
    return client.subscribe([(name, 1) for name in filters])[1]
