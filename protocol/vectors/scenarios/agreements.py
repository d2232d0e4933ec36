"""What a receiver checks of tasks, manifests, joins, rosters and headers beyond the schema: SPEC.md sections 5.1 to 5.4."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from blindsum.protocol.codec import convert, decode, encode
from blindsum.protocol.envelope import open_envelope, seal_envelope
from blindsum.protocol.keys import certificate_issue, public_of
from blindsum.protocol.messages import Header, Join, KeyStep, Manifest, Offer, Payload, RosterProposal, chunks_of
from blindsum.protocol.partykeys import next_step, operator_step
from blindsum.protocol.roster import pack_joins
from scenarios.case import File, secret
from scenarios.scene import START, Scene

__all__ = ["files"]

_UNSAFE: Final = "parameters-unsafe"
_DIFFERS: Final = "manifest-differs"
_BLOB_MAX: Final = 262_144


def files(scene: Scene) -> list[File]:
    return [_task(scene), _manifest(scene), _join(scene), _roster(scene), _header(scene)]


def _changed(payload: Payload, changes: dict[str, Any]) -> Payload:
    """`payload` with some fields changed; "a.b" names a field of a field."""
    value = msgspec.to_builtins(payload, builtin_types=(bytes,))
    for path, item in changes.items():
        *outer, last = path.split(".")
        target = value
        for name in outer:
            target = target[name]
        target[last] = msgspec.to_builtins(item, builtin_types=(bytes,))
    return convert(value, type(payload))


def _task(scene: Scene) -> File:
    file = File(
        "task.json", "tasks that are safe and tasks that are not", "5.1", "task", {"trust": scene.trust.encode()}
    )
    task = scene.task.payload

    def raw(name: str = "operator", kind: str = "task", **changes: Any) -> bytes:
        return seal_envelope(scene.key(name), scene.head(kind, name, "all", 0), _changed(task, changes))

    file.ok("of the round in `messages`", bytes=scene.task.raw)
    file.ok("chacha20, no rotation", bytes=raw(suite="chacha20", **{"codec.rotate": False}))
    exact = {"name": "statistics", "length": 3, "width": 64, "codec": "exact"}
    quantised = {"name": "parameters", "length": 8, "width": 24, "codec": "quantised"}
    empty = chunks_of(b"", 16_384)[0]
    file.ok("statistics alone", bytes=raw(segments=[exact], model=empty))
    long = chunks_of(bytes(1_600_000), _BLOB_MAX)[0]
    adam = {"algorithm.name": "fedadam", "algorithm.beta1_micros": 900_000, "algorithm.tau_micros": 1}
    halves = [{**quantised, "length": 4}, {**quantised, "length": 4, "name": "controls"}, exact]
    scaffold = {
        "algorithm.name": "scaffold",
        "algorithm.population": 1_000_000,
        "training.control_micros": 1,
        "segments": halves,
    }
    evaluate = {"algorithm.name": "evaluate", "algorithm.rate_micros": 0, "segments": [exact]}
    file.ok("FedAvgM", bytes=raw(**{"algorithm.name": "fedavgm", "algorithm.beta1_micros": 900_000}))
    file.ok("FedAdam", bytes=raw(**adam))
    file.ok("FedYogi", bytes=raw(**{**adam, "algorithm.name": "fedyogi"}))
    file.ok("FedProx", bytes=raw(**{"training.proximal_micros": 10_000}))
    file.ok("SCAFFOLD", bytes=raw(**scaffold))
    file.ok("an evaluation", bytes=raw(**evaluate))
    file.bad("trust-differs", "for another trust bundle", bytes=raw(trust=secret("trust")))
    file.bad("message-misplaced", "a vote", bytes=scene.sent["vote"][0].raw)
    file.bad("sender-wrong-role", "of the coordinator", bytes=raw("coordinator"))
    for name, changes in (
        ("three parties where there are four", {"threat.parties": 3}),
        ("quorum of two", {"threat.quorum": 2}),
        ("threshold one", {"threat.threshold": 1}),
        ("cohort above the smallest round", {"threat.cohort_min": 5}),
        ("smallest round above the largest", {"devices_min": 9}),
        ("nobody left", {"threat.corrupt_permille": 400, "threat.dropped_permille": 600}),
        ("more than 900 permille lost", {"threat.corrupt_permille": 400, "threat.dropped_permille": 501}),
        ("values that wrap", {"codec.bits": 15}),
        ("weights that wrap", {"codec.weight_max": 200}),
        ("segments of one name", {"segments": [quantised, {**exact, "name": "parameters"}]}),
        ("two quantised segments", {"segments": [quantised, {**quantised, "name": "p2"}, exact]}),
        ("two exact segments", {"segments": [quantised, exact, {**exact, "name": "s2"}]}),
        ("no exact segment", {"segments": [quantised]}),
        ("an exact segment of 32 bits", {"segments": [quantised, {**exact, "width": 32}]}),
        ("a model of another length", {"model": chunks_of(bytes(28), 16_384)[0]}),
        ("a plan with a digest too few", {"plan.digests": b""}),
        ("a model with a digest too many", {"model.digests": secret("digest", 64)}),
        ("FedAvg with a decay", {"algorithm.beta1_micros": 900_000}),
        ("FedAdam without tau", {**adam, "algorithm.tau_micros": 0}),
        ("FedAdam with a population", {**adam, "algorithm.population": 1}),
        ("a scale of controls without SCAFFOLD", {"training.control_micros": 1}),
        ("SCAFFOLD without a scale of controls", {**scaffold, "training.control_micros": 0}),
        ("SCAFFOLD without a population", {**scaffold, "algorithm.population": 0}),
        ("SCAFFOLD without controls", {**scaffold, "segments": [quantised, exact]}),
        (
            "SCAFFOLD with fewer controls",
            {**scaffold, "segments": [{**halves[0], "length": 5}, {**halves[1], "length": 3}, exact]},
        ),
        ("an evaluation that sums updates", {**evaluate, "segments": [quantised, exact]}),
        ("an evaluation of half a value", {**evaluate, "model": chunks_of(bytes(6), 16_384)[0]}),
        (
            "a state that fits no blob",
            {
                **adam,
                "plan": chunks_of(scene.plan, 1024)[0],
                "model": chunks_of(bytes(560_000), _BLOB_MAX)[0],
                "segments": [{**quantised, "length": 140_000, "width": 16}, exact],
                "codec.bits": 6,
            },
        ),
        (
            "a vector whose openings fit no blob",
            {
                "plan": chunks_of(scene.plan, 1024)[0],
                "model": long,
                "segments": [{**quantised, "length": 400_000}, exact],
            },
        ),
    ):
        file.bad(_UNSAFE, name, bytes=raw(**changes))
    return file


def _manifest(scene: Scene) -> File:
    shared = {"trust": scene.trust.encode(), "task": scene.task.raw}
    file = File("manifest.json", "what a party and a device check of a manifest", "5.2", "manifest", shared)
    manifest = scene.manifest.payload
    assert isinstance(manifest, Manifest)

    def raw(number: int = 1, **changes: Any) -> bytes:
        head = scene.head("manifest", "coordinator", "parties", number)
        return seal_envelope(scene.key("coordinator"), head, _changed(manifest, changes))

    offers = manifest.offers
    file.ok("of the round in `messages`", bytes=scene.manifest.raw)
    file.ok("three of four offers", bytes=raw(offers=offers[:2] + offers[3:]))
    for name, steps in (("party 4 has changed its key twice", _steps(scene, 2)), ("by the operator", _steps(scene, 0))):
        file.ok(name, bytes=raw(offers=[*offers[:3], _changed_key(scene, steps)]))
    file.ok("a later model", bytes=raw(previous=secret("result"), model=scene.blob(scene.next)))
    for code, name, raw_ in (
        ("offers-too-few", "two offers", raw(offers=offers[:2])),
        ("offers-too-few", "an offer twice", raw(offers=[offers[0], offers[0], offers[1]])),
        ("offers-too-few", "offers out of order", raw(offers=[offers[1], offers[0], offers[2]])),
        ("offer-malformed", "a vote among the offers", raw(offers=[*offers[:3], scene.sent["vote"][3].raw])),
        ("offer-malformed", "offers of another round", raw(2)),
        ("offer-malformed", "a changed key that is not shown", raw(offers=[*offers[:3], _changed_key(scene, [])])),
        (
            "offer-malformed",
            "a step out of order",
            raw(offers=[*offers[:3], _changed_key(scene, _steps(scene, 2)[1:])]),
        ),
        (
            "offer-malformed",
            "a step not by the key before",
            raw(offers=[*offers[:3], _changed_key(scene, _forged(scene))]),
        ),
        ("offer-malformed", "a box key beyond the modulus", raw(offers=[*offers[:3], _offer(scene, b"\xff" * 3, 0)])),
        ("offer-malformed", "a box key of small order", raw(offers=[*offers[:3], _offer(scene, bytes(32), 1184)])),
        ("message-misplaced", "round 0", raw(0)),
        (_DIFFERS, "of another task", raw(task=secret("task"))),
        (_DIFFERS, "another first model", raw(model=scene.blob(scene.next))),
        (_DIFFERS, "a first state", raw(state=secret("state"))),
        (_DIFFERS, "a model of another size", raw(previous=secret("result"), model=scene.blob(scene.next[:-4]))),
        (_DIFFERS, "a model without digests", raw(**{"model.digests": b""})),
        (_DIFFERS, "no rotation", raw(rotation=b"")),
        (_DIFFERS, "joining ends before it begins", raw(issued_at=START + 5_000)),
        (_DIFFERS, "joining takes too long", raw(join_until=START + 5_001)),
        (_DIFFERS, "uploading takes too long", raw(upload_until=START + 35_001)),
        (_DIFFERS, "uploading takes no time", raw(upload_until=START + 5_000)),
        (_DIFFERS, "secrets are kept too long", raw(expires_at=START + 195_001)),
    ):
        file.bad(code, name, bytes=raw_)
    return file


def _key(number: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(secret(f"changed key {number}"))


def _steps(scene: Scene, count: int) -> list[KeyStep]:
    """So many steps of party 4; none: the operator's."""
    if not count:
        return [operator_step(scene.key("operator"), scene.trust, 4, 1, public_of(_key(0)))]
    steps: list[KeyStep] = []
    for number in range(count):
        signer = _key(number - 1) if number else scene.key("party/4")
        steps.append(next_step(signer, scene.trust, 4, steps, public_of(_key(number))))
    return steps


