"""Real brokers as processes of their own: the embedded one and Mosquitto. A missing Mosquitto is a failure, not a skip."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blindsum.backend.broker import EmbeddedBroker, local_mosquitto_config
from blindsum.runtime.mqtt import MqttLink
from blindsum.runtime.ports import Inbound, LinkState, Outcome

WAIT_S = 30.0


def until(condition: Callable[[], object], what: str = "it") -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen"
        time.sleep(0.005)


def mosquitto_path() -> str:
    path = os.environ.get("PATH", "") + os.pathsep + os.pathsep.join(["/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin"])
    found = shutil.which("mosquitto", path=path)
    if found is None:
        pytest.fail("these tests need Mosquitto: apt-get install mosquitto (or brew install mosquitto)")
    return found


class Mosquitto:
    """A Mosquitto process with the configuration at `config`."""

    def __init__(self, config: Path, port: int, scheme: str = "mqtt", host: str = "127.0.0.1") -> None:
        self.config, self.port = config, port
        self.url = f"{scheme}://{host}:{port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        log = self.config.with_suffix(".log").open("ab")
        self.process = subprocess.Popen([mosquitto_path(), "-c", str(self.config)], stdout=log, stderr=log)
        log.close()
        end = time.monotonic() + WAIT_S
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            assert self.process.poll() is None, self.config.with_suffix(".log").read_text()
            assert time.monotonic() < end
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


class Embedded:
    """The embedded broker in the same dress."""

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


Broker = Mosquitto | Embedded


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def local_mosquitto(tmp_path: Path) -> Iterator[Callable[[str], Mosquitto]]:
    """Makes running Mosquittos from the local test configuration and whatever lines are added."""
    made: list[Mosquitto] = []

    def make(more: str = "") -> Mosquitto:
        port = free_port()
        config = local_mosquitto_config(tmp_path, port=port)
        config.write_text(config.read_text() + more)
        made.append(Mosquitto(config, port))
        made[-1].start()
        return made[-1]

    yield make
    for broker in made:
        broker.kill()


@pytest.fixture(params=["embedded", "embedded-3.1.1", "mosquitto"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Broker]:
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
