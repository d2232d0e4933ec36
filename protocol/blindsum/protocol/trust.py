"""Whom a process trusts: the public keys that every kit pins (SPEC.md section 4.1)."""

from __future__ import annotations

from dataclasses import dataclass, replace

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
    followed: tuple[tuple[int, tuple[bytes, ...]], ...] = ()
    """Of parties that have changed their key: every one from the pinned one to the current one. No part of the bundle."""

    @property
    def digest(self) -> bytes:
        """Bound into every task, so that all roles of a task mean the same organisations."""
        return digest(
            "trust", self.fleet, self.ca, self.operator, self.coordinator, self.coordinator_box, list(self.parties)
        )

    def owner(self, principal: str) -> str:
        """What a database of "coordinator", "party/<n>" or "device/<id>" of this fleet is known by."""
        return f"{principal} of {self.fleet} {self.digest.hex()[:16]}"

    def key_of(self, principal: str) -> bytes | None:
        """The signing key of "operator", "coordinator" or "party/<n>"; None for anybody else."""
        if principal == "operator":
            return self.operator
        if principal == "coordinator":
            return self.coordinator
        number = party_number(principal)
        changed = dict(self.followed).get(number)
        return changed[-1] if changed else self.pinned(number)

    def pinned(self, party: int) -> bytes | None:
        """The key that the bundle has of a party."""
        return self.parties[party - 1] if 1 <= party <= len(self.parties) else None

    def retired(self, principal: str) -> tuple[bytes, ...]:
        """The keys that a party signed with before."""
        return dict(self.followed).get(party_number(principal), ())[:-1]

    def after(self, party: int, keys: tuple[bytes, ...]) -> Trust:
        """The bundle by which a party has changed its key, through `keys`, from the pinned one on."""
        others = {number: held for number, held in self.followed if number != party}
        changed = others | ({party: keys} if len(keys) > 1 else {})
        return replace(self, followed=tuple(sorted(changed.items())))

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
