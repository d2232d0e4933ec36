"""Databases that a release of November 2026 left, killed in the middle of a round: schema 1, with its write-ahead logs.

`schema-1.tar.xz` is of commit c72cf22: a fleet of four parties and eight devices on an embedded broker, whose coordinator, first
party and devices were killed with SIGKILL in the upload phase of round 2. Its keys were never used for anything else.
"""

from __future__ import annotations

import sqlite3
import tarfile
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from blindsum.protocol.codec import decode
from blindsum.protocol.envelope import open_envelope
from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.keys import box_seal
from blindsum.protocol.machines.coordinator import CoordinatorMachine
from blindsum.protocol.machines.device import DeviceIdentity, DeviceMachine, Floor
from blindsum.protocol.machines.party import PartyFloor, PartyMachine
from blindsum.protocol.ring import zeros
from blindsum.runtime.driver import Driver
from blindsum.runtime.kit import load_broadcast_key, load_key, load_trust
from blindsum.runtime.mqtt import MqttLink
from blindsum.runtime.sqlite import SCHEMA_VERSION, SqliteStore
from blindsum.runtime.system import random_bytes
from blindsum.runtime.topics import Principal, Topics

TASK = "digits"
DATABASES = ("party-1/party.db", "coordinator/coordinator.db", "device-0/device.db")
NOBODY = "mqtt://127.0.0.1:1"


@pytest.fixture
def kits(tmp_path: Path) -> Path:
    with tarfile.open(Path(__file__).with_name("schema-1.tar.xz")) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def rows(path: Path) -> dict[str, bytes]:
    db = sqlite3.connect(path)
    found = dict(db.execute("SELECT key, value FROM kv UNION ALL SELECT key, value FROM wire").fetchall())
    db.close()
    return found


@pytest.mark.parametrize("name", DATABASES)
def test_database_of_schema_1_is_taken_over_with_every_row_and_holds_from_then_on(kits: Path, name: str) -> None:
    path = kits / name
    old = rows(path)
    assert len(old) >= 9
    store = SqliteStore(path, owner=name)
    assert {key: store.get(key) for key in store.keys("")} == old
    store.close()
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
    db.execute("UPDATE kv SET value = x'00' WHERE key = ?", (f"state/{TASK}",))
    db.commit()
    db.close()
    with pytest.raises(BlindsumError, match="database-corrupted"):
        SqliteStore(path)


@pytest.mark.parametrize("role", ["party", "coordinator"])
def test_role_goes_on_with_the_round_that_the_old_release_left(kits: Path, role: str) -> None:
    kit = kits / {"party": "party-1", "coordinator": "coordinator"}[role]
    trust, key = load_trust(kit), load_key(kit / "key.pem")
    principal = Principal("party", "1") if role == "party" else Principal("coordinator", "coordinator")
    state = decode(rows(kit / f"{role}.db")[f"state/{TASK}"])
    store = SqliteStore(kit / f"{role}.db", anchor=kit / "party.anchor" if role == "party" else None)

    def machine() -> CoordinatorMachine | PartyMachine:
        if role == "coordinator":
            box = (kit / "box.key").read_bytes()
            return CoordinatorMachine(key=key, box_private=box, trust=trust, store=store, random=random_bytes)
        return PartyMachine(
            number=1,
            key=key,
            trust=trust,
            store=store,
            random=random_bytes,
            seal=box_seal,
            floor=PartyFloor(),
            broadcast_key=load_broadcast_key(kit),
        )

    topics = Topics(trust.fleet, principal)
    since = state["phase_since"] if role == "coordinator" else state["since"]
    driver = Driver(machine, store, MqttLink(NOBODY, principal.user), topics, clock=lambda: since + 1)
    driver.start()
    try:
        due = driver.call(lambda running, now: running.deadline - now).result(60)
    finally:
        driver.stop()
        store.close()
    assert driver.failure is None and due > 0, "it waits for what the round still owes it"
    assert decode(rows(kit / f"{role}.db")[f"state/{TASK}"])["number"] == state["number"] == 2


def test_device_goes_on_with_the_training_that_the_old_release_left_in_one_row(kits: Path) -> None:
    path, trust = kits / "device-0" / "device.db", load_trust(kits / "party-1")
    old = decode(rows(path)[f"state/{TASK}"])
    name = open_envelope(old["join"]).head.sender.removeprefix("device/")
    store = SqliteStore(path)

    def machine() -> DeviceMachine:
        return DeviceMachine(
            identity=DeviceIdentity(name, b"shown when it joined", Ed25519PrivateKey.generate()),
            trust=trust,
            tasks=frozenset({TASK}),
            store=store,
            random=random_bytes,
            seal=box_seal,
            floor=Floor(),
            willing=lambda _view: "",
        )

    first = machine()
    view = first.view(TASK)
    assert first.phase(TASK) == "training" and view is not None and view.number == old["number"] == 2
    step = first.receive(old["roster"], view.manifest.issued_at)
    assert [event.name for event in step.events] == ["train"]
    store.commit(step.writes)
    kept = {key.removeprefix(f"message/{TASK}/"): value for key, value in store.scan("message/")}
    assert kept == {each: old[each] for each in ("announcement", "join", "roster")}
    again = machine()
    store.commit(again.upload(TASK, 2, zeros(view.base.segments), view.manifest.issued_at + 1).writes)
    small = {"number": 2, "phase": "uploading", "key": b"", "acknowledged": old["acknowledged"]}
    assert decode(store.get(f"state/{TASK}") or b"") == small
    header = store.get(f"message/{TASK}/header")
    assert header is not None and open_envelope(header).head.type == "header"
    store.commit(again.abandon("stopped").writes)
    assert not [*store.keys("state/"), *store.keys("message/")]
    store.close()
