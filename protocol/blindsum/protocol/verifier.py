"""What every transcript is held to, phase by phase (SPEC.md section 10): a finished round here, one that failed in `failed`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final, NoReturn

from msgspec.structs import replace

from blindsum.protocol.arrivals import Arrivals, Listed, admit, open_arrival, read_set
from blindsum.protocol.codec import DecodeError, convert, decode
from blindsum.protocol.envelope import Signed
from blindsum.protocol.errors import BlindsumError, Refused
from blindsum.protocol.evidence import contradiction
from blindsum.protocol.masks import header_fault
from blindsum.protocol.messages import (
    Announcement,
    BlobRef,
    Certificate,
    Check,
    Header,
    Opening,
    OpeningContent,
    Proposal,
    Result,
    Rollback,
    RosterAnnouncement,
    chunks_of,
)
from blindsum.protocol.openings import combine
from blindsum.protocol.optimiser import advance
from blindsum.protocol.report import Report
from blindsum.protocol.ring import PackedSum, pack, packed_size
from blindsum.protocol.roster import (
    Joins,
    RosterView,
    open_joins,
    open_roster,
    open_roster_announcement,
)
from blindsum.protocol.trust import Trust, party_number
from blindsum.protocol.view import (
    RoundView,
    TaskView,
    count_votes,
    expect,
    open_manifest,
    open_message,
    open_task,
    rollback_fits,
)

__all__ = ["KEEPER", "Stop", "Verifier"]

KEEPER: Final = "coordinator"
"""Whom an unsound record is laid at: the role that kept the transcript."""


class Stop(Exception):
    """What follows cannot be judged."""


class Verifier:
    """Judges the records of one round into `report`. A method for each part; what one part gives the next ones take."""

    def __init__(self, trust: Trust, records: dict[str, list[bytes]], report: Report) -> None:
        self.trust = trust
        self.records = records
        self.report = report
        self._devices: list[str] = []

    def run(self) -> None:
        view = self.manifest()
        joins, roster = self.roster(view)
        self.checks(view, roster)
        self.evidence(view, joins)
        proposal, survivors = self.certificate(view, roster)
        headers = self.headers(view, joins, roster, survivors)
        bodies = self.bodies(joins, headers)
        contents, opened = self.openings(view, proposal.digest)
        self._sum(view, roster, headers, bodies, contents)
        self._result(view, roster, proposal.digest, len(survivors), opened)

    def manifest(self) -> RoundView:
        signed = self.own("announcement", "announcement")
        announcement = convert(signed.payload, Announcement)
        base = self.take(open_task(self.trust, announcement.task))
        assert isinstance(base, TaskView)
        view = self.take(open_manifest(base, announcement.manifest))
        assert isinstance(view, RoundView)
        votes = count_votes(view, announcement.votes, decides="manifest", digest=view.digest)
        self.enough(base, len(votes), len(announcement.votes), "manifest")
        if (signed.head.task, signed.head.round) != (view.name, view.number):
            self.report.blame(KEEPER, "message-misplaced", "announcement")
        self.report.facts.update(task=view.name, round=view.number, manifest_votes=sorted(votes))
        for raw in self.records["rollback"]:
            self._rollback(view, raw)
        return view

    def _rollback(self, view: RoundView, raw: bytes) -> None:
        """The operator's word for the model that the round started from."""
        signed = open_message(self.trust, raw)
        if isinstance(signed, Refused):
            self.stop(KEEPER, signed.code, "rollback")
        if (signed.head.type, signed.head.task) != ("rollback", view.name):
            self.stop(KEEPER, "message-misplaced", "rollback")
        rollback, manifest = convert(signed.payload, Rollback), view.manifest
        stated = (rollback.model, view.base.first_state, signed.digest)
        if stated != (manifest.model, manifest.state, manifest.previous) or not rollback_fits(view.base, rollback):
            self.report.blame(KEEPER, "rollback-differs")
        self.report.facts.update(rolled_back_after=signed.head.round, rolled_back_to=rollback.origin.hex())

    def roster(self, view: RoundView) -> tuple[Joins, RosterView]:
        foreign = ("listed",) if view.base.has_roster else ("roster", "joins", "roster-proposal")
        if any(self.records[name] for name in foreign):
            self.stop(KEEPER, "transcript-malformed", "a roster where the task has none, or none where it has one")
        if not view.base.has_roster:
            return self._arrivals(view)
        announcement = convert(self.own("roster", "roster", view).payload, RosterAnnouncement)
        opened = self.take(open_roster_announcement(view, announcement.proposal, announcement.votes))
        assert isinstance(opened, tuple)
        proposal, _, digest = opened
        data = self.blob("joins", proposal.joins)
        joins = self.take(open_joins(view, data))
        assert isinstance(joins, Joins)
        if chunks_of(joins.entries, view.base.chunk_size)[0] != proposal.entries:
            self.stop(KEEPER, "roster-malformed", "entries do not follow from the joins")
        roster = self.take(open_roster(view, joins.entries, digest))
        assert isinstance(roster, RosterView)
        self.report.facts.update(devices=roster.size, degree=roster.degree, survivors_min=roster.survivors_min)
        return joins, roster

    def _arrivals(self, view: RoundView) -> tuple[Joins, RosterView]:
        """Without a roster: the devices whose headers are here, in the order of their ids."""
        arrivals = Arrivals.of(view)
        if not self.records["failure"]:
            self.one("listed")
        for raw in self.records["header"]:
            opened = open_message(self.trust, raw)
            arrival = open_arrival(view, opened) if isinstance(opened, Signed) else opened
            if isinstance(arrival, Refused):
                self.stop(KEEPER, arrival.code, "header")
            if arrival.device <= (arrivals.devices or [""])[-1]:
                self.stop(KEEPER, "signature-invalid", f"header of {arrival.device}")
            admit(arrivals, arrival)
        self.report.facts.update(devices=arrivals.size, survivors_min=arrivals.survivors_min)
        return Joins(tuple(arrivals.devices), tuple(arrivals.identities), b""), arrivals

    def checks(self, view: RoundView, roster: RosterView) -> None:
        """Who complained about whom. What t parties refuse, an honest one refuses."""
        told: dict[int, dict[int, str]] = {}
        devices, listed = roster.devices, b""
        if isinstance(roster, Arrivals) and self.records["listed"]:
            data = self.one("listed")
            listed, devices = (
                chunks_of(data, view.base.chunk_size)[0].id,
                [each.device for each in self._read(roster, data)],
            )
        for raw in self.records["check"]:
            opened = expect(view.trust, raw, "check", Check, task=view.name, number=view.number)
            if isinstance(opened, Refused):
                self.stop(opened.culprit or KEEPER, opened.code, "check")
            signed, check = opened
            party = party_number(signed.head.sender)
            if party in told or view.member(party) is None:
                self.stop(KEEPER, "transcript-malformed", f"check of party {party}")
            if isinstance(roster, Arrivals) and check.survivors != listed:
                self.stop(KEEPER, "transcript-malformed", f"check of party {party}, of another candidate")
            told[party] = {index: code for index, code in check.bad if index < len(devices)}
        complaints: dict[str, list[str]] = {}
        for index, device in enumerate(devices):
            refusing = {party: codes[index] for party, codes in sorted(told.items()) if index in codes}
            if refusing:
                complaints[device] = [f"party/{party}: {code}" for party, code in refusing.items()]
            if len(refusing) >= view.base.committee.threshold and set(refusing.values()) != {"certificate-revoked"}:
                self.report.blame(
                    f"device/{device}", next(iter(refusing.values())), f"{len(refusing)} parties refuse it"
                )
        if complaints:
            self.report.facts.update(complaints=complaints)

    def evidence(self, view: RoundView, joins: Joins) -> None:
        """Who signed two messages of this round that contradict each other."""
        keys = {f"device/{device}": key for device, key in zip(joins.devices, joins.identities, strict=True)}
        for data in self.records["evidence"]:
            pair = decode(data)
            if not isinstance(pair, list) or [type(raw) for raw in pair] != [bytes, bytes]:
                self.stop(KEEPER, "transcript-malformed", "evidence")
            first, second = (open_message(view.trust, raw) for raw in pair)
            code = ""
            if isinstance(first, Signed) and isinstance(second, Signed):
                sender = first.head.sender
                if not view.base.has_roster and sender.startswith("device/"):
                    shown = open_arrival(view, first)
                    keys = {} if isinstance(shown, Refused) else {f"device/{shown.device}": shown.identity}
                genuine = sender not in keys or (first.valid(keys[sender]) and second.valid(keys[sender]))
                here = (first.head.task, first.head.round) == (view.name, view.number)
                known = sender in keys or not sender.startswith("device/")
                code = contradiction(first, second) if genuine and here and known else ""
            if not code:
                self.stop(KEEPER, "transcript-malformed", "evidence that proves nothing")
            self.report.blame(sender, code)

    def certificate(self, view: RoundView, roster: RosterView) -> tuple[Signed, dict[int, bytes]]:
        certificate = convert(self.own("certificate", "certificate", view).payload, Certificate)
        opened = expect(view.trust, certificate.proposal, "proposal", Proposal, task=view.name, number=view.number)
        if isinstance(opened, Refused):
            self.stop(opened.culprit or KEEPER, opened.code, "proposal")
        signed, proposal = opened
        votes = count_votes(view, certificate.votes, decides="set", digest=signed.digest)
        self.enough(view.base, len(votes), len(certificate.votes), "survivor set")
        if proposal.roster != roster.digest:
            self.report.blame(KEEPER, "roster-differs")
        survivors = self.survivors(roster, proposal.survivors)
        if len(survivors) < roster.survivors_min:
            self.report.blame(KEEPER, "survivors-too-few", f"{len(survivors)} < {roster.survivors_min}")
        self.report.facts.update(survivors=len(survivors), set_votes=sorted(votes))
        return signed, survivors

    def bodies(self, joins: Joins, headers: Mapping[int, Header]) -> list[bytes]:
        """The packed vectors of exactly these devices, each the one that its header names."""
        bodies = self.records["body"]
        if len(bodies) != len(headers):
            self.stop(KEEPER, "transcript-malformed", "bodies are not those of the survivor set")
        for (index, header), body in zip(sorted(headers.items()), bodies, strict=True):
            if chunks_of(body, header.body.chunk_size)[0] != header.body:
                self.stop(KEEPER, "upload-altered", f"body of device/{joins.devices[index]}")
        return bodies

    def survivors(self, roster: RosterView, ref: BlobRef) -> dict[int, bytes]:
        """The header digest by index of the set that is proposed; without a roster the index is a place in the set."""
        listed = self._read(roster, self.blob("survivors", ref))
        self._devices = [each.device for each in listed]
        return {each.number: each.digest for each in listed}

    def _read(self, roster: RosterView, data: bytes) -> list[Listed]:
        listed = read_set(roster, data)
        if isinstance(listed, Refused):
            self.stop(listed.culprit or KEEPER, listed.code, listed.detail)
        return listed

    def headers(
        self, view: RoundView, joins: Joins, roster: RosterView, survivors: Mapping[int, bytes] | None
    ) -> dict[int, Header]:
        """The headers by index, ascending: of exactly `survivors` (their digests), or of anybody where none are given."""
        raws = self.records["header"]
        if survivors is not None and len(raws) != len(survivors):
            self.stop(KEEPER, "transcript-malformed", "headers are not those of the survivor set")
        places = {f"device/{device}": index for index, device in enumerate(joins.devices)}
        headers: dict[int, Header] = {}
        for raw in raws:
            opened = expect(view.trust, raw, "header", Header, task=view.name, number=view.number)
            if isinstance(opened, Refused):
                self.stop(KEEPER, opened.code, "header")
            signed, header = opened
            device = signed.head.sender
            index = places.get(device, -1)
            expected = index > next(reversed(headers), -1)
            if survivors is not None:
                expected = expected and survivors.get(index) == signed.digest
                expected = expected and (view.base.has_roster or f"device/{self._devices[index]}" == device)
            if not expected or not signed.valid(joins.identities[index]):
                self.stop(KEEPER, "signature-invalid", f"header of {device}")
            if isinstance(roster, Arrivals):
                header = replace(header, index=index)
            fault = header_fault(view, roster, header, packed_size(view.base.segments))
            if fault or header.index != index:
                self.stop(device, fault or "header-foreign")
            headers[index] = header
        return headers

    def openings(
        self, view: RoundView, proposal: bytes
    ) -> tuple[dict[int, list[OpeningContent]], list[tuple[int, bytes]]]:
        raws, plains = self.records["opening"], self.records["content"]
        if len(raws) != len(plains):
            self.stop(KEEPER, "transcript-malformed", "openings and contents do not match")
        contents: dict[int, list[OpeningContent]] = {}
        digests: list[tuple[int, bytes]] = []
        for raw, plain in zip(raws, plains, strict=True):
            opened = expect(view.trust, raw, "opening", Opening, task=view.name, number=view.number)
            if isinstance(opened, Refused):
                self.stop(opened.culprit or KEEPER, opened.code, "opening")
            signed, opening = opened
            party = party_number(signed.head.sender)
            parts = contents.setdefault(party, [])
            if opening.proposal != proposal or opening.part != len(parts) or view.member(party) is None:
                self.stop(signed.head.sender, "opening-foreign")
            if hashlib.sha256(plain).digest() != opening.plain:
                self.stop(KEEPER, "opening-altered", f"content of {signed.head.sender}")
            try:
                parts.append(convert(decode(plain), OpeningContent))
            except DecodeError:
                self.stop(signed.head.sender, "opening-malformed")
            digests.append((party, opening.plain))
        self.report.facts.update(parties=sorted(contents))
        return contents, sorted(digests)

    def _sum(
        self,
        view: RoundView,
        roster: RosterView,
        headers: dict[int, Header],
        bodies: list[bytes],
        contents: dict[int, list[OpeningContent]],
    ) -> None:
        segments = view.base.segments
        total = PackedSum(segments)
        for body in bodies:
            total.add(body)
        lanes = total.lanes()
        combined = combine(view, roster, lanes, headers=headers, contents=contents)
        for principal, code in combined.faults:
            self.report.blame(principal, code)
        if not combined.complete:
            self.stop(KEEPER, combined.hopeless or "openings-too-few")
        if pack(segments, lanes) != self.records["sum"][0]:
            self.report.blame(KEEPER, "sum-differs", "the openings give another sum")

    def _result(
        self, view: RoundView, roster: RosterView, proposal: bytes, count: int, opened: list[tuple[int, bytes]]
    ) -> None:
        result = convert(self.own("result", "result", view).payload, Result)
        stated = (result.manifest, result.roster, result.proposal, result.count, result.previous, result.rotation)
        manifest = view.manifest
        if stated != (view.digest, roster.digest, proposal, count, manifest.previous, manifest.rotation):
            self.report.blame(KEEPER, "result-differs", "it does not name what was voted on")
        if sorted(result.openings) != opened:
            self.report.blame(KEEPER, "result-differs", "it does not name these openings")
        total = self.blob("sum", result.sum)
        model, state = self.blob("model", manifest.model), self.records["state"][0]
        following = self.blob("next", result.model)
        if chunks_of(state, view.base.chunk_size)[0].id != manifest.state:
            self.stop(KEEPER, "blob-altered", "state")
        try:
            made, kept = advance(view.base, model, state, total, manifest.rotation)
            if (made, chunks_of(kept, view.base.chunk_size)[0].id) != (following, result.state):
                self.report.blame(KEEPER, "model-differs")
        except BlindsumError as error:
            self.report.blame(KEEPER, error.code, error.detail)

    # -- helpers --------------------------------------------------------------------------------------------------

    def own(self, name: str, kind: str, view: RoundView | None = None) -> Signed:
        """The coordinator's message in record `name`."""
        signed = open_message(self.trust, self.one(name))
        if isinstance(signed, Refused):
            self.stop(KEEPER, signed.code, name)
        place = (signed.head.task, signed.head.round)
        if signed.head.type != kind or (view is not None and place != (view.name, view.number)):
            self.stop(KEEPER, "message-misplaced", name)
        return signed

    def one(self, name: str) -> bytes:
        if not self.records[name]:
            self.stop(KEEPER, "transcript-malformed", f"no record {name!r}")
        return self.records[name][0]

    def blob(self, name: str, ref: BlobRef) -> bytes:
        data = self.one(name)
        if chunks_of(data, ref.chunk_size)[0] != ref:
            self.stop(KEEPER, "blob-altered", name)
        return data

    def enough(self, base: TaskView, votes: int, given: int, what: str) -> None:
        if votes < base.committee.quorum or votes != given:
            self.stop(KEEPER, "votes-too-few", f"{votes} of {given} votes for the {what} are genuine")

    def take(self, value: object) -> object:
        if isinstance(value, Refused):
            self.stop(value.culprit or KEEPER, value.code, value.detail)
        return value

    def stop(self, principal: str, code: str, detail: str = "") -> NoReturn:
        self.report.blame(principal, code, detail)
        raise Stop
