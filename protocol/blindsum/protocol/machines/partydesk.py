"""What every part of a party works with: its keys, its journal, the blobs it awaits, the chain it follows (SPEC.md section 8.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blindsum.protocol.codec import convert, encode
from blindsum.protocol.envelope import Head, Signed, seal_envelope
from blindsum.protocol.errors import Refused
from blindsum.protocol.machines.chain import Chain
from blindsum.protocol.machines.inbox import Inbox
from blindsum.protocol.machines.journal import Journal
from blindsum.protocol.machines.partyround import HeaderRow, PartyRound
from blindsum.protocol.machines.step import Store
from blindsum.protocol.messages import Opening, Payload, Vote
from blindsum.protocol.trust import Trust
from blindsum.protocol.view import RoundView, open_message

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
        return seal_envelope(self._key, head, vote)

    def send_vote(self, raw: bytes) -> None:
        self.journal.send("vote", "coordinator", raw)

    def caught(self, round_: PartyRound, code: str, culprit: str, first: bytes, second: bytes) -> Refused:
        """Keep what two signed messages prove about `culprit` and refuse the second."""
        task, number = round_.base.name, round_.state.number
        self.journal.put(f"evidence/{task}/{number:08d}/{code}", encode([culprit, first, second]))
        self.journal.event("evidence", task=task, round=number, culprit=culprit, code=code)
        return Refused(code, culprit)

    def save(self, round_: PartyRound) -> None:
        self.journal.put(f"state/{round_.base.name}", encode(round_.state))

    def keep_header(self, round_: PartyRound, index: int, row: HeaderRow) -> None:
        round_.headers[index] = row
        self.journal.put(f"round/{round_.base.name}/header/{index:06d}", row.encode())

    def opening(self, raw: bytes) -> Opening:
        signed = open_message(self.trust, raw)
        assert isinstance(signed, Signed)
        return convert(signed.payload, Opening)

    def digest(self, raw: bytes) -> bytes:
        """The digest of a message that was checked when it was stored."""
        signed = open_message(self.trust, raw)
        assert isinstance(signed, Signed), signed
        return signed.digest
