"""Keys and certificates of a simulated fleet: all of them follow from its seed, so none of them is a secret."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from blindsum.protocol.envelope import Head, open_envelope, seal_envelope
from blindsum.protocol.keys import BOX_PRIVATE_SIZE, box_keypair, certificate_issue, public_of
from blindsum.protocol.machines.device import DeviceIdentity
from blindsum.protocol.messages import Payload
from blindsum.protocol.trust import Trust
from blindsum.testing.entropy import Entropy

__all__ = ["START", "Identities", "device_name", "device_number"]

START: Final = 1_767_225_600_000
"""Where virtual time starts, in ms: the first moment of 2026."""
FLEET: Final = "simulation"


@dataclass(frozen=True)
class Identities:
    """Everybody's keys of the fleet of `seed` with `parties` parties."""

    seed: int
    parties: int

    def __reduce__(self) -> tuple[type[Identities], tuple[int, int]]:
        return Identities, (self.seed, self.parties)

    @cached_property
    def ca(self) -> Ed25519PrivateKey:
        return self._key("ca")

    @cached_property
    def operator(self) -> Ed25519PrivateKey:
        return self._key("operator")

    @cached_property
    def coordinator(self) -> Ed25519PrivateKey:
        return self._key("coordinator")

    @cached_property
    def coordinator_box(self) -> tuple[bytes, bytes]:
        """(private, public)."""
        return box_keypair(Entropy(self.seed, "key/coordinator-box")(BOX_PRIVATE_SIZE))

    @cached_property
    def party_keys(self) -> tuple[Ed25519PrivateKey, ...]:
        return tuple(self._key(f"party/{number + 1}") for number in range(self.parties))

    @cached_property
    def trust(self) -> Trust:
        root = certificate_issue(
            name=FLEET,
            public=public_of(self.ca),
            issuer=FLEET,
            issuer_key=self.ca,
            serial=1,
            now=START,
            days=36500,
            ca=True,
        )
        return Trust(
            FLEET,
            root,
            public_of(self.operator),
            public_of(self.coordinator),
            self.coordinator_box[1],
            tuple(public_of(key) for key in self.party_keys),
        )

    def device(self, number: int) -> DeviceIdentity:
        """Device `number` (from 0), with a certificate of its own."""
        name = device_name(number)
        key = self._key(f"device/{name}")
        certificate = certificate_issue(
            name=name,
            public=public_of(key),
            issuer=FLEET,
            issuer_key=self.ca,
            serial=number + 2,
            now=START,
            days=36500,
        )
        return DeviceIdentity(name, certificate, key)

    def resign(self, raw: bytes, payload: Payload) -> bytes:
        """The message `raw` with another body, signed anew by the same sender: what byzantine roles do."""
        head: Head = open_envelope(raw).head
        role, _, name = head.sender.partition("/")
        keys = {"coordinator": self.coordinator, "operator": self.operator}
        key = keys.get(role) or (self.party_keys[int(name) - 1] if role == "party" else self._key(head.sender))
        return seal_envelope(key, head, payload)

    def _key(self, name: str) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(Entropy(self.seed, f"key/{name}")(32))


def device_name(number: int) -> str:
    return f"device-{number + 1:06d}"


def device_number(name: str) -> int:
    """The number of "device-<n>"."""
    return int(name.removeprefix("device-")) - 1
