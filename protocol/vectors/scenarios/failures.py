"""Records of rounds that failed, one for each way, and with one lie at a time: SPEC.md section 10.1."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from blindsum.protocol.codec import decode, encode
from blindsum.protocol.envelope import Head, open_envelope, seal_envelope
from blindsum.protocol.messages import (
    Announcement,
    Candidate,
    Check,
    Failure,
    Header,
    Manifest,
    Opening,
    OpeningContent,
    Payload,
    Proposal,
    RosterAnnouncement,
    RosterProposal,
    Vote,
)
from blindsum.protocol.openings import designated, make_content
from blindsum.protocol.ring import pack, reduce, to_signed, unpack
from blindsum.protocol.roster import pack_joins
from scenarios.case import File, secret
from scenarios.scene import DEVICES, DROPPED, FLEET, PARTIES, TASK, AloneScene, Scene

__all__ = ["files"]

Record = tuple[str, bytes]


def files(scene: Scene, single: AloneScene) -> list[File]:
    return [_with_roster(scene), _without(single)]


class _Records:
    """Puts records together, each kept once in the file: `records`, to which cases refer by number."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.shared: list[list[Any]] = []

    def take(self, records: Iterable[Record]) -> list[int]:
        places = []
        for name, data in records:
            if [name, data] not in self.shared:
                self.shared.append([name, data])
            places.append(self.shared.index([name, data]))
        return places

    def signed(self, kind: str, sender: str, payload: Payload, to: str = "coordinator", number: int = 1) -> bytes:
        head = Head(type=kind, fleet=FLEET, task=TASK, round=number, sender=sender, to=to)
        return seal_envelope(self.scene.key(sender), head, payload)

    def end(self, code: str, manifest: bytes | None = None, **more: Any) -> Record:
        digest = self.scene.view.digest if manifest is None else manifest
        return "failure", self.signed("failure", "coordinator", Failure(manifest=digest, code=code), "all", **more)

    def own(self, kind: str, payload: Payload) -> Record:
        return kind, self.signed(kind, "coordinator", payload, "parties")

    def vote(self, party: int, decides: str, digest: bytes, beacon: bytes = b"") -> Record:
        body = {"decides": decides, "digest": digest, "beacon": beacon}
        return "vote", self.signed("vote", f"party/{party}", msgspec.convert(body, Vote))

    def check(self, party: int, *bad: tuple[int, str], survivors: bytes | None = None) -> Record:
        about = self.scene.blob(self.scene.survivors).id if survivors is None else survivors
        return "check", self.signed("check", f"party/{party}", Check(survivors=about, missing=[], bad=list(bad)))

    def header(self, index: int) -> Record:
        return "header", self.scene.headers[index].raw

    def opening(self, party: int, content: OpeningContent) -> list[Record]:
        """An opening; nobody who judges a record sees the box itself."""
        plain = encode(content)
        box = self.scene.blob(secret(f"sealed for failures by {party}", 100))
        digest = hashlib.sha256(plain).digest()
        opening = Opening(proposal=self.scene.proposal.digest, part=0, content=box, plain=digest)
        return [("opening", self.signed("opening", f"party/{party}", opening)), ("content", plain)]


