"""Who lied in a round, from its transcript (SPEC.md section 10)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeAlias

from oracle.cbor import Value, blob_id, blob_ref, decode, digest
from oracle.curves import ed25519_verify
from oracle.envelope import Signed, Trust, open_inner, open_message, trust_open
from oracle.fault import Fault, require
from oracle.masks import Vector, pack, unpack, zeros
from oracle.numbers import advance
from oracle.schema import OPENING_CONTENT, check_body
from oracle.unmask import Unmasking
from oracle.views import (
    KEEPER,
    alone,
    check_header,
    entries_follow,
    listed,
    open_arrival,
    open_joins,
    open_manifest,
    open_proposal,
    open_roster,
    open_task,
    place_of,
    quorum_of_votes,
)

_ONCE = (
    "trust",
    "announcement",
    "certificate",
    "survivors",
    "result",
    "sum",
    "model",
    "state",
    "next",
)
_DEVICES = ("roster", "joins", "listed")
_MANY = ("rollback", "header", "body", "opening", "content", "check", "evidence")
NAMES = {
    *(*_ONCE, *_DEVICES, *_MANY),
    *("failure", "task", "manifest", "offer", "vote", "roster-proposal", "candidate", "proposal"),
}
_TWICE: dict[str, tuple[str, tuple[str, ...]]] = {
    "offer": ("second-offer", ()),
    "vote": ("second-vote", ("decides",)),
    "manifest": ("second-manifest", ()),
    "roster-proposal": ("second-roster", ()),
    "header": ("second-header", ()),
    "proposal": ("second-set", ()),
    "opening": ("second-opening", ("part",)),
    "join": ("second-join", ()),
    "roster": ("second-roster", ()),
    "result": ("second-result", ()),
    "failure": ("failure-differs", ()),
}

Faults: TypeAlias = list[list[str]]


class Judge:
    """Reads the records of one transcript; `faults` are [principal, code] in the order found."""

    def __init__(self, trust: Trust, records: Sequence[tuple[str, bytes]]) -> None:
        self.trust = trust
        self.faults: Faults = []
        self.records: dict[str, list[bytes]] = {name: [] for name in NAMES}
        for name, data in records:
            require(name in self.records, "transcript-malformed")
            self.records[name].append(data)
        self.whole()

    def whole(self) -> None:
        """As many records of each name as there must be."""
        names = (*_ONCE, *_DEVICES, *_MANY)
        require(not any(found for name, found in self.records.items() if name not in names), "transcript-malformed")
        require(all(len(self.records[name]) == 1 for name in _ONCE), "transcript-malformed")
        require(len(self.records["rollback"]) <= 1, "transcript-malformed")
        found = [len(self.records[name]) for name in _DEVICES]
        require(found in ([1, 1, 0], [0, 0, 1]), "transcript-malformed")

    def trusted(self) -> None:
        try:
            found = trust_open(self.records["trust"][0])
        except Fault:
            raise Fault("transcript-malformed", KEEPER) from None
        require(found == self.trust, "trust-differs", KEEPER)

    def run(self) -> None:
        """Raises `Fault` where what follows cannot be judged."""
        self.trusted()
        self._manifest()
        require(self.task.has_roster == (not self.records["listed"]), "transcript-malformed", KEEPER)
        if self.task.has_roster:
            self._roster()
        else:
            self._candidate()
        self._checks()
        self._evidence()
        self._certificate()
        self._headers(self.survivors)
        self._bodies()
        self._openings()
        self._sum()
        self._result()

    def blame(self, principal: str, code: str) -> None:
        if [principal, code] not in self.faults:
            self.faults.append([principal, code])

    # -- task, manifest, roster -----------------------------------------------------------------------------------

    def _manifest(self) -> None:
        announced = self._own("announcement", "announcement").body
        self.task = open_task(self.trust, announced["task"])
        self.round = open_manifest(self.task, announced["manifest"])
        quorum_of_votes(self.round, announced["votes"], "manifest", self.round.digest)
        self.trust = self.round.task.trust  # with the keys that the offers show
        self.parties, self.threshold, self.quorum, _ = self.task.committee
        self.segments = self.task.segments
        for raw in self.records["rollback"]:
            self._rollback(raw)

    def _rollback(self, raw: bytes) -> None:
        """What the operator went back to is what the round started from."""
        signed, manifest, first = open_message(self.trust, raw), self.round.body, self.task.body["model"]
        require(signed.place[:2] == ("rollback", self.task.name), "message-misplaced", KEEPER)
        check_body("rollback", signed.body)
        model = signed.body["model"]
        stated = [signed.digest, signed.body["task"], model, self.task.first_state]
        sizes = (model["size"], model["chunk_size"]) == (first["size"], first["chunk_size"])
        if stated != [manifest["previous"], self.task.digest, manifest["model"], manifest["state"]] or not sizes:
            self.blame(KEEPER, "rollback-differs")

    def _roster(self) -> None:
        announced = self._own("roster", "roster", here=True).body
        proposal, roster = open_proposal(self.round, announced["proposal"], announced["votes"])
        self.identities, entries = open_joins(self.round, self._blob("joins", proposal["joins"]))
        entries_follow(self.round, entries, proposal["entries"])
        self.roster = open_roster(self.round, entries, roster)
        self.place = place_of(self.round, self.roster)

    def _candidate(self) -> None:
        most, chunk_size = self.task.body["devices_max"], self.task.body["plan"]["chunk_size"]
        data = self.records["listed"][0]
        self.checked = blob_id(blob_ref(data, chunk_size))
        self.roster = alone(self.round, [name for name, _ in listed(data, most)])
        self.place = place_of(self.round, self.roster)

    # -- complaints and evidence ----------------------------------------------------------------------------------

    def _checks(self) -> None:
        told: dict[int, dict[int, str]] = {}
        for raw in self.records["check"]:
            signed = open_inner(self.trust, raw, self.round.at("check"))
            party = int(signed.sender.split("/")[1])
            require(party not in told and party in self.round.members, "transcript-malformed", KEEPER)
            require(self.task.has_roster or signed.body["survivors"] == self.checked, "transcript-malformed", KEEPER)
            told[party] = dict(signed.body["bad"])
        for index, device in enumerate(self.roster.devices):
            codes = [told[party][index] for party in sorted(told) if index in told[party]]
            if len(codes) >= self.threshold and set(codes) != {"certificate-revoked"}:
                self.blame(f"device/{device}", codes[0])

    def _evidence(self) -> None:
        for data in self.records["evidence"]:
            culprit, code = "", ""
            try:
                pair = decode(data)
                require(isinstance(pair, list) and len(pair) == 2, "transcript-malformed")
                first, second = (open_message(self.trust, raw) for raw in pair)
                culprit = first.sender
                if culprit.startswith("device/"):
                    if self.task.has_roster:
                        key = self.identities[self.roster.devices.index(culprit.removeprefix("device/"))]
                    else:
                        key = open_arrival(self.round, first)[1]
                    require(ed25519_verify(key, first.signature, first.tbs), "signature-invalid")
                    require(ed25519_verify(key, second.signature, second.tbs), "signature-invalid")
                if first.place[1:] == self.round.at("")[1:]:
                    code = contradiction(first, second)
            except (Fault, TypeError, ValueError):
                raise Fault("transcript-malformed", KEEPER) from None
            require(code, "transcript-malformed", KEEPER)
            self.blame(culprit, code)

    # -- survivors, uploads, openings -----------------------------------------------------------------------------

    def _certificate(self) -> None:
        body = self._own("certificate", "certificate", here=True).body
        proposal = open_inner(self.trust, body["proposal"], self.round.at("proposal"))
        quorum_of_votes(self.round, body["votes"], "set", proposal.digest)
        self.proposal = proposal.digest
        self._set(proposal)
        if len(self.survivors) < self.roster.survivors_min:
            self.blame(KEEPER, "survivors-too-few")

    def _set(self, proposal: Signed) -> None:
        """`survivors` of a proposal or candidate: the header digest by index."""
        if proposal.body["roster"] != self.roster.digest:
            self.blame(KEEPER, "roster-differs")
        data = self._blob("survivors", proposal.body["survivors"])
        if self.task.has_roster:
            self.survivors = survivors(data, len(self.roster.devices))
        else:
            rows = listed(data, self.task.body["devices_max"])
            self.survivors = {index: wanted for index, (_, wanted) in enumerate(rows)}
            self.roster = alone(self.round, [name for name, _ in rows])

    def _headers(self, listed: dict[int, bytes]) -> None:
        """The headers of the devices that are listed with these digests, in this order."""
        raws = self.records["header"]
        require(len(raws) == len(listed), "transcript-malformed", KEEPER)
        self.headers: dict[int, dict[str, Value]] = {}
        for (index, wanted), raw in zip(listed.items(), raws, strict=True):
            device = f"device/{self.roster.devices[index]}"
            try:
                signed = open_inner(self.trust, raw, self.round.at("header"))
            except Fault as fault:
                raise Fault(fault.code, KEEPER) from None
            try:
                key = self.identities[index] if self.task.has_roster else open_arrival(self.round, signed)[1]
            except Fault as fault:
                raise Fault(fault.code, KEEPER) from None
            genuine = ed25519_verify(key, signed.signature, signed.tbs)
            mine = signed.sender == device and signed.digest == wanted
            require(mine and genuine, "signature-invalid", KEEPER)
            check_header(self.round, self.roster, signed.body, device)
            require(not self.task.has_roster or signed.body["index"] == index, "header-foreign", device)
            self.headers[index] = signed.body

    def _bodies(self) -> None:
        require(len(self.records["body"]) == len(self.headers), "transcript-malformed", KEEPER)
        self.sum: Vector = zeros(self.segments)
        for header, body in zip(self.headers.values(), self.records["body"], strict=True):
            require(blob_ref(body, header["body"]["chunk_size"]) == header["body"], "upload-altered", KEEPER)
            self.sum = self.place.add(self.sum, unpack(self.segments, body))

    def _openings(self) -> None:
        raws, plains = self.records["opening"], self.records["content"]
        require(len(raws) == len(plains), "transcript-malformed", KEEPER)
        self.contents: dict[int, list[dict[str, Value]]] = {}
        self.opened: list[list[Value]] = []
        for raw, plain in zip(raws, plains, strict=True):
            signed = open_inner(self.trust, raw, self.round.at("opening"))
            party = int(signed.sender.split("/")[1])
            parts = self.contents.setdefault(party, [])
            here = signed.body["proposal"] == self.proposal and signed.body["part"] == len(parts)
            require(here and party in self.round.members, "opening-foreign", signed.sender)
            require(hashlib.sha256(plain).digest() == signed.body["plain"], "opening-altered", KEEPER)
            try:
                content = decode(plain)
                require(OPENING_CONTENT(content), "opening-malformed")
            except Fault:
                raise Fault("opening-malformed", signed.sender) from None
            parts.append(content)
            self.opened.append([party, signed.body["plain"]])

    # -- the sum --------------------------------------------------------------------------------------------------

    def _sum(self) -> None:
        if code := self._unmask():
            raise Fault(code, KEEPER)
        if pack(self.segments, self.sum) != self.records["sum"][0]:
            self.blame(KEEPER, "sum-differs")

    def _unmask(self) -> str:
        """Take the masks out of `sum`; or the code of why that cannot be done."""
        unmasking = Unmasking(self.round, self.roster, self.headers)
        try:
            self.sum = unmasking.run(self.contents, self.sum)
        except Fault as fault:
            return fault.code
        finally:
            for principal, code in unmasking.faults:
                self.blame(principal, code)
        return ""

    def _result(self) -> None:
        result = self._own("result", "result", here=True).body
        stated = [result[name] for name in ("manifest", "roster", "proposal", "count", "previous", "rotation")]
        manifest = self.round.body
        true = [self.round.digest, self.roster.digest, self.proposal, len(self.survivors)]
        if stated != [*true, manifest["previous"], manifest["rotation"]]:
            self.blame(KEEPER, "result-differs")
        if sorted(result["openings"]) != sorted(self.opened):
            self.blame(KEEPER, "result-differs")
        total = self._blob("sum", result["sum"])
        model, following = self._blob("model", manifest["model"]), self._blob("next", result["model"])
        codecs = [segment["codec"] for segment in self.task.body["segments"]]
        state, size = self.records["state"][0], self.task.body["plan"]["chunk_size"]
        require(blob_id(blob_ref(state, size)) == manifest["state"], "blob-altered", KEEPER)
        how = self.task.codec, self.task.body["algorithm"], manifest["rotation"]
        made, kept = advance(model, state, total, self.segments, codecs, *how)
        if (made, blob_id(blob_ref(kept, size))) != (following, result["state"]):
            self.blame(KEEPER, "model-differs")

    # -- helpers --------------------------------------------------------------------------------------------------

    def _own(self, name: str, kind: str, *, here: bool = False) -> Signed:
        """The coordinator's message in record `name`; `here`: of this round."""
        try:
            signed = open_message(self.trust, self.records[name][0])
        except Fault as fault:
            raise Fault(fault.code, KEEPER) from None
        right = signed.head["type"] == kind and (not here or signed.place == self.round.at(kind))
        require(right, "message-misplaced", KEEPER)
        check_body(kind, signed.body)
        return signed

    def _blob(self, name: str, ref: dict[str, Value]) -> bytes:
        data = self.records[name][0]
        require(blob_ref(data, ref["chunk_size"]) == ref, "blob-altered", KEEPER)
        return data


