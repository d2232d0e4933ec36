"""Who lied in a round, from its transcript (SPEC.md section 10)."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from itertools import chain, combinations
from typing import NamedTuple, TypeAlias

from oracle import numbers, x509
from oracle.cbor import Value, blob_ref, blob_sound, decode, digest, encode
from oracle.curves import ed25519_verify, x25519
from oracle.envelope import Signed, Trust, open_inner, open_message, trust_open
from oracle.fault import Fault, require
from oracle.masks import Place, Segment, Vector, graph, held, pack, packed_size, subsets, unpack, xor, zeros
from oracle.schema import OPENING_CONTENT, check_body

KEEPER = "coordinator"
_ONCE = ("trust", "announcement", "roster", "joins", "certificate", "survivors", "result", "sum", "model", "next")
_MANY = ("header", "body", "opening", "content")

Faults: TypeAlias = list[list[str]]


class Member(NamedTuple):
    party: int
    commitment: bytes


class Judge:
    """Reads the records of one transcript; `faults` are [principal, code] in the order found."""

    def __init__(self, trust: Trust, records: Sequence[tuple[str, bytes]]) -> None:
        self.trust = trust
        self.faults: Faults = []
        self.records: dict[str, list[bytes]] = {name: [] for name in (*_ONCE, *_MANY)}
        for name, data in records:
            require(name in self.records, "transcript-malformed")
            self.records[name].append(data)
        require(all(len(self.records[name]) == 1 for name in _ONCE), "transcript-malformed")

    def run(self) -> None:
        """Raises `Fault` where what follows cannot be judged."""
        try:
            found = trust_open(self.records["trust"][0])
        except Fault:
            raise Fault("transcript-malformed", KEEPER) from None
        require(found == self.trust, "trust-differs", KEEPER)
        self._manifest()
        self._roster()
        self._certificate()
        self._uploads()
        self._openings()
        self._sum()
        self._result()

    def blame(self, principal: str, code: str) -> None:
        if [principal, code] not in self.faults:
            self.faults.append([principal, code])

    # -- task, manifest, roster -----------------------------------------------------------------------------------

    def _manifest(self) -> None:
        announced = self._own("announcement", "announcement").body
        signed = open_message(self.trust, announced["task"])
        require(signed.head["type"] == "task", "message-misplaced", signed.sender)
        check_body("task", signed.body)
        self.task, self.task_name = signed.body, str(signed.head["task"])
        require(self.task["trust"] == self.trust.digest, "trust-differs", "operator")
        threat, spec = self.task["threat"], self.task["codec"]
        self.parties, self.threshold, self.quorum = threat["parties"], threat["threshold"], threat["quorum"]
        self.liars = threat["malicious_parties"]
        self.shares = threat["corrupt_permille"], threat["dropped_permille"]
        self.cohort_min = threat["cohort_min"]
        numbers.committee(self.parties, self.threshold, self.quorum, self.liars)
        self.segments = [Segment(s["name"], s["length"], s["width"]) for s in self.task["segments"]]
        self.codec = numbers.Codec(spec["clip_micros"], spec["range_micros"], spec["bits"], spec["weight_max"])
        opened = open_message(self.trust, announced["manifest"])
        self.round = opened.head["round"]
        require(opened.place == ("manifest", self.task_name, self.round) and self.round >= 1, "message-misplaced")
        check_body("manifest", opened.body)
        self.manifest, self.manifest_digest = opened.body, opened.digest
        self._check_manifest(signed.digest)
        votes = self._votes(announced["votes"], "manifest", opened.digest)
        require(len(votes) == len(announced["votes"]) >= self.quorum, "votes-too-few", KEEPER)

    def _check_manifest(self, task: bytes) -> None:
        manifest, first = self.manifest, self.manifest["previous"] == bytes(32)
        offers = [open_inner(self.trust, raw, ("offer", self.task_name, self.round)) for raw in manifest["offers"]]
        self.members = [Member(int(o.sender.split("/")[1]), o.body["beacon_commitment"]) for o in offers]
        numbers_ = [member.party for member in self.members]
        require(numbers_ == sorted(set(numbers_)) and len(numbers_) >= self.quorum, "offers-too-few", KEEPER)
        times = [manifest[name] for name in ("issued_at", "join_until", "upload_until", "expires_at")]
        spans = [later - earlier for earlier, later in zip(times, times[1:], strict=False)]
        longest = [self.task["join_ms"], self.task["upload_ms"], 8 * self.task["decide_ms"]]
        require(
            manifest["task"] == task
            and blob_sound(manifest["model"])
            and manifest["model"]["size"] == self.task["model"]["size"]
            and all(0 < span <= most for span, most in zip(spans, longest, strict=True))
            and len(manifest["rotation"]) == (16 if self.task["codec"]["rotate"] else 0)
            and not (first and manifest["model"] != self.task["model"]),
            "manifest-differs",
            KEEPER,
        )

    def _votes(self, raws: Sequence[bytes], decides: str, wanted: bytes) -> dict[int, bytes]:
        """The beacon by party of every genuine vote for `wanted`."""
        votes = {}
        for raw in raws:
            try:
                signed = open_inner(self.trust, raw, ("vote", self.task_name, self.round))
            except Fault:
                continue
            if (signed.body["decides"], signed.body["digest"]) == (decides, wanted):
                votes[int(signed.sender.split("/")[1])] = signed.body["beacon"]
        return votes

    def _roster(self) -> None:
        announced = self._own("roster", "roster", here=True).body
        proposal = open_inner(self.trust, announced["proposal"], self._at("roster-proposal"))
        sound = blob_sound(proposal.body["joins"]) and blob_sound(proposal.body["entries"])
        require(proposal.body["manifest"] == self.manifest_digest and sound, "manifest-differs", KEEPER)
        beacons = self._votes(announced["votes"], "roster", proposal.digest)
        commitments = dict(self.members)
        for party, beacon in beacons.items():
            require(party in commitments, "votes-too-few", KEEPER)
            made = digest("beacon", self.task_name, self.round, party, beacon)
            require(made == commitments[party], "beacon-differs", f"party/{party}")
        require(len(beacons) == len(announced["votes"]) >= self.quorum, "votes-too-few", KEEPER)
        self.roster = digest("roster", proposal.digest, [[party, beacons[party]] for party in sorted(beacons)])
        self.devices, self.identities, self.keys = self._joins(self._blob("joins", proposal.body["joins"]))
        entries = encode([[d, k] for d, k in zip(self.devices, self.keys, strict=True)])
        made_ref = blob_ref(entries, self.task["plan"]["chunk_size"])
        require(made_ref == proposal.body["entries"], "roster-malformed", KEEPER)
        n = len(self.devices)
        self.neighbours = graph(n, numbers.degree(n, *self.shares), self.roster)
        self.place = Place(
            self.manifest_digest,
            self.roster,
            self.task["suite"],
            self.segments,
            subsets(self.parties, self.threshold - 1),
            subsets(self.parties, self.quorum - 1),
        )

    def _joins(self, data: bytes) -> tuple[list[str], list[bytes], list[bytes]]:
        devices, identities, keys = [], [], []
        try:
            raws = decode(data)
            require(isinstance(raws, list), "roster-malformed")
            require(self.task["devices_min"] <= len(raws) <= self.task["devices_max"], "roster-malformed")
            for raw in raws:
                signed = open_inner(self.trust, raw, self._at("join"))
                name, key = x509.check(signed.body["certificate"], self.trust.ca, self.manifest["issued_at"])
                genuine = signed.sender == f"device/{name}" and ed25519_verify(key, signed.signature, signed.tbs)
                usable = any(x25519(bytes(31) + b"\x40", signed.body["key"]))
                require(genuine and signed.body["manifest"] == self.manifest_digest and usable, "roster-malformed")
                devices.append(name)
                identities.append(key)
                keys.append(signed.body["key"])
            require(devices == sorted(set(devices)), "roster-malformed")
        except Fault:
            raise Fault("roster-malformed", KEEPER) from None
        return devices, identities, keys

    # -- survivors, uploads, openings -----------------------------------------------------------------------------

    def _certificate(self) -> None:
        body = self._own("certificate", "certificate", here=True).body
        proposal = open_inner(self.trust, body["proposal"], self._at("proposal"))
        votes = self._votes(body["votes"], "set", proposal.digest)
        require(len(votes) == len(body["votes"]) >= self.quorum, "votes-too-few", KEEPER)
        if proposal.body["roster"] != self.roster:
            self.blame(KEEPER, "roster-differs")
        self.proposal = proposal.digest
        self.survivors = survivors(self._blob("survivors", proposal.body["survivors"]), len(self.devices))
        if len(self.survivors) < numbers.survivors_min(len(self.devices), *self.shares, self.cohort_min):
            self.blame(KEEPER, "survivors-too-few")

    def _uploads(self) -> None:
        raws, bodies = self.records["header"], self.records["body"]
        require(len(raws) == len(bodies) == len(self.survivors), "transcript-malformed", KEEPER)
        self.headers: dict[int, dict[str, Value]] = {}
        self.sum: Vector = zeros(self.segments)
        for (index, wanted), raw, body in zip(self.survivors.items(), raws, bodies, strict=True):
            device = f"device/{self.devices[index]}"
            try:
                signed = open_inner(self.trust, raw, self._at("header"))
            except Fault as fault:
                raise Fault(fault.code, KEEPER) from None
            genuine = ed25519_verify(self.identities[index], signed.signature, signed.tbs)
            mine = signed.sender == device and signed.digest == wanted
            require(mine and genuine, "signature-invalid", KEEPER)
            self._check_header(signed.body, index, device)
            require(blob_ref(body, signed.body["body"]["chunk_size"]) == signed.body["body"], "upload-altered", KEEPER)
            self.headers[index] = signed.body
            self.sum = self.place.add(self.sum, unpack(self.segments, body))

    def _check_header(self, header: dict[str, Value], index: int, device: str) -> None:
        here = (header["manifest"], header["roster"]) == (self.manifest_digest, self.roster)
        require(here, "header-foreign", device)
        body = header["body"]
        require(
            header["index"] < len(self.devices)
            and len(header["commitments"]) == 32 * (len(self.place.self_sets) + len(self.place.cap_sets))
            and len(header["boxes"]) == len(self.members)
            and len(header["edges"]) == 48 * len(self.neighbours[header["index"]])
            and body["size"] == packed_size(self.segments)
            and body["chunk_size"] == self.task["plan"]["chunk_size"]
            and blob_sound(body),
            "header-malformed",
            device,
        )
        require(header["index"] == index, "header-foreign", device)

    def _openings(self) -> None:
        raws, plains = self.records["opening"], self.records["content"]
        require(len(raws) == len(plains), "transcript-malformed", KEEPER)
        self.contents: dict[int, list[dict[str, Value]]] = {}
        self.opened: list[list[Value]] = []
        for raw, plain in zip(raws, plains, strict=True):
            signed = open_inner(self.trust, raw, self._at("opening"))
            party = int(signed.sender.split("/")[1])
            parts = self.contents.setdefault(party, [])
            here = signed.body["proposal"] == self.proposal and signed.body["part"] == len(parts)
            require(here and party in dict(self.members), "opening-foreign", signed.sender)
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
        alive = set(self.survivors)
        edges = [(u, v) for u in self.survivors for v in self.neighbours[u] if v not in alive]
        sound = {party: parts for party, parts in self.contents.items() if self._sound(party, parts, len(edges))}
        hopeless = [""]
        vectors = self._self_sums(sound, hopeless)
        secrets = self._edge_secrets(sound, edges, hopeless)
        if vectors is None or secrets is None:
            raise Fault(hopeless[0] or "openings-too-few", KEEPER)
        for vector in vectors:
            self.sum = self.place.add(self.sum, unpack(self.segments, vector), -1)
        for (u, v), secret in zip(edges, secrets, strict=True):
            self.sum = self.place.add(self.sum, self.place.edge_mask(secret), -1 if u < v else 1)
        if pack(self.segments, self.sum) != self.records["sum"][0]:
            self.blame(KEEPER, "sum-differs")

    def _sound(self, party: int, parts: list[dict[str, Value]], edges: int) -> bool:
        first = parts[0]
        hashes = dict(first["hashes"])
        caps = held(party, self.place.cap_sets)
        good = [subset for subset, _ in first["hashes"]] == held(party, self.place.self_sets)
        good = good and len(first["shares"]) == 32 * len(caps) * edges
        for subset, vector in (entry for part in parts for entry in part["vectors"]):
            fine = len(vector) == packed_size(self.segments)
            good = good and fine and hashlib.sha256(vector).digest() == hashes.get(subset)
        if not good:
            self.blame(f"party/{party}", "opening-malformed")
        return good

    def _self_sums(self, contents: dict[int, list[dict[str, Value]]], hopeless: list[str]) -> list[bytes] | None:
        found = []
        for subset, outside in enumerate(self.place.self_sets):
            able = [member.party for member in self.members if member.party not in outside]
            hashes = {p: dict(parts[0]["hashes"])[subset] for p, parts in contents.items() if p in able}
            best, count = Counter(hashes.values()).most_common(1)[0] if hashes else (b"", 0)
            if count < self.threshold:
                if set(able) <= set(contents):
                    hopeless[0] = "openings-disagree"
                continue
            for party, other in hashes.items():
                if other != best:
                    self.blame(f"party/{party}", "opening-differs")
            vouching = [party for party, other in hashes.items() if other == best]
            sent = [v for p in vouching for part in contents[p] for s, v in part["vectors"] if s == subset]
            designated = able[(self.round + subset) % len(able)]
            if sent:
                found.append(sent[0])
            elif designated in vouching:
                self.blame(f"party/{designated}", "opening-malformed")
        return found if len(found) == len(self.place.self_sets) else None

    def _edge_secrets(
        self, contents: dict[int, list[dict[str, Value]]], edges: list[tuple[int, int]], hopeless: list[str]
    ) -> list[bytes] | None:
        rows: list[dict[int, bytes]] = [{} for _ in self.place.cap_sets]
        for party, parts in contents.items():
            for place, subset in enumerate(held(party, self.place.cap_sets)):
                rows[subset][party] = parts[0]["shares"][32 * len(edges) * place : 32 * len(edges) * (place + 1)]
        if edges and not all(rows):
            return None
        secrets = []
        for number, (u, v) in enumerate(edges):
            place = 48 * self.neighbours[u].index(v)
            entry = self.headers[u]["edges"][place : place + 48]
            given = [{p: row[32 * number : 32 * number + 32] for p, row in shares.items()} for shares in rows]
            found = self._match(entry[:32], entry[32:], given)
            if found is None:
                if len(contents) == len(self.members):
                    hopeless[0] = "edge-false"
                    if len(contents) == self.parties >= self.quorum + self.liars:
                        self.blame(f"device/{self.devices[u]}", "edge-false")
                return None
            secret, right = found
            for row, share in zip(given, right, strict=True):
                for party, other in row.items():
                    if other != share:
                        self.blame(f"party/{party}", "edge-share-differs")
            secrets.append(secret)
        return secrets

    def _match(self, cap: bytes, check: bytes, given: list[dict[int, bytes]]) -> tuple[bytes, list[bytes]] | None:
        parties = sorted({party for row in given for party in row})
        for out in chain.from_iterable(combinations(parties, size) for size in range(self.liars + 1)):
            values = [{share for party, share in row.items() if party not in out} for row in given]
            if all(len(shares) == 1 for shares in values):
                right = [share for shares in values for share in shares]
                secret = xor(cap, *right)
                if self.place.edge_check(secret) == check:
                    return secret, right
        return None

    def _result(self) -> None:
        result = self._own("result", "result", here=True).body
        stated = [result[name] for name in ("manifest", "roster", "proposal", "count", "previous", "rotation")]
        true = [self.manifest_digest, self.roster, self.proposal, len(self.survivors)]
        if stated != [*true, self.manifest["previous"], self.manifest["rotation"]]:
            self.blame(KEEPER, "result-differs")
        if sorted(result["openings"]) != sorted(self.opened):
            self.blame(KEEPER, "result-differs")
        total = self._blob("sum", result["sum"])
        model, following = self._blob("model", self.manifest["model"]), self._blob("next", result["model"])
        codecs = [segment["codec"] for segment in self.task["segments"]]
        rate = self.task["algorithm"]["rate_micros"]
        rotation = self.manifest["rotation"]
        if numbers.advance(model, total, self.segments, codecs, self.codec, rate, rotation) != following:
            self.blame(KEEPER, "model-differs")

    # -- helpers --------------------------------------------------------------------------------------------------

    def _at(self, kind: str) -> tuple[str, str, int]:
        return kind, self.task_name, self.round

    def _own(self, name: str, kind: str, *, here: bool = False) -> Signed:
        """The coordinator's message in record `name`; `here`: of this round."""
        try:
            signed = open_message(self.trust, self.records[name][0])
        except Fault as fault:
            raise Fault(fault.code, KEEPER) from None
        right = signed.head["type"] == kind and (not here or signed.place == self._at(kind))
        require(right, "message-misplaced", KEEPER)
        check_body(kind, signed.body)
        return signed

    def _blob(self, name: str, ref: dict[str, Value]) -> bytes:
        data = self.records[name][0]
        require(blob_ref(data, ref["chunk_size"]) == ref, "blob-altered", KEEPER)
        return data


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
    try:
        judged = Judge(trust, records)
    except Fault as fault:
        return [[KEEPER, fault.code]]
    try:
        judged.run()
    except Fault as fault:
        judged.blame(fault.culprit or KEEPER, fault.code)
    return judged.faults
