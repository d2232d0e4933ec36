"""A device as the specification has it (SPEC.md sections 5, 6, 7.1, 7.2 and 8.1), over a line that loses nothing.

It keeps all in memory and takes part in every round with a roster that it is shown; it trains nothing: `vector` says what it adds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from oracle.cbor import Value, blob_count, blob_id, blob_ref, chunk_check, chunk_open, encode
from oracle.curves import x25519
from oracle.envelope import open_message, seal, trust_open
from oracle.fault import Fault, require
from oracle.kem import box_seal
from oracle.masks import Place, Upload, Vector, held, upload
from oracle.schema import check_body
from oracle.views import (
    KEEPER,
    Roster,
    Round,
    open_manifest,
    open_proposal,
    open_roster,
    open_task,
    place_of,
    quorum_of_votes,
)

_BASE_POINT = (9).to_bytes(32, "little")
_SKEW_MS = 300_000

Out = tuple[str, bytes]
"""(type of the message, or "chunk"; its bytes), all for the coordinator."""


class BookDevice:
    """Device `name` with its certificate and Ed25519 seed; `draw` gives random bytes, `vector` what it adds in a round."""

    def __init__(
        self,
        name: str,
        certificate: bytes,
        key: bytes,
        trust: bytes,
        draw: Callable[[int], bytes],
        vector: Callable[[Round], Vector],
    ) -> None:
        self.name, self.certificate, self.key = name, certificate, key
        self.trust, self.draw, self.vector = trust_open(trust), draw, vector
        self.spent, self.phase = 0, ""
        self.view: Any = None

    def receive(self, raw: bytes, now: int) -> list[Out]:
        """What it says to that. Raises `Fault` for what it refuses."""
        if raw[:1] != b"\xd2":
            return self._chunk(raw)
        signed = open_message(self.trust, raw)
        require(signed.sender == KEEPER, "message-misplaced")
        require(signed.head["to"] in ("all", f"device/{self.name}"), "message-misplaced")
        kind, number = str(signed.head["type"]), int(signed.head["round"])
        check_body(kind, signed.body)
        if kind == "announcement":
            return self._announcement(signed.body, number, now)
        require(self.phase and number == self.spent, "round-stale")
        if kind == "roster":
            return self._roster(signed.body)
        if kind == "ask":
            return self._ask(signed.body)
        if kind == "receipt" and signed.body["status"] == "refused":
            self.phase = ""
        elif kind == "receipt" and signed.body["status"] == "complete":
            require(signed.body["subject"] == self.header, "receipt-foreign")
            self.phase, self.body = "uploaded", b""
        elif kind in ("result", "failure"):
            require(signed.body["manifest"] == self.view.digest, "manifest-differs", KEEPER)
            self.phase = ""
        return []

    # -- a round ------------------------------------------------------------------------------------------------------

    def _announcement(self, body: dict[str, Value], number: int, now: int) -> list[Out]:
        if number == self.spent and self.phase:
            return []
        require(number > self.spent, "round-stale")
        view = open_manifest(open_task(self.trust, body["task"]), body["manifest"])
        quorum_of_votes(view, body["votes"], "manifest", view.digest)
        require(view.number == number, "message-misplaced", KEEPER)
        require(view.body["issued_at"] <= now + _SKEW_MS, "clock-skew")
        require(now < view.body["join_until"], "round-stale")
        self.spent, self.phase, self.view = number, "joined", view
        self.private, self.header, self.body, self.wanted = self.draw(32), b"", b"", None
        return [("join", raw) for raw in self.joins()]

    def joins(self) -> list[bytes]:
        """Its one join of the round."""
        return [self.sign("join", self.join_body(self.private))]

    def join_body(self, private: bytes) -> dict[str, Value]:
        return {
            "manifest": self.view.digest,
            "certificate": self.certificate,
            "key": x25519(private, _BASE_POINT),
        }

    def _roster(self, body: dict[str, Value]) -> list[Out]:
        if self.phase != "joined" or self.wanted is not None:
            return []
        proposal, digest = open_proposal(self.view, body["proposal"], body["votes"])
        self.wanted, self.chunks = proposal["entries"], dict[int, bytes]()
        self.roster_hash = digest
        ask = {"blob": blob_id(self.wanted), "have": b"", "window": 64}
        return [("ask", self.sign("ask", ask))]

    def _chunk(self, raw: bytes) -> list[Out]:
        blob, index, data = chunk_open(raw)
        require(self.phase == "joined" and self.wanted is not None, "chunk-unexpected")
        chunk_check(self.wanted, blob, index, data)
        self.chunks[index] = data
        if len(self.chunks) < blob_count(self.wanted):
            return []
        roster = open_roster(self.view, b"".join(self.chunks[at] for at in sorted(self.chunks)), self.roster_hash)
        require(self.name in roster.devices, "not-selected")
        index = roster.devices.index(self.name)
        require(roster.keys[index] == x25519(self.private, _BASE_POINT), "roster-key-differs", KEEPER)
        return self._upload(roster, index)

    def _upload(self, roster: Roster, index: int) -> list[Out]:
        place, seeds = place_of(self.view, roster), [[self.draw(32) for _ in sets] for sets in self._sets()]
        made = self.masked(place, roster, index, seeds)
        self.body, self.phase, self.private = made.body, "uploading", b""
        ref = blob_ref(made.body, self.view.task.body["plan"]["chunk_size"])
        header = {
            "manifest": self.view.digest,
            "roster": roster.digest,
            "index": index,
            "body": ref,
            "commitments": self._commitments(place, index, seeds),
            "boxes": [self._box(place, index, party, seeds) for party in self.view.members],
            "edges": b"".join(made.caps[v] + place.edge_check(made.secrets[v]) for v in roster.neighbours[index]),
        }
        raws = [self.sign("header", each, "all") for each in self.headers(header)]
        self.header = open_message(self.trust, raws[0]).digest
        return [*(("header", raw) for raw in raws), *self._chunks(range(min(4, blob_count(ref))))]

    def masked(self, place: Place, roster: Roster, index: int, seeds: list[list[bytes]]) -> Upload:
        """Section 7.1 and the caps of 7.2."""
        vector, neighbours = self.vector(self.view), roster.neighbours[index]
        return upload(place, index, vector, self.private, roster.keys, neighbours, *seeds)

    def headers(self, header: dict[str, Value]) -> list[dict[str, Value]]:
        """Its one header of the round."""
        return [header]

    def _sets(self) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
        return self.view.task.self_sets, self.view.task.cap_sets

    def _commitments(self, place: Place, index: int, seeds: list[list[bytes]]) -> bytes:
        return b"".join(
            place.commitment(index, layer, subset, seed)
            for layer, given in zip(("self", "cap"), seeds, strict=True)
            for subset, seed in enumerate(given)
        )

    def _box(self, place: Place, index: int, party: int, seeds: list[list[bytes]]) -> bytes:
        content = b"".join(
            given[subset] for sets, given in zip(self._sets(), seeds, strict=True) for subset in held(party, sets)
        )
        offer = next(raw for raw in self.view.body["offers"] if self._from(raw) == party)
        info = encode(["blindsum/1 box", place.manifest, place.roster, index, party])
        return box_seal(open_message(self.trust, offer).body["box_key"], info, content, self.draw(64))

    def _from(self, offer: bytes) -> int:
        return int(open_message(self.trust, offer).sender.split("/")[1])

    def _ask(self, body: dict[str, Value]) -> list[Out]:
        if self.phase != "uploading":
            raise Fault("blob-unknown")
        have = int.from_bytes(body["have"], "little")
        count = -(-len(self.body) // self.view.task.body["plan"]["chunk_size"])
        return self._chunks([at for at in range(count) if not have >> at & 1][: body["window"]])

    def _chunks(self, indices: Any) -> list[Out]:
        size = self.view.task.body["plan"]["chunk_size"]
        name = blob_id(blob_ref(self.body, size))
        return [("chunk", encode([1, name, at, self.body[at * size : (at + 1) * size]])) for at in indices]

    def sign(self, kind: str, body: Value, to: str = KEEPER) -> bytes:
        head = {"type": kind, "fleet": self.trust.fleet, "task": self.view.task.name, "round": self.spent}
        return seal(self.key, {**head, "from": f"device/{self.name}", "to": to}, body)[0]
