"""The order of a round: what each phase asks, when it goes on, when it fails (SPEC.md section 8.3).

phase     asks                               goes on when                                     fails where
offer     parties: offer-request             all offered, or a quorum and the grace is over   fewer at the deadline
manifest  parties: manifest                  a quorum voted                                   none at the deadline
join      devices: announcement              devices_max joined, or join_until                below devices_min
roster    parties: roster-proposal           a quorum voted and revealed                      none at the deadline
upload    devices: roster, ask               all uploaded, or upload_until                    below survivors_min
          (without a roster this phase follows manifest, and asks with the announcement)
check     parties: candidate                 all checked, or a quorum and the grace is over   below survivors_min
vote      parties: proposal                  a quorum voted                                   none at the deadline
open      parties: certificate, want, ask    the openings suffice                             they cannot, or deadline
"""

from __future__ import annotations

from typing import Final

from blindsum.protocol.arrivals import Arrivals
from blindsum.protocol.blobs import RESEND_MS, WINDOW, read_blob, write_blob
from blindsum.protocol.codec import convert, encode
from blindsum.protocol.errors import BlindsumError, Refused
from blindsum.protocol.machines.bodies import Bodies, Totals
from blindsum.protocol.machines.complaints import judge
from blindsum.protocol.machines.coordinatorround import CoordinatorRound, Phase
from blindsum.protocol.machines.desk import Desk
from blindsum.protocol.messages import (
    Announcement,
    BlobRef,
    Candidate,
    Certificate,
    Check,
    Failure,
    Manifest,
    OfferRequest,
    Proposal,
    Result,
    RosterAnnouncement,
    RosterProposal,
    Want,
    chunks_of,
)
from blindsum.protocol.openings import combine
from blindsum.protocol.optimiser import advance
from blindsum.protocol.ring import Lane, pack
from blindsum.protocol.roster import open_joins, open_roster, open_roster_announcement, pack_joins
from blindsum.protocol.trust import party_number
from blindsum.protocol.update import exact_sums
from blindsum.protocol.view import RoundView, open_manifest

__all__ = ["Conduct"]

REPEAT_MS: Final = 4_000
"""How often an announcement or roster is published again for devices that missed it."""


