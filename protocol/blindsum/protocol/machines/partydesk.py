"""What every part of a party works with: its keys, its journal, the blobs it awaits, the chain it follows (SPEC.md section 8.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blindsum.protocol.blobs import read_blob
from blindsum.protocol.codec import convert, decode, encode
from blindsum.protocol.envelope import Head, Signed, message_digest, open_envelope, seal_envelope
from blindsum.protocol.errors import Refused
from blindsum.protocol.machines.chain import Chain
from blindsum.protocol.machines.inbox import Inbox
from blindsum.protocol.machines.journal import Journal
from blindsum.protocol.machines.keybook import KeyBook
from blindsum.protocol.machines.partyround import HeaderRow, PartyRound
from blindsum.protocol.machines.revoked import Revoked
from blindsum.protocol.machines.step import Store
from blindsum.protocol.messages import BlobRef, Opening, Payload, RosterProposal, Vote
from blindsum.protocol.trust import Trust
from blindsum.protocol.view import RoundView, open_message
from blindsum.protocol.wrong import wrong_by_itself

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

__all__ = ["PartyDesk"]


class PartyDesk:
    """Signs and keeps for party `number`."""

    def __init__(
        self, *, number: int, key: Ed25519PrivateKey, trust: Trust, store: Store, broadcast_key: bytes
    ) -> None:
        self._key = key
        self.number = number
        self.trust = trust
        self.journal = Journal(store)
        self.inbox = Inbox(self.journal, broadcast_key)
        self.chain = Chain(trust, self.journal, self.inbox)
        self.revoked = Revoked(trust.ca, self.journal)
        self.keys = KeyBook(trust, self.journal)

    def sign(self, task: str, number: int, kind: str, payload: Payload) -> bytes:
        head = Head(
            type=kind,
            fleet=self.trust.fleet,
            task=task,
            round=number,
            sender=f"party/{self.number}",
            to="coordinator",
        )
        return seal_envelope(self._key, head, payload)

    def vote(self, view: RoundView, decides: str, digest: bytes, beacon: bytes = b"") -> bytes:
        vote = convert({"decides": decides, "digest": digest, "beacon": beacon}, Vote)
        head = view.head("vote", f"party/{self.number}", "coordinator")
        self.journal.event("voted", task=view.name, round=view.number, decides=decides, digest=digest.hex())
        return seal_envelope(self._key, head, vote)

    def send_vote(self, raw: bytes) -> None:
        self.journal.send("vote", "coordinator", raw)

    def caught(self, round_: PartyRound, code: str, first: bytes, second: bytes) -> Refused:
        """Keep what two signed messages prove about the coordinator and refuse the second."""
        task, number = round_.base.name, round_.state.number
        return self.journal.accuse(task, number, code, "coordinator", first, second)

    def caught_alone(self, round_: PartyRound, refused: Refused, signed: Signed, context: bytes) -> Refused:
        """Keep a message that is wrong by itself, where anybody can see that under its `context`, and refuse it."""
        if wrong_by_itself(self.trust, signed, context) == refused.code:
            task, number = round_.base.name, round_.state.number
            self.journal.accuse(task, number, refused.code, signed.head.sender, signed.raw, b"", context)
        return refused

    def save(self, round_: PartyRound) -> None:
        self.journal.put(f"state/{round_.base.name}", encode(round_.state))

    def keep_header(self, round_: PartyRound, index: int, row: HeaderRow, raw: bytes) -> None:
        """Keep what a device sent first; of what comes later only that it came."""
        round_.headers[index] = row
        self.journal.put(f"round/{round_.base.name}/header/{index:06d}", row.encode())
        if row.code != "second-header":
            self.journal.put(f"round/{round_.base.name}/upload/{index:06d}", raw)

    def caught_device(self, round_: PartyRound, index: int, sender: str, second: bytes) -> Refused:
        """Keep both headers of a device, with the join that shows its key (or they do themselves), and refuse the second."""
        task, number = round_.base.name, round_.state.number
        first = self.journal.get(f"round/{task}/upload/{index:06d}")
        assert first is not None
        join = b""
        if round_.base.has_roster:
            joins = read_blob(self.journal, self.joins(round_))
            assert joins is not None
            join = decode(joins)[index]
        return self.journal.accuse(task, number, "second-header", sender, first, second, join)

    def joins(self, round_: PartyRound) -> BlobRef:
        """The blob of the round's joins; it is kept as long as a device may be caught."""
        signed = open_message(self.trust, round_.state.roster_proposal)
        assert isinstance(signed, Signed)
        return convert(signed.payload, RosterProposal).joins

    def opening(self, raw: bytes) -> Opening:
        return convert(open_envelope(raw).payload, Opening)

    def digest(self, raw: bytes) -> bytes:
        """The digest of a message that was checked when it was stored."""
        return message_digest(raw)
