"""Ways to a broker that are not a clean line to a generous one: strict limits, bad lines."""

from __future__ import annotations

import random
import re
import socket
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

import pytest

from blindsum.runtime.mqtt import MqttLink
from blindsum.runtime.ports import Inbound
from blindsum.testing.line import BadLine

AWS = {"payload": 131_072, "slashes": 7, "topic": 256}
"""AWS IoT Core's documented limits."""
AWS_BROKER = "max_packet_size 131584\nmax_inflight_messages 20\nmax_topic_alias 8\n"
LOSS, LIFETIME_S = 0.3, 5.0
ON_BAD_LINE = "device-3"


class Census:
    """A client that reads everything and remembers what was largest."""

    def __init__(self, url: str) -> None:
        self.payload = self.topic = self.slashes = self.seen = 0
        self.link = MqttLink(url, "census")
        self.link.open(["blindsum/#"], on_message=self._count, on_state=lambda _state: None)
        self.link.wait_connected(30.0)

    def _count(self, inbound: Inbound) -> bool:
        self.seen += 1
        self.payload = max(self.payload, len(inbound.body))
        self.topic = max(self.topic, len(inbound.topic.encode()))
        self.slashes = max(self.slashes, inbound.topic.count("/"))
        self.link.ack(inbound.token)
        return True


class OldDoor(BadLine):
    """A way to a broker that knows MQTT 3.1.1 alone: it sends clients of version 5 away, as such brokers do."""

    CONNECT, LEVEL_5, NOT_THIS_VERSION = b"\x10", b"\0\4MQTT\5", b"\x20\2\0\1"
    sent_away = 0

    def _forward(self, source: socket.socket, sink: socket.socket, dice: random.Random) -> None:
        with suppress(OSError):
            head = source.recv(64, socket.MSG_PEEK)
            if head[:1] == self.CONNECT and self.LEVEL_5 in head:
                self.sent_away += 1
                source.sendall(self.NOT_THIS_VERSION)
                self._end(source, sink)
                return
        super()._forward(source, sink, dice)


@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_rounds_stay_within_the_limits_of_aws_iot_core(
    small_fleet: Callable[..., Any], local_mosquitto: Callable[..., Any], version: str
) -> None:
    """The model is larger than a payload may be; chunks of the size that tasks have by themselves are not. Brokers of 3.1.1 cannot
    say what they take, and cut the connection for more."""
    url = local_mosquitto(AWS_BROKER).url
    with ExitStack() as running:
        if version == "3.1.1":
            door = running.enter_context(OldDoor(("127.0.0.1", int(url.rpartition(":")[2]))))
            url = f"mqtt://127.0.0.1:{door.port}"
        fleet = small_fleet(rounds=1, url=url, chunk_size=0, hidden=512)
        assert fleet.base.task.model.size > AWS["payload"]
        census = Census(fleet.url)
        running.callback(census.link.close)
        fleet.start()
        fleet.watch(90.0)
        assert census.link.protocol == version
        if version == "3.1.1":
            assert door.sent_away >= 14  # eight devices, four parties, a coordinator and the census
    assert fleet.finished == [1] and not fleet.failed
    fleet.judge()
    assert AWS["payload"] >= census.payload > 0.9 * AWS["payload"]
    assert census.slashes <= AWS["slashes"] and census.topic <= AWS["topic"]
    assert census.seen > 50


def test_device_on_a_bad_line_completes(small_fleet: Callable[..., Any], local_mosquitto: Callable[..., Any]) -> None:
    """30 % of its segments are lost, and it loses its connection every 5 s, in both directions, all the time."""
    fleet = small_fleet(rounds=100, url=local_mosquitto().url, join_s=30.0, upload_s=40.0, devices_min=8)
    host, port = re.fullmatch(r"mqtt://(.+):(\d+)", fleet.url).groups()  # type: ignore[union-attr]
    with BadLine((host, int(port)), loss=LOSS, lifetime_s=LIFETIME_S, seed=1) as line:
        settings = fleet.folder.device(ON_BAD_LINE) / "device.toml"
        settings.write_text(settings.read_text("utf-8").replace(fleet.url, f"mqtt://127.0.0.1:{line.port}"), "utf-8")
        uploaded: set[tuple[int, str]] = set()

        def hear(name: str, event: dict[str, Any]) -> None:
            if name == "coordinator" and event["event"] == "upload":
                uploaded.add((event["round"], event["device"]))
            # a fast machine is through with a round before the first cut
            fleet.over = fleet.over or (event["event"] == "transcript" and line.connections >= 3)

        fleet.start()
        fleet.watch(200.0, hear)
        assert line.connections >= 3 and line.lost > 10
    assert fleet.finished and not fleet.failed, fleet.failed
    assert uploaded >= {(number, ON_BAD_LINE) for number in fleet.finished}
    fleet.judge()
