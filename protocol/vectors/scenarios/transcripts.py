"""The transcript of the round, whole and with one lie at a time: SPEC.md section 10."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
from scenarios.case import File, secret
from scenarios.scene import Scene

from blindsum.protocol.codec import encode
from blindsum.protocol.envelope import seal_envelope
from blindsum.protocol.messages import (
    Announcement,
    Certificate,
    OpeningContent,
    Payload,
    RosterAnnouncement,
    Vote,
)

__all__ = ["files"]


def files(scene: Scene) -> list[File]:
    file = File(
        "transcript.json",
        "a whole round, and who is named where one record lies. `replace`: [name, which of that name, what stands there instead]",
        "10",
        "transcript",
        {"trust": scene.trust.encode(), "records": [list(record) for record in scene.records()]},
    )
    file.ok("true")
    for name, replace in _lies(scene):
        file.ok(name, replace=[list(entry) for entry in replace])
    return [file]


def _lies(scene: Scene) -> list[tuple[str, list[tuple[str, int, bytes]]]]:
    signed = scene.announcement.payload, scene.roster_message.payload, scene.certificate.payload
    announcement, roster, certificate = signed
    assert isinstance(announcement, Announcement) and isinstance(roster, RosterAnnouncement)
    assert isinstance(certificate, Certificate)

    def again(kind: str, payload: Payload) -> bytes:
        """What the coordinator signs, whatever is in it."""
        return seal_envelope(scene.key("coordinator"), scene.head(kind, "coordinator", "all"), payload)

    few = msgspec.structs.replace(announcement, votes=announcement.votes[:2])
    double = msgspec.structs.replace(announcement, votes=[*announcement.votes[:3], announcement.votes[0]])
    false_beacon = scene.send("vote", "party/2", "coordinator", _vote(scene, secret("another beacon"))).raw
    lying = [("sum", 0, _add_one(scene.total))]
    wrong_sum = _opening(scene, 2, vector=True)
    wrong_share = _opening(scene, 3, vector=False)
    return [
        ("manifest with two votes", [("announcement", 0, again("announcement", few))]),
        ("manifest with one vote twice", [("announcement", 0, again("announcement", double))]),
        ("announcement not by the coordinator", [("announcement", 0, _flip(scene.announcement.raw, -1))]),
        ("roster with two votes", [("roster", 0, again("roster", msgspec.structs.replace(roster, votes=roster.votes[:2])))]),
        (
            "a beacon that was not committed to",
            [("roster", 0, again("roster", msgspec.structs.replace(roster, votes=[roster.votes[0], false_beacon, roster.votes[2]])))],
        ),
        ("joins altered", [("joins", 0, _flip(scene.joins, 300))]),
        ("survivors altered", [("survivors", 0, _flip(scene.survivors, 10))]),
        (
            "survivor set with two votes",
            [("certificate", 0, again("certificate", msgspec.structs.replace(certificate, votes=certificate.votes[:2])))],
        ),
        ("header altered", [("header", 2, _flip(scene.headers[2].raw, 3000))]),
        ("headers swapped", [("header", 0, scene.headers[1].raw)]),
        ("body altered", [("body", 1, _flip(scene.bodies[1], 5))]),
        ("content altered", [("content", 0, _flip(scene.openings[0][1], 20))]),
        ("opening in the place of another part", [("opening", 3, scene.openings[1][0].raw)]),
        ("a party opens a wrong sum", _with_result(scene, 1, wrong_sum)),
        ("a party gives a wrong share", _with_result(scene, 2, wrong_share)),
        ("published sum is another", lying),
        ("result of another set", [("result", 0, again("result", scene.make_result(proposal=secret("proposal"))))]),
        ("result counts one more", [("result", 0, again("result", scene.make_result(count=6)))]),
        (
            "model that does not follow",
            [
                ("result", 0, again("result", scene.make_result(model=scene.blob(scene.model)))),
                ("next", 0, scene.model),
            ],
        ),
        ("another first model", [("model", 0, scene.next)]),
        ("another trust bundle", [("trust", 0, encode([*_trust(scene)[:1], scene.certificates["d-0"], *_trust(scene)[2:]]))]),
        ("trust bundle that is none", [("trust", 0, b"trust")]),
    ]


def _trust(scene: Scene) -> list[Any]:
    trust = scene.trust
    return [trust.fleet, trust.ca, trust.operator, trust.coordinator, trust.coordinator_box, list(trust.parties)]


def _vote(scene: Scene, beacon: bytes) -> Payload:
    return Vote(decides="roster", digest=scene.roster_proposal.digest, beacon=beacon)


def _opening(scene: Scene, party: int, *, vector: bool) -> tuple[bytes, bytes]:
    """(opening, content) of a party that signs a lie: another self-mask sum, or another share."""
    content = scene.contents[party][0]
    if vector:
        subset, honest = content.vectors[0]
        false = _add_one(honest)
        hashes = [(s, hashlib.sha256(false).digest() if s == subset else digest) for s, digest in content.hashes]
        content = OpeningContent(hashes=hashes, shares=content.shares, vectors=[(subset, false)])
    else:
        content = msgspec.structs.replace(content, shares=_flip(content.shares, 0))
    opening, plain = scene.opening(party, 0, content)
    raw = seal_envelope(scene.key(f"party/{party}"), scene.head("opening", f"party/{party}", "coordinator"), opening)
    return raw, plain


def _with_result(scene: Scene, place: int, lie: tuple[bytes, bytes]) -> list[tuple[str, int, bytes]]:
    """Records in which opening number `place` is `lie`, and the result names it."""
    raw, plain = lie
    openings = [(int(s.sender.split("/")[1]), hashlib.sha256(p).digest()) for s, p in scene.openings]
    openings[place] = (openings[place][0], hashlib.sha256(plain).digest())
    result = scene.make_result(openings=sorted(openings))
    signed = seal_envelope(scene.key("coordinator"), scene.head("result", "coordinator", "all"), result)
    return [("opening", place, raw), ("content", place, plain), ("result", 0, signed)]


def _flip(data: bytes, at: int) -> bytes:
    spoilt = bytearray(data)
    spoilt[at] ^= 1
    return bytes(spoilt)


def _add_one(packed: bytes) -> bytes:
    return bytes([(packed[0] + 1) % 256]) + packed[1:]
