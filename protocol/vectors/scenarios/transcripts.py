"""The transcript of the round, whole and with one lie at a time: SPEC.md section 10."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from blindsum.protocol.codec import convert, encode
from blindsum.protocol.envelope import open_envelope, seal_envelope
from blindsum.protocol.messages import (
    Announcement,
    Certificate,
    Check,
    Failure,
    Header,
    Offer,
    OpeningContent,
    Payload,
    Proposal,
    RosterAnnouncement,
    Vote,
)
from scenarios.case import File, secret
from scenarios.scene import Scene

__all__ = ["files"]


def files(scene: Scene) -> list[File]:
    file = File(
        "transcript.json",
        "a whole round, and who is named where one record lies. `replace`: [name, which of that name, what stands there instead]; "
        "`add`: [name, what stands there besides]",
        "10",
        "transcript",
        {"trust": scene.trust.encode(), "records": [list(record) for record in scene.records()]},
    )
    file.ok("true")
    for name, replace in _lies(scene):
        file.ok(name, replace=[list(entry) for entry in replace])
    for name, add in _more(scene):
        file.ok(name, add=[list(entry) for entry in add])
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
    vote = Vote(decides="roster", digest=scene.roster_proposal.digest, beacon=secret("another beacon"))
    false_beacon = seal_envelope(scene.key("party/2"), scene.head("vote", "party/2", "coordinator"), vote)
    return [
        ("manifest with two votes", [("announcement", 0, again("announcement", few))]),
        ("manifest with one vote twice", [("announcement", 0, again("announcement", double))]),
        ("announcement not by the coordinator", [("announcement", 0, _flip(scene.announcement.raw, -1))]),
        (
            "roster with two votes",
            [("roster", 0, again("roster", msgspec.structs.replace(roster, votes=roster.votes[:2])))],
        ),
        (
            "a beacon that was not committed to",
            [
                (
                    "roster",
                    0,
                    again(
                        "roster",
                        msgspec.structs.replace(roster, votes=[roster.votes[0], false_beacon, roster.votes[2]]),
                    ),
                )
            ],
        ),
        ("joins altered", [("joins", 0, _flip(scene.joins, 300))]),
        ("survivors altered", [("survivors", 0, _flip(scene.survivors, 10))]),
        (
            "survivor set with two votes",
            [
                (
                    "certificate",
                    0,
                    again("certificate", msgspec.structs.replace(certificate, votes=certificate.votes[:2])),
                )
            ],
        ),
        ("header altered", [("header", 2, _flip(scene.headers[2].raw, 3000))]),
        ("headers swapped", [("header", 0, scene.headers[1].raw)]),
        ("body altered", [("body", 1, _flip(scene.bodies[1], 5))]),
        ("content altered", [("content", 0, _flip(scene.openings[0][1], 20))]),
        ("opening in the place of another part", [("opening", 3, scene.openings[1][0].raw)]),
        ("a party vouches for a wrong sum", _opens(scene, 1, _false_hash(scene.contents[2][0]))),
        (
            "a party opens a wrong sum that nobody else was asked for",
            _opens(scene, 1, _false_sum(scene.contents[2][0])),
        ),
        ("a party opens a sum without its hash", _opens(scene, 1, _false_vector(scene.contents[2][0]))),
        ("a party gives a wrong share", _opens(scene, 2, _false_share(scene.contents[3][0]))),
        ("a party gives a share too few", _opens(scene, 2, _few_shares(scene.contents[3][0]))),
        ("published sum is another", [("sum", 0, _add_one(scene.total))]),
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
        ("a state where there was none", [("state", 0, secret("state"))]),
        ("a result of another state", [("result", 0, again("result", scene.make_result(state=secret("state"))))]),
        (
            "another trust bundle",
            [("trust", 0, encode([*_trust(scene)[:1], scene.certificates["d-0"], *_trust(scene)[2:]]))],
        ),
        ("trust bundle that is none", [("trust", 0, b"trust")]),
    ]


def _more(scene: Scene) -> list[tuple[str, list[tuple[str, bytes]]]]:
    """Complaints, and what somebody has signed twice."""

    def signed(kind: str, sender: str, to: str, payload: Payload) -> bytes:
        return seal_envelope(scene.key(sender), scene.head(kind, sender, to), payload)

    def check(sender: str, *bad: tuple[int, str]) -> tuple[str, bytes]:
        survivors = scene.blob(scene.survivors).id
        return "check", signed("check", sender, "coordinator", Check(survivors=survivors, missing=[], bad=list(bad)))

    def twice(kind: str, sender: str, first: bytes, payload: Payload) -> tuple[str, bytes]:
        return "evidence", encode([first, signed(kind, sender, "coordinator", payload)])

    votes = [
        Vote(decides="set", digest=digest, beacon=b"") for digest in (scene.proposal.digest, secret("another set"))
    ]
    one, other = (signed("vote", "party/2", "coordinator", vote) for vote in votes)
    roster_vote = signed("vote", "party/2", "coordinator", Vote(decides="roster", digest=secret("roster"), beacon=b""))
    header, proposal = scene.headers[1], scene.proposal.payload
    announced, rostered = scene.announcement.payload, scene.roster_message.payload
    assert isinstance(announced, Announcement) and isinstance(rostered, RosterAnnouncement)
    assert isinstance(header.payload, Header) and isinstance(proposal, Proposal)
    second = msgspec.structs.replace(header.payload, edges=bytes(len(header.payload.edges)))
    other_set = msgspec.structs.replace(proposal, survivors=scene.blob(scene.joins))
    opening = msgspec.structs.replace(scene.openings[1][0].payload, plain=secret("plain"))
    other_opening = msgspec.structs.replace(opening, proposal=secret("another set"))
    own = scene.openings[1][0].sender
    set_vote = signed("vote", own, "coordinator", votes[0])
    stated = scene.make_result(proposal=secret("another set"))
    failure, other_failure = (
        Failure(manifest=scene.proposal.digest, code=f"{what}-too-few") for what in ("votes", "checks")
    )
    failed = signed("failure", "coordinator", "all", failure)
    party, device = scene.openings[1][0].sender, header.sender
    offers = open_envelope(announced.manifest).payload["offers"]
    offer = convert(open_envelope(offers[1]).payload, Offer)
    second_offer = msgspec.structs.replace(offer, chain=secret("chain"))
    true_beacon = next(raw for raw in rostered.votes if open_envelope(raw).head.sender == "party/2")
    beacons = Vote(decides="roster", digest=scene.roster_proposal.digest, beacon=secret("another beacon"))
    return [
        ("a rollback that the round did not start from", [("rollback", scene.rollback.raw)]),
        ("a rollback that is no rollback", [("rollback", scene.task.raw)]),
        ("a party offers twice", [twice("offer", "party/2", offers[1], second_offer)]),
        ("a party reveals another beacon", [twice("vote", "party/2", offers[1], beacons)]),
        ("a party reveals the beacon it committed to", [("evidence", encode([offers[1], true_beacon]))]),
        ("one party complains about a device", [check("party/3", (1, "box-unreadable"))]),
        (
            "t parties refuse a device",
            [check("party/2", (1, "commitment-differs")), check("party/3", (1, "box-unreadable"))],
        ),
        ("two checks of one party", [check("party/1", (2, "box-unreadable"))]),
        ("a party votes for two sets", [("evidence", encode([one, other]))]),
        ("a party votes on two questions", [("evidence", encode([one, roster_vote]))]),
        ("one vote shown twice", [("evidence", encode([one, one]))]),
        ("a device uploads twice", [twice("header", device, header.raw, second)]),
        ("a device that signs nothing twice", [("evidence", encode([header.raw, _flip(header.raw, -1)]))]),
        ("a party opens one part twice", [twice("opening", party, scene.openings[1][0].raw, opening)]),
        ("a party opens another set", [twice("opening", party, scene.openings[1][0].raw, other_opening)]),
        ("a party opens another set than it voted for", [twice("opening", party, set_vote, other_opening)]),
        ("the coordinator proposes two sets", [twice("proposal", "coordinator", scene.proposal.raw, other_set)]),
        ("a result of a set that was not proposed", [twice("result", "coordinator", scene.proposal.raw, stated)]),
        ("the coordinator has a round fail and finish", [twice("result", "coordinator", failed, stated)]),
        ("the coordinator has a round fail twice", [twice("failure", "coordinator", failed, other_failure)]),
        ("evidence that is no pair", [("evidence", encode([one]))]),
        ("evidence that is no CBOR", [("evidence", b"vote")]),
    ]


def _trust(scene: Scene) -> list[Any]:
    trust = scene.trust
    return [trust.fleet, trust.ca, trust.operator, trust.coordinator, trust.coordinator_box, list(trust.parties)]


def _false_hash(content: OpeningContent) -> OpeningContent:
    sent = {subset for subset, _ in content.vectors}
    false = next(subset for subset, _ in content.hashes if subset not in sent)
    hashes = [(s, secret("hash") if s == false else digest) for s, digest in content.hashes]
    return msgspec.structs.replace(content, hashes=hashes)


def _false_sum(content: OpeningContent) -> OpeningContent:
    subset, honest = content.vectors[0]
    false = _add_one(honest)
    hashes = [(s, hashlib.sha256(false).digest() if s == subset else digest) for s, digest in content.hashes]
    return msgspec.structs.replace(content, hashes=hashes, vectors=[(subset, false)])


def _false_vector(content: OpeningContent) -> OpeningContent:
    subset, honest = content.vectors[0]
    return msgspec.structs.replace(content, vectors=[(subset, _add_one(honest))])


def _false_share(content: OpeningContent) -> OpeningContent:
    return msgspec.structs.replace(content, shares=_flip(content.shares, 0))


def _few_shares(content: OpeningContent) -> OpeningContent:
    return msgspec.structs.replace(content, shares=content.shares[:-32])


def _opens(scene: Scene, place: int, content: OpeningContent) -> list[tuple[str, int, bytes]]:
    """Records in which opening number `place` holds `content`, signed by its party, and the result names it."""
    sent, _ = scene.openings[place]
    opening, plain = scene.opening(int(sent.sender.split("/")[1]), 0, content)
    raw = seal_envelope(scene.key(sent.sender), scene.head("opening", sent.sender, "coordinator"), opening)
    openings = [(int(s.sender.split("/")[1]), hashlib.sha256(p).digest()) for s, p in scene.openings]
    openings[place] = (openings[place][0], opening.plain)
    result = scene.make_result(openings=sorted(openings))
    signed = seal_envelope(scene.key("coordinator"), scene.head("result", "coordinator", "all"), result)
    return [("opening", place, raw), ("content", place, plain), ("result", 0, signed)]


def _flip(data: bytes, at: int) -> bytes:
    spoilt = bytearray(data)
    spoilt[at] ^= 1
    return bytes(spoilt)


def _add_one(packed: bytes) -> bytes:
    return bytes([(packed[0] + 1) % 256]) + packed[1:]