def _forged(scene: Scene) -> list[KeyStep]:
    return [next_step(scene.key("party/3"), scene.trust, 4, [], public_of(_key(0)))]


def _changed_key(scene: Scene, steps: list[KeyStep]) -> bytes:
    """Party 4's offer under its last key."""
    offer = scene.sent["offer"][3].payload
    assert isinstance(offer, Offer)
    head = scene.head("offer", "party/4", "coordinator")
    return seal_envelope(_key(max(0, len(steps) - 1)), head, _changed(offer, {"keys": steps}))


def _offer(scene: Scene, spoilt: bytes, at: int) -> bytes:
    """Party 4's offer with some bytes of its box key replaced."""
    offer = scene.sent["offer"][3].payload
    assert isinstance(offer, Offer)
    key = offer.box_key[:at] + spoilt + offer.box_key[at + len(spoilt) :]
    return seal_envelope(
        scene.key("party/4"), scene.head("offer", "party/4", "coordinator"), _changed(offer, {"box_key": key})
    )


def _round(scene: Scene) -> dict[str, Any]:
    return {"trust": scene.trust.encode(), "task": scene.task.raw, "manifest": scene.manifest.raw}


def _join_raw(scene: Scene, name: str = "d-0", signer: str = "", number: int = 1, **changes: Any) -> bytes:
    join = scene.sent["join"][0].payload
    assert isinstance(join, Join)
    head = scene.head("join", f"device/{name}", "coordinator", number)
    key: Ed25519PrivateKey = scene.key(signer or f"device/{name}")
    return seal_envelope(key, head, _changed(join, changes))