def _with_roster(scene: Scene) -> File:
    made = _Records(scene)
    announced, rostered = scene.announcement.payload, scene.roster_message.payload
    manifest, agreed = scene.manifest.payload, scene.roster_proposal.payload
    assert isinstance(announced, Announcement) and isinstance(rostered, RosterAnnouncement)
    assert isinstance(manifest, Manifest) and isinstance(agreed, RosterProposal)
    trust: Record = ("trust", scene.trust.encode())
    task, offers = ("task", scene.task.raw), [("offer", raw) for raw in manifest.offers]
    begun = [trust, ("announcement", scene.announcement.raw)]
    joined: dict[str, bytes] = {}
    for raw in decode(scene.joins):
        joined[open_envelope(raw).head.sender.removeprefix("device/")] = raw
    few = pack_joins({name: joined[name] for name in scene.names[:3]})
    who = [*begun, *scene.devices()]
    roster, ref = scene.roster.digest, scene.blob(scene.survivors)
    candidate = made.own("candidate", Candidate(roster=roster, survivors=ref))
    survivors = ("survivors", scene.survivors)
    beacons = [made.vote(n, "roster", scene.roster_proposal.digest, scene.beacons[n]) for n in (1, 2)]
    proposing = [*begun, ("roster-proposal", scene.roster_proposal.raw), ("joins", scene.joins)]
    checking = [*who, candidate, survivors]
    voting = [*who, ("proposal", scene.proposal.raw), survivors]
    opening = [*who, ("certificate", scene.certificate.raw), survivors, *map(made.header, scene.indices)]
    bodies: list[Record] = []
    for index in scene.indices:
        bodies.append(("body", scene.bodies[index]))
    summed = [*opening, *bodies, ("model", scene.model), ("state", b"")]
    refusals = [made.check(1), made.check(2, (1, "commitment-differs")), made.check(4, (1, "box-unreadable"))]
    zeros_ = bytes(32)

    rows: list[tuple[str, list[Record]]] = [
        ("offer", [trust, made.end("offers-too-few", zeros_), task, offers[0], offers[2]]),
        ("offer, and nobody offered", [trust, made.end("offers-too-few", zeros_), task]),
        ("offer, though a quorum offered", [trust, made.end("offers-too-few", zeros_), task, *offers[:3]]),
        ("offer twice by one party", [trust, made.end("offers-too-few", zeros_), task, offers[0], offers[0]]),
        ("offer of another round", [trust, made.end("offers-too-few", zeros_, number=2), task, offers[0]]),
        ("offer, but a manifest is named", [trust, made.end("offers-too-few"), task, offers[0]]),
        ("offer without the task", [trust, made.end("offers-too-few", zeros_), offers[0]]),
        (
            "offer, and something that nobody looks at",
            [trust, made.end("offers-too-few", zeros_), task, ("model", b"")],
        ),
        (
            "manifest",
            [trust, made.end("votes-too-few"), task, ("manifest", scene.manifest.raw)]
            + [("vote", raw) for raw in announced.votes[:2]],
        ),
        (
            "manifest, though a quorum voted",
            [trust, made.end("votes-too-few"), task, ("manifest", scene.manifest.raw)]
            + [("vote", raw) for raw in announced.votes[:3]],
        ),
        (
            "manifest, and a vote on something else",
            [trust, made.end("votes-too-few"), task, ("manifest", scene.manifest.raw), beacons[0]],
        ),
        ("join", [*begun, made.end("cohort-too-small"), ("joins", few)]),
        ("join, though enough joined", [*begun, made.end("cohort-too-small"), ("joins", scene.joins)]),
        (
            "join, and one device twice",
            [*begun, made.end("cohort-too-small"), ("joins", encode([joined["d-0"], joined["d-0"]]))],
        ),
        ("join, and no list", [*begun, made.end("cohort-too-small"), ("joins", encode({}))]),
        (
            "join, with a header that nobody looks at",
            [*begun, made.end("cohort-too-small"), ("joins", few), made.header(0)],
        ),
        ("join, by another code", [*begun, made.end("votes-too-few"), ("joins", few)]),
        ("roster", [*proposing, made.end("votes-too-few"), *beacons]),
        (
            "roster, and a beacon that was not committed to",
            [
                *proposing,
                made.end("votes-too-few"),
                made.vote(2, "roster", scene.roster_proposal.digest, secret("beacon")),
            ],
        ),
        ("roster, and joins altered", [*proposing[:-1], ("joins", _flip(scene.joins, 300)), made.end("votes-too-few")]),
        (
            "roster of a manifest that is not the round's",
            [
                *begun,
                made.own("roster-proposal", msgspec.structs.replace(agreed, manifest=secret("manifest"))),
                ("joins", scene.joins),
                made.end("votes-too-few"),
            ],
        ),
        ("upload", [*who, made.end("survivors-too-few"), *map(made.header, (0, 1, 3, 5))]),
        ("upload, though enough came", [*who, made.end("survivors-too-few"), *map(made.header, scene.indices)]),
        ("upload, headers out of order", [*who, made.end("survivors-too-few"), *map(made.header, (1, 0))]),
        (
            "upload, and a device that uploaded twice",
            [
                *who,
                made.end("survivors-too-few"),
                ("evidence", encode([scene.headers[1].raw, _second_header(made, 1)])),
                made.header(0),
            ],
        ),
        (
            "check, too few",
            [*checking, made.end("checks-too-few"), made.check(1), made.check(3, (2, "box-unreadable"))],
        ),
        ("check, too few left", [*checking, made.end("survivors-too-few"), *refusals]),
        (
            "check, though one party alone complains",
            [*checking, made.end("survivors-too-few"), *refusals[:2], made.check(3)],
        ),
        (
            "check, two parties complain about two devices",
            [
                *checking,
                made.end("survivors-too-few"),
                made.check(1, (0, "box-unreadable")),
                *refusals[1:2],
                made.check(3),
            ],
        ),
        (
            "check of another candidate",
            [*checking, made.end("checks-too-few"), made.check(1, survivors=secret("candidate"))],
        ),
        (
            "check, two of one party",
            [*checking, made.end("checks-too-few"), made.check(1), made.check(1, (1, "box-unreadable"))],
        ),
        (
            "check with an index that no device has",
            [*checking, made.end("checks-too-few"), made.check(1, (100_000, "box-unreadable"))],
        ),
        (
            "check, and a candidate of another roster",
            [
                *who,
                made.own("candidate", Candidate(roster=secret("roster"), survivors=ref)),
                survivors,
                made.end("checks-too-few"),
            ],
        ),
        ("check without the candidate's blob", [*who, candidate, made.end("checks-too-few")]),
        ("vote", [*voting, made.end("votes-too-few"), *[made.vote(n, "set", scene.proposal.digest) for n in (1, 4)]]),
        (
            "vote, and one on another set",
            [*voting, made.end("votes-too-few"), made.vote(1, "set", secret("another set"))],
        ),
        (
            "vote on a set of another roster",
            [
                *who,
                made.own("proposal", Proposal(roster=secret("roster"), survivors=ref)),
                survivors,
                made.end("votes-too-few"),
            ],
        ),
        ("vote on a set that is too small", _small_set(made, who)),
        ("open, too few", [*opening, made.end("openings-too-few"), *made.opening(1, _content(scene, 1))]),
        ("open, and nobody opened", [*opening, made.end("openings-too-few")]),
        ("open, though it suffices", [*opening, made.end("openings-too-few"), *_openings(made, _content)]),
        ("open, parties disagree", [*opening, made.end("openings-disagree"), *_openings(made, _own_hashes)]),
        ("open, a cap was false", [*opening, made.end("edge-false"), *_openings(made, _false_pads)]),
        ("open, the sum is malformed", [*summed, made.end("sum-malformed"), *_openings(made, _no_weight)]),
        ("open, the sum is well formed", [*summed, made.end("sum-malformed"), *_openings(made, _content)]),
        (
            "open, a body altered",
            [
                *opening,
                ("body", _flip(scene.bodies[scene.indices[0]], 5)),
                *bodies[1:],
                ("model", scene.model),
                ("state", b""),
                made.end("sum-malformed"),
                *_openings(made, _no_weight),
            ],
        ),
        ("open, a model and no sum", [*opening, made.end("openings-too-few"), ("model", scene.model)]),
        ("open, headers missing", [*opening[:-1], made.end("openings-too-few")]),
        ("two failures", [trust, made.end("offers-too-few", zeros_), made.end("votes-too-few", zeros_), task]),
        ("a failure of another round", [*who, made.end("survivors-too-few", number=2)]),
        (
            "a failure that the coordinator did not sign",
            [*who, ("failure", _flip(made.end("survivors-too-few")[1], -1))],
        ),
        ("another trust bundle", [("trust", _flip(trust[1], -1)), *who[1:], made.end("survivors-too-few")]),
    ]
    file = File(
        "failed/with-roster.json",
        "records of rounds that failed, and who is named where one lies. `take`: the numbers of the `records` that it has",
        "10.1",
        "failed",
        {"trust": trust[1], "records": made.shared},
    )
    for name, records in rows:
        file.ok(name, take=made.take(records))
    return file


