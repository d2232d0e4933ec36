"""How a round ends at a party: headers, complaints, its one vote on the survivor set, and the opening (SPEC.md section 8.2)."""

from __future__ import annotations

import hashlib

from msgspec.structs import replace

from blindsum.protocol.arrivals import (
    ARRIVALS_SPARE,
    Arrivals,
    Listed,
    admit,
    listed_size_max,
    open_arrival,
    read_set,
)
from blindsum.protocol.blobs import WINDOW, bits_set, read_blob, write_blob
from blindsum.protocol.codec import encode
from blindsum.protocol.envelope import Signed
from blindsum.protocol.errors import Refused
from blindsum.protocol.machines.partydesk import PartyDesk
from blindsum.protocol.machines.partyround import HeaderRow, PartyRound
from blindsum.protocol.masks import Seal, Seeds, header_fault, open_box
from blindsum.protocol.messages import (
    Ask,
    BlobRef,
    Candidate,
    Certificate,
    Check,
    Header,
    Opening,
    OpeningContent,
    Proposal,
    Result,
    Want,
    chunks_of,
)
from blindsum.protocol.openings import make_content
from blindsum.protocol.ring import packed_size
from blindsum.protocol.roster import RosterView
from blindsum.protocol.view import (
    count_votes,
    open_message,
    payload_of,
)

__all__ = ["PartyClosing"]


