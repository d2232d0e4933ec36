"""Tasks, manifests, joins, rosters and headers: what a receiver checks beyond the schema (SPEC.md sections 5.1 to 5.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from oracle import numbers, x509
from oracle.cbor import BLOB_CHUNKS_MAX, Value, blob_id, blob_ref, blob_sound, decode, digest, encode
from oracle.curves import ed25519_verify, x25519
from oracle.envelope import Signed, Trust, open_inner, open_message, party_keys
from oracle.fault import Fault, require
from oracle.masks import Place, Segment, graph, held, packed_size, subsets
from oracle.schema import check_body, is_name, octets

KEEPER = "coordinator"
MLKEM_MODULUS = 3329
_PROBE = bytes(31) + b"\x40"
_UNSAFE = "parameters-unsafe"


@dataclass(frozen=True)
class Task:
    """A task that the operator signed and that is safe."""

    trust: Trust
    name: str
    body: dict[str, Value]
    digest: bytes

    @property
    def segments(self) -> list[Segment]:
        return [Segment(s["name"], s["length"], s["width"]) for s in self.body["segments"]]

    @property
    def committee(self) -> tuple[int, int, int, int]:
        threat = self.body["threat"]
        return threat["parties"], threat["threshold"], threat["quorum"], threat["malicious_parties"]

    @property
    def shares(self) -> tuple[int, int]:
        return self.body["threat"]["corrupt_permille"], self.body["threat"]["dropped_permille"]

    @property
    def codec(self) -> numbers.Codec:
        spec = self.body["codec"]
        return numbers.Codec(spec["clip_micros"], spec["range_micros"], spec["bits"], spec["weight_max"])

    @property
    def first_state(self) -> bytes:
        return blob_id(blob_ref(b"", self.body["plan"]["chunk_size"]))

    @property
    def self_sets(self) -> list[tuple[int, ...]]:
        return subsets(self.committee[0], self.committee[1] - 1)

    @property
    def cap_sets(self) -> list[tuple[int, ...]]:
        return subsets(self.committee[0], self.committee[2] - 1) if self.has_roster else []

    @property
    def has_roster(self) -> bool:
        return "no_roster" not in self.body

    @property
    def arrivals_min(self) -> int:
        """The least survivor set without a roster."""
        body = self.body
        return max(body["devices_min"], body["threat"]["cohort_min"] + body["devices_max"] * self.shares[0] // 1000)


@dataclass(frozen=True)
class Round:
    """A manifest whose offers are genuine. `members`: beacon commitment by party, ascending."""

    task: Task
    number: int
    body: dict[str, Value]
    digest: bytes
    members: dict[int, bytes]

    def at(self, kind: str) -> tuple[str, str, int]:
        return kind, self.task.name, self.number


@dataclass(frozen=True)
class Roster:
    """The devices that a quorum agreed on, with what the roster hash fixes."""

    digest: bytes
    devices: list[str]
    keys: list[bytes]
    neighbours: list[list[int]]
    survivors_min: int


def open_task(trust: Trust, raw: bytes) -> Task:
    signed = open_message(trust, raw)
    require(signed.head["type"] == "task", "message-misplaced", signed.sender)
    check_body("task", signed.body)
    require(signed.body["trust"] == trust.digest, "trust-differs", "operator")
    task = Task(trust, str(signed.head["task"]), signed.body, signed.digest)
    _check_parameters(task)
    return task


def _check_parameters(task: Task) -> None:
    body, codec, (corrupt, dropped) = task.body, task.codec, task.shares
    numbers.committee(*task.committee)
    exact = [s for s in body["segments"] if s["codec"] == "exact"]
    quantised = [s for s in body["segments"] if s["codec"] == "quantised"]
    for segment in quantised:
        require(codec.bits <= numbers.bits(segment["width"], body["devices_max"], codec.weight_max), _UNSAFE)
    require(codec.level_max * codec.weight_max < 2**numbers.PRODUCT_BITS_MAX, _UNSAFE)
    require(len({s["name"] for s in body["segments"]}) == len(body["segments"]), _UNSAFE)
    require([s["width"] for s in exact] == [64], _UNSAFE)
    require(task.committee[0] == len(task.trust.parties) and corrupt + dropped <= 900, _UNSAFE)
    require(body["threat"]["cohort_min"] <= body["devices_min"] <= body["devices_max"], _UNSAFE)
    require(blob_sound(body["plan"]) and blob_sound(body["model"]), _UNSAFE)
    _check_algorithm(body, [s["length"] for s in quantised])
    n = body["devices_max"]
    edges = n * dropped // 1000 * numbers.degree(n, corrupt, dropped) * 5 // 4 if task.has_roster else 0
    require(task.has_roster or task.arrivals_min <= n, _UNSAFE)
    stale = 0 if task.has_roster else body["no_roster"]["staleness_max"]
    require(not stale or body["algorithm"]["name"] not in ("scaffold", "evaluate"), _UNSAFE)
    sums, pads = len(held(1, task.self_sets)), len(held(1, task.cap_sets))
    opening = sums * (packed_size(task.segments) + 64) + pads * edges * 32 + 4096
    state = numbers.ALGORITHMS[body["algorithm"]["name"]][0] * body["model"]["size"]
    require(max(opening, state) <= BLOB_CHUNKS_MAX * body["plan"]["chunk_size"], _UNSAFE)


def _check_algorithm(body: dict[str, Value], lengths: list[int]) -> None:
    """Numbers without a place are 0, and the quantised segments (of these lengths) are what the algorithm sums."""
    algorithm, name, size = body["algorithm"], body["algorithm"]["name"], body["model"]["size"]
    places = numbers.ALGORITHMS[name][1]
    require(not any(number for key, number in algorithm.items() if key not in {"name", *places}), _UNSAFE)
    require("tau_micros" not in places or algorithm["tau_micros"] > 0, _UNSAFE)
    require((name == "scaffold") == (body["training"]["control_micros"] > 0), _UNSAFE)
    if name == "scaffold":
        require(len(lengths) == 2 and len(set(lengths)) == 1 and algorithm["population"] > 0, _UNSAFE)
    else:
        require(len(lengths) <= (0 if name == "evaluate" else 1), _UNSAFE)
    require(size % 4 == 0 if name == "evaluate" else size == 4 * sum(lengths), _UNSAFE)


def open_manifest(task: Task, raw: bytes) -> Round:
    signed = open_message(task.trust, raw)
    number = signed.head["round"]
    require(signed.place == ("manifest", task.name, number) and number >= 1, "message-misplaced", signed.sender)
    check_body("manifest", signed.body)
    body, members, current = signed.body, {}, list(task.trust.parties)
    for raw_offer in body["offers"]:
        try:
            offer = open_inner(task.trust, raw_offer, ("offer", task.name, number))
        except Fault:
            raise Fault("offer-malformed", KEEPER) from None
        require(box_usable(offer.body["box_key"]), "offer-malformed", KEEPER)
        party = int(offer.sender.split("/")[1])
        require(party > max(members, default=0), "offers-too-few", KEEPER)
        members[party] = offer.body["beacon_commitment"]
        current[party - 1] = party_keys(task.trust, party, offer.body["keys"])[-1]
    require(len(members) >= task.committee[2], "offers-too-few", KEEPER)
    times = [body[name] for name in ("issued_at", "join_until", "upload_until", "expires_at")]
    spans = [later - earlier for earlier, later in pairwise(times)]
    longest = [task.body["join_ms"], task.body["upload_ms"], 8 * task.body["decide_ms"]]
    first = body["previous"] == bytes(32)
    require(
        body["task"] == task.digest
        and blob_sound(body["model"])
        and body["model"]["size"] == task.body["model"]["size"]
        and all(0 < span <= most for span, most in zip(spans, longest, strict=True))
        and len(body["rotation"]) == (16 if task.body["codec"]["rotate"] else 0)
        and not (first and (body["model"], body["state"]) != (task.body["model"], task.first_state)),
        "manifest-differs",
        KEEPER,
    )
    held = replace(task, trust=task.trust._replace(parties=current))
    return Round(held, number, body, signed.digest, members)


def box_usable(key: bytes) -> bool:
    """The modulus check of FIPS 203 section 7.2, and an X25519 key that agrees on something."""
    whole = int.from_bytes(key[:1152], "little")
    reduced = all(whole >> 12 * i & 0xFFF < MLKEM_MODULUS for i in range(768))
    return reduced and any(x25519(_PROBE, key[1184:]))


def count_votes(view: Round, raws: Sequence[bytes], decides: str, wanted: bytes) -> dict[int, bytes]:
    """The beacon by member of every genuine vote for `wanted`."""
    votes = {}
    for raw in raws:
        try:
            signed = open_inner(view.task.trust, raw, view.at("vote"))
        except Fault:
            continue
        party = int(signed.sender.split("/")[1])
        if (signed.body["decides"], signed.body["digest"]) == (decides, wanted) and party in view.members:
            votes[party] = signed.body["beacon"]
    return votes


def quorum_of_votes(view: Round, raws: Sequence[bytes], decides: str, wanted: bytes) -> dict[int, bytes]:
    """`count_votes`, where at least q parties voted and nothing else is among the votes."""
    votes = count_votes(view, raws, decides, wanted)
    require(len(votes) == len(raws) >= view.task.committee[2], "votes-too-few", KEEPER)
    return votes


def open_join(view: Round, raw: bytes) -> tuple[str, bytes, Signed]:
    """(device, identity key, join)"""
    signed = open_inner(view.task.trust, raw, view.at("join"))
    name, key = x509.check(signed.body["certificate"], view.task.trust.ca, view.body["issued_at"])
    genuine = signed.sender == f"device/{name}" and ed25519_verify(key, signed.signature, signed.tbs)
    require(genuine, "signature-invalid")
    require(signed.body["manifest"] == view.digest, "manifest-differs", signed.sender)
    require(any(x25519(_PROBE, signed.body["key"])), "join-malformed", signed.sender)
    return name, key, signed


def open_joins(view: Round, data: bytes) -> tuple[list[bytes], bytes]:
    """(identity keys, the entries that follow)"""
    identities, entries = [], []
    try:
        raws = decode(data)
        limits = view.task.body["devices_min"], view.task.body["devices_max"]
        require(isinstance(raws, list) and limits[0] <= len(raws) <= limits[1], "roster-malformed")
        for raw in raws:
            name, key, signed = open_join(view, raw)
            identities.append(key)
            entries.append([name, signed.body["key"]])
        names = [name for name, _ in entries]
        require(names == sorted(set(names)), "roster-malformed")
    except Fault:
        raise Fault("roster-malformed", KEEPER) from None
    return identities, encode(entries)


def open_proposal(view: Round, raw: bytes, votes: Sequence[bytes]) -> tuple[dict[str, Value], bytes]:
    """(body of the roster proposal, roster hash)"""
    proposal = open_inner(view.task.trust, raw, view.at("roster-proposal"))
    sound = blob_sound(proposal.body["joins"]) and blob_sound(proposal.body["entries"])
    require(proposal.body["manifest"] == view.digest and sound, "manifest-differs", KEEPER)
    beacons = count_votes(view, votes, "roster", proposal.digest)
    for party, beacon in beacons.items():
        made = digest("beacon", view.task.name, view.number, party, beacon)
        require(made == view.members[party], "beacon-differs", f"party/{party}")
    quorum_of_votes(view, votes, "roster", proposal.digest)
    roster = digest("roster", proposal.digest, [[party, beacons[party]] for party in sorted(beacons)])
    return proposal.body, roster


def open_roster(view: Round, entries: bytes, roster: bytes) -> Roster:
    try:
        rows = decode(entries)
        limits = view.task.body["devices_min"], view.task.body["devices_max"]
        require(isinstance(rows, list) and limits[0] <= len(rows) <= limits[1], "roster-malformed")
        for row in rows:
            fine = isinstance(row, list) and len(row) == 2 and is_name(row[0]) and octets(32, 32)(row[1])
            require(fine, "roster-malformed")
        names = [name for name, _ in rows]
        require(names == sorted(set(names)), "roster-malformed")
    except Fault:
        raise Fault("roster-malformed", KEEPER) from None
    n, shares = len(rows), view.task.shares
    least = numbers.survivors_min(n, *shares, view.task.body["threat"]["cohort_min"])
    return Roster(roster, names, [key for _, key in rows], graph(n, numbers.degree(n, *shares), roster), least)


def open_arrival(view: Round, signed: Signed) -> tuple[str, bytes]:
    """(device, identity key) of an upload without a roster."""
    check_body("header", signed.body)
    require("certificate" in signed.body and signed.body["index"] == 0, "header-malformed")
    name, key = x509.check(signed.body["certificate"], view.task.trust.ca, view.body["issued_at"])
    genuine = signed.sender == f"device/{name}" and ed25519_verify(key, signed.signature, signed.tbs)
    require(genuine, "signature-invalid")
    return name, key


def alone(view: Round, devices: list[str]) -> Roster:
    """What stands for the roster where there is none."""
    names = digest("no-roster", view.digest)
    return Roster(names, devices, [], [[] for _ in devices], view.task.arrivals_min)


def listed(data: bytes, most: int) -> list[tuple[str, bytes]]:
    """(device, header digest) of a packed survivor set without a roster."""
    try:
        value = decode(data)
        require(isinstance(value, list) and len(value) <= most, "survivors-malformed")
        for row in value:
            fine = isinstance(row, list) and len(row) == 2 and is_name(row[0]) and octets(32, 32)(row[1])
            require(fine, "survivors-malformed")
        names = [name for name, _ in value]
        require(names == sorted(set(names)), "survivors-malformed")
    except Fault:
        raise Fault("survivors-malformed", KEEPER) from None
    return [(name, wanted) for name, wanted in value]


def check_header(view: Round, roster: Roster, header: dict[str, Value], device: str) -> None:
    """What everybody sees of a header."""
    require((header["manifest"], header["roster"]) == (view.digest, roster.digest), "header-foreign", device)
    body = header["body"]
    require(
        header["index"] < len(roster.devices)
        and len(header["commitments"]) == 32 * (len(view.task.self_sets) + len(view.task.cap_sets))
        and len(header["boxes"]) == len(view.members)
        and len(header["edges"]) == 48 * len(roster.neighbours[header["index"]])
        and body["size"] == packed_size(view.task.segments)
        and body["chunk_size"] == view.task.body["plan"]["chunk_size"]
        and blob_sound(body)
        and ("certificate" in header) != view.task.has_roster,
        "header-malformed",
        device,
    )


def place_of(view: Round, roster: Roster) -> Place:
    task = view.task
    return Place(view.digest, roster.digest, task.body["suite"], task.segments, task.self_sets, task.cap_sets)


def entries_follow(view: Round, entries: bytes, ref: dict[str, Value]) -> None:
    made = blob_ref(entries, view.task.body["plan"]["chunk_size"])
    require(made == ref, "roster-malformed", KEEPER)
