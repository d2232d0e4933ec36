"""Real brokers as processes of their own: the embedded one, and Mosquitto from the conftest above."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from blindsum.backend.broker import EmbeddedBroker
from blindsum.runtime.mqtt import MqttLink
from blindsum.runtime.ports import Inbound, LinkState, Outcome

WAIT_S = 30.0


def until(condition: Callable[[], object], what: str = "it") -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen"
        time.sleep(0.005)


class Embedded:
    """The embedded broker in the same dress as a Mosquitto."""

    def __init__(self, mqtt: str = "5") -> None:
        self.mqtt = mqtt
        self.broker = EmbeddedBroker()
        self.port: int | None = None

    @property
    def url(self) -> str:
        return self.broker.url

    def start(self) -> None:
        self.broker.start(self.port, mqtt=self.mqtt)
        self.port = int(self.url.rsplit(":", 1)[1])

    def kill(self) -> None:
        """SIGKILL."""
        if self.broker.pid is not None:
            os.kill(self.broker.pid, signal.SIGKILL)
        self.broker.stop()


@pytest.fixture(params=["embedded", "embedded-3.1.1", "mosquitto"])
def broker(request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param == "mosquitto":
        yield request.getfixturevalue("local_mosquitto")()
        return
    one = Embedded("3.1.1" if request.param.endswith("3.1.1") else "5")
    one.start()
    yield one
    one.kill()


class Client:
    """A link that keeps what arrives, acknowledges at once and may be told to hold back."""

    def __init__(self, url: str, name: str, *topics: str, link: MqttLink | None = None, acks: bool = True) -> None:
        self.link = link or MqttLink(url, name)
        self.got: list[Inbound] = []
        self.states: list[LinkState] = []
        self.acks = acks
        self.room = 1_000_000
        self.link.open(topics, on_message=self.arrived, on_state=self.states.append)

    def arrived(self, inbound: Inbound) -> bool:
        if len(self.got) >= self.room:
            return False
        self.got.append(inbound)
        if self.acks:
            self.link.ack(inbound.token)
        return True

    def ready(self) -> Client:
        self.link.wait_connected(WAIT_S)
        return self

    def send(self, topic: str, body: bytes, *, retain: bool = False) -> Outcome:
        outcomes: list[Outcome] = []
        until(lambda: self.link.publish(topic, body, retain=retain, done=outcomes.append), "room")
        until(lambda: outcomes, "an outcome")
        return outcomes[0]

    @property
    def bodies(self) -> list[bytes]:
        return [inbound.body for inbound in self.got]


@pytest.fixture
def client() -> Iterator[Callable[..., Client]]:
    made: list[Client] = []

    def make(url: str, name: str, *topics: str, **more: object) -> Client:
        made.append(Client(url, name, *topics, **more))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        one.link.close()


@pytest.fixture
def wait() -> Callable[..., None]:
    return until
