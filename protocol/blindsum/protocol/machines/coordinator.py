"""The coordinator's side of a round (SPEC.md section 8.3).

    phase     asks                               goes on when                                     fails where
    offer     parties: offer-request             all offered, or a quorum and the grace is over   fewer at the deadline
    manifest  parties: manifest                  a quorum voted                                   none at the deadline
    join      devices: announcement              devices_max joined, or join_until                below devices_min
    roster    parties: roster-proposal           a quorum voted and revealed                      none at the deadline
    upload    devices: roster, ask               all uploaded, or upload_until                    below survivors_min
    check     parties: candidate                 all checked, or a quorum and the grace is over   below survivors_min
    vote      parties: proposal                  a quorum voted                                   none at the deadline
    open      parties: certificate, want, ask    the openings suffice                             they cannot, or deadline

Trusted for progress, never for privacy. It may die at any step: what it asked is asked again from the stored state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from blindsum.protocol.blobs import RESEND_MS, WINDOW, Fetch, Fetches, bits_set, read_blob, write_blob
from blindsum.protocol.codec import DecodeError, convert, decode, encode
from blindsum.protocol.envelope import Head, Signed, peek, seal_envelope
from blindsum.protocol.errors import BlindsumError, Refused
from blindsum.protocol.keys import box_open
from blindsum.protocol.machines.bodies import Bodies
from blindsum.protocol.machines.coordinatorround import CoordinatorRound, CoordinatorState, Phase
from blindsum.protocol.machines.journal import Journal
from blindsum.protocol.machines.step import Step, Store
from blindsum.protocol.masks import header_fault
from blindsum.protocol.messages import (
    Announcement,
    Ask,
    BlobRef,
    Candidate,
    Certificate,
    Check,
    Failure,
    Header,
    Manifest,
    Offer,
    OfferRequest,
    Opening,
    OpeningContent,
    Payload,
    Proposal,
    Receipt,
    Result,
    RosterAnnouncement,
    RosterProposal,
    Vote,
    Want,
    chunks_of,
)
from blindsum.protocol.openings import combine
from blindsum.protocol.optimiser import advance
from blindsum.protocol.ring import pack, packed_size
from blindsum.protocol.roster import (
    beacon_commitment,
    open_join,
    open_joins,
    open_roster,
    open_roster_announcement,
    pack_joins,
    pack_survivors,
)
from blindsum.protocol.trust import Trust, party_number
from blindsum.protocol.view import RoundView, TaskView, open_manifest, open_message, open_task, payload_of

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

__all__ = ["RESULTS_KEPT", "CoordinatorMachine"]

RESULTS_KEPT: Final = 16
"""A party that was away for more rounds than this cannot follow the chain by itself any more."""
REPEAT_MS: Final = 4_000
"""How often an announcement or roster is published again for devices that missed it."""


class CoordinatorMachine:
    """The coordinator of any number of tasks, one round at a time in each."""

    def __init__(
        self,
        *,
        key: Ed25519PrivateKey,
        box_private: bytes,
        trust: Trust,
        store: Store,
        random: Callable[[int], bytes],
        threads: int = 1,
    ) -> None:
        self._key = key
        self._box_private = box_private
        self._trust = trust
        self._random = random
        self._threads = threads
        self._journal = Journal(store)
        self._fetches = Fetches(self._journal)
        self._bases: dict[str, TaskView] = {}
        self._rounds: dict[str, CoordinatorRound] = {}
        self._served: dict[bytes, BlobRef] = {}
        self._openings: dict[bytes, tuple[str, bytes]] = {}
        self._restore()

    # -- commands -------------------------------------------------------------------------------------------------

    def add_task(self, raw: bytes, *, plan: bytes, model: bytes) -> Step:
        """Take on a task the operator signed, with its two blobs. Raises BlindsumError where they do not belong together."""
        base = open_task(self._trust, raw)
        if isinstance(base, Refused):
            raise BlindsumError("task-invalid", f"{base.code}: {base.detail}")
        known = self._bases.get(base.name)
        if known is not None and known.digest != base.digest:
            raise BlindsumError("task-invalid", f"another task {base.name} is already here")
        for ref, data in ((base.task.plan, plan), (base.task.model, model)):
            made, chunks = chunks_of(data, ref.chunk_size)
            if made != ref:
                raise BlindsumError("task-invalid", "plan or model is not the one the operator signed")
            self._journal.write(write_blob(ref, chunks))
        self._bases[base.name] = base
        self._journal.put(f"task/{base.name}", raw)
        self._serve(base.task.plan, base.task.model)
        return self._journal.take()

    def start(self, task: str, now: int) -> Step:
        """Begin the next round of a task. What the last one left (transcript rows, bodies) is deleted."""
        base = self._bases.get(task)
        if base is None:
            raise BlindsumError("task-invalid", f"no task {task} here")
        old = self._rounds.get(task)
        if old is not None and old.active:
            raise BlindsumError("round-active", f"round {old.state.number} of {task}")
        number = self._last(task) + 1
        if number > base.task.rounds_max:
            raise BlindsumError("task-finished", f"{task} has had its {base.task.rounds_max} rounds")
        if old is not None:
            self._clear(old)
        state = CoordinatorState(
            number=number, phase="offer", phase_since=now, phase_until=now + base.task.decide_ms
        )
        round_ = CoordinatorRound(base, state)
        self._rounds[task] = round_
        self._journal.put(f"last/{task}", encode(number))
        self._save(round_)
        self._request(round_, now)
        self._journal.event("phase", task=task, round=number, phase="offer")
        return self._journal.take()

    def round(self, task: str) -> CoordinatorRound | None:
        """The current (or last) round of a task, to be looked at and not changed."""
        return self._rounds.get(task)

    def base(self, task: str) -> TaskView | None:
        return self._bases.get(task)

    def model(self, task: str) -> bytes:
        """The current model of a task."""
        data = read_blob(self._journal, self._chain(self._bases[task])[1])
        assert data is not None
        return data

    def records(self, task: str) -> Iterator[tuple[str, bytes]]:
        """The transcript of the round that has just finished (`transcript.write_records` makes a file of it)."""
        round_ = self._rounds[task]
        state, view, bodies = round_.state, round_.view, round_.bodies
        assert state.phase == "done" and view is not None and bodies is not None
        result = convert(open_payload(self._trust, state.result), Result)
        proposal = convert(open_payload(self._trust, state.proposal), Proposal)
        yield "trust", self._trust.encode()
        yield "announcement", state.announcement
        yield "roster", state.roster
        yield "joins", self._blob(self._roster_proposal(round_).joins)
        yield "certificate", state.certificate
        yield "survivors", self._blob(proposal.survivors)
        for index in sorted(bodies.complete):
            signed, header = bodies.headers[index]
            yield "header", signed.raw
            yield "body", self._blob(header.body)
        for raw in state.openings:
            opening = open_message(self._trust, raw)
            assert isinstance(opening, Signed)
            party = party_number(opening.head.sender)
            plain = self._journal.get(f"round/{task}/opening/{party:02d}/{opening.payload['part']:02d}")
            if plain is not None:
                yield "opening", raw
                yield "content", plain
        yield "result", state.result
        yield "sum", self._blob(result.sum)
        yield "model", self._blob(view.manifest.model)
        yield "next", self._blob(result.model)

    def _blob(self, ref: BlobRef) -> bytes:
        data = read_blob(self._journal, ref)
        assert data is not None
        return data

    # -- inputs ---------------------------------------------------------------------------------------------------

    def receive(self, body: bytes, now: int) -> Step:
        return self._journal.take(self._message(body, now) if peek(body) else self._chunk(body, now))

    def wake(self, now: int) -> Step:
        for round_ in self._rounds.values():
            round_.grace_over = round_.grace_over or now >= round_.grace_until
            if round_.active:
                self._turn(round_, now)
            if round_.active and now - round_.sent_at >= round_.wait_ms:
                self._request(round_, now)
            if round_.bodies is not None and round_.state.phase == "upload":
                round_.bodies.fill_slots(now)
        for fetch in list(self._fetches.due(now)):
            self._ask(fetch, now)
        return self._journal.take()

    @property
    def deadline(self) -> int | None:
        times = [self._fetches.deadline]
        for round_ in self._rounds.values():
            if round_.active:
                times += [round_.state.phase_until, round_.sent_at + round_.wait_ms]
                if not round_.grace_over:
                    times.append(round_.grace_until)
        return min((time for time in times if time is not None), default=None)

    # -- messages -------------------------------------------------------------------------------------------------

    def _message(self, raw: bytes, now: int) -> Refused | None:
        signed = open_message(self._trust, raw)
        if isinstance(signed, Refused):
            return signed
        head = signed.head
        round_ = self._rounds.get(head.task)
        if head.to not in ("coordinator", "all"):
            return Refused("message-misplaced", head.sender, f"to {head.to}")
        if round_ is None:
            return Refused("task-unknown", detail=head.task)
        if head.type == "ask" and head.sender.startswith("party/"):
            return self._on_ask(round_, signed, now)
        if round_.state.number != head.round:
            return Refused("round-stale", detail=f"{head.type} of round {head.round}")
        handler = {
            "offer": self._on_offer,
            "vote": self._on_vote,
            "join": self._on_join,
            "header": self._on_header,
            "ask": self._on_ask,
            "check": self._on_check,
            "opening": self._on_opening,
        }.get(head.type)
        if handler is None:
            return Refused("message-misplaced", head.sender, head.type)
        return handler(round_, signed, now)

    def _on_offer(self, round_: CoordinatorRound, signed: Signed, now: int) -> Refused | None:
        offer = payload_of(signed, Offer)
        if isinstance(offer, Refused):
            return offer
        party = party_number(signed.head.sender)
        self._catch_up(round_.base, party, offer.chain)
        if round_.state.phase != "offer" or party in round_.state.offers:
            return None
        round_.change(offers={**round_.state.offers, party: signed.raw})
        self._save(round_)
        self._turn(round_, now)
        return None

    def _on_vote(self, round_: CoordinatorRound, signed: Signed, now: int) -> Refused | None:
        vote = payload_of(signed, Vote)
        if isinstance(vote, Refused):
            return vote
        state = round_.state
        name, proposed, votes = {
            "manifest": ("manifest_votes", state.manifest, state.manifest_votes),
            "roster": ("roster_votes", state.roster_proposal, state.roster_votes),
            "set": ("set_votes", state.proposal, state.set_votes),
        }[vote.decides]
        party = party_number(signed.head.sender)
        if party in votes:
            first = open_message(self._trust, votes[party])
            assert isinstance(first, Signed)
            if first.payload["digest"] != vote.digest:
                return self._evidence(round_, "second-vote", signed.head.sender, first.raw, signed.raw)
            return None
        if not proposed or _digest(self._trust, proposed) != vote.digest:
            return Refused("vote-differs", signed.head.sender, vote.decides)
        if vote.decides == "roster":
            assert round_.view is not None
            member = round_.view.member(party)
            revealed = beacon_commitment(vote.beacon, round_.base.name, state.number, party)
            if member is None or revealed != member.beacon_commitment:
                return Refused("beacon-differs", signed.head.sender)
        round_.change(**{name: {**votes, party: signed.raw}})
        self._save(round_)
        self._turn(round_, now)
        return None

    def _on_join(self, round_: CoordinatorRound, signed: Signed, now: int) -> Refused | None:
        view = round_.view
        if view is None:
            return Refused("round-stale", detail="no manifest yet")
        opened = open_join(view, signed.raw, now)
        if isinstance(opened, Refused):
            return opened
        device, identity, _, digest = opened
        known = round_.joins.get(device)
        if known is not None:
            same = known[0] == signed.raw
            self._receipt(view, device, digest, "held" if same else "refused", "" if same else "second-join")
            return None if same else Refused("second-join", signed.head.sender)
        if round_.state.phase != "join":
            self._receipt(view, device, digest, "refused", "joining-closed")
            return Refused("joining-closed", detail=device)
        if len(round_.joins) >= round_.base.task.devices_max:
            self._receipt(view, device, digest, "refused", "cohort-full")
            return Refused("cohort-full", detail=device)
        round_.joins[device] = (signed.raw, identity)
        self._journal.put(f"round/{view.name}/join/{device}", signed.raw)
        self._receipt(view, device, digest, "held", "")
        self._journal.event("join", task=view.name, round=view.number, device=device)
        self._turn(round_, now)
        return None

    def _on_header(self, round_: CoordinatorRound, signed: Signed, now: int) -> Refused | None:
        view, roster, bodies = round_.view, round_.roster, round_.bodies
        if view is None or roster is None or bodies is None:
            return Refused("header-early")
        header = payload_of(signed, Header)
        if isinstance(header, Refused):
            return header
        if header.index >= roster.size or signed.head.sender != f"device/{roster.devices[header.index]}":
            return Refused("header-foreign", signed.head.sender)
        device = roster.devices[header.index]
        if not signed.valid(round_.joins[device][1]):
            return Refused("signature-invalid", detail=signed.head.sender)
        known = bodies.headers.get(header.index)
        if known is not None:
            if known[0].digest != signed.digest:
                return self._evidence(round_, "second-header", signed.head.sender, known[0].raw, signed.raw)
            if header.index in bodies.complete:
                self._receipt(view, device, signed.digest, "complete", "")
            elif round_.state.phase != "upload":
                self._receipt(view, device, signed.digest, "refused", "upload-late")
            return None
        if round_.state.phase != "upload":
            self._receipt(view, device, signed.digest, "refused", "upload-late")
            return Refused("upload-late", detail=device)
        code = header_fault(view, roster, header, packed_size(view.base.segments))
        if not code and not bodies.accept(signed, header, now):
            code = "header-foreign"
        if code:
            self._receipt(view, device, signed.digest, "refused", code)
            return Refused(code, signed.head.sender)
        self._journal.event("header", task=view.name, round=view.number, device=device)
        for fetch in list(self._fetches.due(now)):
            self._ask(fetch, now)
        return None

    def _on_ask(self, round_: CoordinatorRound, signed: Signed, now: int) -> Refused | None:
        ask = payload_of(signed, Ask)
        if isinstance(ask, Refused):
            return ask
        sender = signed.head.sender
        if sender.startswith("device/"):
            join = round_.joins.get(sender.removeprefix("device/"))
            if join is None or not signed.valid(join[1]):
                return Refused("signature-invalid", detail=sender)
        ref = self._served.get(ask.blob)
        if ref is None:
            return Refused("blob-unknown", sender)
        missing = sorted(set(range(ref.count)) - bits_set(ask.have, ref.count))
        self._journal.send_chunks(sender, ask.blob, missing[: ask.window])
        return None

    def _on_check(self, round_: CoordinatorRound, signed: Signed, now: int) -> Refused | None:
        check = payload_of(signed, Check)
        if isinstance(check, Refused):
            return check
        bodies = round_.bodies
        if bodies is None or round_.state.phase not in ("check", "vote", "open"):
            return Refused("round-stale", detail="check")
        party = party_number(signed.head.sender)
        for index in check.missing:
            if index in bodies.headers:
                self._journal.send("header", f"party/{party}", bodies.headers[index][0].raw)
        if check.missing:
            round_.wait_ms = min(round_.wait_ms, RESEND_MS)
            self._resend_after_relay(round_, party)
            return None
        if round_.state.phase != "check" or party in round_.state.checks:
            return None
        if check.survivors != self._survivors_ref(round_.state.candidate, Candidate).id:
            return Refused("survivors-differ", signed.head.sender)
        excluded = {**{index: code for index, code in check.bad if index in bodies.headers}, **round_.state.excluded}
        round_.change(checks={**round_.state.checks, party: signed.raw}, excluded=excluded)
        self._save(round_)
        self._turn(round_, now)
        return None

    def _on_opening(self, round_: CoordinatorRound, signed: Signed, now: int) -> Refused | None:
        opening = payload_of(signed, Opening)
        if isinstance(opening, Refused):
            return opening
        state, view = round_.state, round_.view
        if state.phase != "open" or view is None:
            return None if signed.raw in state.openings else Refused("round-stale", detail="opening")
        party = party_number(signed.head.sender)
        if view.member(party) is None or opening.proposal != _digest(self._trust, state.proposal):
            return Refused("opening-foreign", signed.head.sender)
        for raw in state.openings:
            first = open_message(self._trust, raw)
            assert isinstance(first, Signed)
            if (first.head.sender, first.payload["part"]) == (signed.head.sender, opening.part):
                if first.digest != signed.digest:
                    return self._evidence(round_, "second-opening", signed.head.sender, raw, signed.raw)
                return None
        if opening.part != len(round_.contents.get(party, [])) or not opening.content.sound:
            return Refused("opening-foreign", signed.head.sender)
        round_.change(openings=[*state.openings, signed.raw])
        self._save(round_)
        self._openings[opening.content.id] = (view.name, signed.raw)
        count = opening.content.count
        self._fetches.want(opening.content, signed.head.sender, now, pushed=min(WINDOW, count))
        return None

    # -- chunks ---------------------------------------------------------------------------------------------------

    def _chunk(self, raw: bytes, now: int) -> Refused | None:
        accepted = self._fetches.accept(raw)
        if isinstance(accepted, Refused):
            return accepted
        fetch, write = accepted
        if write is None:
            return None
        self._journal.write([write])
        owner = self._openings.get(fetch.id)
        if owner is not None:
            if fetch.complete:
                return self._opened(self._rounds[owner[0]], owner[1], fetch, now)
            if fetch.outstanding == 0:
                self._ask(fetch, now)
            return None
        round_ = next((r for r in self._rounds.values() if r.bodies is not None and r.bodies.owns(fetch.id)), None)
        assert round_ is not None and round_.bodies is not None and round_.view is not None
        round_.bodies.moved(fetch, now)
        if not fetch.complete:
            if fetch.outstanding == 0:
                self._ask(fetch, now)
            return None
        index = round_.bodies.add(fetch, now)
        assert round_.roster is not None
        device = round_.roster.devices[index]
        self._receipt(round_.view, device, round_.bodies.headers[index][0].digest, "complete", "")
        self._journal.event("upload", task=round_.base.name, round=round_.state.number, device=device)
        self._turn(round_, now)
        for due in list(self._fetches.due(now)):
            self._ask(due, now)
        return None

    def _opened(self, round_: CoordinatorRound, raw: bytes, fetch: Fetch, now: int) -> Refused | None:
        """An opening's box is all here: look inside."""
        signed = open_message(self._trust, raw)
        assert isinstance(signed, Signed) and round_.view is not None
        opening = convert(signed.payload, Opening)
        party = party_number(signed.head.sender)
        sealed = read_blob(self._journal, fetch.ref)
        assert sealed is not None
        self._fetches.drop(fetch.id)
        self._openings.pop(fetch.id)
        self._journal.delete_all(f"blob/{fetch.id.hex()}/")
        info = encode(["blindsum/1 opening", round_.view.digest, opening.proposal, party, opening.part])
        plain = box_open(self._box_private, info, sealed)
        if plain is None or hashlib.sha256(plain).digest() != opening.plain:
            self._fault(round_, signed.head.sender, "opening-unreadable")
            return Refused("opening-unreadable", signed.head.sender)
        try:
            content = convert(decode(plain), OpeningContent)
        except DecodeError:
            self._fault(round_, signed.head.sender, "opening-malformed")
            return Refused("opening-malformed", signed.head.sender)
        self._journal.put(f"round/{round_.base.name}/opening/{party:02d}/{opening.part:02d}", plain)
        round_.contents.setdefault(party, []).append(content)
        round_.wants.pop(party, None)
        self._turn(round_, now)
        return None

    # -- phases ---------------------------------------------------------------------------------------------------

    def _turn(self, round_: CoordinatorRound, now: int) -> None:
        """Go on to the next phase if this one has what it needs; fail where its deadline finds it without."""
        state, base = round_.state, round_.base
        quorum = base.committee.quorum
        late = now >= state.phase_until
        settled = not round_.awaited() or now >= round_.grace_until
        if state.phase == "offer":
            if len(state.offers) >= quorum and settled:
                self._propose_manifest(round_, now)
            elif late:
                self._fail(round_, "offers-too-few", now)
        elif state.phase == "manifest":
            if len(state.manifest_votes) >= quorum:
                self._announce(round_, now)
            elif late:
                self._fail(round_, "votes-too-few", now)
        elif state.phase == "join":
            if late or len(round_.joins) >= base.task.devices_max:
                if len(round_.joins) < base.task.devices_min:
                    self._fail(round_, "cohort-too-small", now)
                else:
                    self._propose_roster(round_, now)
        elif state.phase == "roster":
            if len(state.roster_votes) >= quorum:
                self._publish_roster(round_, now)
            elif late:
                self._fail(round_, "votes-too-few", now)
        elif state.phase == "upload":
            assert round_.bodies is not None and round_.roster is not None
            if late or len(round_.bodies.complete) == round_.roster.size:
                self._close(round_, now)
        elif state.phase == "check":
            if len(state.checks) >= quorum and settled:
                self._propose_set(round_, now)
            elif late:
                self._fail(round_, "checks-too-few", now)
        elif state.phase == "vote":
            if len(state.set_votes) >= quorum:
                self._certify(round_, now)
            elif late:
                self._fail(round_, "votes-too-few", now)
        elif state.phase == "open":
            if round_.contents and settled:
                self._combine(round_, now)
            if late and round_.active:
                self._fail(round_, "openings-too-few", now)

    def _propose_manifest(self, round_: CoordinatorRound, now: int) -> None:
        base, task = round_.base, round_.base.task
        previous, model = self._chain(base)
        join_until = now + task.join_ms
        upload_until = join_until + task.upload_ms
        manifest = Manifest(
            task=base.digest,
            previous=previous,
            model=model,
            offers=[round_.state.offers[party] for party in sorted(round_.state.offers)],
            rotation=self._random(16) if task.codec.rotate else b"",
            issued_at=now,
            join_until=join_until,
            upload_until=upload_until,
            expires_at=upload_until + 8 * task.decide_ms,
        )
        raw = self._sign(round_, "manifest", "parties", manifest)
        self._set_manifest(round_, raw)
        self._enter(round_, "manifest", now, now + task.decide_ms, manifest=raw)

    def _announce(self, round_: CoordinatorRound, now: int) -> None:
        state, view = round_.state, round_.view
        assert view is not None
        announcement = Announcement(
            task=round_.base.raw, manifest=state.manifest, votes=[state.manifest_votes[p] for p in sorted(state.manifest_votes)]
        )
        raw = self._sign(round_, "announcement", "all", announcement)
        self._broadcast(round_, view.manifest.model, view.task.plan)
        self._enter(round_, "join", now, view.manifest.join_until, announcement=raw)

    def _propose_roster(self, round_: CoordinatorRound, now: int) -> None:
        view, chunk_size = round_.view, round_.base.chunk_size
        assert view is not None
        packed = pack_joins({device: raw for device, (raw, _) in round_.joins.items()})
        opened = open_joins(view, packed, now)
        if isinstance(opened, Refused):
            self._fail(round_, opened.code, now)
            return
        joins, join_chunks = chunks_of(packed, chunk_size)
        entries, entry_chunks = chunks_of(opened.entries, chunk_size)
        self._journal.write(write_blob(joins, join_chunks))
        self._journal.write(write_blob(entries, entry_chunks))
        self._serve(joins, entries)
        proposal = RosterProposal(manifest=view.digest, joins=joins, entries=entries)
        raw = self._sign(round_, "roster-proposal", "parties", proposal)
        self._enter(round_, "roster", now, now + round_.base.task.decide_ms, roster_proposal=raw)

    def _publish_roster(self, round_: CoordinatorRound, now: int) -> None:
        state, view = round_.state, round_.view
        assert view is not None
        votes = [state.roster_votes[party] for party in sorted(state.roster_votes)]
        raw = self._sign(round_, "roster", "all", RosterAnnouncement(proposal=state.roster_proposal, votes=votes))
        round_.change(roster=raw)
        entries = self._set_roster(round_)
        self._broadcast(round_, entries)
        assert round_.roster is not None
        self._enter(round_, "upload", now, view.manifest.upload_until, devices=round_.roster.size)

    def _close(self, round_: CoordinatorRound, now: int) -> None:
        bodies, roster = round_.bodies, round_.roster
        assert bodies is not None and roster is not None
        bodies.close()
        if len(bodies.complete) < roster.survivors_min:
            self._fail(round_, "survivors-too-few", now)
            return
        ref = self._make_survivors(round_)
        raw = self._sign(round_, "candidate", "parties", Candidate(roster=roster.digest, survivors=ref))
        self._enter(round_, "check", now, now + round_.base.task.decide_ms, candidate=raw)

    def _propose_set(self, round_: CoordinatorRound, now: int) -> None:
        bodies, roster = round_.bodies, round_.roster
        assert bodies is not None and roster is not None
        for index, code in round_.state.excluded.items():
            bodies.exclude(index)
            self._fault(round_, f"device/{roster.devices[index]}", code)
        if len(bodies.complete) < roster.survivors_min:
            self._fail(round_, "survivors-too-few", now)
            return
        ref = self._make_survivors(round_)
        raw = self._sign(round_, "proposal", "parties", Proposal(roster=roster.digest, survivors=ref))
        self._enter(round_, "vote", now, now + round_.base.task.decide_ms, proposal=raw)

    def _certify(self, round_: CoordinatorRound, now: int) -> None:
        state = round_.state
        votes = [state.set_votes[party] for party in sorted(state.set_votes)]
        raw = self._sign(round_, "certificate", "parties", Certificate(proposal=state.proposal, votes=votes))
        self._enter(round_, "open", now, now + 2 * round_.base.task.decide_ms, certificate=raw)

    def _combine(self, round_: CoordinatorRound, now: int) -> None:
        view, roster, bodies = round_.view, round_.roster, round_.bodies
        assert view is not None and roster is not None and bodies is not None
        headers = {index: bodies.headers[index][1] for index in bodies.complete}
        combined = combine(view, roster, bodies.lanes, headers=headers, contents=round_.contents, threads=self._threads)
        if combined.complete:
            for principal, code in combined.faults:
                self._fault(round_, principal, code)
            self._finish(round_, now)
        elif combined.hopeless:
            for principal, code in combined.faults:
                self._fault(round_, principal, code)
            self._fail(round_, combined.hopeless, now)
        else:
            fresh = {party: subsets for party, subsets in combined.wants.items() if party not in round_.wants}
            round_.wants.update(fresh)
            for party in fresh:
                self._send_want(round_, party)

    def _finish(self, round_: CoordinatorRound, now: int) -> None:
        view, bodies, base = round_.view, round_.bodies, round_.base
        assert view is not None and bodies is not None and round_.roster is not None
        total = pack(base.segments, bodies.lanes)
        _, model = self._chain(base)
        old = read_blob(self._journal, model)
        assert old is not None
        try:
            new = advance(base, old, total, view.manifest.rotation)
        except BlindsumError as error:
            self._fail(round_, error.code, now)
            return
        sum_ref, sum_chunks = chunks_of(total, base.chunk_size)
        model_ref, model_chunks = chunks_of(new, base.chunk_size)
        self._journal.write(write_blob(sum_ref, sum_chunks))
        self._journal.write(write_blob(model_ref, model_chunks))
        openings = []
        for raw in round_.state.openings:
            opened = open_message(self._trust, raw)
            assert isinstance(opened, Signed)
            party = party_number(opened.head.sender)
            if opened.payload["part"] < len(round_.contents.get(party, [])):
                openings.append((party, opened.payload["plain"]))
        result = Result(
            previous=view.manifest.previous,
            rotation=view.manifest.rotation,
            manifest=view.digest,
            roster=round_.roster.digest,
            proposal=_digest(self._trust, round_.state.proposal),
            count=len(bodies.complete),
            sum=sum_ref,
            model=model_ref,
            openings=sorted(openings),
        )
        raw = self._sign(round_, "result", "all", result)
        self._journal.put(f"chain/{base.name}", encode([_digest(self._trust, raw), model_ref]))
        self._journal.put(f"result/{base.name}/{view.number:08d}", raw)
        self._forget_results(base)
        self._broadcast(round_, sum_ref, model_ref)
        self._enter(round_, "done", now, now, result=raw)
        self._journal.send("result", f"all/{base.name}", raw, retain=True)
        self._journal.event("round-finished", task=base.name, round=view.number, count=result.count)

    def _fail(self, round_: CoordinatorRound, code: str, now: int) -> None:
        if round_.bodies is not None:
            round_.bodies.close()
        digest = round_.view.digest if round_.view is not None else bytes(32)
        raw = self._sign(round_, "failure", "all", Failure(manifest=digest, code=code))
        self._enter(round_, "failed", now, now, code=code)
        self._journal.send("failure", f"all/{round_.base.name}", raw, retain=True)
        self._journal.event("round-failed", task=round_.base.name, round=round_.state.number, code=code)

    def _enter(
        self, round_: CoordinatorRound, phase: Phase, now: int, until: int, *, devices: int = 0, **changes: object
    ) -> None:
        round_.change(phase=phase, phase_since=now, phase_until=until, **changes)
        self._save(round_)
        facts = {"devices": devices} if devices else {}
        self._journal.event("phase", task=round_.base.name, round=round_.state.number, phase=phase, **facts)
        round_.wait_ms, round_.sent_at, round_.grace_over = RESEND_MS, 0, False
        if round_.active:
            self._request(round_, now)

    # -- asking ---------------------------------------------------------------------------------------------------

    def _request(self, round_: CoordinatorRound, now: int) -> None:
        """Say (again) what this phase wants from whom."""
        state, base = round_.state, round_.base
        again = round_.sent_at > 0
        round_.wait_ms = min(2 * round_.wait_ms, 8 * RESEND_MS) if again else RESEND_MS
        round_.sent_at = now
        if state.phase in ("join", "upload"):
            kind, raw = ("announcement", state.announcement) if state.phase == "join" else ("roster", state.roster)
            round_.wait_ms = REPEAT_MS
            self._journal.send(kind, f"all/{base.name}", raw, retain=True)
            return
        kind = {"check": "candidate", "vote": "proposal", "open": "certificate", "roster": "roster-proposal"}.get(
            state.phase, state.phase
        )
        for party in round_.awaited():
            self._send_request(round_, kind, party)
        for party in round_.wants:
            self._send_want(round_, party)

    def _send_request(self, round_: CoordinatorRound, kind: str, party: int) -> None:
        state, to = round_.state, f"party/{party}"
        if kind == "offer":
            raw = self._sign(round_, "offer-request", to, OfferRequest(task=round_.base.raw))
            self._journal.send("offer-request", to, raw)
            return
        if kind in ("candidate", "proposal", "certificate") and state.roster:
            # a party that was away needs what went before; one that was not passes it over
            if round_.wait_ms > RESEND_MS:
                self._journal.send("announcement", to, state.announcement)
                self._journal.send("roster", to, state.roster)
            ref = self._survivors_ref(state.candidate if kind == "candidate" else state.proposal, Candidate)
            self._journal.send(kind, to, getattr(state, kind))
            self._journal.send_chunks(to, ref.id, range(min(WINDOW, ref.count)))
            return
        if kind == "roster-proposal":
            if round_.wait_ms > RESEND_MS:
                self._journal.send("announcement", to, state.announcement)
            self._journal.send(kind, to, state.roster_proposal)
            joins = self._roster_proposal(round_).joins
            self._journal.send_chunks(to, joins.id, range(min(WINDOW, joins.count)))
            return
        self._journal.send(kind, to, state.manifest)

    def _resend_after_relay(self, round_: CoordinatorRound, party: int) -> None:
        kind = {"check": "candidate", "vote": "proposal", "open": "certificate"}[round_.state.phase]
        self._journal.send(kind, f"party/{party}", getattr(round_.state, kind))

    def _send_want(self, round_: CoordinatorRound, party: int) -> None:
        want = Want(
            proposal=_digest(self._trust, round_.state.proposal),
            part=len(round_.contents[party]),
            subsets=round_.wants[party],
        )
        self._journal.send("want", f"party/{party}", self._sign(round_, "want", f"party/{party}", want))

    def _ask(self, fetch: Fetch, now: int) -> None:
        round_ = next((r for r in self._rounds.values() if self._concerns(r, fetch.id)), None)
        if round_ is None:
            self._fetches.drop(fetch.id)
        else:
            self._journal.send("ask", fetch.owner, self._sign(round_, "ask", fetch.owner, fetch.ask(now)))

    def _concerns(self, round_: CoordinatorRound, blob: bytes) -> bool:
        owner = self._openings.get(blob)
        if owner is not None:
            return owner[0] == round_.base.name
        return round_.bodies is not None and round_.bodies.owns(blob)

    def _receipt(self, view: RoundView, device: str, subject: bytes, status: str, code: str) -> None:
        receipt = convert({"subject": subject, "status": status, "code": code}, Receipt)
        to = f"device/{device}"
        self._journal.send("receipt", to, seal_envelope(self._key, view.head("receipt", "coordinator", to), receipt))

    def _catch_up(self, base: TaskView, party: int, chain: bytes) -> None:
        """Send a party the results after the last one it has followed."""
        results = [raw for _, raw in self._journal.scan(f"result/{base.name}/")]
        digests = [_digest(self._trust, raw) for raw in results]
        if digests and chain != digests[-1]:
            first = digests.index(chain) + 1 if chain in digests else 0
            for raw in results[first:]:
                self._journal.send("result", f"party/{party}", raw)

    # -- state ----------------------------------------------------------------------------------------------------

    def _chain(self, base: TaskView) -> tuple[bytes, BlobRef]:
        value = self._journal.get(f"chain/{base.name}")
        if value is None:
            return bytes(32), base.task.model
        digest, ref = decode(value)
        return digest, convert(ref, BlobRef)

    def _last(self, task: str) -> int:
        value = self._journal.get(f"last/{task}")
        return int(decode(value)) if value else 0

    def _serve(self, *refs: BlobRef) -> None:
        for ref in refs:
            self._served[ref.id] = ref

    def _broadcast(self, round_: CoordinatorRound, *refs: BlobRef) -> None:
        for ref in refs:
            self._serve(ref)
            self._journal.send_chunks(f"all/{round_.base.name}", ref.id, range(ref.count), retain=True)

    def _unserve(self, task: str, ref: BlobRef) -> None:
        """Delete a blob here and, by publishing its chunks empty, on the broker."""
        self._served.pop(ref.id, None)
        self._journal.delete_all(f"blob/{ref.id.hex()}/")
        self._journal.send_chunks(f"all/{task}", ref.id, range(ref.count), retain=True)

    def _forget_results(self, base: TaskView) -> None:
        rows = list(self._journal.scan(f"result/{base.name}/"))
        for key, raw in rows[:-RESULTS_KEPT]:
            self._unserve(base.name, convert(open_payload(self._trust, raw), Result).sum)
            self._journal.delete(key)

    def _make_survivors(self, round_: CoordinatorRound) -> BlobRef:
        bodies = round_.bodies
        assert bodies is not None
        packed = pack_survivors({index: bodies.headers[index][0].digest for index in bodies.complete})
        ref, chunks = chunks_of(packed, round_.base.chunk_size)
        self._journal.write(write_blob(ref, chunks))
        self._serve(ref)
        return ref

    def _survivors_ref(self, raw: bytes, kind: type[Candidate]) -> BlobRef:
        return convert(open_payload(self._trust, raw), kind).survivors

    def _roster_proposal(self, round_: CoordinatorRound) -> RosterProposal:
        return convert(open_payload(self._trust, round_.state.roster_proposal), RosterProposal)

    def _set_manifest(self, round_: CoordinatorRound, raw: bytes) -> None:
        view = open_manifest(round_.base, raw)
        assert isinstance(view, RoundView), view
        round_.view = view

    def _set_roster(self, round_: CoordinatorRound) -> BlobRef:
        view = round_.view
        assert view is not None
        announcement = convert(open_payload(self._trust, round_.state.roster), RosterAnnouncement)
        opened = open_roster_announcement(view, announcement.proposal, announcement.votes)
        assert not isinstance(opened, Refused), opened
        proposal, _, digest = opened
        entries = read_blob(self._journal, proposal.entries)
        assert entries is not None
        roster = open_roster(view, entries, digest)
        assert not isinstance(roster, Refused), roster
        round_.roster = roster
        round_.bodies = Bodies(self._journal, self._fetches, view, roster)
        return proposal.entries

    def _sign(self, round_: CoordinatorRound, kind: str, to: str, payload: Payload) -> bytes:
        head = Head(
            type=kind,
            fleet=self._trust.fleet,
            task=round_.base.name,
            round=round_.state.number,
            sender="coordinator",
            to=to,
        )
        return seal_envelope(self._key, head, payload)

    def _fault(self, round_: CoordinatorRound, principal: str, code: str) -> None:
        self._journal.event("fault", task=round_.base.name, round=round_.state.number, culprit=principal, code=code)

    def _evidence(self, round_: CoordinatorRound, code: str, culprit: str, first: bytes, second: bytes) -> Refused:
        """Keep what two signed messages prove about `culprit` and refuse the second."""
        task, number = round_.base.name, round_.state.number
        self._journal.put(f"evidence/{task}/{number:08d}/{code}/{culprit}", encode([culprit, first, second]))
        self._journal.event("evidence", task=task, round=number, culprit=culprit, code=code)
        return Refused(code, culprit)

    def _save(self, round_: CoordinatorRound) -> None:
        self._journal.put(f"state/{round_.base.name}", encode(round_.state))

    def _clear(self, round_: CoordinatorRound) -> None:
        """Delete what a finished round left: joins, headers, bodies, openings, rosters."""
        name = round_.base.name
        _, current = self._chain(round_.base)
        if round_.view is not None and round_.view.manifest.model not in (round_.base.task.model, current):
            self._unserve(name, round_.view.manifest.model)
        if round_.bodies is not None:
            for _, header in round_.bodies.headers.values():
                self._journal.delete_all(f"blob/{header.body.id.hex()}/")
        if round_.state.roster_proposal:
            proposal = self._roster_proposal(round_)
            self._unserve(name, proposal.entries)
            self._unserve(name, proposal.joins)
        for raw in (round_.state.candidate, round_.state.proposal):
            if raw:
                ref = self._survivors_ref(raw, Candidate)
                self._served.pop(ref.id, None)
                self._journal.delete_all(f"blob/{ref.id.hex()}/")
        for blob, (task, _) in list(self._openings.items()):
            if task == name:
                self._openings.pop(blob)
                self._fetches.drop(blob)
                self._journal.delete_all(f"blob/{blob.hex()}/")
        self._journal.delete_all(f"round/{name}/")

    def _restore(self) -> None:
        for _, raw in self._journal.scan("task/"):
            base = open_task(self._trust, raw)
            assert isinstance(base, TaskView)
            self._bases[base.name] = base
            self._serve(base.task.plan, base.task.model, self._chain(base)[1])
            for _, result in self._journal.scan(f"result/{base.name}/"):
                self._serve(convert(open_payload(self._trust, result), Result).sum)
        for key, value in self._journal.scan("state/"):
            round_ = CoordinatorRound(self._bases[key.removeprefix("state/")], convert(decode(value), CoordinatorState))
            self._rounds[round_.base.name] = round_
            self._restore_round(round_)

    def _restore_round(self, round_: CoordinatorRound) -> None:
        state, name = round_.state, round_.base.name
        if state.manifest:
            self._set_manifest(round_, state.manifest)
        if round_.view is not None:
            for _, raw in self._journal.scan(f"round/{name}/join/"):
                opened = open_join(round_.view, raw, round_.view.manifest.issued_at)
                assert not isinstance(opened, Refused), opened
                round_.joins[opened[0]] = (raw, opened[1])
        if state.roster_proposal:
            proposal = self._roster_proposal(round_)
            self._serve(proposal.joins, proposal.entries)
        if state.roster:
            self._set_roster(round_)
            assert round_.bodies is not None
            dropped = state.excluded if state.phase in ("vote", "open", "done") else {}
            round_.bodies.restore(open_=state.phase == "upload", excluded=dropped)
        for raw in (state.candidate, state.proposal):
            if raw:
                self._serve(self._survivors_ref(raw, Candidate))
        for key, plain in self._journal.scan(f"round/{name}/opening/"):
            party = int(key.split("/")[3])
            round_.contents.setdefault(party, []).append(convert(decode(plain), OpeningContent))
        for raw in state.openings if round_.active else []:
            opening = convert(open_payload(self._trust, raw), Opening)
            signed = open_message(self._trust, raw)
            assert isinstance(signed, Signed)
            if opening.part >= len(round_.contents.get(party_number(signed.head.sender), [])):
                self._openings[opening.content.id] = (name, raw)
                self._fetches.want(opening.content, signed.head.sender, 0)


def open_payload(trust: Trust, raw: bytes) -> object:
    """The body of a message of one's own."""
    signed = open_message(trust, raw)
    assert isinstance(signed, Signed)
    return signed.payload


def _digest(trust: Trust, raw: bytes) -> bytes:
    signed = open_message(trust, raw)
    assert isinstance(signed, Signed)
    return signed.digest
