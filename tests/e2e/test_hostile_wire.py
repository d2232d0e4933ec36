"""Somebody with full access to the broker publishes junk and altered copies: all refused and counted, the rounds go on."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Any

from blindsum.runtime.mqtt import MqttLink
from blindsum.runtime.ports import Inbound, Outcome
from blindsum.runtime.topics import root_of

ROUNDS = 6
COPIES_MAX = 3_000


class Mallory:
    """Sees everything on the broker; answers each message with a copy that has one bit flipped, and with junk."""

    def __init__(self, url: str, fleet: str, seed: int) -> None:
        self._dice = random.Random(seed)
        self._own: set[bytes] = set()
        self._waiting: deque[tuple[str, bytes]] = deque(maxlen=1000)
        self.sent = 0
        self._link = MqttLink(url, "mallory")
        self._link.open((f"{root_of(fleet)}/#",), on_message=self._hear, on_state=lambda _state: None)
        self._link.wait_connected(5.0)

    def turn(self) -> None:
        while self._waiting and self.sent < COPIES_MAX and self._link.room:
            topic, body = self._waiting.popleft()
            self._own.add(body)
            self._link.publish(topic, body, retain=False, done=self._done)
            self.sent += 1

    def close(self) -> None:
        self._link.close()

    def _done(self, _outcome: Outcome) -> None:
        pass

    def _hear(self, inbound: Inbound) -> bool:
        self._link.ack(inbound.token)
        if inbound.body and inbound.body not in self._own:
            at = self._dice.randrange(len(inbound.body))
            flipped = bytes([inbound.body[at] ^ (1 << self._dice.randrange(8))])
            self._waiting.append((inbound.topic, inbound.body[:at] + flipped + inbound.body[at + 1 :]))
            if self._dice.random() < 0.2:
                self._waiting.append((inbound.topic, self._dice.randbytes(self._dice.randrange(1, 400))))
            if self._dice.random() < 0.2:
                self._waiting.append((inbound.topic, inbound.body[: self._dice.randrange(len(inbound.body))]))
        return True


def test_flipped_truncated_and_random_messages_are_refused_and_the_rounds_go_on(
    small_fleet: Callable[..., Any],
) -> None:
    fleet = small_fleet(rounds=ROUNDS)
    mallory = Mallory(fleet.url, fleet.base.trust.fleet, 3)
    fleet.start()
    fleet.watch(240.0, lambda _name, _event: mallory.turn())
    mallory.close()
    assert mallory.sent > 200
    assert len(fleet.finished) >= ROUNDS - 1, fleet.failed
    fleet.judge()
    roles = {name for name, _ in fleet.refused}
    assert {"coordinator", "party-1", "party-2", "party-3", "party-4"} <= roles
    codes = {code for _, code in fleet.refused}
    assert {"message-malformed", "signature-invalid"} <= codes
    assert "internal-error" not in codes
