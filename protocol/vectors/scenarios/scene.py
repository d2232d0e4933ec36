"""One small round of four parties and six devices, one of which drops out: every message that is sent in it, made by the pure
functions that the machines call. The messages, boxes and the transcript of the vectors come from here."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import UNSET
from msgspec.structs import replace

from blindsum.protocol.algorithm import algorithm_of
from blindsum.protocol.arrivals import Arrivals, pack_set
from blindsum.protocol.codec import convert, encode
from blindsum.protocol.envelope import Head, open_envelope, seal_envelope
from blindsum.protocol.keys import BOX_PRIVATE_SIZE, box_open, certificate_issue, edge_keypair, public_of
from blindsum.protocol.masks import Seeds, mask_upload, open_box
from blindsum.protocol.messages import (
    Announcement,
    Ask,
    BlobRef,
    Candidate,
    Certificate,
    Check,
    CodecSpec,
    Criterion,
    Failure,
    Header,
    Join,
    Manifest,
    NoRoster,
    Offer,
    OfferRequest,
    Opening,
    OpeningContent,
    Payload,
    Proposal,
    Receipt,
    Result,
    Rollback,
    RosterAnnouncement,
    RosterProposal,
    SegmentSpec,
    Task,
    ThreatSpec,
    Training,
    Vote,
    Want,
    chunks_of,
)
from blindsum.protocol.openings import combine, designated, make_content
from blindsum.protocol.optimiser import advance
from blindsum.protocol.params import Committee
from blindsum.protocol.ring import add_packed, pack, reduce, zeros
from blindsum.protocol.roster import (
    RosterView,
    beacon_commitment,
    open_joins,
    open_roster,
    open_roster_announcement,
    pack_joins,
)
from blindsum.protocol.trust import Trust
from blindsum.protocol.update import encode_update
from blindsum.protocol.view import RoundView, TaskView, open_manifest, open_task
from scenarios.boxes import Boxes
from scenarios.case import secret

__all__ = ["FLEET", "START", "TASK", "AloneScene", "Scene"]

FLEET: Final = "vectors"
TASK: Final = "sum"
START: Final = 1_760_000_000_000
DEVICES: Final = 6
PARTIES: Final = 4
LENGTH: Final = 8
CHUNK_SIZE: Final = 16_384
DROPPED: Final = 4
"""The index of the device whose upload comes too late."""
SLOW: Final = 4
"""The party whose opening comes after another one was asked for the sum that it is designated for."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A message as it was made."""

    kind: str
    sender: str
    to: str
    raw: bytes
    payload: Payload = field(repr=False)

    @property
    def digest(self) -> bytes:
        return open_envelope(self.raw).digest


