"""A kit: the folder with which one role runs — settings, its own keys, and the trust bundle of its fleet."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from blindsum.protocol.codec import DecodeError
from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.keys import BROADCAST_KEY_SIZE, certificate_fault, public_of
from blindsum.protocol.machines.device import DeviceIdentity
from blindsum.protocol.machines.keybook import read_key_file
from blindsum.protocol.messages import KeyStep
from blindsum.protocol.partykeys import keys_of
from blindsum.protocol.trust import Trust
from blindsum.runtime.endpoint import Credentials, Endpoint, Tls, Will
from blindsum.runtime.mqtt import MqttLink
from blindsum.runtime.proxy import Proxy
from blindsum.runtime.settings import Settings
from blindsum.runtime.topics import Topics
from blindsum.runtime.vault import Vault, unseal

__all__ = [
    "NEXT_KEY_FILE",
    "PARTY_KEYS_FILE",
    "BrokerSettings",
    "DeviceSettings",
    "load_broadcast_key",
    "load_identity",
    "load_key",
    "load_party_keys",
    "load_trust",
    "make_link",
    "protect_kit",
    "read_file",
    "save_key",
    "settle_key",
    "write_private",
    "write_whole",
]

FILE_SIZE_MAX = 1 << 30
PARTY_KEYS_FILE = "parties.cbor"
NEXT_KEY_FILE = "key-next.pem"
"""A party's new key, until the steps to it are written."""


class BrokerSettings(Settings, frozen=True):
    """Where the broker is and how it lets this role in. Paths are relative to the kit. Without `ca`, a broker with TLS is
    believed where the system's CAs vouch for it."""

    url: str
    ca: str = ""
    certificate: str = ""
    key: str = ""
    user: str = ""
    password_file: str = ""
    proxy: str = ""
    """http:// or socks5:// [user[:password]@]host[:port], where the way to the broker leads through one."""


class DeviceSettings(Settings, frozen=True):
    """`device.toml` of a device's kit."""

    fleet: str
    device: str
    broker: BrokerSettings


def read_file(path: Path) -> bytes:
    """Raises BlindsumError "kit-incomplete"."""
    try:
        if path.stat().st_size > FILE_SIZE_MAX:
            raise BlindsumError("kit-incomplete", f"{path} is larger than {FILE_SIZE_MAX} bytes")
        return path.read_bytes()
    except OSError as error:
        raise BlindsumError("kit-incomplete", f"{path}: {error.strerror}") from None


def write_private(path: Path, data: bytes) -> None:
    """Write a file that only its owner may read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)


def write_whole(path: Path, data: bytes) -> None:
    """Replace a public file, so that who reads it meanwhile finds the old or the new one, and neither is lost with the power."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def load_trust(kit: Path) -> Trust:
    """`trust.cbor` of a kit. Raises BlindsumError "kit-incomplete"."""
    try:
        return Trust.decode(read_file(kit / "trust.cbor"))
    except DecodeError as error:
        raise BlindsumError("kit-incomplete", f"{kit / 'trust.cbor'}: {error}") from None


def load_key(path: Path, vault: Vault | None = None) -> Ed25519PrivateKey:
    """An Ed25519 key in PKCS #8 PEM. Raises BlindsumError "kit-incomplete", "secret-missing" or "secret-wrong"."""
    try:
        key = serialization.load_pem_private_key(unseal(path, read_file(path), vault), None)
    except (ValueError, TypeError) as error:
        raise BlindsumError("kit-incomplete", f"{path}: {error}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise BlindsumError("kit-incomplete", f"{path} is not an Ed25519 key")
    return key


def save_key(path: Path, key: Ed25519PrivateKey) -> None:
    """Write a key as PKCS #8 PEM, readable by its owner only."""
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write_private(path, pem)


def load_broadcast_key(kit: Path, vault: Vault | None = None) -> bytes:
    """`broadcast.key` of a kit: what the coordinator seals models and sums with, so that the broker cannot read them."""
    path = kit / "broadcast.key"
    key = unseal(path, read_file(path), vault)
    if len(key) != BROADCAST_KEY_SIZE:
        raise BlindsumError("kit-incomplete", f"{kit / 'broadcast.key'} has {len(key)} bytes, not {BROADCAST_KEY_SIZE}")
    return key


def load_party_keys(kit: Path, trust: Trust) -> dict[int, list[KeyStep]]:
    """`parties.cbor` of a kit: by party, the steps from its pinned key to a later one; nothing where no key has changed. Raises
    BlindsumError "party-keys-invalid"."""
    path = kit / PARTY_KEYS_FILE
    return read_key_file(read_file(path), trust) if path.exists() else {}


def settle_key(kit: Path, trust: Trust, party: int) -> None:
    """Finish, or undo, a change of a party's key that was interrupted: the new key counts once the steps lead to it. The old one is
    overwritten, as far as the disk does that."""
    fresh, path = kit / NEXT_KEY_FILE, kit / "key.pem"
    if not fresh.exists():
        return
    keys = keys_of(trust, party, load_party_keys(kit, trust).get(party, []))
    if public_of(load_key(fresh)) != keys[-1]:
        fresh.unlink()
        return
    if not path.exists():
        fresh.replace(path)
        return
    with path.open("r+b") as old:
        fresh.replace(path)
        old.write(bytes(os.fstat(old.fileno()).st_size))
        old.flush()
        os.fsync(old.fileno())


def load_identity(kit: Path, trust: Trust, vault: Vault | None = None) -> DeviceIdentity:
    """`certificate.der` and `key.pem` of a device kit, checked against each other and the fleet's CA, not against the clock: it may
    be wrong, and be set while the device runs."""
    certificate, key = read_file(kit / "certificate.der"), load_key(kit / "key.pem", vault)
    fault, name, public = certificate_fault(certificate, ca=trust.ca, now=None)
    if fault:
        raise BlindsumError("kit-certificate", f"{kit / 'certificate.der'}: {fault}")
    if public != public_of(key):
        raise BlindsumError("kit-incomplete", f"{kit}: certificate and key do not belong together")
    return DeviceIdentity(name, certificate, key)


def protect_kit(kit: Path, broker: BrokerSettings, vault: Vault) -> None:
    """Seal the secrets of a kit, those that are not yet. Raises BlindsumError "kit-incomplete"."""
    try:
        for name in ("key.pem", "broadcast.key", broker.password_file):
            if name:
                vault.protect(kit / name)
        if broker.key:
            vault.protect_key(kit / broker.key)
    except (OSError, ValueError) as error:
        raise BlindsumError("kit-incomplete", f"{kit}: {error}") from None


def make_link(kit: Path, broker: BrokerSettings, topics: Topics, vault: Vault | None = None) -> MqttLink:
    """The link of a role to its broker, with presence as last will."""
    tls = None
    if Endpoint.parse(broker.url).secure or broker.ca:
        certificate = kit / broker.certificate if broker.certificate else None
        key = kit / broker.key if broker.key else None
        password = vault.password(broker.key) if vault is not None and broker.key else b""
        tls = Tls(kit / broker.ca if broker.ca else None, certificate, key, password)
    credentials = None
    if broker.user:
        path = kit / broker.password_file
        word = unseal(path, read_file(path), vault).decode().strip() if broker.password_file else ""
        credentials = Credentials(broker.user, word)
    proxy = Proxy.parse(broker.proxy) if broker.proxy else None
    will = Will(topics.presence)
    return MqttLink(broker.url, topics.principal.user, will=will, credentials=credentials, tls=tls, proxy=proxy)
