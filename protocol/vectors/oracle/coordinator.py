"""A coordinator as the specification has it (SPEC.md sections 5, 6, 7.5, 8.3 and 10), over a line that loses nothing.

It keeps all in memory, waits for nobody twice and says nothing again; it knows rounds with a roster only, no rollback and no staged
tasks. It is there to say each thing that a coordinator says in a round, in a second implementation, and to keep all that it hears.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from oracle.cbor import Value, blob_count, blob_id, blob_ref, chunk_check, chunk_open, decode, encode
from oracle.curves import ed25519_verify
from oracle.envelope import Signed, open_message, seal, trust_open
from oracle.fault import Fault, require
from oracle.kem import box_open
from oracle.masks import Vector, pack, unpack, zeros
from oracle.numbers import advance
from oracle.schema import OPENING_CONTENT, check_body
from oracle.unmask import Contents, Unmasking
from oracle.views import (
    KEEPER,
    check_header,
    count_votes,
    open_join,
    open_manifest,
    open_proposal,
    open_roster,
    open_task,
    party_keys,
)

_WINDOW = 64
_LATER = ("manifest", "join", "roster", "upload", "check", "vote", "open", "done")

Out = tuple[str, str, bytes]
"""(to whom: a principal, "parties" or "all"; type of the message, or "chunk" or, where the broker keeps it, "retained"; bytes)."""


class BookCoordinator:
    """The coordinator of one task. `draw` gives random bytes; `plan` and `model` are the blobs that the task names."""

    def __init__(
        self, key: bytes, box: bytes, trust: bytes, task: bytes, plan: bytes, model: bytes, draw: Callable[[int], bytes]
    ) -> None:
        self.key, self.box, self.draw = key, box, draw
        self.trust = trust_open(trust)
        self.task_raw, self.task = task, open_task(self.trust, task)
        self.size = int(self.task.body["plan"]["chunk_size"])
        self.link, self.model, self.state = bytes(32), model, b""
        self.served: dict[bytes, bytes] = {}
        self.plan = self._serve(plan)
        self.number, self.phase, self.code = 0, "", ""
        self.results: list[bytes] = []
        self.files: list[list[tuple[str, bytes]]] = []

    # -- inputs -----------------------------------------------------------------------------------------------------

    def begin(self, number: int) -> list[Out]:
        """Ask for offers of a round. Numbers only grow."""
        assert number > self.number
        self.number, self.phase, self.code = number, "offer", ""
        self.offers: dict[int, bytes] = {}
        self.votes: dict[tuple[str, bytes], dict[int, bytes]] = {}
        self.joins: dict[str, tuple[bytes, bytes, dict[str, Value]]] = {}
        self.headers: dict[int, tuple[bytes, Signed]] = {}
        self.wanted: dict[bytes, tuple[dict[str, Value], str, dict[int, bytes]]] = {}
        self.complete: dict[int, bytes] = {}
        self.checks: dict[int, tuple[bytes, dict[str, Value]]] = {}
        self.openings: dict[int, list[tuple[bytes, bytes]]] = {}
        self.contents: Contents = {}
        self.view: Any = None
        self.roster: Any = None
        return [self.say("offer-request", f"party/{each}", {"task": self.task_raw}) for each in self._everybody()]

    def receive(self, raw: bytes, now: int) -> list[Out]:
        """What it says to that. Raises `Fault` for what it refuses."""
        if raw[:1] != b"\xd2":
            return self._chunk(raw, now)
        signed = open_message(self.view.task.trust if self.view else self.trust, raw)
        require(signed.head["to"] in ("all", "coordinator"), "message-misplaced")
        require(signed.head["task"] == self.task.name, "task-unknown")
        require(signed.head["round"] == self.number, "round-stale")
        kind = str(signed.head["type"])
        check_body(kind, signed.body)
        handler: Callable[[bytes, Signed], list[Out]] | None = {
            "offer": self._offer,
            "vote": self._vote,
            "join": self._join,
            "header": self._header,
            "ask": self._ask,
            "check": self._check,
            "opening": self._opening,
        }.get(kind)
        if handler is None:
            raise Fault("message-misplaced")
        return [*handler(raw, signed), *self.turn(now)]

    def turn(self, now: int, *, late: bool = False) -> list[Out]:
        """Go on where all have answered or, `late`, where those did who had to."""
        quorum, members = self.task.committee[2], self._everybody() if self.view is None else list(self.view.members)

        def enough(answers: Any) -> bool:
            return len(answers) >= (quorum if late else len(members))

        if self.phase == "offer" and enough(self.offers):
            return self._manifest(now)
        if self.phase == "manifest" and self._agreed("manifest", self.view.digest):
            self.phase = "join"
            votes = self.quorum_for("manifest", self.view.digest)
            body = {"task": self.task_raw, "manifest": self.manifest, "votes": votes}
            self.announcement = self.say("announcement", "all", body)
            return [self.announcement, *self.broadcast(self.plan), *self.broadcast(self.view.body["model"])]
        if self.phase == "join" and (late or len(self.joins) == self.task.body["devices_max"]):
            return self._propose_roster()
        if self.phase == "roster" and self._agreed("roster", self.roster_digest):
            return self._announce_roster()
        if self.phase == "upload" and (late or len(self.complete) == len(self.roster.devices)):
            return self._candidate()
        if self.phase == "check" and enough(self.checks):
            return self._propose_set()
        if self.phase == "vote" and self._agreed("set", self.set_digest):
            self.phase = "open"
            body = {"proposal": self.proposal, "votes": self.quorum_for("set", self.set_digest)}
            self.certificate = self.say("certificate", "parties", body)
            return [self.certificate]
        if self.phase == "open" and enough(self.contents):
            return self._unmask()
        return []

    # -- what it says -------------------------------------------------------------------------------------------------

    def say(self, kind: str, to: str, body: Value) -> Out:
        """A message of this round that it signs."""
        head = {"type": kind, "fleet": self.trust.fleet, "task": self.task.name, "round": self.number}
        return to, kind, seal(self.key, {**head, "from": "coordinator", "to": to}, body)[0]

    def broadcast(self, ref: dict[str, Value], to: str = "all") -> list[Out]:
        kind = "retained" if to == "all" else "chunk"
        return [(to, kind, raw) for raw in self._chunks(ref, range(blob_count(ref)))]

    def quorum_for(self, decides: str, digest: bytes) -> list[bytes]:
        """The votes for this, by party."""
        found = self.votes.get((decides, digest), {})
        return [found[party] for party in sorted(found)]

    def manifest_body(self, now: int) -> dict[str, Value]:
        task = self.task.body
        join_until = now + task["join_ms"]
        return {
            "task": self.task.digest,
            "previous": self.link,
            "model": self._serve(self.model),
            "state": blob_id(blob_ref(self.state, self.size)),
            "offers": [self.offers[party] for party in sorted(self.offers)],
            "rotation": self.draw(16) if task["codec"]["rotate"] else b"",
            "issued_at": now,
            "join_until": join_until,
            "upload_until": join_until + task["upload_ms"],
            "expires_at": join_until + task["upload_ms"] + 8 * task["decide_ms"],
        }

    def roster_body(self, devices: list[str]) -> dict[str, Value]:
        """A roster proposal of these devices, whose blobs it serves from now on."""
        joins = [self.joins[name] for name in sorted(devices)]
        entries = encode([[signed.head["from"].removeprefix("device/"), body["key"]] for _, signed, body in joins])
        blobs = self._serve(encode([raw for raw, _, _ in joins])), self._serve(entries)
        return {"manifest": self.view.digest, "joins": blobs[0], "entries": blobs[1]}

    def set_body(self, indices: list[int]) -> dict[str, Value]:
        """A candidate or proposal of the devices at these indices."""
        listed = [[index, self.headers[index][1].digest] for index in sorted(indices)]
        return {"roster": self.roster.digest, "survivors": self._serve(encode(listed))}

    def _manifest(self, now: int) -> list[Out]:
        self.phase = "manifest"
        to, kind, self.manifest = self.say("manifest", "parties", self.manifest_body(now))
        self.view = open_manifest(self.task, self.manifest)
        return [(to, kind, self.manifest)]

    def _propose_roster(self) -> list[Out]:
        require(len(self.joins) >= self.task.body["devices_min"], "cohort-too-small", KEEPER)
        self.phase, body = "roster", self.roster_body(list(self.joins))
        to, kind, self.roster_proposal = self.say("roster-proposal", "parties", body)
        self.roster_digest = open_message(self.trust, self.roster_proposal).digest
        return [(to, kind, self.roster_proposal), *self.broadcast(body["joins"], "parties")]

    def _announce_roster(self) -> list[Out]:
        self.phase, votes = "upload", self.quorum_for("roster", self.roster_digest)
        proposal, digest = open_proposal(self.view, self.roster_proposal, votes)
        self.roster = open_roster(self.view, self.served[blob_id(proposal["entries"])], digest)
        self.announced = self.say("roster", "all", {"proposal": self.roster_proposal, "votes": votes})
        return [self.announced, *self.broadcast(proposal["entries"])]

    def _candidate(self) -> list[Out]:
        self.phase, body = "check", self.set_body(list(self.complete))
        self.candidate = blob_id(body["survivors"])
        return [self.say("candidate", "parties", body), *self.broadcast(body["survivors"], "parties")]

    def _propose_set(self) -> list[Out]:
        bad = {index for _, body in self.checks.values() for index, _ in body["bad"]}
        self.survivors = sorted(set(self.complete) - bad)
        require(len(self.survivors) >= self.roster.survivors_min, "survivors-too-few", KEEPER)
        self.phase, body = "vote", self.set_body(self.survivors)
        to, kind, self.proposal = self.say("proposal", "parties", body)
        self.set_digest = open_message(self.trust, self.proposal).digest
        return [(to, kind, self.proposal), *self.broadcast(body["survivors"], "parties")]

    def _unmask(self) -> list[Out]:
        unmasking = Unmasking(self.view, self.roster, {u: self.headers[u][1].body for u in self.survivors})
        total: Vector = zeros(self.task.segments)
        for u in self.survivors:
            total = self._add(total, self.complete[u])
        try:
            total = unmasking.run(self.contents, total)
        except Fault:
            if not unmasking.lacking:
                raise
            return self._want(unmasking.lacking)
        self.sum = pack(self.task.segments, total)
        return self._result()

    def _want(self, lacking: dict[int, list[int]]) -> list[Out]:
        """Ask somebody who has vouched for a sum, and has answered all that he was asked, to give it."""
        asked: dict[int, list[int]] = {}
        for subset, vouching in lacking.items():
            asked.setdefault(vouching[-1], []).append(subset)
        outs = []
        for party, subsets in asked.items():
            body = {"proposal": self.set_digest, "part": len(self.openings[party]), "subsets": subsets}
            self.contents.pop(party)  # it waits for that
            outs.append(self.say("want", f"party/{party}", body))
        return outs

    def _result(self) -> list[Out]:
        body, manifest = self.task.body, self.view.body
        before, kept = self.model, self.state
        codecs = [segment["codec"] for segment in body["segments"]]
        how = self.task.codec, body["algorithm"], manifest["rotation"]
        self.model, self.state = advance(before, kept, self.sum, self.task.segments, codecs, *how)
        result = {
            "previous": manifest["previous"],
            "rotation": manifest["rotation"],
            "manifest": self.view.digest,
            "roster": self.roster.digest,
            "proposal": self.set_digest,
            "count": len(self.survivors),
            "sum": self._serve(self.sum),
            "model": self._serve(self.model),
            "state": blob_id(blob_ref(self.state, self.size)),
            "openings": self._opened(),
        }
        said = self.say("result", "all", result)
        self.phase, self.link = "done", open_message(self.trust, said[2]).digest
        self.results.append(said[2])
        self._file(said[2], before, kept)
        return [said]

    def _opened(self) -> list[list[Value]]:
        rows = [(party, plain) for party, parts in self.openings.items() for _, plain in parts]
        return sorted([party, hashlib.sha256(plain).digest()] for party, plain in rows)

    def _file(self, result: bytes, before: bytes, kept: bytes) -> None:
        """The transcript: SPEC.md section 10."""
        served = self.served
        proposal = open_message(self.trust, self.proposal).body
        records = [
            ("trust", encode(list(self.trust))),
            ("announcement", self.announcement[2]),
            ("roster", self.announced[2]),
            ("joins", served[blob_id(open_message(self.trust, self.roster_proposal).body["joins"])]),
            *(("check", raw) for _, (raw, _) in sorted(self.checks.items())),
            ("certificate", self.certificate[2]),
            ("survivors", served[blob_id(proposal["survivors"])]),
        ]
        for u in self.survivors:
            records += [("header", self.headers[u][0]), ("body", self.complete[u])]
        for _, parts in sorted(self.openings.items()):
            for raw, plain in parts:
                records += [("opening", raw), ("content", plain)]
        records += [("result", result), ("sum", self.sum), ("model", before), ("state", kept), ("next", self.model)]
        self.files.append(records)

    # -- what it hears ------------------------------------------------------------------------------------------------

    def _offer(self, raw: bytes, signed: Signed) -> list[Out]:
        party = _party(signed)
        party_keys(self.trust, party, signed.body["keys"])
        if self.phase == "offer":
            require(self.offers.setdefault(party, raw) == raw, "second-offer", signed.sender)
        return []

    def _vote(self, raw: bytes, signed: Signed) -> list[Out]:
        require(self.phase in _LATER, "message-misplaced")
        body, party = signed.body, _party(signed)
        require(count_votes(self.view, [raw], body["decides"], body["digest"]), "vote-differs", signed.sender)
        self.votes.setdefault((body["decides"], body["digest"]), {}).setdefault(party, raw)
        return []

    def _join(self, raw: bytes, signed: Signed) -> list[Out]:
        require(self.phase in _LATER[1:], "message-misplaced")
        name, key, opened = open_join(self.view, raw)
        if name in self.joins:
            require(self.joins[name][0] == raw, "second-join", signed.sender)
        elif self.phase != "join":
            return [self._receipt(opened, "refused", "joining-closed")]
        self.joins[name] = raw, opened, {**opened.body, "identity": key}
        return [self._receipt(opened, "held")]

    def _header(self, raw: bytes, signed: Signed) -> list[Out]:
        require(self.roster is not None, "header-early")
        header, index = signed.body, signed.body["index"]
        mine = index < len(self.roster.devices) and signed.sender == f"device/{self.roster.devices[index]}"
        require(mine, "header-foreign")
        identity = self.joins[self.roster.devices[index]][2]["identity"]
        require(ed25519_verify(identity, signed.signature, signed.tbs), "signature-invalid")
        if index in self.headers:
            require(self.headers[index][1].digest == signed.digest, "second-header", signed.sender)
            return [self._receipt(signed, "complete")] if index in self.complete else []
        if self.phase != "upload":
            return [self._receipt(signed, "refused", "upload-late")]
        check_header(self.view, self.roster, header, signed.sender)
        name = blob_id(header["body"])
        require(name not in self.wanted, "header-foreign", signed.sender)
        self.headers[index] = raw, signed
        self.wanted[name] = header["body"], signed.sender, {}
        return [("parties", "header", raw), *self._fetch(name), self._receipt(signed, "held")]

    def _check(self, raw: bytes, signed: Signed) -> list[Out]:
        require(self.phase in ("check", "vote", "open"), "message-misplaced")
        require(signed.body["survivors"] == self.candidate, "survivors-differ")
        self.checks.setdefault(_party(signed), (raw, signed.body))
        return [(signed.sender, "header", self.headers[index][0]) for index in signed.body["missing"]]

    def _opening(self, raw: bytes, signed: Signed) -> list[Out]:
        require(self.phase == "open", "message-misplaced")
        parts = self.openings.setdefault(_party(signed), [])
        here = signed.body["proposal"] == self.set_digest and signed.body["part"] == len(parts)
        require(here or any(raw == known for known, _ in parts), "opening-foreign", signed.sender)
        if not here:
            return []
        name = blob_id(signed.body["content"])
        self.wanted[name] = signed.body["content"], signed.sender, {}
        self.awaited = {**getattr(self, "awaited", {}), name: (raw, signed)}
        return self._fetch(name)

    def _ask(self, raw: bytes, signed: Signed) -> list[Out]:
        name = signed.body["blob"]
        require(name in self.served, "blob-unknown")
        ref = blob_ref(self.served[name], self.size)
        have = int.from_bytes(signed.body["have"], "little")
        lacking = [index for index in range(blob_count(ref)) if not have >> index & 1]
        return [(signed.sender, "chunk", raw) for raw in self._chunks(ref, lacking[: signed.body["window"]])]

    # -- blobs ----------------------------------------------------------------------------------------------------

    def _chunk(self, raw: bytes, now: int) -> list[Out]:
        name, index, data = chunk_open(raw)
        require(name in self.wanted, "chunk-unexpected")
        ref, owner, chunks = self.wanted[name]
        chunk_check(ref, name, index, data)
        chunks[index] = data
        if len(chunks) < blob_count(ref):
            return []
        whole = b"".join(chunks[at] for at in range(len(chunks)))
        if owner.startswith("device/"):
            index = next(u for u, (_, signed) in self.headers.items() if blob_id(signed.body["body"]) == name)
            if self.phase != "upload" or index in self.complete:
                return []
            self.complete[index] = whole
            return [self._receipt(self.headers[index][1], "complete"), *self.turn(now)]
        raw, signed = self.awaited.pop(name, (b"", None))
        if signed is not None:
            self._opened_box(raw, signed, whole)
        return self.turn(now)

    def _opened_box(self, raw: bytes, signed: Signed, sealed: bytes) -> None:
        party, part = _party(signed), signed.body["part"]
        info = encode(["blindsum/1 opening", self.view.digest, self.set_digest, party, part])
        plain = box_open(self.box, info, sealed)
        if plain is None or hashlib.sha256(plain).digest() != signed.body["plain"]:
            raise Fault("opening-unreadable", signed.sender)
        require(OPENING_CONTENT(decode(plain)), "opening-malformed", signed.sender)
        self.openings[party].append((raw, plain))
        self.contents[party] = [decode(each) for _, each in self.openings[party]]

    def _fetch(self, name: bytes) -> list[Out]:
        _, owner, _ = self.wanted[name]
        return [self.say("ask", owner, {"blob": name, "have": b"", "window": _WINDOW})]

    def _serve(self, data: bytes) -> dict[str, Value]:
        ref = blob_ref(data, self.size)
        self.served[blob_id(ref)] = data
        return ref

    def _chunks(self, ref: dict[str, Value], indices: Any) -> list[bytes]:
        name = blob_id(ref)
        data = self.served[name]
        return [encode([1, name, index, data[index * self.size : (index + 1) * self.size]]) for index in indices]

    # -- helpers --------------------------------------------------------------------------------------------------

    def _everybody(self) -> list[int]:
        return list(range(1, self.task.committee[0] + 1))

    def _agreed(self, decides: str, digest: bytes) -> bool:
        return len(self.votes.get((decides, digest), {})) >= self.task.committee[2]

    def _receipt(self, signed: Signed, status: str, code: str = "") -> Out:
        return self.say("receipt", signed.sender, {"subject": signed.digest, "status": status, "code": code})

    def _add(self, total: Vector, packed: bytes) -> Vector:
        segments = self.task.segments
        return [
            [(a + b) % (1 << segment.width) for a, b in zip(one, two, strict=True)]
            for segment, one, two in zip(segments, total, unpack(segments, packed), strict=True)
        ]


def _party(signed: Signed) -> int:
    return int(signed.sender.split("/")[1])
