"""What corrupt roles can sign and show to others: proposals, votes, certificates, manifests, rosters of their own making.

Everything here is well-formed and genuinely signed with the keys of the world's fleet; whether it is honest is the test's affair.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from blindsum.protocol.arrivals import pack_set
from blindsum.protocol.codec import convert, encode_chunk
from blindsum.protocol.envelope import open_envelope
from blindsum.protocol.machines.step import Message, Step
from blindsum.protocol.messages import (
    Announcement,
    Candidate,
    Certificate,
    Payload,
    Proposal,
    RosterAnnouncement,
    RosterProposal,
    Vote,
    Want,
    chunks_of,
)
from blindsum.protocol.roster import pack_joins
from blindsum.testing.world import World

P = TypeVar("P", bound=Payload)

__all__ = [
    "Forged",
    "altered",
    "announcement",
    "body_of",
    "candidate",
    "certificate",
    "hand",
    "manifest",
    "proposal",
    "roster",
    "roster_blobs",
    "roster_proposal",
    "said",
    "vote",
    "want_all",
]


@dataclass(frozen=True, slots=True)
class Forged:
    """A signed message and the chunks of the blobs that it refers to."""

    body: bytes = field(repr=False)
    chunks: tuple[bytes, ...] = field(default=(), repr=False)

    @property
    def digest(self) -> bytes:
        """What a vote for it names."""
        return open_envelope(self.body).digest


def hand(world: World, role: str, forged: Forged) -> Step:
    """Give a role the message, then the chunks it may be waiting for. Returns the step that answered, or the last one."""
    steps = [world.give(role, body) for body in (forged.body, *forged.chunks)]
    return next((step for step in steps if _answers(step)), steps[-1])


def said(step: Step, kind: str) -> list[bytes]:
    """The messages of one kind that a step sends."""
    return [out.body for out in step.messages if isinstance(out, Message) and out.kind == kind]


def body_of(raw: bytes, kind: type[P]) -> P:
    """The body of a message, as it can be signed again."""
    return convert(open_envelope(raw).payload, kind)


def altered(payload: P, **changes: object) -> P:
    """The same body with other fields."""
    fields = {name: getattr(payload, name) for name in payload.__struct_fields__}
    return type(payload)(**{**fields, **changes})


# -- closing ----------------------------------------------------------------------------------------------------------


def proposal(world: World, indices: Iterable[int], *, headers: Mapping[int, bytes] | None = None) -> Forged:
    """A survivor set by device index; `headers` says otherwise which header digest belongs to an index."""
    return _survivors(world, "proposal", Proposal, indices, headers or {})


def candidate(world: World, indices: Iterable[int], *, headers: Mapping[int, bytes] | None = None) -> Forged:
    return _survivors(world, "candidate", Candidate, indices, headers or {})


def vote(world: World, party: int, decides: str, digest: bytes, *, beacon: bytes = b"") -> bytes:
    payload = convert({"decides": decides, "digest": digest, "beacon": beacon}, Vote)
    return world.forge("vote", f"party/{party}", "coordinator", payload)


def certificate(world: World, proposed: Forged, votes: Iterable[bytes]) -> Forged:
    payload = Certificate(proposal=proposed.body, votes=list(votes))
    return Forged(world.forge("certificate", "coordinator", "parties", payload), proposed.chunks)


def want_all(world: World, party: int, proposed: Forged) -> None:
    """Have a party that has opened a set give every sum over it that it holds."""
    part = 1
    for subset in range(len(world.base.self_subsets)):
        wanted = Want(proposal=proposed.digest, part=part, subsets=[subset])
        answer = world.give(f"party/{party}", world.forge("want", "coordinator", f"party/{party}", wanted))
        part += len(said(answer, "opening"))


def _survivors(
    world: World,
    kind: str,
    payload: type[Proposal] | type[Candidate],
    indices: Iterable[int],
    headers: Mapping[int, bytes],
) -> Forged:
    bodies = world.round.bodies
    assert bodies is not None
    chosen = {index: headers[index] if index in headers else bodies.headers[index].digest for index in sorted(indices)}
    ref, chunks = chunks_of(pack_set(world.roster, chosen), world.base.chunk_size)
    body = world.forge(kind, "coordinator", "parties", payload(roster=world.roster.digest, survivors=ref))
    return Forged(body, tuple(encode_chunk(ref.id, index, chunk) for index, chunk in enumerate(chunks)))


# -- manifests and rosters --------------------------------------------------------------------------------------------


def manifest(world: World, *, number: int | None = None, **changes: object) -> Forged:
    """The manifest of the current round with other fields."""
    payload = altered(world.view.manifest, **changes)
    return Forged(world.forge("manifest", "coordinator", "parties", payload, number=number))


def announcement(world: World, shown: Forged, votes: Iterable[bytes], *, number: int | None = None) -> bytes:
    payload = Announcement(task=world.task_raw, manifest=shown.body, votes=list(votes))
    return world.forge("announcement", "coordinator", "all", payload, number=number)


def roster_proposal(world: World, joins: Mapping[str, bytes], entries: bytes) -> Forged:
    """A roster of signed joins by device and the entries said to follow from them."""
    return roster_blobs(world, pack_joins(dict(joins)), entries)


def roster_blobs(world: World, joins: bytes, entries: bytes) -> Forged:
    """A roster whose two blobs are any bytes."""
    joins_ref, join_chunks = chunks_of(joins, world.base.chunk_size)
    entries_ref, entry_chunks = chunks_of(entries, world.base.chunk_size)
    payload = RosterProposal(manifest=world.view.digest, joins=joins_ref, entries=entries_ref)
    chunks = [encode_chunk(joins_ref.id, index, chunk) for index, chunk in enumerate(join_chunks)]
    chunks += [encode_chunk(entries_ref.id, index, chunk) for index, chunk in enumerate(entry_chunks)]
    return Forged(world.forge("roster-proposal", "coordinator", "parties", payload), tuple(chunks))


def roster(world: World, proposed: Forged, votes: Iterable[bytes]) -> Forged:
    payload = RosterAnnouncement(proposal=proposed.body, votes=list(votes))
    return Forged(world.forge("roster", "coordinator", "all", payload), proposed.chunks)


def _answers(step: Step) -> bool:
    """Whether a step is a word on the message itself: a refusal (not of a chunk that is here already), a vote, an opening."""
    if step.refused is not None:
        return step.refused.code != "chunk-unexpected"
    return any(isinstance(out, Message) and out.kind in ("vote", "check", "opening") for out in step.messages)