class PartyClosing:
    """From roster to opening. A party votes on one survivor set of a round and opens no other."""

    def __init__(self, desk: PartyDesk, *, seal: Seal, threads: int) -> None:
        self._desk = desk
        self._seal = seal
        self._threads = threads

    def on_header(self, round_: PartyRound, signed: Signed) -> Refused | None:
        view, roster = round_.view, round_.roster
        if view is None or roster is None:
            return Refused("header-early", detail="no roster yet")
        found = (
            self._arrived(round_, roster, signed)
            if isinstance(roster, Arrivals)
            else self._expected(round_, roster, signed)
        )
        if not isinstance(found, Header):
            return found
        header = found
        row = round_.headers.get(header.index)
        if row is not None and row.digest == signed.digest:
            return None
        if row is not None:
            if not row.code:
                again = HeaderRow(row.digest, "second-header", row.seeds)
                self._desk.keep_header(round_, header.index, again, signed.raw)
            return self._desk.caught_device(round_, header.index, signed.head.sender, signed.raw)
        code = header_fault(view, roster, header, packed_size(view.base.segments))
        if isinstance(roster, Arrivals) and roster.serials[header.index] in self._desk.revoked.current.serials:
            code = "certificate-revoked"
        seeds: Seeds | str = code or Seeds({}, {})
        if not code and view.member(self._desk.number) is not None:
            seeds = open_box(view, roster, header, party=self._desk.number, opener=round_.open_box)
        if isinstance(seeds, str):
            self._desk.keep_header(round_, header.index, HeaderRow(signed.digest, seeds), signed.raw)
            self._desk.journal.event("complaint", task=view.name, round=view.number, index=header.index, code=seeds)
        else:
            self._desk.keep_header(round_, header.index, HeaderRow(signed.digest, "", seeds), signed.raw)
        return None

    def _expected(self, round_: PartyRound, roster: RosterView, signed: Signed) -> Header | Refused:
        """The header of a device of the roster."""
        header: Header | Refused = payload_of(signed, Header)
        if isinstance(header, Refused):
            return header
        if header.index >= roster.size or signed.head.sender != f"device/{roster.devices[header.index]}":
            return Refused("header-foreign", detail=signed.head.sender)
        if not signed.valid(round_.identities[header.index]):
            return Refused("signature-invalid", detail=signed.head.sender)
        if round_.state.opened or round_.state.set_vote:
            return Refused("round-closed", detail="the survivor set is settled here")
        return header

    def _arrived(self, round_: PartyRound, roster: Arrivals, signed: Signed) -> Header | Refused | None:
        """The header of whoever has a certificate, under the number that the device has here; None where it is here already."""
        if round_.state.opened or round_.state.set_vote:
            return Refused("round-closed", detail="the survivor set is settled here")
        device = signed.head.sender.removeprefix("device/")
        number = roster.numbers.get(device)
        if number is not None and round_.headers[number].digest == signed.digest:
            return None
        spare = ARRIVALS_SPARE + (device in round_.wanted)
        if number is None and roster.size >= spare * roster.capacity:
            return Refused("cohort-full", detail=device)
        assert round_.view is not None
        arrival = open_arrival(round_.view, signed)
        if isinstance(arrival, Refused):
            return arrival
        if number is None:
            return admit(roster, arrival)
        header: Header = replace(arrival.header, index=number)
        return header

    def drop_revoked(self, round_: PartyRound) -> None:
        """Refuse the uploads of a round, where its set is not settled here yet, whose certificates have been revoked meanwhile."""
        roster = round_.roster
        if not isinstance(roster, Arrivals) or round_.state.opened or round_.state.set_vote:
            return
        for number, row in list(round_.headers.items()):
            if roster.serials[number] in self._desk.revoked.current.serials:
                round_.headers[number] = gone = HeaderRow(row.digest, "certificate-revoked")
                self._desk.journal.put(f"round/{round_.base.name}/header/{number:06d}", gone.encode())

    def on_candidate(self, round_: PartyRound, signed: Signed, now: int) -> Refused | None:
        candidate = payload_of(signed, Candidate)
        if isinstance(candidate, Refused):
            return candidate
        view = round_.view
        if round_.roster is None or view is None:
            return Refused("message-early", detail="no roster yet")
        if candidate.roster != round_.roster.digest:
            return Refused("roster-differs", "coordinator")
        survivors = self._survivors(round_, candidate.survivors, signed, now)
        if survivors is None or isinstance(survivors, Refused):
            return survivors
        self._send_check(round_, candidate.survivors, survivors)
        return None

    def on_proposal(self, round_: PartyRound, signed: Signed, now: int) -> Refused | None:
        proposal = payload_of(signed, Proposal)
        if isinstance(proposal, Refused):
            return proposal
        view, roster = round_.view, round_.roster
        if roster is None or view is None:
            return Refused("message-early", detail="no roster yet")
        if proposal.roster != roster.digest:
            return Refused("roster-differs", "coordinator")
        if round_.state.set_digest:
            if round_.state.set_digest != signed.digest:
                return self._desk.caught(round_, "second-set", round_.state.proposal, signed.raw)
            if round_.state.set_vote:
                self._desk.send_vote(round_.state.set_vote)
            return None
        survivors = self._survivors(round_, proposal.survivors, signed, now)
        if survivors is None or isinstance(survivors, Refused):
            return survivors
        if len(survivors) < roster.survivors_min:
            return Refused("survivors-too-few", "coordinator", f"{len(survivors)} < {roster.survivors_min}")
        missing, bad = round_.complaints(survivors, settled=True)
        if missing or bad:
            self._send_check(round_, proposal.survivors, survivors)
            return Refused("survivor-refused", detail=f"{len(bad)} devices") if bad else None
        raw = self._desk.vote(view, "set", signed.digest)
        round_.change(set_vote=raw, set_digest=signed.digest, proposal=signed.raw)
        self._desk.save(round_)
        self._desk.send_vote(raw)
        return None

    def on_certificate(self, round_: PartyRound, signed: Signed, now: int) -> Refused | None:
        certificate = payload_of(signed, Certificate)
        if isinstance(certificate, Refused):
            return certificate
        view, roster = round_.view, round_.roster
        if view is None or roster is None:
            return Refused("message-early", detail="no roster yet")
        inner = open_message(self._desk.trust, certificate.proposal)
        if isinstance(inner, Refused):
            return inner
        if (inner.head.type, inner.head.task, inner.head.round) != ("proposal", view.name, view.number):
            return Refused("message-misplaced", "coordinator")
        proposal = payload_of(inner, Proposal)
        if isinstance(proposal, Refused):
            return proposal
        if proposal.roster != roster.digest:
            return Refused("roster-differs", "coordinator")
        votes = count_votes(view, certificate.votes, decides="set", digest=inner.digest)
        if len(votes) < view.base.committee.quorum:
            return Refused("votes-too-few", "coordinator", f"{len(votes)} votes for the set")
        if round_.state.set_digest and round_.state.set_digest != inner.digest:
            return self._desk.caught(round_, "second-set", round_.state.proposal, certificate.proposal)
        if round_.state.opened:
            for raw in round_.state.openings:
                self._desk.journal.send("opening", "coordinator", raw)
            return None
        if view.member(self._desk.number) is None:
            return None  # no box was sealed to this party; it has nothing to open
        survivors = self._survivors(round_, proposal.survivors, signed, now)
        if survivors is None or isinstance(survivors, Refused):
            return survivors
        if len(survivors) < roster.survivors_min:
            return Refused("survivors-too-few", "coordinator")
        missing, bad = round_.complaints(survivors, settled=True)
        if missing:
            self._send_check(round_, proposal.survivors, survivors)
            return None
        if bad:
            return Refused("survivor-refused", detail=f"{len(bad)} devices")
        round_.change(set_digest=inner.digest, proposal=certificate.proposal)
        self._open_set(round_, sorted(index for _, index, _, _ in survivors if index is not None))
        return None

    def on_want(self, round_: PartyRound, signed: Signed, now: int) -> Refused | None:
        want = payload_of(signed, Want)
        if isinstance(want, Refused):
            return want
        if not round_.state.opened:
            return Refused("message-early", detail="nothing is opened yet")
        if want.proposal != round_.state.set_digest:
            return Refused("roster-differs", "coordinator")
        view = round_.view
        assert view is not None
        if want.part != len(round_.state.openings):
            if want.part < len(round_.state.openings):
                self._desk.journal.send("opening", "coordinator", round_.state.openings[want.part])
                return None
            return Refused("message-misplaced", "coordinator", "opening parts out of order")
        vectors = []
        for subset in sorted(set(want.subsets)):
            vector = self._desk.journal.get(f"round/{view.name}/sum/{subset:03d}")
            if vector is None:
                return Refused("subset-not-held", "coordinator", str(subset))
            vectors.append((subset, vector))
        for subset, _ in vectors:
            self._desk.journal.delete(f"round/{view.name}/sum/{subset:03d}")
        self._publish_opening(round_, OpeningContent(hashes=[], shares=b"", vectors=vectors))
        self._desk.save(round_)
        return None

    def on_ask(self, round_: PartyRound, signed: Signed, now: int) -> Refused | None:
        ask = payload_of(signed, Ask)
        if isinstance(ask, Refused):
            return ask
        for raw in round_.state.openings:
            ref = self._desk.opening(raw).content
            if ref.id == ask.blob:
                missing = sorted(set(range(ref.count)) - bits_set(ask.have, ref.count))
                self._desk.journal.send_chunks("coordinator", ref.id, missing[: ask.window])
                return None
        return Refused("blob-unknown", detail=ask.blob.hex())

    def on_result(self, round_: PartyRound, signed: Signed) -> Refused | None:
        """A result must be that of the manifest and the set that were proposed to this party."""
        result = payload_of(signed, Result)
        if isinstance(result, Refused):
            return result
        state, view = round_.state, round_.view
        if view is not None and result.manifest != view.digest:
            return self._desk.caught(round_, "result-differs", state.manifest, signed.raw)
        if state.set_digest and result.proposal != state.set_digest:
            return self._desk.caught(round_, "result-differs", state.proposal, signed.raw)
        return None

    def _survivors(self, round_: PartyRound, ref: BlobRef, signed: Signed, now: int) -> list[Listed] | Refused | None:
        """The survivor set, or None while it is on its way (the message is taken up again then)."""
        assert round_.roster is not None
        if not ref.sound:
            return Refused("message-malformed", "coordinator", "blob reference")
        if ref.size > listed_size_max(round_.roster):
            return Refused("survivors-malformed", "coordinator", f"{ref.size} bytes")
        if not self._desk.inbox.room(round_.base.name, ref):
            return Refused("blobs-too-many", "coordinator", ref.id.hex())
        if not self._desk.inbox.want(round_.base.name, ref, now):
            round_.waiting[signed.head.type] = signed.raw
            return None
        data = read_blob(self._desk.journal, ref)
        assert data is not None
        return read_set(round_.roster, data)

    def _send_check(self, round_: PartyRound, ref: BlobRef, survivors: list[Listed]) -> None:
        missing, bad = round_.complaints(survivors, settled=False)
        round_.wanted = frozenset(device for _, index, device, _ in survivors if index is None)
        check = Check(survivors=ref.id, missing=missing, bad=bad)
        self._desk.journal.send(
            "check", "coordinator", self._desk.sign(round_.base.name, round_.state.number, "check", check)
        )

    def _open_set(self, round_: PartyRound, survivors: list[int]) -> None:
        """Sum the self masks of exactly `survivors`, share the caps of edges they lost, and erase every seed in the same step."""
        view, roster = round_.view, round_.roster
        assert view is not None and roster is not None
        content, sums = make_content(
            view,
            roster,
            party=self._desk.number,
            survivors=survivors,
            seeds={index: round_.headers[index].seeds for index in survivors},
            threads=self._threads,
        )
        given = {subset for subset, _ in content.vectors}
        for subset, vector in sums.items():
            if subset not in given:  # a sum leaves once: no want makes this party store a second copy
                self._desk.journal.put(f"round/{view.name}/sum/{subset:03d}", vector)
        self._publish_opening(round_, content)
        round_.headers.clear()
        self._desk.journal.delete_all(f"round/{view.name}/header/")
        self._desk.journal.delete_all(f"round/{view.name}/upload/")
        round_.change(opened=True, box_private=b"", beacon=b"")
        round_.forget_box()
        self._desk.save(round_)
        self._desk.journal.event("opened", task=view.name, round=view.number, survivors=len(survivors))

    def _publish_opening(self, round_: PartyRound, content: OpeningContent) -> None:
        view = round_.view
        assert view is not None
        part = len(round_.state.openings)
        plain = encode(content)
        info = encode(["blindsum/1 opening", view.digest, round_.state.set_digest, self._desk.number, part])
        sealed = self._seal(self._desk.trust.coordinator_box, info, plain)
        ref, chunks = chunks_of(sealed, view.base.chunk_size)
        opening = Opening(
            proposal=round_.state.set_digest, part=part, content=ref, plain=hashlib.sha256(plain).digest()
        )
        raw = self._desk.sign(view.name, view.number, "opening", opening)
        round_.change(openings=[*round_.state.openings, raw])
        self._desk.journal.write(write_blob(ref, chunks))
        self._desk.journal.send("opening", "coordinator", raw)
        self._desk.journal.send_chunks("coordinator", ref.id, range(min(WINDOW, ref.count)))
