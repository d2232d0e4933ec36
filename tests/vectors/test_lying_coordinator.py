"""What a coordinator that lies gets out of the product's parties and devices. It speaks from the specification alone: for each lie,
who sees through it, by which code, and what signed proof is left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from blindsum.protocol.envelope import open_envelope
from blindsum.protocol.evidence import verify_evidence, write_evidence
from tests.vectors.meeting import Meeting, body_of

Oracle = Callable[[str], Any]
HALF = ("party/3", "party/4")


def split(meeting: Meeting, kind: str, other: Callable[[], bytes], victims: tuple[str, ...] = HALF) -> list[bytes]:
    """Show `victims` another message of this kind. Returns a list that it will be in."""
    made: list[bytes] = []

    def lie(target: str, said: str, raw: bytes) -> bytes | None:
        if said != kind or target not in victims:
            return raw
        if not made:
            made.append(other())
        return made[0]

    meeting.lie = lie
    return made


def opened(meeting: Meeting) -> bool:
    """Whether any party has opened anything."""
    return bool(meeting.book.openings) or any(meeting.happened("opened", f"party/{n}") for n in (1, 2, 3, 4))


def proves(meeting: Meeting, first: bytes, second: bytes) -> set[tuple[str, str]]:
    report = verify_evidence(write_evidence(meeting.fleet.trust, first, second, b""), trust=meeting.fleet.trust)
    return {(fault.principal, fault.code) for fault in report.faults}


def test_two_manifests_for_two_halves_of_the_parties_are_announced_to_nobody(oracle: Oracle) -> None:
    meeting = Meeting(oracle)
    book = meeting.book

    def other() -> bytes:
        body = {
            **book.manifest_body(meeting.now),
            "upload_until": meeting.now + 12_000,
            "expires_at": meeting.now + 90_000,
        }
        return bytes(book.say("manifest", "parties", body)[2])

    made = split(meeting, "manifest", other)
    meeting.begin()
    meeting.settle()
    assert sorted(map(sorted, meeting.votes("manifest").values())) == [[1, 2], [3, 4]] and book.phase == "manifest"
    every = [raw for (asked, _), given in book.votes.items() if asked == "manifest" for raw in given.values()]
    for manifest in (book.manifest, *made):
        announcement = {"task": meeting.task_raw, "manifest": manifest, "votes": every}
        assert meeting.tell("device/d-0001", "announcement", announcement, "all") == "votes-too-few"
    assert meeting.hand("party/3", book.manifest) == "second-manifest"
    meeting.crash("party/1")
    assert meeting.hand("party/1", made[0]) == "second-manifest"
    for party in ("party/1", "party/3"):
        assert ("coordinator", "second-manifest") in meeting.proven(party)


def test_two_rosters_for_two_halves_of_the_parties_are_followed_by_nobody(oracle: Oracle) -> None:
    meeting = Meeting(oracle)
    book = meeting.book
    made = split(
        meeting,
        "roster-proposal",
        lambda: book.say("roster-proposal", "parties", book.roster_body(["d-0000", "d-0001", "d-0002", "d-0003"]))[2],
    )
    meeting.begin()
    meeting.settle()
    assert sorted(map(sorted, meeting.votes("roster").values())) == [[1, 2], [3, 4]] and book.phase == "roster"
    assert meeting.hand("party/4", book.roster_proposal) == "second-roster"
    assert meeting.proven("party/4") == {("coordinator", "second-roster")}
    votes = [raw for (asked, _), given in book.votes.items() if asked == "roster" for raw in given.values()]
    for proposal in (book.roster_proposal, *made):
        announced = {"proposal": proposal, "votes": votes}
        for target in ("device/d-0001", "party/1"):
            assert meeting.tell(target, "roster", announced, "all") == "votes-too-few"


def test_two_graphs_of_one_roster_are_two_halves_of_which_neither_is_opened(oracle: Oracle) -> None:
    """Which beacons count the coordinator chooses. Who follows one choice refuses the uploads made under the other."""
    meeting = Meeting(oracle)
    book = meeting.book

    def other() -> bytes:
        votes = book.quorum_for("roster", book.roster_digest)
        return bytes(book.say("roster", "all", {"proposal": book.roster_proposal, "votes": votes[-3:]})[2])

    book_announces = book._announce_roster

    def when_all_have_voted() -> list[Any]:
        return book_announces() if len(book.quorum_for("roster", book.roster_digest)) == 4 else []

    book._announce_roster = when_all_have_voted
    made = split(meeting, "roster", other, (*HALF, "device/d-0003", "device/d-0004"))
    meeting.begin()
    meeting.until("upload")
    meeting.settle()
    assert set(book.headers) == {0, 1, 2}, "the second half is refused by the coordinator itself, as it is honest here"
    _, theirs = oracle("views").open_proposal(book.view, book.roster_proposal, body_of(made[0])["votes"])
    candidate = split(
        meeting,
        "candidate",
        lambda: book.say("candidate", "parties", {**book.set_body([0, 1, 2]), "roster": theirs})[2],
    )
    meeting.late()
    meeting.settle()
    assert candidate
    bad = {party: {index for index, _ in body["bad"]} for party, (_, body) in book.checks.items()}
    assert bad == {1: set(), 2: set(), 3: {0, 1, 2}, 4: {0, 1, 2}}
    for party, roster in ((1, book.roster.digest), (2, book.roster.digest), (3, theirs), (4, theirs)):
        meeting.tell(f"party/{party}", "proposal", {**book.set_body([0, 1, 2]), "roster": roster})
        assert (
            meeting.tell(f"party/{5 - party}", "proposal", {**book.set_body([0, 1, 2]), "roster": roster})
            == "roster-differs"
        )
    meeting.settle()
    assert list(meeting.votes("set").values()) == [{1, 2}] and not opened(meeting)
    assert proves(meeting, book.announced[2], made[0]) == {("coordinator", "second-roster")}


@pytest.mark.parametrize("whose", ["stolen certificate", "join of another round", "one device twice"])
def test_roster_padded_with_devices_that_did_not_join_gets_no_vote(oracle: Oracle, whose: str) -> None:
    meeting = Meeting(oracle)
    book, curves = meeting.book, oracle("curves")
    if whose == "join of another round":
        meeting.run()
        old = book.joins["d-0004"]
    made: list[bytes] = []

    def padded(devices: list[str]) -> dict[str, Any]:
        signed = book.joins["d-0004"][1]
        if whose == "stolen certificate":
            pair = curves.x25519(b"\x09" * 32, (9).to_bytes(32, "little"))
            forged, _ = oracle("envelope").seal(book.key, signed.head, {**signed.body, "key": pair})
            book.joins["d-0004"] = (
                forged,
                oracle("envelope").open_message(book.trust, forged),
                {**signed.body, "key": pair},
            )
        elif whose == "join of another round":
            book.joins["d-0004"] = old
        else:
            book.joins["d-0004"] = book.joins["d-0003"]
        made.append(b"")
        return dict(type(book).roster_body(book, devices))

    book.roster_body = padded
    meeting.begin()
    meeting.settle()
    assert made and not meeting.votes("roster")
    assert all(meeting.actors[f"party/{n}"].refusals["roster-malformed"] for n in (1, 2, 3, 4))


def test_two_sets_for_two_halves_are_not_opened_also_after_restarts(oracle: Oracle) -> None:
    meeting = Meeting(oracle)
    book = meeting.book
    other = split(meeting, "proposal", lambda: book.say("proposal", "parties", book.set_body([0, 1, 2, 3]))[2])
    meeting.begin()
    meeting.settle()
    assert sorted(map(sorted, meeting.votes("set").values())) == [[1, 2], [3, 4]] and book.phase == "vote"
    votes = [raw for (asked, _), given in book.votes.items() if asked == "set" for raw in given.values()]
    for party in (1, 2, 3, 4):
        meeting.crash(f"party/{party}")
        for proposal in (book.proposal, other[0]):
            for given in (votes, [votes[0]] * 3, votes[:2]):
                told = meeting.tell(f"party/{party}", "certificate", {"proposal": proposal, "votes": given})
                assert told == "votes-too-few"
        foreign = book.proposal if party > 2 else other[0]
        assert meeting.hand(f"party/{party}", foreign) == "second-set"
        assert meeting.proven(f"party/{party}") == {("coordinator", "second-set")}
    small = book.say("proposal", "parties", book.set_body([0, 1]))[2]
    assert meeting.hand("party/1", small) in ("second-set", "survivors-too-few")
    assert not opened(meeting)


def test_round_after_a_stuck_one_gets_nothing_out_of_what_was_said_in_it(oracle: Oracle) -> None:
    meeting = Meeting(oracle)
    book = meeting.book
    split(meeting, "proposal", lambda: b"")
    meeting.begin()
    meeting.settle()
    stale = {**vars(book)}
    meeting.lie = lambda _target, _kind, raw: raw
    meeting.begin()
    meeting.play(lambda: book.offers, 60_000)
    body = {**book.manifest_body(meeting.now), "offers": [stale["offers"][n] for n in (1, 2, 3, 4)]}
    assert meeting.tell(f"party/{min(book.offers)}", "manifest", body) == "offer-malformed"
    meeting.until("upload")
    votes = [raw for (asked, _), given in stale["votes"].items() if asked == "roster" for raw in given.values()]
    announced = {"proposal": book.roster_proposal, "votes": votes}
    assert meeting.tell("device/d-0000", "roster", announced, "all") in ("votes-too-few", "")
    for index in range(5):
        for party in (1, 2, 3, 4):
            assert meeting.hand(f"party/{party}", stale["headers"][index][0]) == "round-stale"
    meeting.until("check")
    old_set = {"proposal": stale["proposal"], "votes": book.quorum_for("roster", book.roster_digest)}
    assert meeting.tell("party/1", "certificate", old_set) == "message-misplaced"
    meeting.until("done")
    assert book.sum == meeting.plain(2, meeting.devices) and meeting.judged() == set()


def test_task_that_the_coordinator_weakens_is_nobodys(oracle: Oracle) -> None:
    meeting = Meeting(oracle)
    book = meeting.book
    body = {**book.task.body, "threat": {**book.task.body["threat"], "cohort_min": 2, "corrupt_permille": 0}}
    head = {**body_head(meeting.task_raw), "from": "operator"}
    for sender, code in (("operator", "signature-invalid"), ("coordinator", "sender-wrong-role")):
        weak = oracle("envelope").seal(book.key, {**head, "from": sender}, body)[0]
        book.number = 1
        assert meeting.tell("party/1", "offer-request", {"task": weak}, "party/1") == code
        book.number = 0
    meeting.run()
    announced = {**body_of(book.announcement[2]), "task": weak}
    book.number = 2
    assert meeting.tell("device/d-0000", "announcement", announced, "all") == "sender-wrong-role"


def body_head(raw: bytes) -> dict[str, Any]:
    head = open_envelope(raw).head
    return {"type": head.type, "fleet": head.fleet, "task": head.task, "round": head.round, "to": head.to}


def test_false_sum_moves_the_next_model_and_its_transcript_names_the_coordinator(oracle: Oracle) -> None:
    """Limit 17 of the threat model: parties check the model against the sum, and nobody but a verifier the sum."""
    meeting = Meeting(oracle)
    book = meeting.book
    unmask = book._result

    def lie() -> list[Any]:
        book.sum = bytes([book.sum[0] ^ 1]) + book.sum[1:]
        return list(unmask())

    book._result = lie
    meeting.run()
    assert all(meeting.happened("followed", f"party/{n}") for n in (1, 2, 3, 4))
    assert meeting.judged() == {("coordinator", "sum-differs")}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"count": 4}, "result-differs"),
        ({"openings": []}, "result-differs"),
        ({"proposal": bytes(32)}, "result-differs"),
        ({"rotation": b"\1" * 16}, "result-differs"),
    ],
)
def test_result_that_states_something_else_than_the_round_is_laid_at_the_coordinator(
    oracle: Oracle, change: dict[str, Any], code: str
) -> None:
    meeting = Meeting(oracle)
    book = meeting.book
    said = book.say

    def lie(kind: str, to: str, body: Any) -> Any:
        return said(kind, to, {**body, **change} if kind == "result" else body)

    book.say = lie
    meeting.run()
    assert ("coordinator", code) in meeting.judged()


def test_upload_altered_left_out_or_taken_twice_shows_in_the_transcript(oracle: Oracle) -> None:
    meeting = Meeting(oracle)
    meeting.run()
    true = meeting.book.files[0]
    assert meeting.judged() == set()
    bodies = [place for place, (name, _) in enumerate(true) if name == "body"]
    first, second = bodies[:2]
    altered = [*true]
    altered[first] = "body", bytes([true[first][1][0] ^ 1]) + true[first][1][1:]
    swapped = [*true]
    swapped[first], swapped[second] = true[second], true[first]
    left_out = [record for place, record in enumerate(true) if place not in (first - 1, first)]
    twice = [*true[: first + 1], *true[first - 1 :]]
    for records, code in (
        (altered, "upload-altered"),
        (swapped, "upload-altered"),
        (left_out, "transcript-malformed"),
        (twice, "transcript-malformed"),
    ):
        meeting.book.files.append(records)
        assert meeting.judged() == {("coordinator", code)}


def test_coordinator_that_calls_a_round_failed_and_keeps_its_sum_gets_no_second_one_of_it(oracle: Oracle) -> None:
    """It has the sum of that round, which parties opened in good faith, and no other of it. (What the next round's sum tells beside
    it is limit 18.) One party was told before it opened: the others suffice."""
    meeting = Meeting(oracle)
    book = meeting.book
    kept: list[bytes] = []

    def lie() -> list[Any]:
        kept.append(book.sum)
        book.phase = "failed"
        return [book.say("failure", "all", {"manifest": book.view.digest, "code": "openings-too-few"})]

    honest, book._result = book._result, lie
    meeting.begin()
    meeting.until("vote")
    meeting.tell("party/1", "failure", {"manifest": book.view.digest, "code": "openings-too-few"}, "all")
    while not kept:
        meeting.settle()
        meeting.late()
    meeting.settle()
    assert kept == [meeting.plain(1, meeting.devices)] and 1 not in book.contents
    other = book.set_body([0, 1, 2, 3])
    for party in (1, 2, 3, 4):
        meeting.crash(f"party/{party}")
        assert meeting.tell(f"party/{party}", "proposal", other) == "round-stale"
        assert meeting.hand(f"party/{party}", book.certificate[2]) == "round-stale"
    meeting.settle()
    book._result = honest
    meeting.run()
    assert book.sum == meeting.plain(2, meeting.devices) and meeting.judged() == set()
