"""The link over real brokers: MQTT 5 and 3.1.1, kills and restarts, limits, retained messages, wills, back-pressure."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.messages import MESSAGE_SIZE_MAX
from blindsum.runtime.mqtt import MqttLink, Will
from blindsum.runtime.ports import Outcome

Make = Callable[..., Any]


def test_message_arrives_and_the_sender_is_told(broker: Any, client: Make, wait: Make) -> None:
    reader = client(broker.url, "reader", "t/+").ready()
    writer = client(broker.url, "writer").ready()
    assert writer.send("t/1", b"hello") is Outcome.SENT
    wait(lambda: reader.bodies == [b"hello"])
    assert reader.got[0].topic == "t/1"


def test_link_finds_the_version_the_broker_speaks(broker: Any, client: Make) -> None:
    expected = "3.1.1" if getattr(broker, "mqtt", "5") == "3.1.1" else "5"
    assert client(broker.url, "one").ready().link.protocol == expected


def test_largest_message_passes(broker: Any, client: Make, wait: Make) -> None:
    reader = client(broker.url, "reader", "t/+").ready()
    body = os.urandom(MESSAGE_SIZE_MAX)
    assert client(broker.url, "writer").ready().send("t/1", body) is Outcome.SENT
    wait(lambda: reader.bodies == [body])


def test_message_too_large_for_the_broker_is_refused_and_the_link_goes_on(
    broker: Any, client: Make, wait: Make
) -> None:
    """At once where the broker announces its limit, after three cut connections where it does not; never for ever."""
    writer = client(broker.url, "writer").ready()
    reader = client(broker.url, "reader", "t/+").ready()
    losses = 0
    with pytest.raises(BlindsumError, match="packet-too-large"):
        while True:
            writer.ready()
            assert writer.send("t/1", bytes(MESSAGE_SIZE_MAX + 5000)) is Outcome.LOST
            losses += 1
            assert losses <= 3
    writer.ready()
    assert writer.send("t/1", b"small") is Outcome.SENT
    wait(lambda: reader.bodies == [b"small"])


def test_link_comes_back_after_the_broker_was_killed(broker: Any, client: Make, wait: Make) -> None:
    reader = client(broker.url, "reader", "t/+").ready()
    writer = client(broker.url, "writer").ready()
    for number in range(3):
        broker.kill()
        wait(lambda: not reader.link.state.connected and not writer.link.state.connected)
        assert not writer.link.publish("t/1", b"x", retain=False, done=lambda _outcome: None)
        assert writer.link.state.code == "broker-unreachable"
        broker.start()
        reader.ready()
        assert writer.ready().send("t/1", b"%d" % number) is Outcome.SENT
        wait(lambda number=number: reader.bodies[-1:] == [b"%d" % number])


def test_publish_in_flight_when_the_broker_dies_comes_back_as_lost(broker: Any, client: Make, wait: Make) -> None:
    writer = client(broker.url, "writer").ready()
    pid = broker.process.pid if hasattr(broker, "process") else broker.broker.pid
    os.kill(pid, signal.SIGSTOP)
    wait(lambda: all(_state(task) == "T" for task in Path(f"/proc/{pid}/task").iterdir()))
    outcomes: list[Outcome] = []
    taken = 0
    while writer.link.publish("t/1", bytes(1000), retain=False, done=outcomes.append):
        taken += 1
    assert taken == 20
    time.sleep(0.05)
    assert outcomes == []
    broker.kill()
    wait(lambda: outcomes == [Outcome.LOST] * taken)


def _state(task: Path) -> str:
    return (task / "stat").read_text().rsplit(")", 1)[1].split()[0]


def test_broker_that_is_away_is_told_with_a_remedy(broker: Any, client: Make) -> None:
    broker.kill()
    one = client(broker.url, "one")
    with pytest.raises(BlindsumError, match="broker-unreachable") as caught:
        one.link.wait_connected(1.0)
    assert broker.url in caught.value.detail
    assert "firewall" in caught.value.remedy


def test_session_keeps_messages_for_a_reader_that_is_away(broker: Any, client: Make, wait: Make) -> None:
    first = client(broker.url, "reader", "t/+").ready()
    first.link.close()
    writer = client(broker.url, "writer").ready()
    for number in range(10):
        assert writer.send("t/1", b"%d" % number) is Outcome.SENT
    again = client(broker.url, "reader", "t/+").ready()
    wait(lambda: {b"%d" % number for number in range(10)} <= set(again.bodies))


def test_message_that_was_not_acknowledged_is_delivered_again(broker: Any, client: Make, wait: Make) -> None:
    careless = client(broker.url, "reader", "t/+", acks=False).ready()
    writer = client(broker.url, "writer").ready()
    for number in range(5):
        writer.send("t/1", b"%d" % number)
    wait(lambda: len(careless.got) == 5)
    careless.link.close()
    careful = client(broker.url, "reader", "t/+").ready()
    wait(lambda: {b"%d" % number for number in range(5)} <= set(careful.bodies))


def test_retained_message_waits_for_late_comers_until_it_is_taken_away(broker: Any, client: Make, wait: Make) -> None:
    writer = client(broker.url, "writer").ready()
    writer.send("bc/1", b"manifest", retain=True)
    writer.send("bc/2", b"other", retain=True)
    late = client(broker.url, "late", "bc/+").ready()
    wait(lambda: set(late.bodies) == {b"manifest", b"other"})
    writer.send("bc/1", b"", retain=True)
    later = client(broker.url, "later", "bc/+").ready()
    wait(lambda: later.bodies)
    time.sleep(0.1)
    assert later.bodies == [b"other"]


def test_chunk_broadcast_is_read_by_who_subscribes_and_not_after_leaving(broker: Any, client: Make, wait: Make) -> None:
    writer = client(broker.url, "writer").ready()
    chunks = {b"%03d" % index + os.urandom(100_000) for index in range(16)}
    for chunk in chunks:
        writer.send(f"bc/t/chunk/b/{int(chunk[:3])}", chunk, retain=True)
    reader = client(broker.url, "reader", "dn/+").ready()
    assert reader.bodies == []
    reader.link.subscribe("bc/t/chunk/b/+")
    wait(lambda: set(reader.bodies) == chunks)
    reader.link.unsubscribe("bc/t/chunk/b/+")
    writer.send("dn/1", b"marker")
    wait(lambda: b"marker" in reader.bodies)
    count = len(reader.got)
    writer.send("bc/t/chunk/b/0", b"000late", retain=True)
    writer.send("dn/1", b"end")
    wait(lambda: b"end" in reader.bodies)
    assert len(reader.got) == count + 1


def test_chunks_wait_in_the_broker_while_the_reader_is_full(broker: Any, client: Make, wait: Make) -> None:
    """200 chunks of 256 KiB against a reader that takes 8 at a time: none is lost, none is out of place."""
    total, size = 200, 262_144
    reader = client(broker.url, "reader", "up/+", acks=False).ready()
    reader.room = 8
    writer = client(broker.url, "writer").ready()
    sent: list[Outcome] = []
    sums: dict[int, int] = {}
    acked = 0
    index = 0
    end = time.monotonic() + 60
    while (acked < total or len(sent) < total) and time.monotonic() < end:
        if index < total:
            body = index.to_bytes(4) + os.urandom(64) * (size // 64)
            if writer.link.publish("up/x", body, retain=False, done=sent.append):
                sums[index] = zlib.crc32(body)
                index += 1
        if len(reader.got) > acked:
            assert len(reader.got) <= acked + 8
            for inbound in reader.got[acked:]:
                number = int.from_bytes(inbound.body[:4])
                assert zlib.crc32(inbound.body) == sums[number]
                reader.link.ack(inbound.token)
                acked += 1
            reader.room = acked + 8
            reader.link.resume()
        else:
            time.sleep(0.001)
    assert [int.from_bytes(inbound.body[:4]) for inbound in reader.got] == list(range(total))
    assert sent == [Outcome.SENT] * total


def test_many_small_messages_all_arrive(broker: Any, client: Make, wait: Make) -> None:
    total = 2000
    reader = client(broker.url, "reader", "t/+").ready()
    writer = client(broker.url, "writer").ready()
    sent: list[Outcome] = []
    for number in range(total):
        wait(lambda number=number: writer.link.publish("t/1", b"%d" % number, retain=False, done=sent.append))
    wait(lambda: len(reader.got) >= total)
    assert {int(body) for body in reader.bodies} == set(range(total))


def test_broker_tells_that_a_killed_process_is_gone(broker: Any, client: Make, wait: Make) -> None:
    watcher = client(broker.url, "watcher", "st/+").ready()
    program = f"""
