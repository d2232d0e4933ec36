"""The record of a round that failed: how far it came, who was silent or refused, and whether that is why (SPEC.md section 10.1).

It ends where the round ended. Each phase needs something of somebody: the record has what there was of it, and the coordinator
is named where it did not lack what its failure says. That something was left out of the record no record can show.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final, TypeVar

from blindsum.protocol.codec import convert, decode
from blindsum.protocol.envelope import Signed
from blindsum.protocol.errors import BlindsumError, Refused
from blindsum.protocol.machines.complaints import judge
from blindsum.protocol.messages import (
    Candidate,
    Check,
    Failure,
    Offer,
    Proposal,
    RosterProposal,
    chunks_of,
)
from blindsum.protocol.openings import combine
from blindsum.protocol.optimiser import advance
from blindsum.protocol.ring import PackedSum, pack
from blindsum.protocol.roster import Joins, RosterView, beacon_commitment, open_join, open_joins
from blindsum.protocol.trust import party_number
from blindsum.protocol.verifier import KEEPER, Verifier
from blindsum.protocol.view import RoundView, TaskView, count_votes, expect, open_manifest, open_task

__all__ = ["FailedVerifier"]

P = TypeVar("P", Candidate, Proposal)
_ZEROS: Final = bytes(32)
_BEGUN: Final = ("announcement", "rollback")
_SETTLED: Final = (*_BEGUN, "roster", "joins", "listed", "evidence")


class FailedVerifier(Verifier):
    """Judges the records of a round that ended in a failure."""

    def run(self) -> None:
        phase, judged = self._phase()
        signed = self.own("failure", "failure")
        failure = convert(signed.payload, Failure)
        self.report.facts.update(task=signed.head.task, round=signed.head.round, failed=failure.code, phase=phase)
        manifest, codes = judged(signed)
        if failure.manifest != manifest:
            self.stop(KEEPER, "failure-differs", "it names another manifest")
        if failure.code not in codes:
            self.stop(
                KEEPER, "failure-differs", f"{failure.code}, where the record shows {', '.join(codes) or 'nothing'}"
            )

    def _phase(self) -> tuple[str, Callable[[Signed], tuple[bytes, tuple[str, ...]]]]:
        """How far the round came, by the last thing it agreed on or proposed."""
        for name, phase, judged in (
            ("certificate", "open", self._open),
            ("proposal", "vote", self._vote),
            ("candidate", "check", self._check),
            ("roster", "upload", self._upload),
            ("roster-proposal", "roster", self._roster_votes),
            ("announcement", "join", self._join),
            ("manifest", "manifest", self._manifest_votes),
        ):
            if self.records[name]:
                return phase, judged
        return "offer", self._offer

    # -- phases: each gives (the manifest's digest, the codes that the round may have failed with) ---------------------------

    def _offer(self, end: Signed) -> tuple[bytes, tuple[str, ...]]:
        self._only("task", "offer")
        base = self._task(end)
        offered: set[int] = set()
        for raw in self.records["offer"]:
            opened = expect(base.trust, raw, "offer", Offer, task=base.name, number=end.head.round)
            if isinstance(opened, Refused):
                self.stop(opened.culprit or KEEPER, opened.code, "offer")
            offered.add(party_number(opened[0].head.sender))
        return _ZEROS, self._lack(base, offered, self._everybody(base), len(self.records["offer"]), "offers-too-few")

    def _manifest_votes(self, end: Signed) -> tuple[bytes, tuple[str, ...]]:
        self._only("task", "manifest", "vote")
        base = self._task(end)
        view = self.take(open_manifest(base, self.one("manifest")))
        assert isinstance(view, RoundView)
        self._here(end, view)
        votes = self._votes(view, "manifest", view.digest)
        return view.digest, self._lack(base, votes, self._members(view), len(self.records["vote"]), "votes-too-few")

    def _join(self, end: Signed) -> tuple[bytes, tuple[str, ...]]:
        view = self._announced(end)
        if not view.base.has_roster:
            return self._upload(end)
        self._only(*_BEGUN, "joins")
        joined: list[str] = []
        raws = decode(self.one("joins"))
        if not isinstance(raws, list):
            self.stop(KEEPER, "transcript-malformed", "joins")
        for raw in raws:
            opened = self.take(open_join(view, raw) if isinstance(raw, bytes) else Refused("transcript-malformed"))
            assert isinstance(opened, tuple)
            joined.append(opened[0])
        if joined != sorted(set(joined)):
            self.stop(KEEPER, "roster-malformed", "joins are not in order of distinct devices")
        self.report.facts.update(devices=len(joined), devices_min=view.task.devices_min)
        return view.digest, ("cohort-too-small",) if len(joined) < view.task.devices_min else ()

    def _roster_votes(self, end: Signed) -> tuple[bytes, tuple[str, ...]]:
        self._only(*_BEGUN, "roster-proposal", "joins", "evidence", "vote")
        view = self._announced(end)
        opened = expect(
            view.trust,
            self.one("roster-proposal"),
            "roster-proposal",
            RosterProposal,
            task=view.name,
            number=view.number,
        )
        if isinstance(opened, Refused):
            self.stop(opened.culprit or KEEPER, opened.code, "roster-proposal")
        signed, proposal = opened
        joins = self.take(open_joins(view, self.blob("joins", proposal.joins)))
        assert isinstance(joins, Joins)
        if proposal.manifest != view.digest or chunks_of(joins.entries, view.base.chunk_size)[0] != proposal.entries:
            self.stop(KEEPER, "roster-malformed", "it does not follow from manifest and joins")
        self.evidence(view, joins)
        votes = self._votes(view, "roster", signed.digest)
        for party in votes:
            self._beacon(view, party, signed.digest)
        self.report.facts.update(devices=len(joins.devices))
        return view.digest, self._lack(
            view.base, votes, self._members(view), len(self.records["vote"]), "votes-too-few"
        )

    def _upload(self, end: Signed) -> tuple[bytes, tuple[str, ...]]:
        self._only(*_SETTLED, "header")
        view, joins, roster = self._settled(end)
        count = len(self.headers(view, joins, roster, None))
        self.report.facts.update(survivors=count, phase="upload")
        return view.digest, ("survivors-too-few",) if count < roster.survivors_min else ()

    def _check(self, end: Signed) -> tuple[bytes, tuple[str, ...]]:
        self._only(*_SETTLED, "candidate", "survivors", "check")
        view, _, roster = self._settled(end)
        _, candidate = self._proposed(view, roster, "candidate", Candidate)
        complete = self.survivors(roster, candidate.survivors)
        told: dict[int, dict[int, str]] = {}
        for raw in self.records["check"]:
            opened = expect(view.trust, raw, "check", Check, task=view.name, number=view.number)
            assert isinstance(opened, tuple), "checked before"
            if opened[1].survivors != candidate.survivors.id:
                self.stop(KEEPER, "survivors-differ", "a check of another candidate")
            told[party_number(opened[0].head.sender)] = dict(opened[1].bad)
        lack = self._lack(view.base, told, self._members(view), len(self.records["check"]), "checks-too-few")
        if lack:
            return view.digest, lack
        verdict = judge(told, complete, least=roster.survivors_min, committee=view.base.committee)
        left = len(complete) - len(verdict.excluded)
        self.report.facts.update(survivors=left)
        return view.digest, ("survivors-too-few",) if left < roster.survivors_min else ()

    def _vote(self, end: Signed) -> tuple[bytes, tuple[str, ...]]:
        self._only(*_SETTLED, "proposal", "survivors", "check", "vote")
        view, _, roster = self._settled(end)
        signed, proposal = self._proposed(view, roster, "proposal", Proposal)
        survivors = self.survivors(roster, proposal.survivors)
        if len(survivors) < roster.survivors_min:
            self.stop(KEEPER, "survivors-too-few", f"{len(survivors)} < {roster.survivors_min}")
        self.report.facts.update(survivors=len(survivors))
        votes = self._votes(view, "set", signed.digest)
        return view.digest, self._lack(
            view.base, votes, self._members(view), len(self.records["vote"]), "votes-too-few"
        )

    def _open(self, end: Signed) -> tuple[bytes, tuple[str, ...]]:
        summed = ("body", "model", "state") if self.records["body"] else ()
        self._only(*_SETTLED, "certificate", "survivors", "check", "header", "opening", "content", *summed)
        view, joins, roster = self._settled(end)
        proposal, survivors = self.certificate(view, roster)
        headers = self.headers(view, joins, roster, survivors)
        contents, _ = self.openings(view, proposal.digest)
        self.report.facts.update(silent=self._names(self._members(view) - set(contents)))
        segments = view.base.segments
        total, model, state = PackedSum(segments), b"", b""
        if summed:
            for body in self.bodies(joins, headers):
                total.add(body)
            model, state = self.blob("model", view.manifest.model), self.one("state")
            if chunks_of(state, view.base.chunk_size)[0].id != view.manifest.state:
                self.stop(KEEPER, "blob-altered", "state")
        lanes = total.lanes()
        combined = combine(view, roster, lanes, headers=headers, contents=contents)
        for principal, code in combined.faults:
            self.report.blame(principal, code)
        if not combined.complete:
            return view.digest, (combined.hopeless or "openings-too-few",)
        if not summed:
            return view.digest, ()
        try:
            advance(view.base, model, state, pack(segments, lanes), view.manifest.rotation)
        except BlindsumError as error:
            return view.digest, (error.code,)
        return view.digest, ()

    # -- parts --------------------------------------------------------------------------------------------------------------

    def _only(self, *names: str) -> None:
        """Nothing else is in the record: whatever is, is judged."""
        foreign = {name for name, found in self.records.items() if found} - {"trust", "failure", *names}
        if foreign:
            self.stop(KEEPER, "transcript-malformed", f"{min(foreign)} in a round that ended so")

    def _task(self, end: Signed) -> TaskView:
        base = self.take(open_task(self.trust, self.one("task")))
        assert isinstance(base, TaskView)
        if base.name != end.head.task:
            self.stop(KEEPER, "message-misplaced", "failure")
        return base

    def _announced(self, end: Signed) -> RoundView:
        view = self.manifest()
        self._here(end, view)
        return view

    def _settled(self, end: Signed) -> tuple[RoundView, Joins, RosterView]:
        view = self._announced(end)
        joins, roster = self.roster(view)
        self.checks(view, roster)
        self.evidence(view, joins)
        return view, joins, roster

    def _here(self, end: Signed, view: RoundView) -> None:
        if (end.head.task, end.head.round) != (view.name, view.number):
            self.stop(KEEPER, "message-misplaced", "failure")

    def _proposed(self, view: RoundView, roster: RosterView, name: str, kind: type[P]) -> tuple[Signed, P]:
        opened = expect(view.trust, self.one(name), name, kind, task=view.name, number=view.number)
        if isinstance(opened, Refused):
            self.stop(opened.culprit or KEEPER, opened.code, name)
        if opened[1].roster != roster.digest:
            self.report.blame(KEEPER, "roster-differs", name)
        return opened

    def _votes(self, view: RoundView, decides: str, digest: bytes) -> set[int]:
        return set(count_votes(view, self.records["vote"], decides=decides, digest=digest))

    def _beacon(self, view: RoundView, party: int, digest: bytes) -> None:
        """A vote on the roster reveals what its party committed to."""
        member = view.member(party)
        votes = count_votes(view, self.records["vote"], decides="roster", digest=digest)
        revealed = beacon_commitment(votes[party][1].beacon, view.name, view.number, party)
        if member is None or revealed != member.beacon_commitment:
            self.stop(f"party/{party}", "beacon-differs")

    def _lack(
        self, base: TaskView, answered: Collection[int], asked: set[int], given: int, code: str
    ) -> tuple[str, ...]:
        """`code` where fewer than a quorum of those `asked` answered. `given` records must be as many genuine answers."""
        found = set(answered)
        if len(found) != given or not found <= asked:
            self.stop(KEEPER, "transcript-malformed", "an answer that does not count, or counts twice")
        self.report.facts.update(silent=self._names(asked - found))
        return (code,) if len(found) < base.committee.quorum else ()

    @staticmethod
    def _names(parties: set[int]) -> list[str]:
        return [f"party/{party}" for party in sorted(parties)]

    @staticmethod
    def _everybody(base: TaskView) -> set[int]:
        return set(range(1, base.committee.parties + 1))

    @staticmethod
    def _members(view: RoundView) -> set[int]:
        return {member.party for member in view.members}
