"""A clustered broker: two nodes of RabbitMQ with the documented settings, one of them killed in the middle of a round."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RABBITMQ
from tests.e2e.smallfleet import DEVICES

START_S = 120.0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Node:
    """One node: a process group of its own, as a user who is not root."""

    def __init__(self, folder: Path, name: str, settings: str, epmd_port: int) -> None:
        self.port, self._folder, self._distribution = _free_port(), folder, _free_port()
        self._name, self._epmd_port = name, epmd_port
        folder.mkdir()
        (folder / "rabbitmq.conf").write_text(f"{settings}mqtt.listeners.tcp.1 = 127.0.0.1:{self.port}\n")
        (folder / "enabled_plugins").write_text("[rabbitmq_mqtt].")
        self._user = "nobody" if os.geteuid() == 0 else None
        if self._user:
            for path in (folder, *folder.iterdir()):
                shutil.chown(path, self._user)

    def start(self) -> None:
        assert RABBITMQ is not None
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": self._folder,
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": self._epmd_port,
            "RABBITMQ_NODENAME": f"{self._name}@localhost",
            "RABBITMQ_DIST_PORT": self._distribution,
            "RABBITMQ_CONFIG_FILE": self._folder / "rabbitmq.conf",
            "RABBITMQ_MNESIA_BASE": self._folder / "mnesia",
            "RABBITMQ_LOG_BASE": self._folder,
            "RABBITMQ_ENABLED_PLUGINS_FILE": self._folder / "enabled_plugins",
            "RABBITMQ_PID_FILE": self._folder / "pid",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-setcookie blindsum +S 1",
        }
        with (self._folder / "console").open("ab") as console:
            self._process = subprocess.Popen(
                [RABBITMQ],
                user=self._user,
                env={name: str(value) for name, value in environment.items()},
                cwd=self._folder,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )

    def wait(self) -> None:
        until = time.monotonic() + START_S
        while b"Server startup complete" not in (said := (self._folder / "console").read_bytes()):
            assert time.monotonic() < until and self._process.poll() is None, said.decode(errors="replace")[-2000:]
            time.sleep(0.2)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class Balancer:
    """What stands before a cluster: each connection goes to the next node that answers."""

    def __init__(self, ports: list[int]) -> None:
        self._ports, self._turn = ports, itertools.count()
        self.taken = dict.fromkeys(ports, 0)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"mqtt://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._server.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                first = next(self._turn)
                for at in range(len(self._ports)):
                    port = self._ports[(first + at) % len(self._ports)]
                    with contextlib.suppress(OSError):
                        node = socket.create_connection(("127.0.0.1", port), timeout=2)
                        node.settimeout(None)
                        self.taken[port] += 1
                        for pair in ((client, node), (node, client)):
                            threading.Thread(target=self._pump, args=pair, daemon=True).start()
                        break
                else:
                    client.close()

    @staticmethod
    def _pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def rabbitmq(request: pytest.FixtureRequest, pytestconfig: pytest.Config) -> Iterator[list[Node]]:
    """As many nodes of a cluster as the parameter says, up, with the settings of the document."""
    text = (pytestconfig.rootpath / "docs" / "OPERATING.md").read_text("utf-8")
    [settings] = re.findall(r"```ini\n# rabbitmq.conf\n(.*?)```", text, re.DOTALL)
    names = [f"bs{os.getpid()}{letter}" for letter in "abc"]
    for letter, name in zip("abc", names, strict=True):
        settings = settings.replace(f"rabbit@node-{letter}", f"{name}@localhost")
    names = names[: request.param]
    place, port = Path(tempfile.mkdtemp()), _free_port()
    place.chmod(0o755)
    nodes = [Node(place / name, name, settings, port) for name in names]
    try:
        for node in nodes:  # one after another: nodes that start at one moment may each begin a majority of their own
            node.start()
            node.wait()
        yield nodes
    finally:
        for node in nodes:
            node.kill()
        subprocess.run(["epmd", "-port", str(port), "-kill"], capture_output=True, check=False)
        shutil.rmtree(place)


@pytest.mark.parametrize("rabbitmq", [2, 3], indirect=True, ids=["two nodes", "three nodes"])
def test_node_of_the_cluster_is_killed_in_a_round(small_fleet: Callable[..., Any], rabbitmq: list[Node]) -> None:
    """Of three nodes two go on, and let in everybody who was on the third. One of two lets nobody in until the other is back, as
    client ids are agreed on by majority: rounds fail cleanly until then. Retained messages are each node's own: roles on another
    node ask for what they lack."""
    balancer = Balancer([node.port for node in rabbitmq])
    fleet = small_fleet(rounds=100, url=balancer.url)
    fleet.start()
    assert min(balancer.taken.values()) >= 3, "the fleet is spread over all nodes"
    killed_in: list[int] = []
    offered: defaultdict[int, set[str]] = defaultdict(set)
    whole: list[int] = []

    def disturb(name: str, event: dict[str, Any]) -> None:
        if event["event"] == "offered":
            offered[event["round"]].add(name)
        if name != "coordinator":
            return
        if not killed_in and event["event"] == "phase" and event["phase"] == "upload":
            killed_in.append(event["round"])
            rabbitmq[1].kill()
            if len(rabbitmq) == 2:
                rabbitmq[1].start()
        if killed_in and event["event"] == "round-finished" and event["round"] > killed_in[0]:
            complete = event["count"] == DEVICES and len(offered[event["round"]]) == len(fleet.folder.parties)
            whole.extend([event["round"]] if complete else [])
        fleet.over = event["event"] == "transcript" and event["round"] in whole

    fleet.watch(240.0, disturb)
    balancer.close()
    fleet.judge()