import time
from blindsum.runtime.mqtt import MqttLink, Will
link = MqttLink({broker.url!r}, "dying", will=Will("st/dying"))
link.open([], on_message=lambda inbound: True, on_state=lambda state: None)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", program])
    wait(lambda: watcher.bodies == [b"online"])
    process.kill()
    process.wait()
    wait(lambda: watcher.bodies == [b"online", b"offline"])


def test_link_that_closes_says_so(broker: Any, client: Make, wait: Make) -> None:
    watcher = client(broker.url, "watcher", "st/+").ready()
    one = client(broker.url, "one", link=MqttLink(broker.url, "one", will=Will("st/one"))).ready()
    wait(lambda: watcher.bodies == [b"online"])
    one.link.close()
    wait(lambda: watcher.bodies == [b"online", b"offline"])


def test_many_links_in_one_process(broker: Any, client: Make, wait: Make) -> None:
    """paho's own loop ends near file descriptor 1024; descriptors here go beyond it."""
    spare = [os.dup(0) for _ in range(1100)]
    try:
        links = [client(broker.url, f"d{number}", f"dn/{number}/+") for number in range(40)]
        for one in links:
            one.ready()
        writer = client(broker.url, "writer").ready()
        for number in range(40):
            writer.send(f"dn/{number}/x", b"%d" % number)
        wait(lambda: all(one.bodies == [b"%d" % number] for number, one in enumerate(links)))
    finally:
        for descriptor in spare:
            os.close(descriptor)