def _without(scene: AloneScene) -> File:
    made = _Records(scene)
    begun: list[Record] = [("trust", scene.trust.encode()), ("announcement", scene.announcement.raw)]
    ref, roster = scene.blob(scene.survivors), scene.roster.digest
    candidate = made.own("candidate", Candidate(roster=roster, survivors=ref))
    checking = [*begun, ("listed", scene.survivors), candidate, ("survivors", scene.survivors)]
    upload = [*begun, made.end("survivors-too-few")]
    rows = [
        ("upload", [*upload, *map(made.header, (0, 2, 3))]),
        ("upload, though enough came", [*upload, *map(made.header, range(4))]),
        ("upload, headers out of order", [*upload, *map(made.header, (2, 0))]),
        ("upload, one header twice", [*upload, *map(made.header, (0, 0))]),
        ("upload, and joins", [*upload, ("joins", encode([]))]),
        ("check", [*checking, made.end("checks-too-few"), made.check(1)]),
        (
            "check, too few left",
            [
                *checking,
                made.end("survivors-too-few"),
                *(made.check(n, (0, "box-unreadable"), (2, "box-unreadable")) for n in (1, 2, 3)),
            ],
        ),
        (
            "check, and another list",
            [*checking[:2], ("listed", encode([])), *checking[3:], made.end("checks-too-few"), made.check(1)],
        ),
    ]
    file = File(
        "no-roster/failed.json",
        "records of rounds without a roster that failed",
        "10.1",
        "failed",
        {"trust": scene.trust.encode(), "records": made.shared},
    )
    for name, records in rows:
        file.ok(name, take=made.take(records))
    return file


