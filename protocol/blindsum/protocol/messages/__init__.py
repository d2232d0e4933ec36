"""Every message of the protocol, and the table that names and bounds them (SPEC.md section 5)."""

from __future__ import annotations

from typing import Final

from blindsum.protocol.codec import ready
from blindsum.protocol.messages.common import (
    CHUNK_SIZE_MAX,
    KEYS_MAX,
    BlobRef,
    KeyStep,
    KeySteps,
    Payload,
    chunk_key,
    chunks_of,
)
from blindsum.protocol.messages.manifest import Announcement, Manifest, Offer, OfferRequest, Vote
from blindsum.protocol.messages.opening import (
    Candidate,
    Certificate,
    Check,
    Failure,
    Opening,
    OpeningContent,
    Proposal,
    Result,
    Want,
)
from blindsum.protocol.messages.roster import Join, RosterAnnouncement, RosterProposal
from blindsum.protocol.messages.task import (
    Algorithm,
    CodecSpec,
    Criterion,
    NoRoster,
    Rollback,
    SegmentSpec,
    Task,
    ThreatSpec,
    Training,
)
from blindsum.protocol.messages.upload import EDGE_SIZE, NEIGHBOURS_MAX, Ask, Header, Receipt

__all__ = [
    "CHUNK_MESSAGE_SIZE_MAX",
    "EDGE_SIZE",
    "KEYS_MAX",
    "MESSAGES",
    "MESSAGE_SIZE_MAX",
    "NEIGHBOURS_MAX",
    "Algorithm",
    "Announcement",
    "Ask",
    "BlobRef",
    "Candidate",
    "Certificate",
    "Check",
    "CodecSpec",
    "Criterion",
    "Failure",
    "Header",
    "Join",
    "KeyStep",
    "KeySteps",
    "Manifest",
    "NoRoster",
    "Offer",
    "OfferRequest",
    "Opening",
    "OpeningContent",
    "Payload",
    "Proposal",
    "Receipt",
    "Result",
    "Rollback",
    "RosterAnnouncement",
    "RosterProposal",
    "SegmentSpec",
    "Task",
    "ThreatSpec",
    "Training",
    "Vote",
    "Want",
    "chunk_key",
    "chunks_of",
]

CHUNK_MESSAGE_SIZE_MAX: Final = CHUNK_SIZE_MAX + 80
MESSAGE_SIZE_MAX: Final = 524_288
"""No message of any type is larger; a driver refuses before it parses."""

MESSAGES: Final[dict[str, tuple[type[Payload], str, int]]] = {
    # type: (body, who signs it, largest size in bytes)
    "task": (Task, "operator", 65_536),
    "rollback": (Rollback, "operator", 65_536),
    "offer-request": (OfferRequest, "coordinator", 131_072),
    "offer": (Offer, "party", 4_096),
    "manifest": (Manifest, "coordinator", 65_536),
    "vote": (Vote, "party", 1_024),
    "announcement": (Announcement, "coordinator", 196_608),
    "join": (Join, "device", 2_048),
    "roster-proposal": (RosterProposal, "coordinator", 65_536),
    "roster": (RosterAnnouncement, "coordinator", 131_072),
    "header": (Header, "device", 147_456),
    "ask": (Ask, "any", 1_024),
    "receipt": (Receipt, "coordinator", 1_024),
    "candidate": (Candidate, "coordinator", 40_960),
    "check": (Check, "party", 393_216),
    "proposal": (Proposal, "coordinator", 40_960),
    "certificate": (Certificate, "coordinator", 65_536),
    "opening": (Opening, "party", 40_960),
    "want": (Want, "coordinator", 8_192),
    "result": (Result, "coordinator", 131_072),
    "failure": (Failure, "coordinator", 1_024),
}

for _name in MESSAGES:
    ready(MESSAGES[_name][0])
ready(OpeningContent)