def _join(scene: Scene) -> File:
    file = File("join.json", "joins of genuine devices, and others", "5.3", "join", _round(scene))
    file.ok("of the round in `messages`", bytes=scene.sent["join"][0].raw)

    def certificate(now: int, by: str = "ca") -> bytes:
        public = scene.public("device/d-0")
        return certificate_issue(
            name="d-0", public=public, issuer="vectors", issuer_key=scene.key(by), serial=7, now=now, days=1
        )

    day = 86_400_000
    for code, name, raw in (
        ("manifest-differs", "to another manifest", _join_raw(scene, manifest=secret("manifest"))),
        ("message-misplaced", "of another round", _join_raw(scene, number=2)),
        (
            "certificate-expired",
            "certificate that ended before",
            _join_raw(scene, certificate=certificate(START - 2 * day)),
        ),
        (
            "certificate-expired",
            "certificate that begins later",
            _join_raw(scene, certificate=certificate(START + day)),
        ),
        (
            "certificate-invalid",
            "certificate of somebody else",
            _join_raw(scene, certificate=certificate(START, "operator")),
        ),
        ("signature-invalid", "certificate of another device", _join_raw(scene, certificate=scene.certificates["d-1"])),
        ("signature-invalid", "name of another device", _join_raw(scene, "d-1", "device/d-0")),
        ("signature-invalid", "signed by another device", _join_raw(scene, signer="device/d-1")),
        ("join-malformed", "a key of small order", _join_raw(scene, key=b"\x01" + bytes(31))),
    ):
        file.bad(code, name, bytes=raw)
    return file


