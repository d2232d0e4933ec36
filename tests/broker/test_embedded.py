"""The embedded broker as a process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from blindsum.backend import broker as broker_module
from blindsum.backend.broker import EmbeddedBroker
from blindsum.protocol.errors import BlindsumError
from blindsum.runtime.ports import Outcome

Make = Callable[..., Any]


def test_two_brokers_get_ports_of_their_own_on_the_loopback_interface() -> None:
    with EmbeddedBroker() as one, EmbeddedBroker() as two:
        assert one.url != two.url
        assert one.url.startswith("mqtt://127.0.0.1:")
        assert one.pid != two.pid


def test_busy_port_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BlindsumError, match=f"port-busy.*{port}"):
            EmbeddedBroker().start(port)


def test_port_is_kept_over_a_kill_and_freed_by_stop() -> None:
    broker = EmbeddedBroker()
    url = broker.start()
    port = int(url.rsplit(":", 1)[1])
    assert broker.pid is not None
    os.kill(broker.pid, signal.SIGKILL)
    while broker.pid is not None:
        time.sleep(0.01)
    assert broker.start(port) == url
    broker.stop()
    broker.stop()
    assert broker.pid is None
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_broker_ends_with_a_parent_that_was_killed() -> None:
    program = """
import time
from blindsum.backend.broker import EmbeddedBroker
broker = EmbeddedBroker()
broker.start()
print(broker.pid, flush=True)
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    end = time.monotonic() + 20
    while _lives(pid):
        assert time.monotonic() < end, "it lives on"
        time.sleep(0.01)


def _lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_broker_that_has_grown_begins_anew_on_its_port(
    client: Make, wait: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker_module, "MEMORY_MAX", 120 << 20)
    with EmbeddedBroker() as broker:
        reader = client(broker.url, "reader", "t/+").ready()
        writer = client(broker.url, "writer").ready()
        pid = broker.pid
        for _ in range(500):
            writer.ready().send("t/1", bytes(262_144))
            if sum(not state.connected for state in writer.states):
                break
        assert any(not state.connected for state in writer.states), "it only grew"
        assert broker.pid == pid
        reader.ready()
        wait(lambda: reader.link.state.connected and writer.link.state.connected)
        assert writer.send("t/2", b"after") is Outcome.SENT
        wait(lambda: b"after" in reader.bodies)
