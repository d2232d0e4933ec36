"""Whether the record of a round that failed shows why it did (SPEC.md section 10.1)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TypeAlias

from oracle.cbor import Value, blob_id, blob_ref, decode, digest
from oracle.envelope import Signed, Trust, open_inner, open_message
from oracle.fault import Fault, require
from oracle.judge import Faults, Judge, faults_of
from oracle.masks import pack
from oracle.numbers import advance
from oracle.views import KEEPER, alone, count_votes, entries_follow, open_join, open_joins, open_manifest, open_task

_MANY = ("offer", "vote", "header", "body", "opening", "content", "check", "evidence")
_AGREED = ("announcement", "rollback")
_WHO = (*_AGREED, "roster", "joins", "listed", "evidence")
_PHASES: tuple[tuple[str, tuple[str, ...]], ...] = (
    # the record that shows how far it came; what else there may be
    ("certificate", (*_WHO, "survivors", "check", "header", "opening", "content")),
    ("proposal", (*_WHO, "survivors", "check", "vote")),
    ("candidate", (*_WHO, "survivors", "check")),
    ("roster", (*_WHO, "header")),
    ("roster-proposal", (*_AGREED, "joins", "evidence", "vote")),
    ("announcement", (*_AGREED, "joins")),
    ("manifest", ("task", "vote")),
    ("offer", ("task",)),
)
_SUMMED = ("body", "model", "state")

Verdict: TypeAlias = tuple[bytes, str]
"""The digest of the manifest that the failure must name, and the code; "": the record shows no reason to fail."""


class FailedJudge(Judge):
    """Reads the records of one failed round."""

    def whole(self) -> None:
        counts = {name: len(found) for name, found in self.records.items()}
        require(counts["trust"] == counts["failure"] == 1, "transcript-malformed")
        require(all(count <= 1 or name in _MANY for name, count in counts.items()), "transcript-malformed")

    def run(self) -> None:
        self.trusted()
        end = self._own("failure", "failure")
        named, allowed = next(((name, more) for name, more in _PHASES if self.records[name]), _PHASES[-1])
        if named == "announcement":
            task = self._own("announcement", "announcement").body["task"]
            if not open_task(self.trust, task).has_roster:
                named, allowed = "roster", (*_WHO, "header")
        if named == "certificate" and self.records["body"]:
            allowed += _SUMMED
        there = {name for name, found in self.records.items() if found}
        require(there <= {"trust", "failure", named, *allowed}, "transcript-malformed", KEEPER)
        judged: dict[str, Callable[[Signed], Verdict]] = {
            "certificate": self._open,
            "proposal": self._vote,
            "candidate": self._check,
            "roster": self._upload,
            "roster-proposal": self._agree,
            "announcement": self._join,
            "manifest": self._begin,
            "offer": self._offer,
        }
        manifest, code = judged[named](end)
        require(end.body["manifest"] == manifest and code and end.body["code"] == code, "failure-differs", KEEPER)

    def _offer(self, end: Signed) -> Verdict:
        task = open_task(self.trust, self._one("task"))
        require(task.name == end.head["task"], "message-misplaced", KEEPER)
        place = ("offer", task.name, end.head["round"])
        offered = [open_inner(self.trust, raw, place).sender for raw in self.records["offer"]]
        self.quorum = task.committee[2]
        every = [f"party/{number}" for number in range(1, task.committee[0] + 1)]
        return bytes(32), self._few(offered, every, "offers-too-few")

    def _begin(self, end: Signed) -> Verdict:
        task = open_task(self.trust, self._one("task"))
        self.round = open_manifest(task, self._one("manifest"))
        self._here(end)
        self.quorum = task.committee[2]
        return self.round.digest, self._voted("manifest", self.round.digest)

    def _join(self, end: Signed) -> Verdict:
        self._announced(end)
        raws = decode(self._one("joins"))
        require(isinstance(raws, list) and all(isinstance(raw, bytes) for raw in raws), "transcript-malformed", KEEPER)
        joined = [open_join(self.round, raw)[0] for raw in raws]
        require(joined == sorted(set(joined)), "roster-malformed", KEEPER)
        return self.round.digest, "cohort-too-small" if len(joined) < self.task.body["devices_min"] else ""

    def _agree(self, end: Signed) -> Verdict:
        self._announced(end)
        proposal = open_inner(self.trust, self._one("roster-proposal"), self.round.at("roster-proposal"))
        require(proposal.body["manifest"] == self.round.digest, "roster-malformed", KEEPER)
        self.identities, entries = open_joins(self.round, self._blob("joins", proposal.body["joins"]))
        entries_follow(self.round, entries, proposal.body["entries"])
        self.roster = alone(self.round, [name for name, _ in decode(entries)])
        self._evidence()
        code = self._voted("roster", proposal.digest)
        for party, beacon in count_votes(self.round, self.records["vote"], "roster", proposal.digest).items():
            made = digest("beacon", self.round.task.name, self.round.number, party, beacon)
            require(made == self.round.members[party], "beacon-differs", f"party/{party}")
        return self.round.digest, code

    def _upload(self, end: Signed) -> Verdict:
        self._settled(end)
        listed = {}
        for raw in self.records["header"]:
            signed = open_message(self.trust, raw)
            device = signed.sender.removeprefix("device/")
            require(device in self.roster.devices, "signature-invalid", KEEPER)
            listed[self.roster.devices.index(device)] = signed.digest
        require(list(listed) == sorted(listed), "signature-invalid", KEEPER)
        self._headers(listed)
        few = len(listed) < self.roster.survivors_min
        return self.round.digest, "survivors-too-few" if few else ""

    def _check(self, end: Signed) -> Verdict:
        self._settled(end)
        candidate = open_inner(self.trust, self._one("candidate"), self.round.at("candidate"))
        self._set(candidate)
        told: dict[int, set[int]] = {}
        for raw in self.records["check"]:
            signed = open_inner(self.trust, raw, self.round.at("check"))
            require(signed.body["survivors"] == blob_id(candidate.body["survivors"]), "survivors-differ", KEEPER)
            told[int(signed.sender.split("/")[1])] = {index for index, _ in signed.body["bad"]} & set(self.survivors)
        if len(told) < self.quorum:
            return self.round.digest, "checks-too-few"
        left = len(self.survivors) - self._left_out(told)
        return self.round.digest, "survivors-too-few" if left < self.roster.survivors_min else ""

    def _left_out(self, told: dict[int, set[int]]) -> int:
        """How many devices complaints put out: section 8.3."""
        many = {i for i in self.survivors if sum(i in bad for bad in told.values()) >= self.threshold}
        heard = sorted(told)
        for _ in range(self.parties - self.quorum):
            out = many.union(*(told[party] for party in heard))
            if len(self.survivors) - len(out) >= self.roster.survivors_min:
                break
            heard.remove(max(heard, key=lambda party: (len(told[party] - many), -party)))
        return len(many.union(*(told[party] for party in heard)))

    def _vote(self, end: Signed) -> Verdict:
        self._settled(end)
        proposal = open_inner(self.trust, self._one("proposal"), self.round.at("proposal"))
        self._set(proposal)
        require(len(self.survivors) >= self.roster.survivors_min, "survivors-too-few", KEEPER)
        return self.round.digest, self._voted("set", proposal.digest)

    def _open(self, end: Signed) -> Verdict:
        self._settled(end)
        self._certificate()
        self._headers(self.survivors)
        self._openings()
        self.sum = [[0] * segment.length for segment in self.segments]
        model = state = b""
        if self.records["body"]:
            self._bodies()
            model, state = self._blob("model", self.round.body["model"]), self._one("state")
            size = self.task.body["plan"]["chunk_size"]
            require(blob_id(blob_ref(state, size)) == self.round.body["state"], "blob-altered", KEEPER)
        if code := self._unmask():
            return self.round.digest, code
        if not self.records["body"]:
            return self.round.digest, ""
        codecs = [segment["codec"] for segment in self.task.body["segments"]]
        how = self.task.codec, self.task.body["algorithm"], self.round.body["rotation"]
        try:
            advance(model, state, pack(self.segments, self.sum), self.segments, codecs, *how)
        except Fault as fault:
            return self.round.digest, fault.code
        return self.round.digest, ""

    # -- parts ----------------------------------------------------------------------------------------------------

    def _one(self, name: str) -> bytes:
        require(self.records[name], "transcript-malformed", KEEPER)
        return self.records[name][0]

    def _own(self, name: str, kind: str, *, here: bool = False) -> Signed:
        self._one(name)
        return super()._own(name, kind, here=here)

    def _blob(self, name: str, ref: dict[str, Value]) -> bytes:
        self._one(name)
        return super()._blob(name, ref)

    def _announced(self, end: Signed) -> None:
        self._manifest()
        self._here(end)

    def _settled(self, end: Signed) -> None:
        self._announced(end)
        for name in ("listed",) if self.task.has_roster else ("roster", "joins"):
            require(not self.records[name], "transcript-malformed", KEEPER)
        if self.task.has_roster:
            self._roster()
        elif self.records["listed"]:
            self._candidate()
        else:
            self._arrived()
        self._checks()
        self._evidence()

    def _arrived(self) -> None:
        """Without a roster and before a candidate: whose headers are there."""
        names = [open_message(self.trust, raw).sender.removeprefix("device/") for raw in self.records["header"]]
        require(names == sorted(set(names)), "signature-invalid", KEEPER)
        self.roster = alone(self.round, names)

    def _here(self, end: Signed) -> None:
        place = end.head["task"], end.head["round"]
        require(place == (self.round.task.name, self.round.number), "message-misplaced", KEEPER)

    def _voted(self, decides: str, wanted: bytes) -> str:
        votes = count_votes(self.round, self.records["vote"], decides, wanted)
        require(len(votes) == len(self.records["vote"]), "transcript-malformed", KEEPER)
        return self._few(votes, self.round.members, "votes-too-few")

    def _few(self, answered: Collection[object], asked: Collection[object], code: str) -> str:
        once = len(set(answered)) == len(answered) and set(answered) <= set(asked)
        require(once, "transcript-malformed", KEEPER)
        return code if len(answered) < self.quorum else ""


def judge_failed(trust: Trust, records: Sequence[tuple[str, bytes]]) -> Faults:
    """All faults of the record of a failed round."""
    return faults_of(FailedJudge, trust, records)
