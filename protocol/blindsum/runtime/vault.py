"""Secrets at rest, sealed under a key that is not on the same disk: rows of a device's database and files of its kit.

ChaCha20-Poly1305 under HKDF-SHA-256 of the owner's secret, a random nonce each, the row's or file's name as associated data, so
that what is sealed under one name opens under no other. Rows under "blob/" stay as they are: they hold what goes over the wire.
A TLS key, which OpenSSL reads by itself, becomes an encrypted PKCS #8 file instead.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.machines.step import Outgoing, Write
from blindsum.runtime.sqlite import WIRE_PREFIX, SqliteStore
from blindsum.runtime.system import random_bytes

__all__ = ["SECRET_SIZE_MIN", "SealedStore", "Vault", "open_store", "unseal"]

SECRET_SIZE_MIN: Final = 16
MAGIC: Final = b"bsSEAL\x01\n"
NONCE_SIZE: Final = 12
CHECK: Final = "vault"
"""The row by which a sealed database is known."""


class Vault:
    """Seals and opens under `secret`, of at least 16 random bytes. Raises BlindsumError "secret-unusable"."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) < SECRET_SIZE_MIN:
            raise BlindsumError("secret-unusable", f"{len(secret)} bytes; at least {SECRET_SIZE_MIN} are needed")
        self._secret = secret
        self._cipher = ChaCha20Poly1305(self._derive(b"blindsum/1 at rest"))

    def __repr__(self) -> str:
        return "Vault()"

    def __reduce__(self) -> Any:
        raise TypeError("a vault stays in its process")

    def seal(self, name: str, data: bytes) -> bytes:
        nonce = random_bytes(NONCE_SIZE)
        return MAGIC + nonce + self._cipher.encrypt(nonce, data, name.encode())

    def open(self, name: str, data: bytes) -> bytes:
        """Raises BlindsumError "secret-wrong": another secret, another name, or altered bytes."""
        start = len(MAGIC)
        nonce, sealed = data[start : start + NONCE_SIZE], data[start + NONCE_SIZE :]
        try:
            if not data.startswith(MAGIC):
                raise ValueError
            return self._cipher.decrypt(nonce, sealed, name.encode())
        except (InvalidTag, ValueError):
            raise BlindsumError("secret-wrong", name) from None

    def password(self, name: str) -> bytes:
        """What a file that another library opens is encrypted with."""
        return self._derive(b"blindsum/1 password " + name.encode()).hex().encode()

    def protect(self, path: Path) -> None:
        """Seal the file at `path`, unless it is sealed already. What was there is overwritten, as far as the disk does that."""
        data = path.read_bytes()
        if not data.startswith(MAGIC):
            _replace(path, self.seal(path.name, data))

    def protect_key(self, path: Path) -> None:
        """Encrypt the PEM key at `path`, unless it is encrypted already."""
        data = path.read_bytes()
        if b"BEGIN ENCRYPTED" in data:
            return
        key = serialization.load_pem_private_key(data, None)
        encryption = serialization.BestAvailableEncryption(self.password(path.name))
        _replace(path, key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))

    def _derive(self, info: bytes) -> bytes:
        return HKDF(SHA256(), 32, None, info).derive(self._secret)


def unseal(path: Path, data: bytes, vault: Vault | None) -> bytes:
    """The content of a kit's file, sealed or not. Raises BlindsumError "secret-missing" or "secret-wrong"."""
    if not data.startswith(MAGIC):
        return data
    if vault is None:
        raise BlindsumError("secret-missing", str(path))
    return vault.open(path.name, data)


class SealedStore(SqliteStore):
    """A store whose rows are sealed. One that was not until now is, row by row, in one transaction."""

    def __init__(self, path: Path | str, vault: Vault, *, owner: str = "") -> None:
        super().__init__(path, owner=owner)
        self._vault = vault
        try:
            check = super().get(CHECK)
            if check is not None:
                vault.open(CHECK, check)
            else:
                rows = [Write(key, value) for key, value in super().scan("") if not key.startswith(WIRE_PREFIX)]
                self.commit([*rows, Write(CHECK, b"")])
        except BaseException:
            self.close()
            raise

    def get(self, key: str) -> bytes | None:
        value = super().get(key)
        return value if value is None or key.startswith(WIRE_PREFIX) else self._vault.open(key, value)

    def scan(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        for key, value in super().scan(prefix):
            if key != CHECK:
                yield key, value if key.startswith(WIRE_PREFIX) else self._vault.open(key, value)

    def stage(self, writes: Iterable[Write], messages: Iterable[Outgoing]) -> None:
        super().stage((self._sealed(write) for write in writes), messages)

    def _sealed(self, write: Write) -> Write:
        if write.value is None or write.key.startswith(WIRE_PREFIX):
            return write
        return Write(write.key, self._vault.seal(write.key, write.value))


def open_store(path: Path, vault: Vault | None, *, owner: str = "") -> SqliteStore:
    """The store of `owner` at `path`, sealed where there is a vault. Raises what `SqliteStore` does, and "secret-missing" or
    "secret-wrong"."""
    if vault is not None:
        return SealedStore(path, vault, owner=owner)
    store = SqliteStore(path, owner=owner)
    if store.get(CHECK) is not None:
        store.close()
        raise BlindsumError("secret-missing", str(path))
    return store


def _replace(path: Path, data: bytes) -> None:
    """Whole or not at all; the old bytes are overwritten after that."""
    partial = path.with_name(path.name + ".partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file, path.open("r+b") as old:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        partial.replace(path)
        old.write(bytes(os.fstat(old.fileno()).st_size))
        old.flush()
        os.fsync(old.fileno())
