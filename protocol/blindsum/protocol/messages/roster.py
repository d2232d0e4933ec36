"""Joining and the roster (SPEC.md section 5.3)."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from blindsum.protocol.keys import CERTIFICATE_SIZE_MAX
from blindsum.protocol.messages.common import PARTIES_MAX, BlobRef, Bytes32, Payload, Raw

__all__ = ["Join", "RosterAnnouncement", "RosterProposal"]


class Join(Payload, frozen=True):
    """A device wants to take part: its certificate and an X25519 key made for this round. No share leaves the device yet."""

    manifest: Bytes32
    certificate: Annotated[bytes, Meta(min_length=1, max_length=CERTIFICATE_SIZE_MAX)]
    key: Bytes32


class RosterProposal(Payload, frozen=True):
    """`joins` is the list of signed joins in the order of device id; `entries` the list of [device id, key] that they give."""

    manifest: Bytes32
    joins: BlobRef
    entries: BlobRef


class RosterAnnouncement(Payload, frozen=True):
    """The roster with a quorum of votes and the beacons they reveal. It fixes the graph."""

    proposal: Raw
    votes: Annotated[list[Raw], Meta(max_length=PARTIES_MAX)]
