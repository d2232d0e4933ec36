"""A party's side of a round (SPEC.md section 8.2).

    has                  accepts                                    gives, at most once a round and stored first
    (nothing)            offer-request                              offer: box key and beacon of this round
    offer                manifest, announcement                     manifest vote
    manifest             roster-proposal (+ joins), roster          roster vote with the beacon
    roster               header, candidate, proposal                check; set vote
    roster               certificate                                opening of the certified set
    opening              want, ask                                  further parts of the same opening
    any                  result, failure                            the next model, recomputed; the round's secrets erased

A party answers one manifest, one roster and one survivor set in a round, also across restarts: the vote is written in the step
that sends it. A round number never comes back: a higher offer-request erases what was open below it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from blindsum.protocol.blobs import WINDOW, Fetch, bits_set, read_blob, write_blob
from blindsum.protocol.codec import convert, decode, encode
from blindsum.protocol.envelope import Head, Signed, peek, seal_envelope
from blindsum.protocol.errors import Refused
from blindsum.protocol.keys import BOX_PRIVATE_SIZE, box_keypair, box_open
from blindsum.protocol.machines.chain import Chain
from blindsum.protocol.machines.inbox import Inbox
from blindsum.protocol.machines.journal import Journal
from blindsum.protocol.machines.partyround import HeaderRow, PartyRound, PartyState
from blindsum.protocol.machines.step import Step, Store
from blindsum.protocol.masks import Seal, Seeds, header_fault, open_box
from blindsum.protocol.messages import (
    Announcement,
    Ask,
    BlobRef,
    Candidate,
    Certificate,
    Check,
    Failure,
    Header,
    Offer,
    OfferRequest,
    Opening,
    OpeningContent,
    Payload,
    Proposal,
    RosterAnnouncement,
    RosterProposal,
    Vote,
    Want,
    chunks_of,
)
from blindsum.protocol.openings import make_content
from blindsum.protocol.ring import packed_size
from blindsum.protocol.roster import (
    Joins,
    beacon_commitment,
    open_joins,
    open_roster,
    open_roster_announcement,
    read_survivors,
)
from blindsum.protocol.trust import Trust
from blindsum.protocol.view import (
    CLOCK_SKEW_MAX_MS,
    RoundView,
    TaskView,
    count_votes,
    open_manifest,
    open_message,
    open_task,
    payload_of,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

__all__ = ["PartyFloor", "PartyMachine"]


class PartyFloor(Payload, frozen=True):
    """The least this organisation insists on. `tasks` empty: any task the operator signed."""

    cohort_min: int = 2
    tasks: tuple[str, ...] = ()


class PartyMachine:
    """Party `number` of the fleet, in any number of tasks at once."""

    def __init__(
        self,
        *,
        number: int,
        key: Ed25519PrivateKey,
        trust: Trust,
        store: Store,
        random: Callable[[int], bytes],
        seal: Seal,
        floor: PartyFloor,
        threads: int = 1,
    ) -> None:
        self._number = number
        self._key = key
        self._trust = trust
        self._random = random
        self._seal = seal
        self._floor = floor
        self._threads = threads
        self._journal = Journal(store)
        self._inbox = Inbox(self._journal)
        self._chain = Chain(trust, self._journal, self._inbox)
        self._bases: dict[str, TaskView] = {}
        self._rounds: dict[str, PartyRound] = {}
        self._restore()

    # -- inputs ---------------------------------------------------------------------------------------------------

    def receive(self, body: bytes, now: int) -> Step:
        return self._journal.take(self._message(body, now) if peek(body) else self._chunk(body, now))

    def wake(self, now: int) -> Step:
        for task, round_ in list(self._rounds.items()):
            if now >= round_.expires_at:
                self._erase(task, "expired")
        for fetch, task in self._inbox.due(now):
            self._ask(task, fetch, now)
        return self._journal.take()

    @property
    def deadline(self) -> int | None:
        times = [self._inbox.deadline, *(round_.expires_at for round_ in self._rounds.values())]
        return min((time for time in times if time is not None), default=None)

    # -- messages -------------------------------------------------------------------------------------------------

    def _message(self, raw: bytes, now: int) -> Refused | None:
        signed = open_message(self._trust, raw)
        if isinstance(signed, Refused):
            return signed
        head = signed.head
        if head.type == "offer-request":
            return self._on_offer_request(signed, now)
        if head.task not in self._bases:
            return Refused("task-unknown", detail=head.task)
        if head.type == "result" and head.sender == "coordinator":
            return self._on_result(signed, now)
        round_ = self._rounds.get(head.task)
        if round_ is None or round_.state.number != head.round:
            return Refused("round-stale", detail=f"{head.type} of round {head.round}")
        if head.type == "header":
            return self._on_header(round_, signed)
        handler = {
            "manifest": self._on_manifest,
            "announcement": self._on_announcement,
            "roster-proposal": self._on_roster_proposal,
            "roster": self._on_roster,
            "candidate": self._on_candidate,
            "proposal": self._on_proposal,
            "certificate": self._on_certificate,
            "want": self._on_want,
            "ask": self._on_ask,
            "failure": self._on_failure,
        }.get(head.type)
        if handler is None or head.sender != "coordinator":
            return Refused("message-misplaced", head.sender, head.type)
        return handler(round_, signed, now)

    def _on_offer_request(self, signed: Signed, now: int) -> Refused | None:
        request = payload_of(signed, OfferRequest)
        if isinstance(request, Refused):
            return request
        task, number = signed.head.task, signed.head.round
        base = self._bases.get(task)
        if base is None or base.raw != request.task:
            opened = self._adopt_task(task, request.task, now)
            if isinstance(opened, Refused):
                return opened
            base = opened
        round_ = self._rounds.get(task)
        if round_ is not None and round_.state.number == number:
            self._journal.send("offer", "coordinator", round_.state.offer)
            return None
        if number <= self._last(task) or number > base.task.rounds_max:
            return Refused("round-stale", detail=f"round {number}")
        if round_ is not None:
            self._erase(task, "superseded")
        box_private, box_public = box_keypair(self._random(BOX_PRIVATE_SIZE))
        beacon = self._random(32)
        offer = Offer(
            box_key=box_public,
            beacon_commitment=beacon_commitment(beacon, task, number, self._number),
            chain=self._chain.head(base)[0],
        )
        raw = self._sign(task, number, "offer", offer)
        state = PartyState(number=number, since=now, box_private=box_private, beacon=beacon, offer=raw)
        self._rounds[task] = PartyRound(base, state)
        self._journal.put(f"last/{task}", encode(number))
        self._save(task)
        self._journal.send("offer", "coordinator", raw)
        self._journal.event("offered", task=task, round=number)
        return None

    def _on_manifest(self, round_: PartyRound, signed: Signed, now: int) -> Refused | None:
        view = self._open_manifest(round_, signed.raw)
        if isinstance(view, Refused):
            return view
        if round_.state.manifest_vote:
            if round_.view is None or round_.view.digest != view.digest:
                return self._caught(round_, "second-manifest", "coordinator", round_.state.manifest, signed.raw)
            self._send_vote(round_.state.manifest_vote)
            return None
        if round_.view is not None and round_.view.digest != view.digest:
            return self._caught(round_, "second-manifest", "coordinator", round_.state.manifest, signed.raw)
        if abs(view.manifest.issued_at - now) > CLOCK_SKEW_MAX_MS:
            return Refused(
                "clock-skew", detail=f"the manifest is {(view.manifest.issued_at - now) // 1000} s off this clock"
            )
        chain, model = self._chain.head(view.base)
        if (view.manifest.previous, view.manifest.model.id) != (chain, model.id):
            return Refused(
                "chain-differs", "coordinator", "the model is not what follows from the last result seen here"
            )
        raw = self._vote(view, "manifest", view.digest)
        round_.set_manifest(signed.raw, view)
        round_.change(manifest_vote=raw)
        self._save(view.name)
        self._send_vote(raw)
        return None

    def _on_announcement(self, round_: PartyRound, signed: Signed, now: int) -> Refused | None:
        """A party that could not vote (it was away) follows a manifest that a quorum voted for."""
        if round_.view is not None:
            return None
        announcement = payload_of(signed, Announcement)
        if isinstance(announcement, Refused):
            return announcement
        view = self._open_manifest(round_, announcement.manifest)
        if isinstance(view, Refused):
            return view
        votes = count_votes(view.base, view.number, announcement.votes, decides="manifest", digest=view.digest)
        if len(votes) < view.base.committee.quorum:
            return Refused("votes-too-few", "coordinator")
        round_.set_manifest(announcement.manifest, view)
        self._save(view.name)
        return None

    def _on_roster_proposal(self, round_: PartyRound, signed: Signed, now: int) -> Refused | None:
        proposal = payload_of(signed, RosterProposal)
        if isinstance(proposal, Refused):
            return proposal
        view, state = round_.view, round_.state
        if view is None or proposal.manifest != view.digest or not (proposal.joins.sound and proposal.entries.sound):
            return Refused("manifest-differs", "coordinator")
        if state.roster_vote:
            if state.roster_proposal != signed.raw and _digest(self._trust, state.roster_proposal) != signed.digest:
                return self._caught(round_, "second-roster", "coordinator", state.roster_proposal, signed.raw)
            self._send_vote(state.roster_vote)
            return None
        if not self._inbox.want(view.name, proposal.joins, now):
            round_.waiting["roster-proposal"] = signed.raw
            return None
        fault = self._read_joins(round_, proposal, now)
        if fault is not None:
            return fault
        raw = self._vote(view, "roster", signed.digest, state.beacon)
        round_.change(roster_vote=raw, roster_proposal=signed.raw)
        self._save(view.name)
        self._send_vote(raw)
        return None

    def _on_roster(self, round_: PartyRound, signed: Signed, now: int) -> Refused | None:
        view, state = round_.view, round_.state
        announcement = payload_of(signed, RosterAnnouncement)
        if isinstance(announcement, Refused):
            return announcement
        if view is None:
            return Refused("manifest-differs", "coordinator")
        if round_.roster is not None:
            return None
        opened = open_roster_announcement(view, announcement.proposal, announcement.votes)
        if isinstance(opened, Refused):
            return opened
        proposal, digest, roster_hash = opened
        if state.roster_vote and digest != _digest(self._trust, state.roster_proposal):
            return self._caught(round_, "second-roster", "coordinator", state.roster_proposal, announcement.proposal)
        if not state.entries:
            if not self._inbox.want(view.name, proposal.joins, now):
                round_.waiting["roster"] = signed.raw
                return None
            fault = self._read_joins(round_, proposal, now)
            if fault is not None:
                return fault
        roster = open_roster(view, round_.state.entries, roster_hash)
        if isinstance(roster, Refused):
            return roster
        self._inbox.release(proposal.joins)
        round_.roster = roster
        round_.change(roster=signed.raw)
        self._save(view.name)
        return None

    def _on_header(self, round_: PartyRound, signed: Signed) -> Refused | None:
        view, roster = round_.view, round_.roster
        if view is None or roster is None:
            return Refused("header-early", detail="no roster yet")
        header = payload_of(signed, Header)
        if isinstance(header, Refused):
            return header
        if header.index >= roster.size or signed.head.sender != f"device/{roster.devices[header.index]}":
            return Refused("header-foreign", signed.head.sender)
        if not signed.valid(round_.identities[header.index]):
            return Refused("signature-invalid", detail=signed.head.sender)
        if round_.state.opened or round_.state.set_vote:
            return Refused("round-closed", detail="the survivor set is settled here")
        row = round_.headers.get(header.index)
        if row is not None and row.digest == signed.digest:
            return None
        if row is not None:
            self._keep_header(round_, header.index, HeaderRow(row.digest, "second-header"))
            return self._caught(round_, "second-header", signed.head.sender, b"", signed.raw)
        code = header_fault(view, roster, header, packed_size(view.base.segments))
        seeds: Seeds | str = code or Seeds({}, {})
        if not code and view.member(self._number) is not None:
            private = round_.state.box_private
            seeds = open_box(
                view, roster, header, party=self._number, opener=lambda info, box: box_open(private, info, box)
            )
        if isinstance(seeds, str):
            self._keep_header(round_, header.index, HeaderRow(signed.digest, seeds))
            self._journal.event("complaint", task=view.name, round=view.number, index=header.index, code=seeds)
        else:
            self._keep_header(round_, header.index, HeaderRow(signed.digest, "", seeds))
        return None

    def _on_candidate(self, round_: PartyRound, signed: Signed, now: int) -> Refused | None:
        candidate = payload_of(signed, Candidate)
        if isinstance(candidate, Refused):
            return candidate
        view = round_.view
        if round_.roster is None or view is None or candidate.roster != round_.roster.digest:
            return Refused("roster-differs", "coordinator")
        survivors = self._survivors(round_, candidate.survivors, signed, now)
        if survivors is None or isinstance(survivors, Refused):
            return survivors
        self._send_check(round_, candidate.survivors, survivors)
        return None

    def _on_proposal(self, round_: PartyRound, signed: Signed, now: int) -> Refused | None:
        proposal = payload_of(signed, Proposal)
        if isinstance(proposal, Refused):
            return proposal
        view, roster = round_.view, round_.roster
        if roster is None or view is None or proposal.roster != roster.digest:
            return Refused("roster-differs", "coordinator")
        if round_.state.set_digest:
            if round_.state.set_digest != signed.digest:
                return self._caught(round_, "second-set", "coordinator", round_.state.proposal, signed.raw)
            if round_.state.set_vote:
                self._send_vote(round_.state.set_vote)
            return None
        survivors = self._survivors(round_, proposal.survivors, signed, now)
        if survivors is None or isinstance(survivors, Refused):
            return survivors
        if len(survivors) < roster.survivors_min:
            return Refused("survivors-too-few", "coordinator", f"{len(survivors)} < {roster.survivors_min}")
        missing, bad = round_.complaints(survivors)
        if missing or bad:
            self._send_check(round_, proposal.survivors, survivors)
            return Refused("survivor-refused", "coordinator") if bad else None
        raw = self._vote(view, "set", signed.digest)
        round_.change(set_vote=raw, set_digest=signed.digest, proposal=signed.raw)
        self._save(view.name)
        self._send_vote(raw)
        return None

    def _on_certificate(self, round_: PartyRound, signed: Signed, now: int) -> Refused | None:
        certificate = payload_of(signed, Certificate)
        if isinstance(certificate, Refused):
            return certificate
        view, roster = round_.view, round_.roster
        if view is None or roster is None:
            return Refused("roster-differs", "coordinator")
        inner = open_message(self._trust, certificate.proposal)
        if isinstance(inner, Refused):
            return inner
        proposal = payload_of(inner, Proposal)
        if isinstance(proposal, Refused):
            return proposal
        place = (inner.head.type, inner.head.task, inner.head.round)
        if place != ("proposal", view.name, view.number) or proposal.roster != roster.digest:
            return Refused("roster-differs", "coordinator")
        votes = count_votes(view.base, view.number, certificate.votes, decides="set", digest=inner.digest)
        if len(votes) < view.base.committee.quorum:
            return Refused("votes-too-few", "coordinator", f"{len(votes)} votes for the set")
        if round_.state.set_digest and round_.state.set_digest != inner.digest:
            return self._caught(round_, "second-set", "coordinator", round_.state.proposal, certificate.proposal)
        if round_.state.opened:
            for raw in round_.state.openings:
                self._journal.send("opening", "coordinator", raw)
            return None
        if view.member(self._number) is None:
            return None  # no box was sealed to this party; it has nothing to open
        survivors = self._survivors(round_, proposal.survivors, signed, now)
        if survivors is None or isinstance(survivors, Refused):
            return survivors
        if len(survivors) < roster.survivors_min:
            return Refused("survivors-too-few", "coordinator")
        missing, bad = round_.complaints(survivors)
        if missing:
            self._send_check(round_, proposal.survivors, survivors)
            return None
        if bad:
            return Refused("survivor-refused", "coordinator")
        round_.change(set_digest=inner.digest, proposal=certificate.proposal)
        self._open_set(round_, sorted(survivors))
        return None

    def _on_want(self, round_: PartyRound, signed: Signed, now: int) -> Refused | None:
        want = payload_of(signed, Want)
        if isinstance(want, Refused):
            return want
        if not round_.state.opened or want.proposal != round_.state.set_digest:
            return Refused("roster-differs", "coordinator")
        view = round_.view
        assert view is not None
        if want.part != len(round_.state.openings):
            if want.part < len(round_.state.openings):
                self._journal.send("opening", "coordinator", round_.state.openings[want.part])
                return None
            return Refused("message-misplaced", "coordinator", "opening parts out of order")
        vectors = []
        for subset in want.subsets:
            vector = self._journal.get(f"round/{view.name}/sum/{subset:03d}")
            if vector is None:
                return Refused("subset-not-held", "coordinator", str(subset))
            vectors.append((subset, vector))
        self._publish_opening(round_, OpeningContent(hashes=[], shares=b"", vectors=vectors))
        self._save(view.name)
        return None

    def _on_ask(self, round_: PartyRound, signed: Signed, now: int) -> Refused | None:
        ask = payload_of(signed, Ask)
        if isinstance(ask, Refused):
            return ask
        for raw in round_.state.openings:
            ref = self._opening(raw).content
            if ref.id == ask.blob:
                missing = sorted(set(range(ref.count)) - bits_set(ask.have, ref.count))
                self._journal.send_chunks("coordinator", ref.id, missing[: ask.window])
                return None
        return Refused("blob-unknown", "coordinator")

    def _on_failure(self, round_: PartyRound, signed: Signed, now: int) -> Refused | None:
        failure = payload_of(signed, Failure)
        if isinstance(failure, Refused):
            return failure
        self._erase(signed.head.task, failure.code)
        return None

    def _on_result(self, signed: Signed, now: int) -> Refused | None:
        base = self._bases[signed.head.task]
        fault = self._chain.offer(base, signed, now)
        self._settle(base.name)
        return fault

    def _settle(self, task: str) -> None:
        """Erase a round once its result is followed."""
        round_ = self._rounds.get(task)
        followed = self._journal.get(f"followed/{task}")
        if round_ is not None and followed is not None and round_.state.number <= int(decode(followed)):
            self._erase(task, "finished")

    # -- chunks ---------------------------------------------------------------------------------------------------

    def _chunk(self, raw: bytes, now: int) -> Refused | None:
        accepted = self._inbox.accept(raw)
        if accepted is None or isinstance(accepted, Refused):
            return accepted
        fetch, task = accepted
        if not fetch.complete:
            if fetch.outstanding == 0:
                self._ask(task, fetch, now)
            return None
        round_ = self._rounds.get(task)
        waiting = dict(round_.waiting) if round_ is not None else {}
        for name, message in waiting.items():
            assert round_ is not None
            round_.waiting.pop(name, None)
            fault = self._message(message, now)
            if fault is not None:
                return fault
        fault = self._chain.resume(self._bases[task], now)
        self._settle(task)
        return fault

    def _ask(self, task: str, fetch: Fetch, now: int) -> None:
        round_ = self._rounds.get(task)
        number = round_.state.number if round_ is not None else self._last(task)
        self._journal.send("ask", "coordinator", self._sign(task, number, "ask", fetch.ask(now)))

    # -- checks ---------------------------------------------------------------------------------------------------

    def _adopt_task(self, task: str, raw: bytes, now: int) -> TaskView | Refused:
        known = self._bases.get(task)
        if known is not None:
            return Refused("task-differs", detail="another record under this name was adopted before")
        base = open_task(self._trust, raw)
        if isinstance(base, Refused):
            return base
        if base.name != task:
            return Refused("message-misplaced", "coordinator", "task of another name")
        if self._floor.tasks and task not in self._floor.tasks:
            return Refused("policy-floor", detail=f"task {task} is not allowed here")
        if base.task.threat.cohort_min < self._floor.cohort_min:
            return Refused("policy-floor", detail=f"cohort {base.task.threat.cohort_min} < {self._floor.cohort_min}")
        self._bases[task] = base
        self._journal.put(f"task/{task}", raw)
        self._chain.start(base, now)
        return base

    def _open_manifest(self, round_: PartyRound, raw: bytes) -> RoundView | Refused:
        view = open_manifest(round_.base, raw)
        if isinstance(view, Refused):
            return view
        if view.number != round_.state.number:
            return Refused("round-stale")
        mine = view.member(self._number)
        if mine is not None and round_.state.offer not in view.manifest.offers:
            return Refused("offer-differs", "coordinator")
        return view

    def _read_joins(self, round_: PartyRound, proposal: RosterProposal, now: int) -> Refused | None:
        """Verify every join behind a roster proposal and keep what follows from them."""
        view = round_.view
        assert view is not None
        data = read_blob(self._journal, proposal.joins)
        assert data is not None
        joins = open_joins(view, data, now)
        if isinstance(joins, Refused):
            return joins
        assert isinstance(joins, Joins)
        if chunks_of(joins.entries, view.base.chunk_size)[0] != proposal.entries:
            return Refused("roster-malformed", "coordinator", "entries do not follow from the joins")
        round_.identities = list(joins.identities)
        round_.change(identities=b"".join(joins.identities), entries=joins.entries)
        return None

    def _survivors(
        self, round_: PartyRound, ref: BlobRef, signed: Signed, now: int
    ) -> dict[int, bytes] | Refused | None:
        """The survivor set, or None while it is on its way (the message is taken up again then)."""
        assert round_.roster is not None
        if not ref.sound:
            return Refused("message-malformed", "coordinator", "blob reference")
        if not self._inbox.want(round_.base.name, ref, now):
            round_.waiting[signed.head.type] = signed.raw
            return None
        data = read_blob(self._journal, ref)
        assert data is not None
        return read_survivors(data, round_.roster.size)

    def _send_check(self, round_: PartyRound, ref: BlobRef, survivors: dict[int, bytes]) -> None:
        missing, bad = round_.complaints(survivors)
        check = Check(survivors=ref.id, missing=missing, bad=bad)
        self._journal.send("check", "coordinator", self._sign(round_.base.name, round_.state.number, "check", check))

    # -- opening --------------------------------------------------------------------------------------------------

    def _open_set(self, round_: PartyRound, survivors: list[int]) -> None:
        """Sum the self masks of exactly `survivors`, share the caps of edges they lost, and erase every seed in the same step."""
        view, roster = round_.view, round_.roster
        assert view is not None and roster is not None
        content, sums = make_content(
            view,
            roster,
            party=self._number,
            survivors=survivors,
            seeds={index: round_.headers[index].seeds for index in survivors},
            threads=self._threads,
        )
        for subset, vector in sums.items():
            self._journal.put(f"round/{view.name}/sum/{subset:03d}", vector)
        self._publish_opening(round_, content)
        round_.headers.clear()
        self._journal.delete_all(f"round/{view.name}/header/")
        round_.change(opened=True, box_private=b"", beacon=b"")
        self._save(view.name)
        self._journal.event("opened", task=view.name, round=view.number, survivors=len(survivors))

    def _publish_opening(self, round_: PartyRound, content: OpeningContent) -> None:
        view = round_.view
        assert view is not None
        part = len(round_.state.openings)
        plain = encode(content)
        info = encode(["blindsum/1 opening", view.digest, round_.state.set_digest, self._number, part])
        sealed = self._seal(self._trust.coordinator_box, info, plain)
        ref, chunks = chunks_of(sealed, view.base.chunk_size)
        opening = Opening(
            proposal=round_.state.set_digest, part=part, content=ref, plain=hashlib.sha256(plain).digest()
        )
        raw = self._sign(view.name, view.number, "opening", opening)
        round_.change(openings=[*round_.state.openings, raw])
        self._journal.write(write_blob(ref, chunks))
        self._journal.send("opening", "coordinator", raw)
        self._journal.send_chunks("coordinator", ref.id, range(min(WINDOW, ref.count)))

    # -- state ----------------------------------------------------------------------------------------------------

    def _last(self, task: str) -> int:
        value = self._journal.get(f"last/{task}")
        return int(decode(value)) if value else 0

    def _vote(self, view: RoundView, decides: str, digest: bytes, beacon: bytes = b"") -> bytes:
        vote = convert({"decides": decides, "digest": digest, "beacon": beacon}, Vote)
        head = view.head("vote", f"party/{self._number}", "coordinator")
        return seal_envelope(self._key, head, vote)

    def _sign(self, task: str, number: int, kind: str, payload: Payload) -> bytes:
        head = Head(
            type=kind,
            fleet=self._trust.fleet,
            task=task,
            round=number,
            sender=f"party/{self._number}",
            to="coordinator",
        )
        return seal_envelope(self._key, head, payload)

    def _send_vote(self, raw: bytes) -> None:
        self._journal.send("vote", "coordinator", raw)

    def _caught(self, round_: PartyRound, code: str, culprit: str, first: bytes, second: bytes) -> Refused:
        """Keep what two signed messages prove about `culprit` and refuse the second."""
        task, number = round_.base.name, round_.state.number
        self._journal.put(f"evidence/{task}/{number:08d}/{code}", encode([culprit, first, second]))
        self._journal.event("evidence", task=task, round=number, culprit=culprit, code=code)
        return Refused(code, culprit)

    def _save(self, task: str) -> None:
        self._journal.put(f"state/{task}", encode(self._rounds[task].state))

    def _keep_header(self, round_: PartyRound, index: int, row: HeaderRow) -> None:
        round_.headers[index] = row
        self._journal.put(f"round/{round_.base.name}/header/{index:06d}", row.encode())

    def _erase(self, task: str, why: str) -> None:
        """End a round: every seed, key, sum and message of it goes; that its number is spent stays."""
        round_ = self._rounds.pop(task)
        self._journal.delete(f"state/{task}")
        self._journal.delete_all(f"round/{task}/")
        self._inbox.release_task(task, keep=self._chain.keeps(round_.base))
        for raw in round_.state.openings:
            self._journal.delete_all(f"blob/{self._opening(raw).content.id.hex()}/")
        self._journal.event("round-over", task=task, round=round_.state.number, why=why)

    def _opening(self, raw: bytes) -> Opening:
        signed = open_message(self._trust, raw)
        assert isinstance(signed, Signed)
        return convert(signed.payload, Opening)

    def _restore(self) -> None:
        for _, raw in self._journal.scan("task/"):
            base = open_task(self._trust, raw)
            assert isinstance(base, TaskView)
            self._bases[base.name] = base
            self._chain.start(base, 0)
        for key, value in self._journal.scan("state/"):
            task = key.removeprefix("state/")
            round_ = PartyRound(self._bases[task], convert(decode(value), PartyState))
            round_.restore(self._journal)
            self._rounds[task] = round_


def _digest(trust: Trust, raw: bytes) -> bytes:
    signed = open_message(trust, raw)
    assert isinstance(signed, Signed)
    return signed.digest
