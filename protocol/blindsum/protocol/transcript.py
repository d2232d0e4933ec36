"""The transcript of a finished round and its verification by anybody (SPEC.md section 10).

A file of `MAGIC` and then one deterministic CBOR item a record, [name, bytes]. Every byte of it is covered by a signature, a
digest that a signature covers, or the recomputation, so an altered byte always shows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Final, NoReturn

from blindsum.protocol.codec import DecodeError, convert, decode, encode
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
    RosterAnnouncement,
    chunks_of,
)
from blindsum.protocol.openings import combine
from blindsum.protocol.optimiser import advance
from blindsum.protocol.report import Fault, Report
from blindsum.protocol.ring import PackedSum, pack, packed_size
from blindsum.protocol.roster import (
    Joins,
    RosterView,
    open_joins,
    open_roster,
    open_roster_announcement,
    read_survivors,
)
from blindsum.protocol.trust import Trust, party_number
from blindsum.protocol.view import RoundView, TaskView, count_votes, expect, open_manifest, open_message, open_task

__all__ = ["MAGIC", "Fault", "Report", "read_records", "verify", "write_records"]

MAGIC: Final = b"blindsum transcript 1\n"
KEEPER: Final = "coordinator"
"""Whom an unsound record is laid at: the role that kept the transcript."""
_ONCE: Final = (
    "trust",
    "announcement",
    "roster",
    "joins",
    "certificate",
    "survivors",
    "result",
    "sum",
    "model",
    "state",
    "next",
)
_MANY: Final = ("header", "body", "opening", "content", "check", "evidence")


def write_records(records: Iterable[tuple[str, bytes]]) -> Iterator[bytes]:
    """The pieces of a transcript file, to be written one after another."""
    yield MAGIC
    for name, data in records:
        yield encode([name, data])


def read_records(data: bytes) -> dict[str, list[bytes]]:
    """The records of a transcript by name, in file order. Raises `DecodeError` where it is not one."""
    if not data.startswith(MAGIC):
        raise DecodeError("not a transcript: the first line is not the magic")
    records: dict[str, list[bytes]] = {name: [] for name in (*_ONCE, *_MANY)}
    start = len(MAGIC)
    while start < len(data):
        end = _record_end(data, start)
        record = decode(data[start:end])
        if not (isinstance(record, list) and [type(part) for part in record] == [str, bytes] and record[0] in records):
            raise DecodeError(f"record at byte {start} is of no known kind")
        records[record[0]].append(record[1])
        start = end
    for name in _ONCE:
        if len(records[name]) != 1:
            raise DecodeError(f"{len(records[name])} records {name!r} where one belongs")
    return records


def verify(data: bytes, *, trust: Trust | None = None) -> Report:
    """Recompute a round from its transcript. `trust`: the bundle to hold it to (else the transcript's own, which proves only that
    it is consistent with itself). Never raises for what is in the transcript."""
    report = Report()
    try:
        records = read_records(data)
        found = Trust.decode(records["trust"][0])
    except DecodeError as error:
        report.blame(KEEPER, "transcript-malformed", str(error))
        return report
    if trust is not None and found != trust:
        report.blame(KEEPER, "trust-differs")
        return report
    try:
        _Verifier(found, records, report).run()
    except _Stop:
        pass
    except (BlindsumError, DecodeError) as error:
        report.blame(KEEPER, "transcript-malformed", str(error))
    return report


def _record_end(data: bytes, start: int) -> int:
    """Where a record ends by the lengths that its name and its bytes state; whether it is one, `decode` says."""
    at = start + 2 + (data[start + 1] & 0x1F if start + 1 < len(data) else 0)
    first = data[at] & 0x1F if at < len(data) else 0
    width = {24: 1, 25: 2, 26: 4, 27: 8}.get(first, 0)
    return at + 1 + width + (int.from_bytes(data[at + 1 : at + 1 + width], "big") if width else first)


class _Stop(Exception):
    """What follows cannot be judged."""


class _Verifier:
    def __init__(self, trust: Trust, records: dict[str, list[bytes]], report: Report) -> None:
        self._trust = trust
        self._records = records
        self._report = report

    def run(self) -> None:
        view = self._manifest()
        joins, roster = self._roster(view)
        self._checks(view, roster)
        self._evidence(view, joins)
        proposal, survivors = self._certificate(view, roster)
        headers, bodies = self._uploads(view, joins, roster, survivors)
        contents, opened = self._openings(view, proposal.digest)
        self._sum(view, roster, headers, bodies, contents)
        self._result(view, roster, proposal.digest, len(survivors), opened)

    def _manifest(self) -> RoundView:
        signed = self._own("announcement", "announcement")
        announcement = convert(signed.payload, Announcement)
        base = self._take(open_task(self._trust, announcement.task))
        assert isinstance(base, TaskView)
        view = self._take(open_manifest(base, announcement.manifest))
        assert isinstance(view, RoundView)
        votes = count_votes(base, view.number, announcement.votes, decides="manifest", digest=view.digest)
        self._enough(base, len(votes), len(announcement.votes), "manifest")
        if (signed.head.task, signed.head.round) != (view.name, view.number):
            self._report.blame(KEEPER, "message-misplaced", "announcement")
        self._report.facts.update(task=view.name, round=view.number, manifest_votes=sorted(votes))
        return view

    def _roster(self, view: RoundView) -> tuple[Joins, RosterView]:
        announcement = convert(self._own("roster", "roster", view).payload, RosterAnnouncement)
        opened = self._take(open_roster_announcement(view, announcement.proposal, announcement.votes))
        assert isinstance(opened, tuple)
        proposal, _, digest = opened
        data = self._blob("joins", proposal.joins)
        joins = self._take(open_joins(view, data))
        assert isinstance(joins, Joins)
        if chunks_of(joins.entries, view.base.chunk_size)[0] != proposal.entries:
            self._stop(KEEPER, "roster-malformed", "entries do not follow from the joins")
        roster = self._take(open_roster(view, joins.entries, digest))
        assert isinstance(roster, RosterView)
        self._report.facts.update(devices=roster.size, degree=roster.degree, survivors_min=roster.survivors_min)
        return joins, roster

    def _checks(self, view: RoundView, roster: RosterView) -> None:
        """Who complained about whom. What t parties refuse, an honest one refuses."""
        told: dict[int, dict[int, str]] = {}
        for raw in self._records["check"]:
            opened = expect(self._trust, raw, "check", Check, task=view.name, number=view.number)
            if isinstance(opened, Refused):
                self._stop(opened.culprit or KEEPER, opened.code, "check")
            signed, check = opened
            party = party_number(signed.head.sender)
            if party in told or view.member(party) is None:
                self._stop(KEEPER, "transcript-malformed", f"check of party {party}")
            told[party] = {index: code for index, code in check.bad if index < roster.size}
        complaints: dict[str, list[str]] = {}
        for index, device in enumerate(roster.devices):
            refusing = {party: codes[index] for party, codes in sorted(told.items()) if index in codes}
            if refusing:
                complaints[device] = [f"party/{party}: {code}" for party, code in refusing.items()]
            if len(refusing) >= view.base.committee.threshold:
                self._report.blame(
                    f"device/{device}", next(iter(refusing.values())), f"{len(refusing)} parties refuse it"
                )
        if complaints:
            self._report.facts.update(complaints=complaints)

    def _evidence(self, view: RoundView, joins: Joins) -> None:
        """Who signed two messages of this round that contradict each other."""
        keys = {f"device/{device}": key for device, key in zip(joins.devices, joins.identities, strict=True)}
        for data in self._records["evidence"]:
            pair = decode(data)
            if not isinstance(pair, list) or [type(raw) for raw in pair] != [bytes, bytes]:
                self._stop(KEEPER, "transcript-malformed", "evidence")
            first, second = (open_message(self._trust, raw) for raw in pair)
            code = ""
            if isinstance(first, Signed) and isinstance(second, Signed):
                sender = first.head.sender
                genuine = sender not in keys or (first.valid(keys[sender]) and second.valid(keys[sender]))
                here = (first.head.task, first.head.round) == (view.name, view.number)
                known = sender in keys or not sender.startswith("device/")
                code = contradiction(first, second) if genuine and here and known else ""
            if not code:
                self._stop(KEEPER, "transcript-malformed", "evidence that proves nothing")
            self._report.blame(sender, code)

    def _certificate(self, view: RoundView, roster: RosterView) -> tuple[Signed, dict[int, bytes]]:
        certificate = convert(self._own("certificate", "certificate", view).payload, Certificate)
        opened = expect(self._trust, certificate.proposal, "proposal", Proposal, task=view.name, number=view.number)
        if isinstance(opened, Refused):
            self._stop(opened.culprit or KEEPER, opened.code, "proposal")
        signed, proposal = opened
        votes = count_votes(view.base, view.number, certificate.votes, decides="set", digest=signed.digest)
        self._enough(view.base, len(votes), len(certificate.votes), "survivor set")
        if proposal.roster != roster.digest:
            self._report.blame(KEEPER, "roster-differs")
        survivors = self._take(read_survivors(self._blob("survivors", proposal.survivors), roster.size))
        assert isinstance(survivors, dict)
        if len(survivors) < roster.survivors_min:
            self._report.blame(KEEPER, "survivors-too-few", f"{len(survivors)} < {roster.survivors_min}")
        self._report.facts.update(survivors=len(survivors), set_votes=sorted(votes))
        return signed, survivors

    def _uploads(
        self, view: RoundView, joins: Joins, roster: RosterView, survivors: dict[int, bytes]
    ) -> tuple[dict[int, Header], list[bytes]]:
        raws, bodies = self._records["header"], self._records["body"]
        if not len(raws) == len(bodies) == len(survivors):
            self._stop(KEEPER, "transcript-malformed", "headers and bodies are not those of the survivor set")
        headers: dict[int, Header] = {}
        for (index, digest), raw, body in zip(sorted(survivors.items()), raws, bodies, strict=True):
            device = f"device/{joins.devices[index]}"
            opened = expect(self._trust, raw, "header", Header, task=view.name, number=view.number)
            if isinstance(opened, Refused):
                self._stop(KEEPER, opened.code, f"header of {device}")
            signed, header = opened
            if signed.head.sender != device or signed.digest != digest or not signed.valid(joins.identities[index]):
                self._stop(KEEPER, "signature-invalid", f"header of {device}")
            fault = header_fault(view, roster, header, packed_size(view.base.segments))
            if fault or header.index != index:
                self._stop(device, fault or "header-foreign")
            if chunks_of(body, header.body.chunk_size)[0] != header.body:
                self._stop(KEEPER, "upload-altered", f"body of {device}")
            headers[index] = header
        return headers, bodies

    def _openings(
        self, view: RoundView, proposal: bytes
    ) -> tuple[dict[int, list[OpeningContent]], list[tuple[int, bytes]]]:
        raws, plains = self._records["opening"], self._records["content"]
        if len(raws) != len(plains):
            self._stop(KEEPER, "transcript-malformed", "openings and contents do not match")
        contents: dict[int, list[OpeningContent]] = {}
        digests: list[tuple[int, bytes]] = []
        for raw, plain in zip(raws, plains, strict=True):
            opened = expect(self._trust, raw, "opening", Opening, task=view.name, number=view.number)
            if isinstance(opened, Refused):
                self._stop(opened.culprit or KEEPER, opened.code, "opening")
            signed, opening = opened
            party = party_number(signed.head.sender)
            parts = contents.setdefault(party, [])
            if opening.proposal != proposal or opening.part != len(parts) or view.member(party) is None:
                self._stop(signed.head.sender, "opening-foreign")
            if hashlib.sha256(plain).digest() != opening.plain:
                self._stop(KEEPER, "opening-altered", f"content of {signed.head.sender}")
            try:
                parts.append(convert(decode(plain), OpeningContent))
            except DecodeError:
                self._stop(signed.head.sender, "opening-malformed")
            digests.append((party, opening.plain))
        self._report.facts.update(parties=sorted(contents))
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
            self._report.blame(principal, code)
        if not combined.complete:
            self._stop(KEEPER, combined.hopeless or "openings-too-few")
        if pack(segments, lanes) != self._records["sum"][0]:
            self._report.blame(KEEPER, "sum-differs", "the openings give another sum")

    def _result(
        self, view: RoundView, roster: RosterView, proposal: bytes, count: int, opened: list[tuple[int, bytes]]
    ) -> None:
        result = convert(self._own("result", "result", view).payload, Result)
        stated = (result.manifest, result.roster, result.proposal, result.count, result.previous, result.rotation)
        manifest = view.manifest
        if stated != (view.digest, roster.digest, proposal, count, manifest.previous, manifest.rotation):
            self._report.blame(KEEPER, "result-differs", "it does not name what was voted on")
        if sorted(result.openings) != opened:
            self._report.blame(KEEPER, "result-differs", "it does not name these openings")
        total = self._blob("sum", result.sum)
        model, state = self._blob("model", manifest.model), self._records["state"][0]
        following = self._blob("next", result.model)
        if chunks_of(state, view.base.chunk_size)[0].id != manifest.state:
            self._stop(KEEPER, "blob-altered", "state")
        try:
            made, kept = advance(view.base, model, state, total, manifest.rotation)
            if (made, chunks_of(kept, view.base.chunk_size)[0].id) != (following, result.state):
                self._report.blame(KEEPER, "model-differs")
        except BlindsumError as error:
            self._report.blame(KEEPER, error.code, error.detail)

    # -- helpers --------------------------------------------------------------------------------------------------

    def _own(self, name: str, kind: str, view: RoundView | None = None) -> Signed:
        """The coordinator's message in record `name`."""
        signed = open_message(self._trust, self._records[name][0])
        if isinstance(signed, Refused):
            self._stop(KEEPER, signed.code, name)
        place = (signed.head.task, signed.head.round)
        if signed.head.type != kind or (view is not None and place != (view.name, view.number)):
            self._stop(KEEPER, "message-misplaced", name)
        return signed

    def _blob(self, name: str, ref: BlobRef) -> bytes:
        data = self._records[name][0]
        if chunks_of(data, ref.chunk_size)[0] != ref:
            self._stop(KEEPER, "blob-altered", name)
        return data

    def _enough(self, base: TaskView, votes: int, given: int, what: str) -> None:
        if votes < base.committee.quorum or votes != given:
            self._stop(KEEPER, "votes-too-few", f"{votes} of {given} votes for the {what} are genuine")

    def _take(self, value: object) -> object:
        if isinstance(value, Refused):
            self._stop(value.culprit or KEEPER, value.code, value.detail)
        return value

    def _stop(self, principal: str, code: str, detail: str = "") -> NoReturn:
        self._report.blame(principal, code, detail)
        raise _Stop
