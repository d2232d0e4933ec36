"""The devices of a round: joins, the roster they make, and the graph that it fixes (SPEC.md section 5.3)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from blindsum.protocol.codec import DecodeError, decode, encode
from blindsum.protocol.envelope import is_name
from blindsum.protocol.errors import Refused
from blindsum.protocol.graph import Graph, adjacency, degree_for
from blindsum.protocol.keys import certificate_fault, digest, key_usable
from blindsum.protocol.memo import shared
from blindsum.protocol.messages import MESSAGES, Join, RosterProposal
from blindsum.protocol.params import survivors_min
from blindsum.protocol.revocation import certificate_serial
from blindsum.protocol.view import RoundView, TaskView, count_votes, expect, open_message, payload_of

__all__ = [
    "Joins",
    "RosterView",
    "beacon_commitment",
    "joins_size_max",
    "open_join",
    "open_joins",
    "open_roster",
    "open_roster_announcement",
    "pack_joins",
    "pack_survivors",
    "read_survivors",
    "survivors_size_max",
]

JOINS_SHARED_MAX = 16_384
"""Joins that a process which plays a whole fleet reads once, though coordinator and parties all have to."""
LIST_OVERHEAD: Final = 16
SURVIVOR_SIZE_MAX: Final = 48
"""Bytes that [index, digest] takes in a survivor list, and more."""
JOIN_OVERHEAD: Final = 8


@dataclass(frozen=True)
class RosterView:
    """The devices of a round by index, and what the roster hash fixes: graph and least survivor set."""

    digest: bytes
    devices: Sequence[str]
    keys: tuple[bytes, ...] = field(repr=False)
    survivors_min: int
    degree: int

    @property
    def size(self) -> int:
        return len(self.devices)

    @property
    def capacity(self) -> int:
        """How many devices may upload."""
        return self.size

    def place(self, index: int) -> tuple[bytes, int]:
        """What binds the keys of a device to it: (roster hash, index)."""
        return self.digest, index

    def in_order(self, indices: Sequence[int]) -> list[int]:
        """`indices` in the order of device ids."""
        return sorted(indices)

    @cached_property
    def graph(self) -> Graph:
        return adjacency(self.size, self.degree, self.digest)

    def index_of(self, device: str) -> int | None:
        """The index of a device, None where it is not in the roster."""
        place = bisect_left(self.devices, device)
        return place if self.devices[place : place + 1] == (device,) else None

    def neighbours(self, index: int) -> tuple[int, ...]:
        return self.graph.neighbours(index)


@shared(JOINS_SHARED_MAX, lambda view, raw: (raw, view.digest))
def open_join(view: RoundView, raw: bytes) -> tuple[str, bytes, Join, bytes] | Refused:
    """(device, identity key, join, digest) of a genuine join to this round: certificate of the fleet CA, signature by its key.
    The certificate must be valid when the manifest was issued: one moment for all, so that all come to one verdict."""
    opened = open_message(view.trust, raw)
    if isinstance(opened, Refused):
        return opened
    head = opened.head
    if (head.type, head.task, head.round) != ("join", view.name, view.number):
        return Refused("message-misplaced", detail=head.type)
    join = payload_of(opened, Join)
    if isinstance(join, Refused):
        return join
    fault, device, key = certificate_fault(join.certificate, ca=view.trust.ca, now=view.manifest.issued_at)
    if fault:
        return Refused(fault, detail=device)
    if head.sender != f"device/{device}" or not opened.valid(key):
        return Refused("signature-invalid", detail=head.sender)
    if join.manifest != view.digest:
        return Refused("manifest-differs", head.sender)
    if not key_usable(join.key):
        return Refused("join-malformed", head.sender, "a key of small order")
    return device, key, join, opened.digest


@dataclass(frozen=True, slots=True)
class Joins:
    """The joins of a roster in the order of device id: names, Ed25519 identity keys, and the encoded entries they give."""

    devices: tuple[str, ...]
    identities: tuple[bytes, ...]
    entries: bytes


def joins_size_max(base: TaskView) -> int:
    """Bytes that the joins of a round of this task may take."""
    return LIST_OVERHEAD + base.task.devices_max * (MESSAGES["join"][2] + JOIN_OVERHEAD)


def pack_joins(raws: dict[str, bytes]) -> bytes:
    """The list that a roster proposal refers to, of signed joins by device id."""
    return encode([raws[device] for device in sorted(raws)])


@shared(2, lambda view, data, revoked=frozenset(): (data, view.digest, revoked))
def open_joins(view: RoundView, data: bytes, revoked: frozenset[int] = frozenset()) -> Joins | Refused:
    """Verify every join of a packed list: certificate, signature, this manifest, distinct devices in order, usable keys, and no
    serial of `revoked`."""
    try:
        raws = decode(data)
    except DecodeError:
        raws = None
    if not isinstance(raws, list) or not view.task.devices_min <= len(raws) <= view.task.devices_max:
        return Refused("roster-malformed", "coordinator", "not devices_min..devices_max joins")
    devices, identities, entries = [], [], []
    for raw in raws:
        opened = open_join(view, raw) if isinstance(raw, bytes) else Refused("message-malformed")
        if isinstance(opened, Refused):
            return Refused("roster-malformed", "coordinator", f"a join: {opened.code}")
        device, identity, join, _ = opened
        if revoked and certificate_serial(join.certificate) in revoked:
            # no fault of anybody: the coordinator may not have the list yet
            return Refused("certificate-revoked", detail=device)
        devices.append(device)
        identities.append(identity)
        entries.append([device, join.key])
    if devices != sorted(set(devices)):
        return Refused("roster-malformed", "coordinator", "devices are not distinct and in order")
    return Joins(tuple(devices), tuple(identities), encode(entries))


def roster_digest(proposal: bytes, beacons: dict[int, bytes]) -> bytes:
    """The roster hash: the voted proposal's digest and the beacons revealed with the votes. It seeds the graph."""
    return digest("roster", proposal, [[party, beacons[party]] for party in sorted(beacons)])


