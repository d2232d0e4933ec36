"""Drivers in processes of their own, killed at the worst moments, over real brokers: what was committed arrives."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from blindsum.protocol.codec import DecodeError, decode_chunk
from blindsum.runtime.ports import Inbound
from blindsum.runtime.sqlite import SqliteStore

Make = Callable[..., Any]
Spawn = Callable[..., subprocess.Popen[bytes]]
pytestmark = pytest.mark.parametrize("broker", ["embedded", "mosquitto"], indirect=True)
UP = "blindsum/1/f1/up/+/d1/+"


@pytest.fixture
def spawn(broker: Any, tmp_path: Path) -> Iterator[Spawn]:
    made: list[subprocess.Popen[bytes]] = []

    def start(role: str, total: int, death: str = "") -> subprocess.Popen[bytes]:
        script = Path(__file__).with_name("roles.py")
        command = [sys.executable, str(script), role, broker.url, str(tmp_path / f"{role}.sqlite"), str(total), death]
        made.append(subprocess.Popen(command))
        return made[-1]

    yield start
    for process in made:
        process.kill()
        process.wait()


def number(inbound: Inbound) -> int:
    try:
        return int(decode_chunk(inbound.body)[2])
    except DecodeError:
        return int(inbound.body)


def test_message_committed_before_a_death_is_sent_after_it(broker: Any, client: Make, wait: Make, spawn: Spawn) -> None:
    reader = client(broker.url, "reader", UP).ready()
    assert spawn("sender", 3, "publish").wait(30) == -9
    time.sleep(0.1)
    assert reader.got == []
    assert spawn("sender", 3).wait(30) == 0
    wait(lambda: {number(inbound) for inbound in reader.got} == {0, 1, 2})


def test_message_sent_before_a_death_is_sent_again(broker: Any, client: Make, wait: Make, spawn: Spawn) -> None:
    """Its row is deleted only after the broker's answer, so a death between the two repeats it."""
    reader = client(broker.url, "reader", UP).ready()
    assert spawn("sender", 1, "sent").wait(30) == -9
    assert spawn("sender", 1).wait(30) == 0
    wait(lambda: len(reader.got) == 2)
    assert {number(inbound) for inbound in reader.got} == {0}


@pytest.mark.parametrize("death", ["commit", "ack"])
def test_message_is_handled_after_a_death_before_commit_or_acknowledgement(
    client: Make, broker: Any, wait: Make, spawn: Spawn, tmp_path: Path, death: str
) -> None:
    """Before the commit nothing was acknowledged and the broker delivers again; after it the row is there."""
    first = spawn("receiver", 1, death)
    writer = client(broker.url, "writer").ready()
    end = time.monotonic() + 30
    while first.poll() is None and time.monotonic() < end:  # until the receiver has subscribed
        writer.send("blindsum/1/f1/up/00/d1/x", b"the one")
        time.sleep(0.05)
    assert first.wait(30) == -9
    assert spawn("receiver", 1).wait(30) == 0
    store = SqliteStore(tmp_path / "receiver.sqlite")
    assert [key for key, _ in store.scan("got/")] == [f"got/{b'the one'.hex()}"]
    store.close()


def test_every_number_arrives_though_the_sender_is_killed_again_and_again(
    broker: Any, client: Make, wait: Make, spawn: Spawn
) -> None:
    total = 150
    reader = client(broker.url, "reader", UP).ready()
    for _ in range(4):
        seen = len(reader.got)
        sender = spawn("sender", total)
        wait(lambda seen=seen: len(reader.got) > seen + 20)
        sender.kill()
        sender.wait()
    assert spawn("sender", total).wait(60) == 0
    wait(lambda: {number(inbound) for inbound in reader.got} == set(range(total)))


def test_sender_goes_on_by_itself_after_the_broker_was_killed(
    broker: Any, client: Make, wait: Make, spawn: Spawn
) -> None:
    """What the broker had acknowledged and not delivered died with it: that is what receipts are for."""
    reader = client(broker.url, "reader", UP).ready()
    spawn("sender", 1_000_000)
    wait(lambda: len(reader.got) > 20)
    broker.kill()
    seen = max(number(inbound) for inbound in reader.got)
    broker.start()
    wait(lambda: max(number(inbound) for inbound in reader.got) > seen + 20)
