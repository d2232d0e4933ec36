"""The round without a roster: what a device makes, what a receiver checks, and the transcript; SPEC.md section 5.8. An
implementation that knows rounds with a roster only leaves the folder `no-roster` out."""

from __future__ import annotations

import struct
from typing import Any

import msgspec

from blindsum.protocol.codec import encode
from blindsum.protocol.envelope import Head, seal_envelope
from blindsum.protocol.keys import certificate_issue
from blindsum.protocol.messages import Check, Header, Payload, Vote
from scenarios.case import File, secret
from scenarios.scene import FLEET, START, TASK, AloneScene

__all__ = ["files"]


def files(scene: AloneScene) -> list[File]:
    return [_task(scene), _upload(scene), _staleness(scene), _arrival(scene), _survivors(scene), _transcript(scene)]


def _task(scene: AloneScene) -> File:
    file = File(
        "no-roster/task.json",
        "tasks without a roster that a receiver takes, and does not",
        "5.1",
        "task",
        {"trust": scene.trust.encode()},
    )

    def raw(**changes: Any) -> bytes:
        body = {**msgspec.to_builtins(scene.task.payload, builtin_types=(bytes,)), **changes}
        return seal_envelope(scene.key("operator"), scene.head("task", "operator", "all", 0), body)  # type: ignore[arg-type]

    threat = msgspec.to_builtins(scene.base.task.threat)
    algorithm = msgspec.to_builtins(scene.base.task.algorithm)
    file.ok("of the round", bytes=scene.task.raw)
    file.ok("no staleness", bytes=raw(no_roster={"staleness_max": 0}))
    file.bad("message-malformed", "staleness beyond 100", bytes=raw(no_roster={"staleness_max": 101}))
    file.bad("message-malformed", "another field", bytes=raw(no_roster={"staleness_max": 0, "more": 1}))
    file.bad("message-malformed", "null", bytes=raw(no_roster=None))
    fewer = {**threat, "corrupt_permille": 700, "cohort_min": 4}
    file.bad("parameters-unsafe", "a cohort that never comes together", bytes=raw(threat=fewer))
    evaluate = {**algorithm, "name": "evaluate", "rate_micros": 0}
    segments = [msgspec.to_builtins(scene.base.task.segments[1])]
    file.bad("parameters-unsafe", "stale evaluations", bytes=raw(algorithm=evaluate, segments=segments))
    return file


def _upload(scene: AloneScene) -> File:
    base = scene.base
    file = File(
        "no-roster/upload.json",
        "what a device makes of its vector and its seeds: masked body, commitments, contents of the boxes",
        "5.8",
        "upload",
        {
            "manifest": scene.view.digest,
            "suite": base.task.suite,
            "segments": [{"name": s.name, "length": s.length, "width": s.width} for s in base.segments],
            "committee": [4, 2, 3, 1],
            "members": [1, 2, 3, 4],
            "index": 0,
            "private": b"",
            "keys": [],
            "cap_seeds": [],
        },
    )
    for name, upload, vector in zip(scene.names, scene.uploads, scene.vectors, strict=True):
        file.ok(f"device {name}", device=name, self_seeds=upload["seeds"], vector=vector)
    return file


def _staleness(scene: AloneScene) -> File:
    file = File(
        "no-roster/staleness.json",
        "what was trained for one round and goes into a later one: whether it may, and what is left of it",
        "5.8",
        "staleness",
        {"staleness_max": 8, "update": struct.pack("<6f", 1.0, -0.1, 3.0e-39, 0.0, -0.0, 12345.678)},
    )
    first, later = (secret(name) for name in ("model of the round", "model of a later round"))
    for name, began, model in (
        ("a round ago", 4, later),
        ("three rounds ago", 2, later),
        ("the model is still the same", 3, first),
        ("of the round itself", 5, first),
        ("of a later round", 6, later),
    ):
        file.ok(name, round=5, began=began, began_model=first, model=model)
    for age in (8, 9):
        file.ok(f"{age} rounds ago", round=20, began=20 - age, began_model=first, model=later)
    file.ok("as old, and the model is still the same", round=20, began=11, began_model=first, model=first)
    return file


