"""Closing a round: survivor set, votes, openings, result (SPEC.md section 5.5)."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from blindsum.protocol.messages.common import DEVICES_MAX, PARTIES_MAX, BlobRef, Bytes32, Payload, Raw

__all__ = ["Candidate", "Certificate", "Check", "Failure", "Opening", "OpeningContent", "Proposal", "Result", "Want"]

Index = Annotated[int, Meta(ge=0, lt=DEVICES_MAX)]
Subset = Annotated[int, Meta(ge=0, lt=512)]
Code = Annotated[str, Meta(max_length=64)]


class Candidate(Payload, frozen=True):
    """Coordinator to parties: these uploads are complete. `survivors` is the list of [index, header digest] in index order."""

    roster: Bytes32
    survivors: BlobRef


class Check(Payload, frozen=True):
    """A party's complaints about a candidate, made before any vote: headers it lacks, headers it refuses and why."""

    survivors: Bytes32
    missing: Annotated[list[Index], Meta(max_length=DEVICES_MAX)]
    bad: Annotated[list[tuple[Index, Code]], Meta(max_length=DEVICES_MAX)]


class Proposal(Payload, frozen=True):
    """The survivor set to be voted on, once, by each party."""

    roster: Bytes32
    survivors: BlobRef


class Certificate(Payload, frozen=True):
    """A proposal with a quorum of votes: the only thing that makes a party open."""

    proposal: Raw
    votes: Annotated[list[Raw], Meta(max_length=PARTIES_MAX)]


class Opening(Payload, frozen=True):
    """A party opens the certified set: `content` is an HPKE box for the coordinator, `plain` the SHA-256 of what is in it.
    Part 0 holds hashes, edge shares and the vectors it is designated for; later parts hold vectors asked for by `Want`."""

    proposal: Bytes32
    part: Annotated[int, Meta(ge=0, le=63)]
    content: BlobRef
    plain: Bytes32


class OpeningContent(Payload, frozen=True):
    """Inside the box. `hashes`: SHA-256 of every self-mask sum the party holds; `shares`: for each cap subset it holds, 32 bytes a
    dropped edge in (survivor, dropped) order; `vectors`: packed self-mask sums. First numbers are subset numbers."""

    hashes: Annotated[list[tuple[Subset, Bytes32]], Meta(max_length=512)]
    shares: bytes
    vectors: Annotated[list[tuple[Subset, bytes]], Meta(max_length=512)]


class Want(Payload, frozen=True):
    """Coordinator to a party: also send the self-mask sums of these subsets, whose designated party is silent."""

    proposal: Bytes32
    part: Annotated[int, Meta(ge=1, le=63)]
    subsets: Annotated[list[Subset], Meta(min_length=1, max_length=512)]


class Result(Payload, frozen=True):
    """The published outcome: the sum, the next model and state, and the digests of all that it was made from. `previous` and
    `rotation` are the manifest's, so that a party that was away can follow the chain of results."""

    previous: Bytes32
    rotation: Annotated[bytes, Meta(max_length=16)]
    manifest: Bytes32
    roster: Bytes32
    proposal: Bytes32
    count: Annotated[int, Meta(ge=1, le=DEVICES_MAX)]
    sum: BlobRef
    model: BlobRef
    state: Bytes32
    openings: Annotated[list[tuple[Annotated[int, Meta(ge=1, le=PARTIES_MAX)], Bytes32]], Meta(max_length=640)]


class Failure(Payload, frozen=True):
    """The round is dead and its number is never used again."""

    manifest: Bytes32
    code: Code