def _second_header(made: _Records, index: int) -> bytes:
    header = made.scene.headers[index].payload
    assert isinstance(header, Header)
    second = msgspec.structs.replace(header, edges=bytes(len(header.edges)))
    return made.signed("header", f"device/{made.scene.names[index]}", second, "all")


def _small_set(made: _Records, who: list[Record]) -> list[Record]:
    small = encode([[index, made.scene.headers[index].digest] for index in (0, 1)])
    proposal = Proposal(roster=made.scene.roster.digest, survivors=made.scene.blob(small))
    return [*who, made.own("proposal", proposal), ("survivors", small), made.end("votes-too-few")]


# -- what parties open ----------------------------------------------------------------------------------------------------


def _openings(made: _Records, content: Callable[[Scene, int], OpeningContent]) -> list[Record]:
    return [record for party in range(1, PARTIES + 1) for record in made.opening(party, content(made.scene, party))]


def _content(scene: Scene, party: int) -> OpeningContent:
    seeds = {index: scene.seeds_of(index, party) for index in scene.indices}
    return make_content(scene.view, scene.roster, party=party, survivors=scene.indices, seeds=seeds)[0]


def _own_hashes(scene: Scene, party: int) -> OpeningContent:
    """What nobody else vouches for."""
    content = _content(scene, party)
    hashes = [(subset, secret(f"hash {subset} of {party}")) for subset, _ in content.hashes]
    return msgspec.structs.replace(content, hashes=hashes, vectors=[])


def _false_pads(scene: Scene, party: int) -> OpeningContent:
    """The same wrong pads from all who hold those of subset 0: as if the cap itself were false."""
    content, out = _content(scene, party), scene.base.cap_subsets[0]
    if party in out:
        return content
    edges = len(content.shares) // 32 // sum(party not in subset for subset in scene.base.cap_subsets)
    wrong = bytes(byte ^ 1 for byte in content.shares[: 32 * edges])
    return msgspec.structs.replace(content, shares=wrong + content.shares[32 * edges :])


def _no_weight(scene: Scene, party: int) -> OpeningContent:
    """All weight is taken for a mask: everybody vouches for a false sum of subset 0."""
    content = _content(scene, party)
    if party in scene.base.self_subsets[0]:
        return content
    segments = scene.base.segments
    honest = dict(_content(scene, _keeper(scene)).vectors)[0]
    lanes, total = unpack(segments, honest), unpack(segments, scene.total)
    lanes[-1][0] += total[-1][0]
    assert to_signed(segments[-1], total[-1])[0] == sum(10 * index + 1 for index in range(DEVICES) if index != DROPPED)
    reduce(segments, lanes)
    false = pack(segments, lanes)
    hashes = [(s, hashlib.sha256(false).digest() if s == 0 else digest) for s, digest in content.hashes]
    return msgspec.structs.replace(
        content, hashes=hashes, vectors=[(s, false if s == 0 else vector) for s, vector in content.vectors]
    )


def _keeper(scene: Scene) -> int:
    return designated(scene.view, 0)


def _flip(data: bytes, at: int) -> bytes:
    spoilt = bytearray(data)
    spoilt[at] ^= 1
    return bytes(spoilt)
