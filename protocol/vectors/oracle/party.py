"""A party as the specification has it (SPEC.md sections 5, 6, 7.3, 7.4 and 8.2), over a line that loses nothing.

It keeps all in memory, so it takes no part after a restart; it knows rounds with a roster only, no rollback and no later keys. It
is there to say each thing that a party says in a round, in a second implementation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from oracle.cbor import Value, blob_count, blob_id, blob_ref, chunk_check, chunk_open, digest, encode
from oracle.curves import ed25519_verify
from oracle.envelope import Signed, Trust, open_inner, open_message, seal, trust_open
from oracle.fault import Fault, require
from oracle.judge import survivors
from oracle.kem import box_open, box_public, box_seal
from oracle.masks import held, pack, zeros
from oracle.numbers import advance
from oracle.schema import check_body
from oracle.views import (
    KEEPER,
    check_header,
    entries_follow,
    open_joins,
    open_manifest,
    open_proposal,
    open_roster,
    open_task,
    place_of,
    quorum_of_votes,
)

_SKEW_MS = 300_000
_PUSHED, _WINDOW = 4, 64

Out = tuple[str, bytes]
"""(type of the message, or "chunk"; its bytes), all for the coordinator."""


class BookParty:
    """Party `number`, whose Ed25519 seed is `key`; `draw` gives random bytes."""

    def __init__(self, number: int, key: bytes, trust: bytes, draw: Callable[[int], bytes]) -> None:
        self.number, self.key, self.draw = number, key, draw
        self.trust: Trust = trust_open(trust)
        self.link = (bytes(32), None, b"")
        """Digest of the last result followed; the model's blob and the state of it, before the first those of the task."""
        self.blobs: dict[bytes, dict[int, bytes]] = {}
        self.wanted: dict[bytes, tuple[dict[str, Value], Callable[[bytes], list[Out]]]] = {}
        self.served: dict[bytes, bytes] = {}
        self.last = 0

    def receive(self, raw: bytes, now: int) -> list[Out]:
        """What it says to that. Raises `Fault` for what it refuses."""
        if raw[:1] != b"\xd2":
            return self._chunk(raw)
        signed = open_message(self.trust, raw)
        require(signed.head["to"] in ("all", "parties", f"party/{self.number}"), "message-misplaced")
        kind, number = str(signed.head["type"]), int(signed.head["round"])
        if kind == "offer-request":
            return self._offer(signed)
        if kind == "result":
            check_body(kind, signed.body)
            return self._result(signed)
        require(number == self.last, "round-stale")
        handler: Callable[[Signed], list[Out]] | None = {
            "roster-proposal": self._roster_proposal,
            "roster": self._roster,
            "header": self._header,
            "candidate": self._candidate,
            "proposal": self._proposal,
            "certificate": self._certificate,
            "want": self._want,
            "ask": self._ask,
        }.get(kind)
        if kind == "manifest":
            return self._manifest(raw, signed, now)
        if handler is None:
            return []  # an announcement or failure: it was there itself
        check_body(kind, signed.body)
        return handler(signed)

    # -- rounds ---------------------------------------------------------------------------------------------------

    def _offer(self, signed: Signed) -> list[Out]:
        check_body("offer-request", signed.body)
        number = int(signed.head["round"])
        if number == self.last:
            return [("offer", self.offer)]
        require(number > self.last, "round-stale")
        self.task, self.last = open_task(self.trust, signed.body["task"]), number
        self.box, self.beacon = self.draw(96), self.draw(32)
        self.view: Any = None
        self.ring: Any = None
        self.headers: dict[int, tuple[bytes, str, list[bytes], list[bytes]]] = {}
        self.voted: dict[str, tuple[bytes, bytes]] = {}
        self.sums: dict[int, bytes] = {}
        self.openings: list[bytes] = []
        self.offer = self._signed(
            "offer",
            {
                "box_key": box_public(self.box),
                "beacon_commitment": digest("beacon", self.task.name, number, self.number, self.beacon),
                "chain": self.link[0],
                "keys": [],
            },
        )
        return [("offer", self.offer)]

    def _manifest(self, raw: bytes, signed: Signed, now: int) -> list[Out]:
        view = open_manifest(self.task, raw)
        if "manifest" not in self.voted:
            require(self.offer in view.body["offers"], "offer-differs")
            require(abs(view.body["issued_at"] - now) <= _SKEW_MS, "clock-skew")
            link, model, state = self.link
            size = self.task.body["plan"]["chunk_size"]
            stated = [view.body["previous"], view.body["model"], view.body["state"]]
            own = [link, model or self.task.body["model"], blob_id(blob_ref(state, size))]
            require(stated == own, "chain-differs")
            self.view = view
        return self._vote("manifest", signed.digest, b"", "second-manifest")

    def _vote(self, decides: str, wanted: bytes, beacon: bytes, second: str) -> list[Out]:
        """Its one vote on this question."""
        if decides not in self.voted:
            body = {"decides": decides, "digest": wanted, "beacon": beacon}
            self.voted[decides] = wanted, self._signed("vote", body)
        require(self.voted[decides][0] == wanted, second, KEEPER)
        return [("vote", self.voted[decides][1])]

    def _roster_proposal(self, signed: Signed) -> list[Out]:
        require(self.view is not None, "message-early")
        require(signed.body["manifest"] == self.view.digest, "manifest-differs")

        def joined(data: bytes) -> list[Out]:
            _, entries = open_joins(self.view, data)
            entries_follow(self.view, entries, signed.body["entries"])
            return self._vote("roster", signed.digest, self.beacon, "second-roster")

        return self._fetch(signed.body["joins"], joined)

    def _roster(self, signed: Signed) -> list[Out]:
        require(self.view is not None, "message-early")
        proposal, roster = open_proposal(self.view, signed.body["proposal"], signed.body["votes"])

        def joined(data: bytes) -> list[Out]:
            if self.ring is None:
                self.identities, entries = open_joins(self.view, data)
                entries_follow(self.view, entries, proposal["entries"])
                self.ring = open_roster(self.view, entries, roster)
                self.place = place_of(self.view, self.ring)
            return []

        return self._fetch(proposal["joins"], joined)

    # -- uploads --------------------------------------------------------------------------------------------------

    def _header(self, signed: Signed) -> list[Out]:
        require(self.ring is not None, "header-early")
        require("set" not in self.voted and not self.openings, "round-closed")
        header, index = signed.body, signed.body["index"]
        mine = index < len(self.ring.devices) and signed.sender == f"device/{self.ring.devices[index]}"
        require(mine, "header-foreign")
        require(ed25519_verify(self.identities[index], signed.signature, signed.tbs), "signature-invalid")
        if index in self.headers:
            wanted, _, *seeds = self.headers[index]
            if wanted != signed.digest:
                self.headers[index] = (wanted, "second-header", *seeds)
            return []
        try:
            check_header(self.view, self.ring, header, signed.sender)
            self.headers[index] = (signed.digest, "", *self._seeds(header))
        except Fault as fault:
            self.headers[index] = signed.digest, fault.code, [], []
        return []

    def _seeds(self, header: dict[str, Value]) -> tuple[list[bytes], list[bytes]]:
        """Those of the self and of the cap subsets that this party is not in, in order: section 7.3."""
        place, index = self.place, header["index"]
        info = encode(["blindsum/1 box", place.manifest, place.roster, index, self.number])
        content = box_open(self.box, info, header["boxes"][list(self.view.members).index(self.number)])
        mine, caps = held(self.number, place.self_sets), held(self.number, place.cap_sets)
        if content is None or len(content) != 32 * (len(mine) + len(caps)):
            raise Fault("box-unreadable")
        seeds = [content[at : at + 32] for at in range(0, len(content), 32)]
        for layer, first, numbers, given in (
            ("self", 0, mine, seeds[: len(mine)]),
            ("cap", len(place.self_sets), caps, seeds[len(mine) :]),
        ):
            for subset, seed in zip(numbers, given, strict=True):
                at = 32 * (first + subset)
                stated = header["commitments"][at : at + 32]
                require(place.commitment(index, layer, subset, seed) == stated, "commitment-differs")
        return seeds[: len(mine)], seeds[len(mine) :]

    # -- closing --------------------------------------------------------------------------------------------------

    def _candidate(self, signed: Signed) -> list[Out]:
        return self._about(signed.body, lambda listed: self._check(signed.body["survivors"], listed))

    def _proposal(self, signed: Signed) -> list[Out]:
        def answer(listed: dict[int, bytes]) -> list[Out]:
            if "set" not in self.voted:
                require(not self.openings, "second-set", KEEPER)
                require(len(listed) >= self.ring.survivors_min, "survivors-too-few", KEEPER)
                if any(not self._good(index, wanted) for index, wanted in listed.items()):
                    return self._check(signed.body["survivors"], listed)
            return self._vote("set", signed.digest, b"", "second-set")

        return self._about(signed.body, answer)

    def _certificate(self, signed: Signed) -> list[Out]:
        require(self.ring is not None, "message-early")
        proposal = open_inner(self.trust, signed.body["proposal"], self.view.at("proposal"))
        quorum_of_votes(self.view, signed.body["votes"], "set", proposal.digest)
        require(self.voted.get("set", (proposal.digest,))[0] == proposal.digest, "second-set", KEEPER)
        if self.openings:
            require(self.opened == proposal.digest, "second-set", KEEPER)
            return [("opening", raw) for raw in self.openings]

        def answer(listed: dict[int, bytes]) -> list[Out]:
            require(len(listed) >= self.ring.survivors_min, "survivors-too-few", KEEPER)
            if any(not self._good(index, wanted) for index, wanted in listed.items()):
                return self._check(proposal.body["survivors"], listed)
            self.opened = proposal.digest
            return self._open(sorted(listed))

        return self._about(proposal.body, answer)

    def _about(self, body: dict[str, Value], answer: Callable[[dict[int, bytes]], list[Out]]) -> list[Out]:
        """Answer for the survivors that a candidate or proposal names, once they are here."""
        require(self.ring is not None, "message-early")
        require(body["roster"] == self.ring.digest, "roster-differs", KEEPER)
        return self._fetch(body["survivors"], lambda data: answer(survivors(data, len(self.ring.devices))))

    def _good(self, index: int, wanted: bytes) -> bool:
        found = self.headers.get(index)
        return found is not None and found[0] == wanted and found[1] in ("", "second-header")

    def _check(self, ref: dict[str, Value], listed: dict[int, bytes]) -> list[Out]:
        bad = []
        for index, wanted in listed.items():
            if index in self.headers:
                first, code, *_ = self.headers[index]
                if code or first != wanted:
                    bad.append([index, code or "second-header"])
        missing = [index for index in listed if index not in self.headers]
        return [("check", self._signed("check", {"survivors": blob_id(ref), "missing": missing, "bad": bad}))]

    # -- opening --------------------------------------------------------------------------------------------------

    def _open(self, alive: list[int]) -> list[Out]:
        """Part 0, and no seed is left after it: section 7.4."""
        place, mine = self.place, held(self.number, self.place.self_sets)
        for at, subset in enumerate(mine):
            total = zeros(place.segments)
            for u in alive:
                total = place.add(total, place.self_mask(u, subset, self.headers[u][2][at]))
            self.sums[subset] = pack(place.segments, total)
        edges = [(u, v) for u in alive for v in self.ring.neighbours[u] if v not in alive]
        shares = [
            place.pad(u, v, subset, self.headers[u][3][at])
            for at, subset in enumerate(held(self.number, place.cap_sets))
            for u, v in edges
        ]
        hashes = [[subset, hashlib.sha256(self.sums[subset]).digest()] for subset in mine]
        given = [subset for subset in mine if self._designated(subset) == self.number]
        self.headers.clear()
        self.box = self.beacon = b""
        return self._part(hashes, b"".join(shares), given)

    def _designated(self, subset: int) -> int:
        able = [party for party in self.view.members if party not in self.place.self_sets[subset]]
        return able[(self.view.number + subset) % len(able)]

    def _part(self, hashes: list[list[Value]], shares: bytes, subsets: list[int]) -> list[Out]:
        require(all(subset in self.sums for subset in subsets), "subset-not-held", KEEPER)
        vectors = [[subset, self.sums.pop(subset)] for subset in sorted(set(subsets))]
        plain, part = encode({"hashes": hashes, "shares": shares, "vectors": vectors}), len(self.openings)
        info = encode(["blindsum/1 opening", self.view.digest, self.opened, self.number, part])
        sealed = box_seal(self.trust.coordinator_box, info, plain, self.draw(64))
        ref = blob_ref(sealed, self.task.body["plan"]["chunk_size"])
        self.served[blob_id(ref)] = sealed
        body = {"proposal": self.opened, "part": part, "content": ref, "plain": hashlib.sha256(plain).digest()}
        self.openings.append(self._signed("opening", body))
        return [("opening", self.openings[-1]), *self._chunks(ref, range(min(_PUSHED, blob_count(ref))))]

    def _want(self, signed: Signed) -> list[Out]:
        require(bool(self.openings) and signed.body["proposal"] == self.opened, "roster-differs", KEEPER)
        part = signed.body["part"]
        if part < len(self.openings):
            return [("opening", self.openings[part])]
        require(part == len(self.openings), "message-misplaced", KEEPER)
        return self._part([], b"", signed.body["subsets"])

    def _ask(self, signed: Signed) -> list[Out]:
        require(signed.body["blob"] in self.served, "blob-unknown")
        ref = blob_ref(self.served[signed.body["blob"]], self.task.body["plan"]["chunk_size"])
        have = int.from_bytes(signed.body["have"], "little")
        lacking = [index for index in range(blob_count(ref)) if not have >> index & 1]
        return self._chunks(ref, lacking[: signed.body["window"]])

    def _chunks(self, ref: dict[str, Value], indices: Any) -> list[Out]:
        name, size = blob_id(ref), ref["chunk_size"]
        data = self.served[name]
        return [("chunk", encode([1, name, index, data[index * size : (index + 1) * size]])) for index in indices]

    # -- the chain ------------------------------------------------------------------------------------------------

    def _result(self, signed: Signed) -> list[Out]:
        result, (link, model, state) = signed.body, self.link
        if signed.digest == link:
            return []
        require(result["previous"] == link, "chain-behind")
        if signed.head["round"] == self.last and self.openings:
            stated = [result["manifest"], result["proposal"]]
            require(stated == [self.view.digest, self.opened], "result-differs", KEEPER)

        def summed(total: bytes) -> list[Out]:
            def known(before: bytes) -> list[Out]:
                body = self.task.body
                codecs = [segment["codec"] for segment in body["segments"]]
                how = self.task.codec, body["algorithm"], result["rotation"]
                made, kept = advance(before, state, total, self.task.segments, codecs, *how)
                size = body["plan"]["chunk_size"]
                follows = (blob_ref(made, size), blob_id(blob_ref(kept, size))) == (result["model"], result["state"])
                require(follows, "model-differs", KEEPER)
                self.link = signed.digest, result["model"], kept
                self.blobs[blob_id(result["model"])] = dict(
                    enumerate(made[at : at + size] for at in range(0, len(made), size))
                )
                return []

            return self._fetch(model or self.task.body["model"], known)

        return self._fetch(result["sum"], summed)

    # -- blobs ----------------------------------------------------------------------------------------------------

    def _fetch(self, ref: dict[str, Value], use: Callable[[bytes], list[Out]]) -> list[Out]:
        """Go on with the bytes of a blob, now or when they have come."""
        name = blob_id(ref)
        chunks = self.blobs.setdefault(name, {})
        if len(chunks) == blob_count(ref):
            return use(b"".join(chunks[index] for index in range(len(chunks))))
        self.wanted[name] = ref, use
        have = sum(1 << index for index in chunks).to_bytes(-(-blob_count(ref) // 8), "little")
        return [("ask", self._signed("ask", {"blob": name, "have": have, "window": _WINDOW}))]

    def _chunk(self, raw: bytes) -> list[Out]:
        name, index, data = chunk_open(raw)
        require(name in self.wanted, "chunk-unexpected")
        ref, use = self.wanted[name]
        chunk_check(ref, name, index, data)
        self.blobs[name][index] = data
        if len(self.blobs[name]) < blob_count(ref):
            return []
        del self.wanted[name]
        return self._fetch(ref, use)

    def _signed(self, kind: str, body: Value) -> bytes:
        head = {
            "type": kind,
            "fleet": self.trust.fleet,
            "task": self.task.name,
            "round": self.last,
            "from": f"party/{self.number}",
            "to": "coordinator",
        }
        return seal(self.key, head, body)[0]