def _roster(scene: Scene) -> File:
    file = File(
        "roster.json", "from joins, proposal and votes to the roster hash and the graph", "5.3", "roster", _round(scene)
    )
    proposal = scene.roster_proposal.payload
    assert isinstance(proposal, RosterProposal)
    votes: list[bytes] = scene.roster_message.payload.votes  # type: ignore[attr-defined]
    given = {"joins": scene.joins, "proposal": scene.roster_proposal.raw, "votes": votes}
    file.ok("of the round in `messages`", **given)
    four = [*votes[:2], _vote(scene, 3), votes[2]]
    file.ok("with the beacon of another party: another roster hash", **{**given, "votes": four})
    joins = {name: sent.raw for name, sent in zip(scene.names, scene.sent["join"], strict=True)}

    def bad(code: str, name: str, **changes: Any) -> None:
        file.bad(code, name, **{**given, **changes})

    bad("votes-too-few", "two votes", votes=votes[:2])
    bad("votes-too-few", "a vote twice", votes=[*votes, votes[0]])
    bad("votes-too-few", "a vote on the manifest", votes=[*votes[:2], scene.sent["vote"][2].raw])
    bad("votes-too-few", "a vote on something else", votes=[*votes, _vote(scene, 3, digest=secret("proposal"))])
    bad("beacon-differs", "another beacon", votes=[*votes[:2], _vote(scene, 4, beacon=secret("beacon"))])
    bad("beacon-differs", "no beacon", votes=[*votes[:2], _vote(scene, 4, beacon=b"")])
    bad("message-misplaced", "a manifest for the proposal", proposal=scene.manifest.raw)
    rows = decode(scene.joins)
    for name, data in (
        ("joins out of order", encode([rows[1], rows[0], *rows[2:]])),
        ("a join twice", encode([rows[0], *rows])),
        ("fewer joins than devices_min", encode(rows[:3])),
        ("more joins than devices_max", encode(rows + rows[:3])),
        ("a join of another manifest", encode([_join_raw(scene, manifest=secret("manifest")), *rows[1:]])),
        ("a vote among the joins", encode([*rows, votes[0]])),
        ("one device less than voted on", pack_joins({k: v for k, v in joins.items() if k != "d-5"})),
        ("no list", encode(b"joins")),
        ("trailing byte", scene.joins + b"\0"),
    ):
        bad("roster-malformed", name, joins=data)
    for name, changes in (
        ("of another manifest", {"manifest": secret("manifest")}),
        ("unsound", {"joins.digests": b""}),
    ):
        changed = _changed(proposal, changes)
        raw = seal_envelope(scene.key("coordinator"), scene.head("roster-proposal", "coordinator", "parties"), changed)
        digest = open_envelope(raw).digest
        bad(_DIFFERS, name, proposal=raw, votes=[_vote(scene, n, digest=digest) for n in (1, 2, 3)])
    return file


def _vote(scene: Scene, party: int, *, digest: bytes = b"", beacon: bytes | None = None) -> bytes:
    body = {
        "decides": "roster",
        "digest": digest or scene.roster_proposal.digest,
        "beacon": scene.beacons[party] if beacon is None else beacon,
    }
    return seal_envelope(scene.key(f"party/{party}"), scene.head("vote", f"party/{party}", "coordinator"), body)


def _header(scene: Scene) -> File:
    shared = {
        **_round(scene),
        "joins": scene.joins,
        "proposal": scene.roster_proposal.raw,
        "votes": scene.roster_message.payload.votes,  # type: ignore[attr-defined]
    }
    file = File("header.json", "what everybody sees of a header", "5.4", "header", shared)
    header = scene.headers[0].payload
    assert isinstance(header, Header)

    def raw(name: str = "d-0", signer: str = "", **changes: Any) -> bytes:
        head = scene.head("header", f"device/{name}", "all")
        return seal_envelope(
            scene.key(signer or f"device/{name}"), head, _changed(header, {"boxes": [b"b"] * 4, **changes})
        )

    body = header.body
    file.ok("of the round in `messages`", bytes=scene.headers[0].raw)
    file.ok("boxes that open for nobody: only their parties see it", bytes=raw())
    for code, name, raw_ in (
        ("header-foreign", "index of another device", raw(index=1)),
        ("header-foreign", "index beyond the roster", raw(index=6)),
        ("header-foreign", "a device that is not in the roster", raw("d-6", "device/d-0")),
        ("signature-invalid", "signed by another device", raw(signer="device/d-1")),
        ("header-foreign", "another manifest", raw(manifest=secret("manifest"))),
        ("header-foreign", "another roster", raw(roster=secret("roster"))),
        ("header-malformed", "a commitment too few", raw(commitments=header.commitments[:-32])),
        ("header-malformed", "a box too few", raw(boxes=[b"b"] * 3)),
        ("header-malformed", "an edge too few", raw(edges=header.edges[:-48])),
        ("header-malformed", "an edge too many", raw(edges=header.edges + bytes(48))),
        ("header-malformed", "a body of another size", raw(body=chunks_of(bytes(body.size + 1), body.chunk_size)[0])),
        ("header-malformed", "a body in other chunks", raw(body=chunks_of(scene.bodies[0], 1024)[0])),
        ("header-malformed", "a body without digests", raw(**{"body.digests": b""})),
    ):
        file.bad(code, name, bytes=raw_)
    return file