class Conduct:
    """Moves rounds from phase to phase. `turn` after every input; `request` to say again what is waited for."""

    def __init__(self, desk: Desk, *, threads: int, totals: Totals | None) -> None:
        self._desk = desk
        self._totals = totals
        self._threads = threads

    def turn(self, round_: CoordinatorRound, now: int) -> None:
        """Go on to the next phase if this one has what it needs; fail where its deadline finds it without."""
        state, base = round_.state, round_.base
        quorum = base.committee.quorum
        late = now >= state.phase_until
        settled = not round_.awaited() or now >= round_.grace_until
        if state.phase == "offer":
            if len(state.offers) >= quorum and settled:
                self._propose_manifest(round_, now)
            elif late:
                self.fail(round_, "offers-too-few", now)
        elif state.phase == "manifest":
            if len(state.manifest_votes) >= quorum:
                self._announce(round_, now)
            elif late:
                self.fail(round_, "votes-too-few", now)
        elif state.phase == "join":
            if late or len(round_.joins) >= base.task.devices_max:
                if len(round_.joins) < base.task.devices_min:
                    self.fail(round_, "cohort-too-small", now)
                else:
                    self._propose_roster(round_, now)
        elif state.phase == "roster":
            if len(state.roster_votes) >= quorum:
                self._publish_roster(round_, now)
            elif late:
                self.fail(round_, "votes-too-few", now)
        elif state.phase == "upload":
            assert round_.bodies is not None and round_.roster is not None
            if late or len(round_.bodies.complete) == round_.roster.capacity:
                self._close(round_, now)
        elif state.phase == "check":
            if len(state.checks) >= quorum and settled:
                self._propose_set(round_, now)
            elif late:
                self.fail(round_, "checks-too-few", now)
        elif state.phase == "vote":
            if len(state.set_votes) >= quorum:
                self._certify(round_, now)
            elif late:
                self.fail(round_, "votes-too-few", now)
        elif state.phase == "open":
            if round_.contents and settled:
                self._combine(round_, now)
            if late and round_.active:
                self.fail(round_, "openings-too-few", now)

    def request(self, round_: CoordinatorRound, now: int) -> None:
        """Say (again) what this phase wants from whom."""
        state, base = round_.state, round_.base
        again = round_.sent_at > 0
        round_.wait_ms = min(2 * round_.wait_ms, 8 * RESEND_MS) if again else RESEND_MS
        round_.sent_at = now
        if state.phase in ("join", "upload"):
            kind, raw = ("roster", state.roster) if state.roster else ("announcement", state.announcement)
            round_.wait_ms = REPEAT_MS
            self._desk.journal.send(kind, f"all/{base.name}", raw, retain=True)
            return
        kind = {"check": "candidate", "vote": "proposal", "open": "certificate", "roster": "roster-proposal"}.get(
            state.phase, state.phase
        )
        for party in round_.awaited():
            self._send_request(round_, kind, party)
        for party in round_.wants:
            self.send_want(round_, party)

    def resend_after_relay(self, round_: CoordinatorRound, party: int) -> None:
        kind = {"check": "candidate", "vote": "proposal", "open": "certificate"}[round_.state.phase]
        self._desk.journal.send(kind, f"party/{party}", getattr(round_.state, kind))

    def send_want(self, round_: CoordinatorRound, party: int) -> None:
        want = Want(
            proposal=self._desk.digest(round_.state.proposal),
            part=len(round_.contents[party]),
            subsets=round_.wants[party],
        )
        self._desk.journal.send("want", f"party/{party}", self._desk.sign(round_, "want", f"party/{party}", want))

    def set_manifest(self, round_: CoordinatorRound, raw: bytes) -> None:
        view = open_manifest(round_.base, raw)
        assert isinstance(view, RoundView), view
        round_.view = view

    def set_roster(self, round_: CoordinatorRound) -> BlobRef:
        view = round_.view
        assert view is not None
        announcement = convert(self._desk.payload(round_.state.roster), RosterAnnouncement)
        opened = open_roster_announcement(view, announcement.proposal, announcement.votes)
        assert not isinstance(opened, Refused), opened
        proposal, _, digest = opened
        entries = read_blob(self._desk.journal, proposal.entries)
        assert entries is not None
        roster = open_roster(view, entries, digest)
        assert not isinstance(roster, Refused), roster
        round_.roster = roster
        round_.bodies = Bodies(self._desk.journal, self._desk.fetches, view, roster, self._totals)
        return proposal.entries

    def set_arrivals(self, round_: CoordinatorRound) -> Arrivals:
        """Be ready for uploads from whoever has a certificate."""
        assert round_.view is not None
        round_.roster = arrivals = Arrivals.of(round_.view)
        round_.bodies = Bodies(self._desk.journal, self._desk.fetches, round_.view, arrivals, self._totals)
        return arrivals

    # -- phases ---------------------------------------------------------------------------------------------------

    def _propose_manifest(self, round_: CoordinatorRound, now: int) -> None:
        base, task = round_.base, round_.base.task
        previous, model, state = self._desk.chain(base)
        join_until = now + task.join_ms
        upload_until = join_until + task.upload_ms
        manifest = Manifest(
            task=base.digest,
            previous=previous,
            model=model,
            state=state,
            offers=[round_.state.offers[party] for party in sorted(round_.state.offers)],
            rotation=self._desk.random(16) if task.codec.rotate else b"",
            issued_at=now,
            join_until=join_until,
            upload_until=upload_until,
            expires_at=upload_until + 8 * task.decide_ms,
        )
        raw = self._desk.sign(round_, "manifest", "parties", manifest)
        self.set_manifest(round_, raw)
        self._enter(round_, "manifest", now, now + task.decide_ms, manifest=raw)

    def _announce(self, round_: CoordinatorRound, now: int) -> None:
        state, view = round_.state, round_.view
        assert view is not None
        announcement = Announcement(
            task=round_.base.raw,
            manifest=state.manifest,
            votes=[state.manifest_votes[p] for p in sorted(state.manifest_votes)],
        )
        raw = self._desk.sign(round_, "announcement", "all", announcement)
        self._desk.broadcast(round_, view.manifest.model, view.task.plan)
        if round_.base.has_roster:
            self._enter(round_, "join", now, view.manifest.join_until, announcement=raw)
        else:
            arrivals = self.set_arrivals(round_)
            self._enter(round_, "upload", now, view.manifest.upload_until, devices=arrivals.capacity, announcement=raw)

    def _propose_roster(self, round_: CoordinatorRound, now: int) -> None:
        view, chunk_size = round_.view, round_.base.chunk_size
        assert view is not None
        packed = pack_joins({device: raw for device, (raw, _) in round_.joins.items()})
        opened = open_joins(view, packed)
        if isinstance(opened, Refused):
            self.fail(round_, opened.code, now)
            return
        joins, join_chunks = chunks_of(packed, chunk_size)
        entries, entry_chunks = chunks_of(opened.entries, chunk_size)
        self._desk.journal.write(write_blob(joins, join_chunks))
        self._desk.journal.write(write_blob(entries, entry_chunks))
        self._desk.serve(joins, entries)
        proposal = RosterProposal(manifest=view.digest, joins=joins, entries=entries)
        raw = self._desk.sign(round_, "roster-proposal", "parties", proposal)
        self._enter(round_, "roster", now, now + round_.base.task.decide_ms, roster_proposal=raw)

    def _publish_roster(self, round_: CoordinatorRound, now: int) -> None:
        state, view = round_.state, round_.view
        assert view is not None
        votes = [state.roster_votes[party] for party in sorted(state.roster_votes)]
        raw = self._desk.sign(round_, "roster", "all", RosterAnnouncement(proposal=state.roster_proposal, votes=votes))
        round_.change(roster=raw)
        entries = self.set_roster(round_)
        self._desk.broadcast(round_, entries)
        assert round_.roster is not None
        self._enter(round_, "upload", now, view.manifest.upload_until, devices=round_.roster.size)

    def _close(self, round_: CoordinatorRound, now: int) -> None:
        bodies, roster = round_.bodies, round_.roster
        assert bodies is not None and roster is not None
        bodies.close()
        if round_.base.staleness_max:  # who hears it in time can make the training count in a later round
            assert round_.view is not None
            for index in sorted(bodies.headers.keys() - bodies.complete):
                digest = bodies.headers[index].digest
                self._desk.receipt(round_.view, roster.devices[index], digest, "refused", "upload-late")
        if isinstance(roster, Arrivals):
            for index, serial in enumerate(roster.serials):
                if serial in self._desk.revoked.current.serials:
                    bodies.forget(index)
        if len(bodies.complete) < roster.survivors_min:
            self.fail(round_, "survivors-too-few", now)
            return
        ref = self._desk.make_survivors(round_)
        raw = self._desk.sign(round_, "candidate", "parties", Candidate(roster=roster.digest, survivors=ref))
        self._enter(round_, "check", now, now + round_.base.task.decide_ms, candidate=raw)

    def _propose_set(self, round_: CoordinatorRound, now: int) -> None:
        bodies, roster = round_.bodies, round_.roster
        assert bodies is not None and roster is not None
        checks = {party: convert(self._desk.payload(raw), Check) for party, raw in round_.state.checks.items()}
        listed = self._desk.listed(round_, self._desk.survivors_ref(round_.state.candidate, Candidate))
        known = {number: index for number, index, _, _ in listed if index is not None}
        verdict = judge(
            {party: {known[at]: code for at, code in check.bad if at in known} for party, check in checks.items()},
            bodies.complete,
            least=roster.survivors_min,
            committee=round_.base.committee,
        )
        for index, code in verdict.excluded.items():
            bodies.exclude(index)
            device = roster.devices[index]
            if index in verdict.proven and code != "certificate-revoked":
                self._desk.fault(round_, f"device/{device}", code)
            else:
                facts = {"task": round_.base.name, "round": round_.state.number, "device": device, "code": code}
                self._desk.journal.event("left-out", **facts)
        if len(bodies.complete) < roster.survivors_min:
            self.fail(round_, "survivors-too-few", now)
            return
        ref = self._desk.make_survivors(round_)
        raw = self._desk.sign(round_, "proposal", "parties", Proposal(roster=roster.digest, survivors=ref))
        until = now + round_.base.task.decide_ms
        self._enter(round_, "vote", now, until, proposal=raw, excluded=verdict.excluded)

    def _certify(self, round_: CoordinatorRound, now: int) -> None:
        state = round_.state
        votes = [state.set_votes[party] for party in sorted(state.set_votes)]
        raw = self._desk.sign(round_, "certificate", "parties", Certificate(proposal=state.proposal, votes=votes))
        self._enter(round_, "open", now, now + 2 * round_.base.task.decide_ms, certificate=raw)

    def _combine(self, round_: CoordinatorRound, now: int) -> None:
        view, roster, bodies = round_.view, round_.roster, round_.bodies
        assert view is not None and roster is not None and bodies is not None
        headers = {index: bodies.headers[index] for index in bodies.complete}
        lanes = bodies.lanes()
        combined = combine(
            view,
            roster,
            lanes,
            headers=headers,
            contents=round_.contents,
            threads=self._threads,
            unmask=bodies.unmask,
        )
        if combined.complete:
            for principal, code in combined.faults:
                self._desk.fault(round_, principal, code)
            self._finish(round_, lanes, now)
        elif combined.hopeless:
            for principal, code in combined.faults:
                self._desk.fault(round_, principal, code)
            self.fail(round_, combined.hopeless, now)
        else:
            fresh = {party: subsets for party, subsets in combined.wants.items() if party not in round_.wants}
            round_.wants.update(fresh)
            for party in fresh:
                self.send_want(round_, party)

    def _finish(self, round_: CoordinatorRound, lanes: list[Lane], now: int) -> None:
        view, bodies, base = round_.view, round_.bodies, round_.base
        assert view is not None and bodies is not None and round_.roster is not None
        total = pack(base.segments, lanes)
        _, model, state = self._desk.chain(base)
        try:
            new, kept = advance(base, self._desk.blob(model), self._desk.state(state), total, view.manifest.rotation)
        except BlindsumError as error:
            self.fail(round_, error.code, now)
            return
        sum_ref, sum_chunks = chunks_of(total, base.chunk_size)
        model_ref, model_chunks = chunks_of(new, base.chunk_size)
        self._desk.journal.write(write_blob(sum_ref, sum_chunks))
        self._desk.journal.write(write_blob(model_ref, model_chunks))
        state_ref, state_chunks = chunks_of(kept, base.chunk_size)
        self._desk.journal.write(write_blob(state_ref, state_chunks))
        openings = []
        for raw in round_.state.openings:
            opened = self._desk.signed(raw)
            party = party_number(opened.head.sender)
            if opened.payload["part"] < len(round_.contents.get(party, [])):
                openings.append((party, opened.payload["plain"]))
        result = Result(
            previous=view.manifest.previous,
            rotation=view.manifest.rotation,
            manifest=view.digest,
            roster=round_.roster.digest,
            proposal=self._desk.digest(round_.state.proposal),
            count=len(bodies.complete),
            sum=sum_ref,
            model=model_ref,
            state=state_ref.id,
            openings=sorted(openings),
        )
        raw = self._desk.sign(round_, "result", "all", result)
        self._desk.journal.put(f"chain/{base.name}", encode([self._desk.digest(raw), model_ref, state_ref.id]))
        self._desk.journal.put(f"result/{base.name}/{view.number:08d}", raw)
        self._desk.forget_results(base)
        self._desk.broadcast(round_, sum_ref, model_ref)
        self._enter(round_, "done", now, now, result=raw)
        self._desk.journal.send("result", f"all/{base.name}", raw, retain=True)
        weight, *statistics = exact_sums(base, lanes).tolist()
        facts = {"task": base.name, "round": view.number, "count": result.count, "weight": weight}
        self._desk.journal.event("round-finished", **facts, statistics=statistics)

    def fail(self, round_: CoordinatorRound, code: str, now: int) -> None:
        if round_.bodies is not None:
            round_.bodies.close()
        digest = round_.view.digest if round_.view is not None else bytes(32)
        raw = self._desk.sign(round_, "failure", "all", Failure(manifest=digest, code=code))
        self._enter(round_, "failed", now, now, code=code, failure=raw)
        self._desk.journal.send("failure", f"all/{round_.base.name}", raw, retain=True)
        self._desk.journal.event("round-failed", task=round_.base.name, round=round_.state.number, code=code)

    def _enter(
        self, round_: CoordinatorRound, phase: Phase, now: int, until: int, *, devices: int = 0, **changes: object
    ) -> None:
        round_.change(phase=phase, phase_since=now, phase_until=until, **changes)
        self._desk.save(round_)
        facts = {"devices": devices} if devices else {}
        self._desk.journal.event("phase", task=round_.base.name, round=round_.state.number, phase=phase, **facts)
        round_.wait_ms, round_.sent_at, round_.grace_over = RESEND_MS, 0, False
        if round_.active:
            self.request(round_, now)

    def _send_request(self, round_: CoordinatorRound, kind: str, party: int) -> None:
        state, to = round_.state, f"party/{party}"
        if kind == "offer":
            raw = self._desk.sign(round_, "offer-request", to, OfferRequest(task=round_.base.raw))
            self._desk.journal.send("offer-request", to, raw)
            return
        if kind in ("candidate", "proposal", "certificate"):
            # a party that was away needs what went before; one that was not passes it over
            if round_.wait_ms > RESEND_MS:
                self._desk.journal.send("announcement", to, state.announcement)
                if state.roster:
                    self._desk.journal.send("roster", to, state.roster)
            ref = self._desk.survivors_ref(state.candidate if kind == "candidate" else state.proposal, Candidate)
            self._desk.journal.send(kind, to, getattr(state, kind))
            self._desk.journal.send_chunks(to, ref.id, range(min(WINDOW, ref.count)))
            return
        if kind == "roster-proposal":
            if round_.wait_ms > RESEND_MS:
                self._desk.journal.send("announcement", to, state.announcement)
            self._desk.journal.send(kind, to, state.roster_proposal)
            joins = self._desk.roster_proposal(round_).joins
            self._desk.journal.send_chunks(to, joins.id, range(min(WINDOW, joins.count)))
            return
        self._desk.journal.send(kind, to, state.manifest)