class Scene:
    """The round. `sent` holds every message by type, `records` is the transcript."""

    profile: ClassVar[dict[str, Any]] = {}

    def __init__(self, boxes: Boxes) -> None:
        self.boxes = boxes
        self.sent: dict[str, list[Sent]] = {}
        self.seeds = {name: secret(f"key of {name}") for name in ("ca", "operator", "coordinator")}
        self.seeds |= {f"party/{n}": secret(f"key of party/{n}") for n in range(1, PARTIES + 1)}
        self.seeds["party/2"] = bytes(range(32))  # the key that other COSE libraries signed with, see `encoding`
        self.names = [f"d-{number}" for number in range(DEVICES)]
        self.seeds |= {f"device/{name}": secret(f"key of device/{name}") for name in self.names}
        self.ca = self._certificate(FLEET, "ca", 1, ca=True)
        self.certificates = {
            name: self._certificate(name, f"device/{name}", i + 2) for i, name in enumerate(self.names)
        }
        self.trust = Trust(
            FLEET,
            self.ca,
            self.public("operator"),
            self.public("coordinator"),
            boxes.keypair("the coordinator", secret("box of the coordinator", BOX_PRIVATE_SIZE)),
            tuple(self.public(f"party/{n}") for n in range(1, PARTIES + 1)),
        )
        self._open_task()
        self._agree_on_manifest()
        self._agree_on_roster()
        self._upload()
        self._close()
        self._open()
        self._finish()

    def key(self, principal: str) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.seeds[principal])

    def public(self, principal: str) -> bytes:
        return public_of(self.key(principal))

    def head(self, kind: str, sender: str, to: str, number: int = 1) -> Head:
        return Head(type=kind, fleet=FLEET, task=TASK, round=number, sender=sender, to=to)

    def send(self, kind: str, sender: str, to: str, payload: Payload, number: int = 1) -> Sent:
        raw = seal_envelope(self.key(sender), self.head(kind, sender, to, number), payload)
        sent = Sent(kind, sender, to, raw, payload)
        self.sent.setdefault(kind, []).append(sent)
        return sent

    # -- the round, step by step ----------------------------------------------------------------------------------

    def _open_task(self) -> None:
        committee = Committee.for_f(1)
        self.plan, self.model = b"what devices run", np.linspace(-1, 1, LENGTH).astype("<f4").tobytes()
        task = Task(
            trust=self.trust.digest,
            plan=chunks_of(self.plan, CHUNK_SIZE)[0],
            model=chunks_of(self.model, CHUNK_SIZE)[0],
            segments=[
                SegmentSpec(name="parameters", length=LENGTH, width=24, codec="quantised"),
                SegmentSpec(name="statistics", length=3, width=64, codec="exact"),
            ],
            codec=CodecSpec(clip_micros=1_000_000, range_micros=1_000_000, bits=14, weight_max=100, rotate=True),
            threat=ThreatSpec(
                parties=committee.parties,
                threshold=committee.threshold,
                quorum=committee.quorum,
                malicious_parties=committee.equivocators,
                corrupt_permille=0,
                dropped_permille=170,
                cohort_min=2,
            ),
            devices_min=4,
            devices_max=8,
            suite="aes128-ctr",
            training=Training(epochs=1, batch_size=8, rate_micros=100_000, proximal_micros=0, control_micros=0),
            algorithm=algorithm_of("fedavg", rate_micros=500_000),
            join_ms=5_000,
            upload_ms=30_000,
            decide_ms=20_000,
            rounds_max=10,
            eligibility=[Criterion(kind="examples-min", version=1, values=[20])],
            **self.profile,
        )
        self.task = self.send("task", "operator", "all", task, 0)
        base = open_task(self.trust, self.task.raw)
        assert isinstance(base, TaskView), base
        self.base = base

    def _agree_on_manifest(self) -> None:
        offers = []
        self.beacons = {n: secret(f"beacon of party/{n}") for n in range(1, PARTIES + 1)}
        for number in range(1, PARTIES + 1):
            self.send("offer-request", "coordinator", f"party/{number}", OfferRequest(task=self.task.raw))
            box_key = self.boxes.keypair(f"party/{number}", secret(f"box of party/{number}", BOX_PRIVATE_SIZE))
            commitment = beacon_commitment(self.beacons[number], TASK, 1, number)
            offer = Offer(box_key=box_key, beacon_commitment=commitment, chain=bytes(32), keys=[])
            offers.append(self.send("offer", f"party/{number}", "coordinator", offer).raw)
        manifest = Manifest(
            task=self.base.digest,
            previous=bytes(32),
            model=self.base.task.model,
            state=self.base.first_state,
            offers=offers,
            rotation=secret("rotation", 16),
            issued_at=START,
            join_until=START + 5_000,
            upload_until=START + 35_000,
            expires_at=START + 195_000,
        )
        self.manifest = self.send("manifest", "coordinator", "parties", manifest)
        view = open_manifest(self.base, self.manifest.raw)
        assert isinstance(view, RoundView), view
        self.view = view
        votes = [self._vote(n, "manifest", view.digest) for n in (1, 2, 3, 4)]
        announcement = Announcement(task=self.task.raw, manifest=self.manifest.raw, votes=votes)
        self.announcement = self.send("announcement", "coordinator", "all", announcement)

    def _vote(self, party: int, decides: str, digest: bytes, beacon: bytes = b"") -> bytes:
        vote = convert({"decides": decides, "digest": digest, "beacon": beacon}, Vote)
        return self.send("vote", f"party/{party}", "coordinator", vote).raw

    def _agree_on_roster(self) -> None:
        self.privates = [secret(f"edge key of {name}") for name in self.names]
        joins = {}
        for name, private in zip(self.names, self.privates, strict=True):
            join = Join(manifest=self.view.digest, certificate=self.certificates[name], key=edge_keypair(private)[1])
            sent = self.send("join", f"device/{name}", "coordinator", join)
            joins[name] = sent.raw
            self.send(
                "receipt",
                "coordinator",
                f"device/{name}",
                Receipt(subject=sent.digest, status="held", code=""),
            )
        self.joins = pack_joins(joins)
        opened = open_joins(self.view, self.joins)
        assert not hasattr(opened, "code"), opened
        entries = opened.entries  # type: ignore[union-attr]
        proposal = self.send(
            "roster-proposal",
            "coordinator",
            "parties",
            RosterProposal(manifest=self.view.digest, joins=self.blob(self.joins), entries=self.blob(entries)),
        )
        votes = [self._vote(n, "roster", proposal.digest, self.beacons[n]) for n in (1, 2, 4)]
        self.roster_message = self.send(
            "roster", "coordinator", "all", RosterAnnouncement(proposal=proposal.raw, votes=votes)
        )
        agreed = open_roster_announcement(self.view, proposal.raw, votes)
        assert isinstance(agreed, tuple), agreed
        roster = open_roster(self.view, entries, agreed[2])
        assert isinstance(roster, RosterView), roster
        assert not roster.graph.complete, "the scene shows a sparse graph"
        self.roster, self.entries, self.roster_proposal = roster, entries, proposal

    def _upload(self) -> None:
        self.vectors, self.bodies, self.headers = [], [], []
        self.uploads: list[dict[str, Any]] = []
        for index, name in enumerate(self.names):
            update = np.cos(np.arange(LENGTH) + index).astype(np.float32) * np.float32(0.2 * (index + 1))
            lanes = encode_update(
                self.base,
                update,
                weight=10 * index + 1,
                statistics=[index - 2, 1000 + index],
                rotation=self.view.manifest.rotation,
                key=secret(f"rounding of {name}"),
            )
            drawn: list[bytes] = []

            def random(size: int, name: str = name, drawn: list[bytes] = drawn) -> bytes:
                drawn.append(secret(f"seed {len(drawn)} of {name}", size))
                return drawn[-1]

            self.vectors.append(pack(self.base.segments, lanes))
            upload = mask_upload(
                self.view,
                self.roster,
                index=index,
                private=self.privates[index],
                lanes=lanes,
                random=random,
                seal=self.boxes.seal,
                certificate=self.certificates[name] if self.profile else UNSET,
            )
            self.bodies.append(b"".join(upload.chunks))
            self.uploads.append({"seeds": drawn, "header": upload.header})
            self.headers.append(self.send("header", f"device/{name}", "all", upload.header))
        self.send("ask", "coordinator", "device/d-0", Ask(blob=self.uploads[0]["header"].body.id, have=b"\0", window=4))
        receipt = Receipt(subject=self.headers[0].digest, status="complete", code="")
        self.send("receipt", "coordinator", "device/d-0", receipt)
        late = Receipt(subject=self.headers[DROPPED].digest, status="refused", code="upload-late")
        self.send("receipt", "coordinator", f"device/{self.names[DROPPED]}", late)

    def _close(self) -> None:
        self.indices = [index for index in range(DEVICES) if index != DROPPED]
        self.survivors = pack_set(self.roster, {index: self.headers[index].digest for index in self.indices})
        ref = self.blob(self.survivors)
        self.send("candidate", "coordinator", "parties", Candidate(roster=self.roster.digest, survivors=ref))
        self.check = self.send("check", "party/1", "coordinator", Check(survivors=ref.id, missing=[], bad=[]))
        self.send(
            "check", "party/3", "coordinator", Check(survivors=ref.id, missing=[0, 5], bad=[(1, "box-unreadable")])
        )
        self.proposal = self.send(
            "proposal", "coordinator", "parties", Proposal(roster=self.roster.digest, survivors=ref)
        )
        votes = [self._vote(n, "set", self.proposal.digest) for n in (1, 2, 3)]
        self.certificate = self.send(
            "certificate", "coordinator", "parties", Certificate(proposal=self.proposal.raw, votes=votes)
        )

    def _open(self) -> None:
        self.contents: dict[int, list[OpeningContent]] = {}
        self.openings: list[tuple[Sent, bytes]] = []
        sums: dict[int, dict[int, bytes]] = {}
        for party in range(1, PARTIES + 1):
            if party == SLOW:
                subset = next(s for s in range(len(self.base.self_subsets)) if designated(self.view, s) == SLOW)
                asked = min(other for other, held in sums.items() if subset in held)
                want = Want(proposal=self.proposal.digest, part=1, subsets=[subset])
                self.send("want", "coordinator", f"party/{asked}", want)
                self._opening(asked, OpeningContent(hashes=[], shares=b"", vectors=[(subset, sums[asked][subset])]))
            seeds = {index: self.seeds_of(index, party) for index in self.indices}
            content, sums[party] = make_content(
                self.view, self.roster, party=party, survivors=self.indices, seeds=seeds
            )
            self._opening(party, content)

    def seeds_of(self, index: int, party: int) -> Seeds:
        public = next(m.box_key for m in self.view.members if m.party == party)
        header = self.uploads[index]["header"]
        assert isinstance(header, Header)
        header = replace(header, index=index)  # a device without a roster states none
        private = self.boxes.private(public)
        seeds = open_box(
            self.view, self.roster, header, party=party, opener=lambda info, box: box_open(private, info, box)
        )
        assert isinstance(seeds, Seeds), seeds
        return seeds

    def _opening(self, party: int, content: OpeningContent) -> None:
        parts = self.contents.setdefault(party, [])
        opening, plain = self.opening(party, len(parts), content)
        self.openings.append((self.send("opening", f"party/{party}", "coordinator", opening), plain))
        parts.append(content)

    def opening(self, party: int, part: int, content: OpeningContent) -> tuple[Opening, bytes]:
        plain = encode(content)
        info = encode(["blindsum/1 opening", self.view.digest, self.proposal.digest, party, part])
        sealed = self.boxes.seal(self.trust.coordinator_box, info, plain)
        digest = hashlib.sha256(plain).digest()
        return Opening(proposal=self.proposal.digest, part=part, content=self.blob(sealed), plain=digest), plain

    def _finish(self) -> None:
        segments, lanes = self.base.segments, zeros(self.base.segments)
        truth = zeros(segments)
        for index in self.indices:
            add_packed(segments, lanes, self.bodies[index])
            add_packed(segments, truth, self.vectors[index])
        reduce(segments, lanes)
        reduce(segments, truth)
        headers = {index: self.uploads[index]["header"] for index in self.indices}
        combined = combine(self.view, self.roster, lanes, headers=headers, contents=self.contents)
        assert combined.complete and not combined.faults, combined
        self.total = pack(segments, lanes)
        assert self.total == pack(segments, truth), "masks do not cancel"
        self.next, _ = advance(self.base, self.model, b"", self.total, self.view.manifest.rotation)
        self.result = self.send("result", "coordinator", "all", self.make_result())
        place = {"task": self.base.digest, "previous": self.result.digest, "origin": bytes(32)}
        self.rollback = self.send("rollback", "operator", "all", Rollback(**place, model=self.base.task.model))
        self.send("failure", "coordinator", "all", Failure(manifest=bytes(32), code="offers-too-few"), 2)

    def make_result(self, **changes: Any) -> Result:
        fields: dict[str, Any] = {
            "previous": bytes(32),
            "rotation": self.view.manifest.rotation,
            "manifest": self.view.digest,
            "roster": self.roster.digest,
            "proposal": self.proposal.digest,
            "count": len(self.indices),
            "sum": self.blob(self.total),
            "model": self.blob(self.next),
            "state": self.base.first_state,
            "openings": sorted(
                (int(sent.sender.split("/")[1]), hashlib.sha256(plain).digest()) for sent, plain in self.openings
            ),
        }
        return Result(**{**fields, **changes})

    def records(self) -> list[tuple[str, bytes]]:
        """The transcript of the round."""
        records = [
            ("trust", self.trust.encode()),
            ("announcement", self.announcement.raw),
            *self.devices(),
            ("check", self.check.raw),
            ("certificate", self.certificate.raw),
            ("survivors", self.survivors),
        ]
        for index in self.indices:
            records += [("header", self.headers[index].raw), ("body", self.bodies[index])]
        for sent, plain in self.openings:
            records += [("opening", sent.raw), ("content", plain)]
        models = [("model", self.model), ("state", b""), ("next", self.next)]
        return [*records, ("result", self.result.raw), ("sum", self.total), *models]

    def devices(self) -> list[tuple[str, bytes]]:
        """The records of who took part."""
        return [("roster", self.roster_message.raw), ("joins", self.joins)]

    def blob(self, data: bytes) -> BlobRef:
        return chunks_of(data, CHUNK_SIZE)[0]

    def _certificate(self, name: str, principal: str, serial: int, *, ca: bool = False) -> bytes:
        return certificate_issue(
            name=name,
            public=self.public(principal),
            issuer=FLEET,
            issuer_key=self.key("ca"),
            serial=serial,
            now=START,
            days=3650 if ca else 365,
            ca=ca,
        )


class AloneScene(Scene):
    """The same round without a roster."""

    profile: ClassVar[dict[str, Any]] = {"no_roster": NoRoster(staleness_max=2)}

    def _agree_on_roster(self) -> None:
        self.roster = arrivals = Arrivals.of(self.view)
        self.privates = [b""] * DEVICES
        for name in self.names:
            arrivals.enter(name, self.public(f"device/{name}"))

    def devices(self) -> list[tuple[str, bytes]]:
        return [("listed", self.survivors)]
