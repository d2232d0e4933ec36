"""What every part of the coordinator works with: its journal, key, blobs it serves, and the last result (SPEC.md section 8.3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from blindsum.protocol.arrivals import Listed, pack_set, read_set
from blindsum.protocol.blobs import Fetches, read_blob, read_own, write_blob
from blindsum.protocol.codec import convert, decode, encode
from blindsum.protocol.eligibility import SHARE_MAX
from blindsum.protocol.envelope import Head, Signed, message_digest, open_envelope, seal_envelope
from blindsum.protocol.errors import Refused
from blindsum.protocol.evidence import contradiction
from blindsum.protocol.machines.coordinatorround import CoordinatorRound
from blindsum.protocol.machines.journal import Journal
from blindsum.protocol.machines.keybook import KeyBook
from blindsum.protocol.machines.revoked import Revoked
from blindsum.protocol.machines.step import Store
from blindsum.protocol.messages import BlobRef, Candidate, Payload, Receipt, Result, RosterProposal, chunks_of
from blindsum.protocol.partykeys import answered_keys
from blindsum.protocol.trust import Trust, party_number
from blindsum.protocol.view import RoundView, TaskView

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

__all__ = ["RESULTS_KEPT", "Desk"]

RESULTS_KEPT: Final = 16
"""A party that was away for more rounds than this cannot follow the chain by itself any more."""


class Desk:
    """Signs and keeps for the coordinator; `served` are the blobs that may be asked for, by id."""

    def __init__(self, *, key: Ed25519PrivateKey, trust: Trust, store: Store, random: Callable[[int], bytes]) -> None:
        self._key = key
        self.trust = trust
        self.random = random
        self.journal = Journal(store)
        self.fetches = Fetches(self.journal)
        self.revoked = Revoked(trust.ca, self.journal)
        self.keys = KeyBook(trust, self.journal)
        self.served: dict[bytes, BlobRef] = {}

    # -- signing --------------------------------------------------------------------------------------------------

    def sign(self, round_: CoordinatorRound, kind: str, to: str, payload: Payload) -> bytes:
        head = Head(
            type=kind,
            fleet=self.trust.fleet,
            task=round_.base.name,
            round=round_.state.number,
            sender="coordinator",
            to=to,
        )
        return seal_envelope(self._key, head, payload)

    def receipt(self, view: RoundView, device: str, subject: bytes, status: str, code: str) -> None:
        receipt = convert({"subject": subject, "status": status, "code": code}, Receipt)
        to = f"device/{device}"
        self.journal.send("receipt", to, seal_envelope(self._key, view.head("receipt", "coordinator", to), receipt))

    def fault(self, round_: CoordinatorRound, principal: str, code: str) -> None:
        self.journal.event("fault", task=round_.base.name, round=round_.state.number, culprit=principal, code=code)

    def evidence(self, round_: CoordinatorRound, code: str, culprit: str, first: bytes, second: bytes) -> Refused:
        """Keep what two signed messages prove about `culprit` and refuse the second. A join shows the key of a device, an offer
        that of a party which has changed it."""
        if second and culprit.startswith("party/"):
            offer = round_.state.offers.get(party_number(culprit), b"")
            changed = offer and self.payload(offer)["keys"]  # type: ignore[index]
            return self.journal.accuse(
                round_.base.name, round_.state.number, code, culprit, first, second, offer if changed else b""
            )
        join, _ = round_.joins.get(culprit.removeprefix("device/"), (b"", b"")) if second else (b"", b"")
        return self.journal.accuse(round_.base.name, round_.state.number, code, culprit, first, second, join)

    def retired(self, rounds: Mapping[str, CoordinatorRound], raw: bytes) -> Refused | None:
        """A party says with a key that it has given up what contradicts what it says with the key of this round: proof."""
        second = self.signed(raw)
        party, round_ = party_number(second.head.sender), rounds.get(second.head.task)
        if round_ is None or second.head.type != "vote":
            return None
        if not any(second.valid(key) for key in answered_keys(self.trust, party, self.keys.steps(party))):
            return None
        for votes in (round_.state.manifest_votes, round_.state.roster_votes, round_.state.set_votes):
            if party in votes and (code := contradiction(self.signed(votes[party]), second)):
                return self.evidence(round_, code, second.head.sender, votes[party], raw)
        return None

    def signed(self, raw: bytes) -> Signed:
        """A message that was checked when it was stored."""
        return open_envelope(raw)

    def digest(self, raw: bytes) -> bytes:
        return message_digest(raw)

    def payload(self, raw: bytes) -> object:
        return self.signed(raw).payload

    # -- blobs ----------------------------------------------------------------------------------------------------

    def blob(self, ref: BlobRef) -> bytes:
        """A blob that must be here."""
        data = read_blob(self.journal, ref)
        assert data is not None
        return data

    def serve(self, *refs: BlobRef) -> None:
        for ref in refs:
            self.served[ref.id] = ref

    def broadcast(self, round_: CoordinatorRound, *refs: BlobRef) -> None:
        for ref in refs:
            self.serve(ref)
            self.journal.send_chunks(f"all/{round_.base.name}", ref.id, range(ref.count), retain=True)

    def unserve(self, task: str, ref: BlobRef) -> None:
        """Delete a blob here and, by publishing its chunks empty, on the broker."""
        self.served.pop(ref.id, None)
        self.journal.delete_all(f"blob/{ref.id.hex()}/")
        self.journal.send_chunks(f"all/{task}", ref.id, range(ref.count), retain=True)

    def make_survivors(self, round_: CoordinatorRound) -> BlobRef:
        bodies = round_.bodies
        assert bodies is not None
        assert round_.roster is not None
        packed = pack_set(round_.roster, {index: bodies.headers[index].digest for index in bodies.complete})
        ref, chunks = chunks_of(packed, round_.base.chunk_size)
        self.journal.write(write_blob(ref, chunks))
        self.serve(ref)
        return ref

    def listed(self, round_: CoordinatorRound, ref: BlobRef) -> list[Listed]:
        """The devices of a survivor list that was made here."""
        assert round_.roster is not None
        found = read_set(round_.roster, self.blob(ref))
        assert not isinstance(found, Refused), found
        return found

    def survivors_ref(self, raw: bytes, kind: type[Candidate]) -> BlobRef:
        return convert(self.payload(raw), kind).survivors

    def roster_proposal(self, round_: CoordinatorRound) -> RosterProposal:
        return convert(self.payload(round_.state.roster_proposal), RosterProposal)

    # -- what lasts -----------------------------------------------------------------------------------------------

    def chain(self, base: TaskView) -> tuple[bytes, BlobRef, bytes]:
        """(digest of the last result or rollback, the model it gave, id of the state)"""
        value = self.journal.get(f"chain/{base.name}")
        if value is None:
            return bytes(32), base.task.model, base.first_state
        digest, ref, state = decode(value)
        return digest, convert(ref, BlobRef), state

    def state(self, state: bytes) -> bytes:
        """What the algorithm keeps, by its id."""
        return read_own(self.journal, state)

    def last(self, task: str) -> int:
        value = self.journal.get(f"last/{task}")
        return int(decode(value)) if value else 0

    def stage(self, task: str) -> int:
        """The share of the devices that may join, in thousandths."""
        value = self.journal.get(f"stage/{task}")
        return int(decode(value)) if value else SHARE_MAX

    def forget_results(self, base: TaskView) -> None:
        rows = list(self.journal.scan(f"result/{base.name}/"))
        gone = dict(rows[:-RESULTS_KEPT])
        if not gone:
            return
        # a blob is named by what it holds: the same answer to the same question is the same blob
        kept = {self._sum_of(raw).id for key, raw in self.journal.scan("result/") if key not in gone}
        for key, raw in gone.items():
            self.journal.delete(key)
            if (ref := self._sum_of(raw)).id not in kept:
                self.unserve(base.name, ref)

    def _sum_of(self, raw: bytes) -> BlobRef:
        return convert(self.payload(raw), Result).sum

    def save(self, round_: CoordinatorRound) -> None:
        self.journal.put(f"state/{round_.base.name}", encode(round_.state))
