"""How a round begins at a party: which manifest and which roster it votes for (SPEC.md section 8.2)."""

from __future__ import annotations

from blindsum.protocol.blobs import read_blob
from blindsum.protocol.envelope import Signed
from blindsum.protocol.errors import Refused
from blindsum.protocol.machines.partydesk import PartyDesk
from blindsum.protocol.machines.partyround import PartyRound
from blindsum.protocol.messages import (
    Announcement,
    RosterAnnouncement,
    RosterProposal,
    chunks_of,
)
from blindsum.protocol.roster import (
    Joins,
    joins_size_max,
    open_joins,
    open_roster,
    open_roster_announcement,
)
from blindsum.protocol.view import (
    CLOCK_SKEW_MAX_MS,
    RoundView,
    count_votes,
    open_manifest,
    payload_of,
)

__all__ = ["PartySetup"]


class PartySetup:
    """From offer to roster. A party answers one manifest and one roster of a round."""

    def __init__(self, desk: PartyDesk) -> None:
        self._desk = desk

    def on_manifest(self, round_: PartyRound, signed: Signed, now: int) -> Refused | None:
        view = self._open_manifest(round_, signed.raw)
        if isinstance(view, Refused):
            return self._desk.caught_alone(round_, view, signed, round_.base.raw)
        if round_.state.manifest_vote:
            if round_.view is None or round_.view.digest != view.digest:
                return self._desk.caught(round_, "second-manifest", round_.state.manifest, signed.raw)
            self._desk.send_vote(round_.state.manifest_vote)
            return None
        if round_.view is not None and round_.view.digest != view.digest:
            return self._desk.caught(round_, "second-manifest", round_.state.manifest, signed.raw)
        if abs(view.manifest.issued_at - now) > CLOCK_SKEW_MAX_MS:
            return Refused(
                "clock-skew", detail=f"the manifest is {(view.manifest.issued_at - now) // 1000} s off this clock"
            )
        chain, model, state = self._desk.chain.head(view.base)
        if view.manifest.previous != chain:
            # no proof against anybody: this party may have missed a result, which the coordinator sends again
            return Refused("chain-differs", detail="the manifest follows another result than the last one seen here")
        if (view.manifest.model.id, view.manifest.state) != (model.id, state):
            return Refused(
                "chain-differs", "coordinator", "model or state is not what the last result made of the one before"
            )
        raw = self._desk.vote(view, "manifest", view.digest)
        round_.set_manifest(signed.raw, view)
        round_.change(manifest_vote=raw)
        self._desk.save(round_)
        self._desk.send_vote(raw)
        return None

    def on_announcement(self, round_: PartyRound, signed: Signed, now: int) -> Refused | None:
        """A party that could not vote (it was away) follows a manifest that a quorum voted for."""
        if round_.view is not None:
            return None
        announcement = payload_of(signed, Announcement)
        if isinstance(announcement, Refused):
            return announcement
        view = self._open_manifest(round_, announcement.manifest)
        if isinstance(view, Refused):
            return view
        votes = count_votes(view, announcement.votes, decides="manifest", digest=view.digest)
        if len(votes) < view.base.committee.quorum:
            return self._desk.caught_alone(round_, Refused("votes-too-few", "coordinator"), signed, b"")
        round_.set_manifest(announcement.manifest, view)
        self._desk.save(round_)
        return None

    def on_roster_proposal(self, round_: PartyRound, signed: Signed, now: int) -> Refused | None:
        proposal = payload_of(signed, RosterProposal)
        if isinstance(proposal, Refused):
            return proposal
        view, state = round_.view, round_.state
        if view is None:
            return Refused("message-early", detail="no manifest yet")
        if not view.base.has_roster:
            return Refused("message-misplaced", "coordinator", "a roster where the task has none")
        if proposal.manifest != view.digest or not (proposal.joins.sound and proposal.entries.sound):
            return Refused("manifest-differs", "coordinator")
        if state.roster_proposal:
            if state.roster_proposal != signed.raw and self._desk.digest(state.roster_proposal) != signed.digest:
                return self._desk.caught(round_, "second-roster", state.roster_proposal, signed.raw)
            if state.roster_vote:
                self._desk.send_vote(state.roster_vote)
            return None
        fault = self._joins_fault(view, proposal)
        if fault is not None:
            return fault
        if not self._desk.inbox.want(view.name, proposal.joins, now):
            round_.waiting["roster-proposal"] = signed.raw
            return None
        fault = self._read_joins(round_, proposal)
        if fault is not None:
            return fault
        raw = self._desk.vote(view, "roster", signed.digest, state.beacon)
        round_.change(roster_vote=raw, roster_proposal=signed.raw)
        self._desk.save(round_)
        self._desk.send_vote(raw)
        return None

    def on_roster(self, round_: PartyRound, signed: Signed, now: int) -> Refused | None:
        view, state = round_.view, round_.state
        announcement = payload_of(signed, RosterAnnouncement)
        if isinstance(announcement, Refused):
            return announcement
        if view is None:
            return Refused("message-early", detail="no manifest yet")
        if round_.roster is not None:
            if state.roster != signed.raw and self._desk.digest(state.roster) != signed.digest:
                return self._desk.caught(round_, "second-roster", state.roster, signed.raw)
            return None
        opened = open_roster_announcement(view, announcement.proposal, announcement.votes)
        if isinstance(opened, Refused):
            return opened
        proposal, digest, roster_hash = opened
        if state.roster_proposal and digest != self._desk.digest(state.roster_proposal):
            return self._desk.caught(round_, "second-roster", state.roster_proposal, announcement.proposal)
        if not state.entries:
            fault = self._joins_fault(view, proposal)
            if fault is not None:
                return fault
            if not self._desk.inbox.want(view.name, proposal.joins, now):
                round_.waiting["roster"] = signed.raw
                return None
            fault = self._read_joins(round_, proposal)
            if fault is not None:
                return fault
        roster = open_roster(view, round_.state.entries, roster_hash)
        if isinstance(roster, Refused):
            return roster
        round_.roster = roster
        round_.change(roster=signed.raw, roster_proposal=announcement.proposal)
        self._desk.save(round_)
        return None

    def _open_manifest(self, round_: PartyRound, raw: bytes) -> RoundView | Refused:
        view = open_manifest(round_.base, raw)
        if isinstance(view, Refused):
            return view
        if view.number != round_.state.number:
            return Refused("round-stale")
        for member in view.members:
            retired = self._desk.keys.take(member.party, member.keys)
            if retired is not None:
                return retired
        mine = view.member(self._desk.number)
        if mine is not None and round_.state.offer not in view.manifest.offers:
            return Refused("offer-differs", "coordinator")
        return view

    def _joins_fault(self, view: RoundView, proposal: RosterProposal) -> Refused | None:
        """Whether the joins behind a roster are more than may be asked for."""
        if proposal.joins.size > joins_size_max(view.base):
            return Refused("roster-malformed", "coordinator", f"{proposal.joins.size} bytes of joins")
        if not self._desk.inbox.room(view.name, proposal.joins):
            return Refused("blobs-too-many", "coordinator", proposal.joins.id.hex())
        return None

    def _read_joins(self, round_: PartyRound, proposal: RosterProposal) -> Refused | None:
        """Verify every join behind a roster proposal and keep what follows from them."""
        view = round_.view
        assert view is not None
        data = read_blob(self._desk.journal, proposal.joins)
        assert data is not None
        joins = open_joins(view, data, self._desk.revoked.current.serials)
        if isinstance(joins, Refused):
            return joins
        assert isinstance(joins, Joins)
        if chunks_of(joins.entries, view.base.chunk_size)[0] != proposal.entries:
            return Refused("roster-malformed", "coordinator", "entries do not follow from the joins")
        round_.identities = list(joins.identities)
        round_.change(identities=b"".join(joins.identities), entries=joins.entries)
        return None
