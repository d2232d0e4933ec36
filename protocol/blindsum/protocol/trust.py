"""Whom a process trusts: the public keys that every kit pins (SPEC.md section 4.1)."""

from __future__ import annotations

from dataclasses import dataclass

from blindsum.protocol.codec import DecodeError, decode, encode
from blindsum.protocol.envelope import is_name
from blindsum.protocol.keys import BOX_PUBLIC_SIZE, CERTIFICATE_SIZE_MAX, digest
from blindsum.protocol.messages.common import PARTIES_MAX

__all__ = ["Trust"]


@dataclass(frozen=True, slots=True)
class Trust:
    """The fleet's roots. Keys are raw: Ed25519 32 bytes, box 1216 bytes; `ca` is a DER certificate; `parties[i]` is party i + 1."""

    fleet: str
    ca: bytes
    operator: bytes
    coordinator: bytes
    coordinator_box: bytes
    parties: tuple[bytes, ...]

    @property
    def digest(self) -> bytes:
        """Bound into every task, so that all roles of a task mean the same organisations."""
        return digest(
            "trust", self.fleet, self.ca, self.operator, self.coordinator, self.coordinator_box, list(self.parties)
        )

    def key_of(self, principal: str) -> bytes | None:
        """The signing key of "operator", "coordinator" or "party/<n>"; None for anybody else."""
        if principal == "operator":
            return self.operator
        if principal == "coordinator":
            return self.coordinator
        number = party_number(principal)
        return self.parties[number - 1] if number and number <= len(self.parties) else None

    def encode(self) -> bytes:
        return encode([self.fleet, self.ca, self.operator, self.coordinator, self.coordinator_box, list(self.parties)])

    @classmethod
    def decode(cls, data: bytes) -> Trust:
        """Raises `DecodeError`."""
        value = decode(data)
        if not (isinstance(value, list) and len(value) == 6 and isinstance(value[5], list)):
            raise DecodeError("not a trust bundle")
        fleet, ca, operator, coordinator, box, parties = value
        keys = [operator, coordinator, *parties]
        if not (
            isinstance(fleet, str)
            and is_name(fleet)
            and isinstance(ca, bytes)
            and len(ca) <= CERTIFICATE_SIZE_MAX
            and all(isinstance(key, bytes) and len(key) == 32 for key in keys)
            and isinstance(box, bytes)
            and len(box) == BOX_PUBLIC_SIZE
            and 1 <= len(parties) <= PARTIES_MAX
            and len(set(keys)) == len(keys)
        ):
            raise DecodeError("not a trust bundle")
        return cls(fleet, ca, operator, coordinator, box, tuple(parties))


def party_number(principal: str) -> int:
    """The n of "party/<n>" with 1 <= n <= PARTIES_MAX, or 0."""
    text = principal.removeprefix("party/")
    if principal.startswith("party/") and text.isascii() and text.isdigit() and str(int(text)) == text:
        return int(text) if 1 <= int(text) <= PARTIES_MAX else 0
    return 0
