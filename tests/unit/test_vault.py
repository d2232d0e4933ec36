"""Secrets at rest: nothing of them is on the disk in clear, and only their secret opens them."""

from __future__ import annotations

import pickle
import secrets
from collections.abc import Iterator
from pathlib import Path

import keyring
import pytest
from cryptography.hazmat.primitives import serialization
from keyring.backend import KeyringBackend

from blindsum.backend.provision import create_fleet, enrol
from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.machines.step import Message, Write
from blindsum.runtime.kit import load_key
from blindsum.runtime.sqlite import SqliteStore
from blindsum.runtime.vault import SealedStore, Vault, open_store
from blindsum.sdk import Device, State

SECRET = bytes(range(32))
KEY = secrets.token_bytes(32)


def code_of(act: object) -> str:
    with pytest.raises(BlindsumError) as caught:
        act()  # type: ignore[operator]
    return caught.value.code


def on_disk(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_only_the_same_secret_and_name_open_what_was_sealed() -> None:
    sealed = Vault(SECRET).seal("a", KEY)
    assert Vault(SECRET).open("a", sealed) == KEY
    assert Vault(SECRET).seal("a", KEY) != sealed
    for vault, name, data in (
        (Vault(bytes(32)), "a", sealed),
        (Vault(SECRET), "b", sealed),
        (Vault(SECRET), "a", sealed[:-1] + bytes([sealed[-1] ^ 1])),
        (Vault(SECRET), "a", KEY),
        (Vault(SECRET), "a", b""),
    ):
        assert code_of(lambda vault=vault, name=name, data=data: vault.open(name, data)) == "secret-wrong"
    assert code_of(lambda: Vault(b"short")) == "secret-unusable"


def test_vault_shows_nothing_and_does_not_travel() -> None:
    assert SECRET.hex() not in repr(Vault(SECRET)) and repr(Vault(SECRET)) == "Vault()"
    with pytest.raises(TypeError):
        pickle.dumps(Vault(SECRET))


def test_rows_are_sealed_on_disk_and_read_back_whole(tmp_path: Path) -> None:
    store = SealedStore(tmp_path / "d.db", Vault(SECRET))
    store.commit(
        [Write("state/t", KEY), Write("blob/ab/000000", b"on the wire")], [Message("join", "coordinator", b"join")]
    )
    store.stage([Write("state/u", b"staged" + KEY)], [])
    assert store.get("state/u") == b"staged" + KEY
    store.rollback()
    store.close()
    assert KEY not in on_disk(tmp_path)
    again = SealedStore(tmp_path / "d.db", Vault(SECRET))
    assert list(again.scan("")) == [("blob/ab/000000", b"on the wire"), ("state/t", KEY)]
    assert again.get("state/none") is None
    assert [row.out.kind for row in again.outbox()] == ["join"]  # type: ignore[union-attr]
    again.commit([Write("state/t", None)])
    assert again.get("state/t") is None
    again.close()


def test_database_that_was_open_is_sealed_in_place(tmp_path: Path) -> None:
    plain = SqliteStore(tmp_path / "d.db")
    plain.commit([Write("state/t", KEY), Write("spent/t", b"7")])
    plain.close()
    assert KEY in on_disk(tmp_path)
    sealed = open_store(tmp_path / "d.db", Vault(SECRET))
    assert (sealed.get("state/t"), sealed.get("spent/t")) == (KEY, b"7")
    sealed.close()
    assert KEY not in on_disk(tmp_path)
    assert code_of(lambda: open_store(tmp_path / "d.db", None)) == "secret-missing"
    assert code_of(lambda: open_store(tmp_path / "d.db", Vault(bytes(32)))) == "secret-wrong"
    open_store(tmp_path / "d.db", Vault(SECRET)).close()  # none of these kept it


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    fleet = create_fleet(tmp_path / "fleet", fleet="f", malicious_parties=1, broker="mqtts://localhost:1")
    return enrol(fleet, ["phone"])[0]


def test_kit_and_database_of_a_device_hold_no_key_in_clear(kit: Path) -> None:
    private = load_key(kit / "key.pem").private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    broadcast, tls = (kit / "broadcast.key").read_bytes(), (kit / "tls-key.pem").read_bytes()
    body = private.splitlines()[1]
    assert body in on_disk(kit)
    for _ in range(2):  # sealing, and opening what is sealed
        with Device.open(kit, secret=SECRET) as device:
            assert device.state is State.CONNECTING
            device._life._store.commit([Write("state/x", KEY)])  # type: ignore[union-attr]
            device._life._store.commit([Write("state/x", None)])  # type: ignore[union-attr]
    found = on_disk(kit)
    assert not [secret for secret in (body, broadcast, tls.splitlines()[1], KEY) if secret in found]
    assert code_of(lambda: Device.open(kit)) == "secret-missing"
    assert code_of(lambda: Device.open(kit, secret=bytes(32))) == "secret-wrong"
    assert code_of(lambda: Device.open(kit, secret=lambda: 1 / 0)) == "secret-unusable"  # type: ignore[arg-type,return-value]
    assert Device.open(kit, secret=lambda: SECRET).name == "phone"


class InMemory(KeyringBackend):
    """A keyring that works on any machine."""

    priority = 1  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[tuple[str, str], str] = {}

    def get_password(self, service: str, username: str) -> str | None:
        return self.kept.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self.kept[service, username] = password


@pytest.fixture
def ring() -> Iterator[InMemory]:
    before, ring = keyring.get_keyring(), InMemory()
    keyring.set_keyring(ring)
    yield ring
    keyring.set_keyring(before)


def test_secret_of_the_systems_keyring_is_made_once_and_then_asked_for(kit: Path, ring: InMemory) -> None:
    for _ in range(2):
        assert Device.open(kit, secret="keyring").name == "phone"
    [(where, made)] = ring.kept.items()
    assert where == ("blindsum", "f/phone") and len(bytes.fromhex(made)) == 32
    ring.kept.clear()
    assert code_of(lambda: Device.open(kit, secret="keyring")) == "secret-wrong"
