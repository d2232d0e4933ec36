"""Junk without end, from outsiders and from an enrolled device: rounds stay exact and go on, and all of it is counted."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blindsum.backend.provision import enrol
from blindsum.protocol.codec import encode_chunk
from blindsum.protocol.messages import Ask
from blindsum.runtime.driver import INBOX_MAX, Driver
from blindsum.runtime.ports import Inbound, Token
from blindsum.runtime.sqlite import SqliteStore
from blindsum.runtime.topics import Principal, Topics
from blindsum.testing.world import World
from tests.e2e.storm import INTRUDER, Storm

ROUNDS = 6
STORM = range(2, 5)
"""Rounds after whose end the storm blows."""
GROWTH_MAX = 128 << 20
SENT_MIN = 100


def flooded(fleet: Any, storm: Storm, rate: float) -> None:
    """Run the fleet to its end with a storm in the middle."""
    sizes: list[int] = []

    def each(name: str, event: dict[str, Any]) -> None:
        if name == "coordinator" and event["event"] in ("round-finished", "round-failed"):
            storm.blow(rate if event["round"] in STORM else 0.0)
            pages = Path(f"/proc/{fleet.stack.pid('coordinator')}/statm")
            sizes.append(int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if pages.exists() else 0)

    fleet.start()
    fleet.watch(240.0, each)
    assert any(number - 1 in STORM for number in fleet.finished), (fleet.failed, fleet.refused)
    assert fleet.finished[-1] == ROUNDS, "nothing is held against anybody for long"
    fleet.judge()
    assert max(sizes) < sizes[0] + GROWTH_MAX
    assert storm.sent > SENT_MIN


def test_rounds_are_exact_under_a_flood_of_junk_from_outsiders(small_fleet: Callable[..., Any]) -> None:
    fleet = small_fleet(rounds=ROUNDS, join_s=20.0, upload_s=30.0)
    (kit,) = enrol(fleet.folder, [INTRUDER])
    storm = Storm(fleet.url, fleet.base.trust.fleet, kit, enrolled=False)
    try:
        flooded(fleet, storm, 500.0)
    finally:
        storm.stop()
    codes = {code for name, code in fleet.refused if name == "coordinator"}
    assert {"message-malformed", "message-misplaced", "round-stale", "chunk-unexpected"} <= codes
    assert "internal-error" not in codes


def test_device_whose_messages_are_genuine_and_useless_takes_up_its_own_share_and_no_more(
    small_fleet: Callable[..., Any], production_mosquitto: Callable[..., Any], free_port: int
) -> None:
    fleet = small_fleet(rounds=ROUNDS, url=f"mqtts://localhost:{free_port}", join_s=20.0, upload_s=30.0)
    (kit,) = enrol(fleet.folder, [INTRUDER])
    production_mosquitto(fleet.folder.broker / "mosquitto.conf")
    storm = Storm(fleet.url, fleet.base.trust.fleet, kit, enrolled=True)
    try:
        flooded(fleet, storm, 800.0)
    finally:
        storm.stop()
    codes = {code for name, code in fleet.refused if name == "coordinator"}
    assert {"manifest-differs", "sender-over-share"} & codes
    assert "internal-error" not in codes


class NoLink:
    """A link that nothing leaves by: what arrives is put in by hand."""

    room = 0
    named = False
    acked = 0

    def ack(self, *tokens: Token) -> None:
        self.acked += len(tokens)


@pytest.mark.parametrize("role", ["coordinator", "party"])
def test_every_message_of_a_flood_is_counted_and_none_reaches_the_store(role: str, tmp_path: Path) -> None:
    world = World(5, devices=4, faulty=["coordinator"], checkers=(), upload_ms=600_000)
    world.start()
    world.until("upload")
    world.settle(50)
    principal = Principal("coordinator", "coordinator") if role == "coordinator" else Principal("party", "1")
    machine = world.actors["coordinator" if role == "coordinator" else "party/1"].machine
    link, store = NoLink(), SqliteStore(tmp_path / "role.db")
    topics = Topics(world.fleet.trust.fleet, principal)
    driver = Driver(lambda: machine, store, link, topics, clock=lambda: world.now)  # type: ignore[arg-type]
    dice = random.Random(1)

    def header(number: int) -> bytes:
        payload = Ask(blob=dice.randbytes(32), have=b"", window=1)
        return world.fleet.forge("header", "device/d-0001", "all", payload, task="sum", number=number)

    def junk(kind: int) -> bytes:
        body = header(0)
        match kind:
            case 0:
                return dice.randbytes(500)
            case 1:
                at = dice.randrange(1, len(body))
                return body[:at] + bytes([body[at] ^ 1 << dice.randrange(8)]) + body[at + 1 :]
            case 2:
                return body[: dice.randrange(1, len(body))]
            case 3:
                return encode_chunk(dice.randbytes(32), 0, bytes(1000))
            case 4:
                return header(1)
        return body

    group = []
    for number in range(INBOX_MAX):
        whose = dice.choice(("d-0001", "d-0002"))
        topic = f"{topics.root}/up/00/{whose}/{dice.choice(('header', 'join', 'chunk'))}"
        group.append(Inbound(topic, junk(dice.randrange(6)), Token(1, number, 1)))
    driver._machine = machine
    driver._do_group(group)
    assert driver.refusals.total() == link.acked == INBOX_MAX
    assert {"message-malformed", "message-misplaced", "round-stale", "chunk-unexpected"} <= driver.refusals.keys()
    assert "internal-error" not in driver.refusals and not list(store.keys(""))
    assert len(store.outbox()) <= driver.refusals["upgrade-required"], "some are of another version, and told so"
    store.close()