@shared(2, lambda view, entries, roster: (roster, view.digest))
def open_roster(view: RoundView, entries: bytes, roster: bytes) -> RosterView | Refused:
    """The roster view of `entries` (whose blob a quorum voted for) under the roster hash `roster`."""
    try:
        value = decode(entries)
    except DecodeError:
        return Refused("roster-malformed", "coordinator")
    if not isinstance(value, list) or not view.task.devices_min <= len(value) <= view.task.devices_max:
        return Refused("roster-malformed", "coordinator", "size outside devices_min..devices_max")
    for entry in value:
        if not (
            isinstance(entry, list)
            and len(entry) == 2
            and isinstance(entry[0], str)
            and is_name(entry[0])
            and isinstance(entry[1], bytes)
            and len(entry[1]) == 32
        ):
            return Refused("roster-malformed", "coordinator")
    devices = tuple(entry[0] for entry in value)
    keys = tuple(entry[1] for entry in value)
    if list(devices) != sorted(set(devices)):
        return Refused("roster-malformed", "coordinator", "devices are not distinct and in order")
    threat = view.base.threat
    size = len(devices)
    degree = degree_for(size, threat.corrupt_permille, threat.dropped_permille)
    return RosterView(roster, devices, keys, survivors_min(size, threat), degree)


@shared(8, lambda view, proposal_raw, vote_raws: (proposal_raw, tuple(vote_raws), view.digest))
def open_roster_announcement(
    view: RoundView, proposal_raw: bytes, vote_raws: Sequence[bytes]
) -> tuple[RosterProposal, bytes, bytes] | Refused:
    """(proposal, its digest, roster hash) where a quorum of members voted for it and revealed the beacons they committed to."""
    opened = expect(view.trust, proposal_raw, "roster-proposal", RosterProposal, task=view.name, number=view.number)
    if isinstance(opened, Refused):
        return opened
    signed, proposal = opened
    if proposal.manifest != view.digest or not (proposal.entries.sound and proposal.joins.sound):
        return Refused("manifest-differs", "coordinator")
    votes = count_votes(view, vote_raws, decides="roster", digest=signed.digest)
    beacons: dict[int, bytes] = {}
    for party, (_, vote) in votes.items():
        member = view.member(party)
        assert member is not None
        if beacon_commitment(vote.beacon, view.name, view.number, party) != member.beacon_commitment:
            return Refused("beacon-differs", f"party/{party}")
        beacons[party] = vote.beacon
    if len(beacons) < view.base.committee.quorum or len(votes) != len(vote_raws):
        return Refused("votes-too-few", "coordinator", f"{len(beacons)} roster votes")
    return proposal, signed.digest, roster_digest(signed.digest, beacons)


def beacon_commitment(beacon: bytes, task: str, number: int, party: int) -> bytes:
    return digest("beacon", task, number, party, beacon)


# -- survivor sets ----------------------------------------------------------------------------------------------------


def pack_survivors(headers: dict[int, bytes]) -> bytes:
    """The list that candidates and proposals refer to: [index, header digest] in index order."""
    return encode([[index, headers[index]] for index in sorted(headers)])


def survivors_size_max(size: int) -> int:
    """Bytes that a survivor list of a roster of `size` devices may take."""
    return LIST_OVERHEAD + size * SURVIVOR_SIZE_MAX


@shared(2, lambda data, size: (data, size))
def read_survivors(data: bytes, size: int) -> dict[int, bytes] | Refused:
    """The header digest by index of a packed survivor set of a roster of `size` devices."""
    try:
        value = decode(data)
    except DecodeError:
        value = None
    if not isinstance(value, list) or len(value) > size:
        return Refused("survivors-malformed", "coordinator")
    out: dict[int, bytes] = {}
    last = -1
    for item in value:
        if not (
            isinstance(item, list)
            and len(item) == 2
            and type(item[0]) is int
            and last < item[0] < size
            and isinstance(item[1], bytes)
            and len(item[1]) == 32
        ):
            return Refused("survivors-malformed", "coordinator")
        last = item[0]
        out[last] = item[1]
    return out
