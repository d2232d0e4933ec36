"""Where the secret comes from that a device's keys are sealed under: the app, or the operating system's keyring."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

from blindsum.protocol.errors import BlindsumError
from blindsum.runtime.system import random_bytes
from blindsum.runtime.vault import Vault

__all__ = ["Secret", "vault_of"]

SECRET_SIZE: Final = 32
SERVICE: Final = "blindsum"

Secret = bytes | Callable[[], bytes] | Literal["keyring"]
"""At least 16 random bytes, a function that gives them, or "keyring"."""


def vault_of(secret: Secret | None, *, fleet: str, device: str) -> Vault | None:
    """The vault, None without a secret. The keyring's is made at the first time. Raises BlindsumError "secret-unusable"."""
    if secret is None:
        return None
    if secret == "keyring":
        return Vault(_from_keyring(f"{fleet}/{device}"))
    try:
        found = secret() if callable(secret) else secret
    except Exception as error:
        raise BlindsumError("secret-unusable", f"the app's function raised {error!r}") from error
    if not isinstance(found, bytes):
        raise BlindsumError("secret-unusable", f"{type(found).__name__}, not bytes")
    return Vault(found)


def _from_keyring(user: str) -> bytes:
    try:
        import keyring

        found = keyring.get_password(SERVICE, user)
        if found is None:
            keyring.set_password(SERVICE, user, random_bytes(SECRET_SIZE).hex())
            found = keyring.get_password(SERVICE, user)
        return bytes.fromhex(found or "")
    except Exception as error:  # each keyring has errors of its own
        raise BlindsumError("secret-unusable", f"keyring: {error!r}") from error
