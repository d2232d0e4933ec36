"""Opening a round: offers of the parties, the manifest, votes, and what devices are shown (SPEC.md section 5.2)."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from blindsum.protocol.keys import BOX_PUBLIC_SIZE
from blindsum.protocol.messages.common import PARTIES_MAX, BlobRef, Bytes32, KeySteps, Millis, Payload, Raw

__all__ = ["Announcement", "Manifest", "Offer", "OfferRequest", "Vote"]


class OfferRequest(Payload, frozen=True):
    """Coordinator to parties: a round of this task is about to be proposed."""

    task: Raw


class Offer(Payload, frozen=True):
    """A party takes part: a box key that lives for this round only, a commitment to its beacon, and the last result it has
    recomputed (zeros before the first). `keys`: the steps from the key that the trust bundle has of it to that of its signature."""

    box_key: Annotated[bytes, Meta(min_length=BOX_PUBLIC_SIZE, max_length=BOX_PUBLIC_SIZE)]
    beacon_commitment: Bytes32
    chain: Bytes32
    keys: KeySteps


class Manifest(Payload, frozen=True):
    """What a round is. Its digest enters every key of the round. `previous` is the digest of the last result (zeros: none),
    `state` the id of the blob of what the task's algorithm keeps beside the model."""

    task: Bytes32
    previous: Bytes32
    model: BlobRef
    state: Bytes32
    offers: Annotated[list[Raw], Meta(max_length=PARTIES_MAX)]
    rotation: Annotated[bytes, Meta(max_length=16)]
    issued_at: Millis
    join_until: Millis
    upload_until: Millis
    expires_at: Millis


class Vote(Payload, frozen=True):
    """A party's one answer to one question of a round. A roster vote also reveals the party's beacon (else empty)."""

    decides: Literal["manifest", "roster", "set"]
    digest: Bytes32
    beacon: Annotated[bytes, Meta(max_length=32)]


class Announcement(Payload, frozen=True):
    """The manifest with its task and a quorum of votes: all that a device needs to decide whether to join."""

    task: Raw
    manifest: Raw
    votes: Annotated[list[Raw], Meta(max_length=PARTIES_MAX)]
