"""The devices of a round without a roster, as their uploads arrive (SPEC.md section 5.8).

Nobody joins and nobody is told who else takes part: an upload brings its certificate along. Every role numbers the devices for
itself, in the order in which it first sees them; on the wire they go by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from msgspec import UNSET
from msgspec.structs import replace

from blindsum.protocol.codec import DecodeError, decode, encode
from blindsum.protocol.envelope import Signed, is_name
from blindsum.protocol.errors import Refused
from blindsum.protocol.keys import certificate_fault, digest
from blindsum.protocol.memo import shared
from blindsum.protocol.messages import Header
from blindsum.protocol.params import arrivals_min
from blindsum.protocol.revocation import certificate_serial
from blindsum.protocol.roster import LIST_OVERHEAD, RosterView, pack_survivors, read_survivors, survivors_size_max
from blindsum.protocol.view import RoundView, payload_of

__all__ = [
    "ARRIVALS_SPARE",
    "Arrival",
    "Arrivals",
    "Listed",
    "admit",
    "listed_size_max",
    "open_arrival",
    "pack_set",
    "read_names",
    "read_set",
]

ARRIVALS_SPARE: Final = 2
"""Uploads that a role looks at in a round, as a multiple of `devices_max`: some bodies never come."""
LISTED_SIZE_MAX: Final = 104
"""Bytes that [device, digest] takes in a survivor list, and more."""
_SHARED: Final = 64
"""Arrivals that are remembered: an upload reaches coordinator and parties within moments."""


@dataclass(frozen=True, eq=False)
class Arrivals(RosterView):
    """Whose uploads a role has seen in a round without a roster, by a number of its own."""

    devices: list[str]
    room: int
    manifest: bytes
    identities: list[bytes] = field(default_factory=list, repr=False)
    serials: list[int] = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)
    places: list[bytes] = field(default_factory=list, repr=False)

    @classmethod
    def of(cls, view: RoundView) -> Arrivals:
        """Nobody yet."""
        task = view.task
        least = arrivals_min(task.devices_min, task.devices_max, view.base.threat)
        return cls(digest("no-roster", view.digest), [], (), least, 0, task.devices_max, view.digest)

    @property
    def capacity(self) -> int:
        return self.room

    def place(self, index: int) -> tuple[bytes, int]:
        return self.places[index], 0

    def index_of(self, device: str) -> int | None:
        return self.numbers.get(device)

    def neighbours(self, index: int) -> tuple[int, ...]:
        return ()

    def in_order(self, indices: Sequence[int]) -> list[int]:
        return sorted(indices, key=lambda index: self.devices[index])

    def enter(self, device: str, identity: bytes, serial: int = 0) -> int:
        """The number of a device that is new here."""
        number = self.numbers[device] = len(self.devices)
        self.devices.append(device)
        self.places.append(_place(self.manifest, device))
        self.identities.append(identity)
        self.serials.append(serial)
        return number


@shared(_SHARED, lambda manifest, device: (manifest, device))
def _place(manifest: bytes, device: str) -> bytes:
    """What stands for a device in what is derived for it."""
    return digest("alone", manifest, device)


class Arrival(NamedTuple):
    """An upload's header with the device and key that its certificate names."""

    device: str
    identity: bytes
    serial: int
    header: Header


@shared(_SHARED, lambda view, signed: (signed.raw, view.digest))
def open_arrival(view: RoundView, signed: Signed) -> Arrival | Refused:
    """A genuine upload to this round: certificate of the fleet CA, valid when the manifest was issued, and signature by its key."""
    header = payload_of(signed, Header)
    if isinstance(header, Refused):
        return header
    if header.certificate is UNSET or header.index != 0:
        return Refused("header-malformed", detail=signed.head.sender)
    fault, device, identity = certificate_fault(header.certificate, ca=view.trust.ca, now=view.manifest.issued_at)
    if fault:
        return Refused(fault, detail=signed.head.sender)
    if signed.head.sender != f"device/{device}" or not signed.valid(identity):
        return Refused("signature-invalid", detail=signed.head.sender)
    return Arrival(device, identity, certificate_serial(header.certificate), header)


def admit(roster: Arrivals, arrival: Arrival) -> Header:
    """Number a device that is new here; its header under that number."""
    return replace(arrival.header, index=roster.enter(arrival.device, arrival.identity, arrival.serial))


# -- survivor sets ----------------------------------------------------------------------------------------------------


class Listed(NamedTuple):
    """A device in a survivor list. `number`: what complaints call it, its index in the roster or its place in the list; `here`:
    its index or number here, None where nothing of it has arrived."""

    number: int
    here: int | None
    device: str
    digest: bytes


def pack_set(roster: RosterView, headers: dict[int, bytes]) -> bytes:
    """The list that candidates and proposals refer to, of header digests by index: `pack_survivors`, or [device, digest] in
    the order of device id."""
    if not isinstance(roster, Arrivals):
        return pack_survivors(headers)
    return encode([[roster.devices[index], headers[index]] for index in roster.in_order(list(headers))])


def listed_size_max(roster: RosterView) -> int:
    """Bytes that a survivor list of this round may take."""
    if not isinstance(roster, Arrivals):
        return survivors_size_max(roster.size)
    return LIST_OVERHEAD + roster.capacity * LISTED_SIZE_MAX


def read_set(roster: RosterView, data: bytes) -> list[Listed] | Refused:
    """The devices of a packed survivor list."""
    if not isinstance(roster, Arrivals):
        survivors = read_survivors(data, roster.size)
        if isinstance(survivors, Refused):
            return survivors
        return [Listed(index, index, roster.devices[index], value) for index, value in survivors.items()]
    names = read_names(data, roster.capacity)
    if isinstance(names, Refused):
        return names
    return [Listed(number, roster.numbers.get(name), name, value) for number, (name, value) in enumerate(names)]


@shared(2, lambda data, most: (data, most))
def read_names(data: bytes, most: int) -> list[tuple[str, bytes]] | Refused:
    """(device, header digest) of a packed survivor list without a roster, `most` of them at most."""
    try:
        value = decode(data)
    except DecodeError:
        value = None
    if not isinstance(value, list) or len(value) > most:
        return Refused("survivors-malformed", "coordinator")
    out: list[tuple[str, bytes]] = []
    last = ""
    for item in value:
        if not (
            isinstance(item, list)
            and [type(part) for part in item] == [str, bytes]
            and last < item[0]
            and is_name(item[0])
            and len(item[1]) == 32
        ):
            return Refused("survivors-malformed", "coordinator")
        last = item[0]
        out.append((last, item[1]))
    return out