def _arrival(scene: AloneScene) -> File:
    file = File(
        "no-roster/arrival.json",
        "what everybody sees of an upload",
        "5.8",
        "arrival",
        {"trust": scene.trust.encode(), "task": scene.task.raw, "manifest": scene.manifest.raw},
    )
    header = scene.headers[1].payload
    assert isinstance(header, Header)

    def raw(sender: str = "d-1", signer: str = "", **changes: Any) -> bytes:
        body = {**msgspec.to_builtins(header, builtin_types=(bytes,)), **changes}
        head = scene.head("header", f"device/{sender}", "all")
        kept = {name: value for name, value in body.items() if value is not None}
        return seal_envelope(scene.key(f"device/{signer or sender}"), head, kept)  # type: ignore[arg-type]

    def certificate(now: int, by: str = "ca") -> bytes:
        public = scene.public("device/d-1")
        return certificate_issue(
            name="d-1", public=public, issuer=FLEET, issuer_key=scene.key(by), serial=9, now=now, days=30
        )

    file.ok("of the round", bytes=scene.headers[1].raw)
    for code, name, given in (
        ("header-malformed", "no certificate", {"certificate": None}),
        ("header-malformed", "an index", {"index": 1}),
        ("header-malformed", "an edge", {"edges": bytes(48)}),
        ("header-malformed", "commitments of caps", {"commitments": header.commitments + bytes(32)}),
        ("header-malformed", "a box too few", {"boxes": header.boxes[:3]}),
        ("header-foreign", "another manifest", {"manifest": secret("manifest")}),
        ("header-foreign", "another roster", {"roster": bytes(32)}),
        ("signature-invalid", "another device's certificate", {"certificate": scene.certificates["d-2"]}),
        ("signature-invalid", "another device's name", {"sender": "d-2", "signer": "d-1"}),
        ("signature-invalid", "signed by another device", {"signer": "d-2"}),
        ("certificate-invalid", "another CA", {"certificate": certificate(START, "operator")}),
        ("certificate-expired", "a certificate that has ended", {"certificate": certificate(START - 40 * 86_400_000)}),
    ):
        file.bad(code, name, bytes=raw(**given))
    return file


def _survivors(scene: AloneScene) -> File:
    file = File("no-roster/survivors.json", "the list of survivors by name", "5.8", "listed", {"devices_max": 8})
    digests = [secret(f"header {n}") for n in range(9)]
    rows = [[f"d-{n}", digests[n]] for n in range(9)]
    file.ok("of the round", bytes=scene.survivors)
    file.ok("nobody", bytes=encode([]))
    for name, value in (
        ("not ascending", [rows[2], rows[1]]),
        ("twice the same", [rows[1], rows[1]]),
        ("more than there may be", rows),
        ("no name", [["D 1", digests[0]]]),
        ("a number", [[0, digests[0]]]),
        ("digest of 31 bytes", [["d-0", digests[0][:-1]]]),
        ("three items", [["d-0", digests[0], 0]]),
        ("a map", {"d-0": digests[0]}),
    ):
        file.bad("survivors-malformed", name, bytes=encode(value))
    return file


def _transcript(scene: AloneScene) -> File:
    file = File(
        "no-roster/transcript.json",
        "a whole round without a roster, and who is named where one record lies",
        "10",
        "transcript",
        {"trust": scene.trust.encode(), "records": [list(record) for record in scene.records()]},
    )

    def signed(kind: str, sender: str, payload: Payload) -> bytes:
        head = Head(type=kind, fleet=FLEET, task=TASK, round=1, sender=sender, to="coordinator")
        return seal_envelope(scene.key(sender), head, payload)

    def check(sender: str, survivors: bytes, *bad: tuple[int, str]) -> list[Any]:
        return ["check", signed("check", sender, Check(survivors=survivors, missing=[], bad=list(bad)))]

    listed = scene.blob(scene.survivors).id
    header = scene.headers[1].payload
    assert isinstance(header, Header)
    second = msgspec.structs.replace(header, commitments=bytes(len(header.commitments)))
    other = scene.bodies[1]
    file.ok("true")
    file.ok("a roster besides", add=[["roster", scene.announcement.raw]])
    file.ok("another candidate", replace=[["listed", 0, encode([])]])
    file.ok("headers swapped", replace=[["header", 0, scene.headers[1].raw]])
    file.ok("body altered", replace=[["body", 1, bytes([other[0] ^ 1]) + other[1:]]])
    file.ok("survivors altered", replace=[["survivors", 0, scene.survivors[:-1] + b"\0"]])
    file.ok(
        "t parties refuse a device",
        add=[check("party/2", listed, (1, "commitment-differs")), check("party/3", listed, (1, "box-unreadable"))],
    )
    file.ok(
        "t parties know that a certificate was taken back",
        add=[check(f"party/{n}", listed, (1, "certificate-revoked")) for n in (2, 3)],
    )
    file.ok("a check of another candidate", add=[check("party/2", secret("blob"))])
    file.ok(
        "a device uploads twice",
        add=[["evidence", encode([scene.headers[1].raw, signed("header", "device/d-1", second)])]],
    )
    votes = [Vote(decides="set", digest=digest, beacon=b"") for digest in (secret("one"), secret("other"))]
    file.ok(
        "a party votes for two sets",
        add=[["evidence", encode([signed("vote", "party/2", vote) for vote in votes])]],
    )
    return file