def contradiction(first: Signed, second: Signed) -> str:
    """The code of what is wrong with signing both, or "" (SPEC.md section 10.2)."""
    for signed in (first, second):
        check_body(signed.head["type"], signed.body)
    mine = first.sender == second.sender and first.head["task"] == second.head["task"]
    if not mine or first.digest == second.digest:
        return ""
    one, other = first.head["type"], second.head["type"]
    if one == other == "result" and first.body["previous"] == second.body["previous"]:
        return "second-result"
    if first.head["round"] != second.head["round"]:
        return ""
    if one == other:
        code, question = _TWICE.get(one, ("", ()))
        return code if all(first.body[name] == second.body[name] for name in question) else ""
    if (one, other) == ("offer", "vote") and second.body["decides"] == "roster":
        place = first.head["task"], first.head["round"], int(first.sender.split("/")[1])
        kept = digest("beacon", *place, second.body["beacon"]) == first.body["beacon_commitment"]
        return "" if kept else "beacon-differs"
    if (one, other) == ("vote", "opening") and first.body["decides"] == "set":
        return "opening-foreign" if second.body["proposal"] != first.body["digest"] else ""
    if (one, other) == ("join", "header"):
        return "header-foreign" if second.body["manifest"] != first.body["manifest"] else ""
    if (one, other) == ("failure", "result"):
        return "failure-differs"
    named = other == "result" and one in ("manifest", "proposal")
    return "result-differs" if named and second.body[one] != first.digest else ""


def survivors(data: bytes, devices: int) -> dict[int, bytes]:
    """The header digest by index of a packed survivor set."""
    out: dict[int, bytes] = {}
    last = -1
    try:
        value = decode(data)
        require(isinstance(value, list) and len(value) <= devices, "survivors-malformed")
        for row in value:
            require(isinstance(row, list) and len(row) == 2 and type(row[0]) is int, "survivors-malformed")
            index, wanted = row
            fine = last < index < devices and isinstance(wanted, bytes) and len(wanted) == 32
            require(fine, "survivors-malformed")
            last = index
            out[index] = wanted
    except Fault:
        raise Fault("survivors-malformed", KEEPER) from None
    return out


def judge(trust: Trust, records: Sequence[tuple[str, bytes]]) -> Faults:
    """All faults of a transcript."""
    return faults_of(Judge, trust, records)


def faults_of(kind: type[Judge], trust: Trust, records: Sequence[tuple[str, bytes]]) -> Faults:
    try:
        judged = kind(trust, records)
    except Fault as fault:
        return [[KEEPER, fault.code]]
    try:
        judged.run()
    except Fault as fault:
        judged.blame(fault.culprit or KEEPER, fault.code)
    return judged.faults
