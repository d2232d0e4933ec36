"""Rounds without a roster: layer 1 alone, one upload a device, whoever comes first; the rules of all rounds, and their attacks."""

from __future__ import annotations

from itertools import chain, combinations

import pytest

from blindsum.protocol.arrivals import ARRIVALS_SPARE, open_arrival
from blindsum.protocol.codec import decode, encode, encode_chunk
from blindsum.protocol.envelope import open_envelope
from blindsum.protocol.errors import Refused
from blindsum.protocol.evidence import verify_evidence, write_evidence
from blindsum.protocol.machines.coordinator import CoordinatorMachine
from blindsum.protocol.machines.device import DeviceMachine, Floor
from blindsum.protocol.machines.party import PartyFloor, PartyMachine
from blindsum.protocol.messages import Header, NoRoster, Proposal, RosterProposal, chunks_of
from blindsum.protocol.revocation import certificate_serial, revocations_issue
from blindsum.protocol.transcript import verify
from blindsum.testing.behaviours import FalseComplaints, GarbageBox, Silent, TwoHeaders, WrongSeeds, WrongSums
from blindsum.testing.checkers import OnlySums
from blindsum.testing.closure import rounds
from blindsum.testing.forgery import Forged, altered, body_of, certificate, hand, proposal, said, vote
from blindsum.testing.scenario import MIXES, scenario
from blindsum.testing.world import World

ALONE = NoRoster(staleness_max=0)


def world(seed: int = 3, **settings: object) -> World:
    return World(seed, **{"devices": 6, "no_roster": ALONE, **settings})  # type: ignore[arg-type]


def closed(**settings: object) -> World:
    """Parties hold all headers and wait for a survivor set; the coordinator is corrupt and keeps quiet."""
    made = world(behaviours={"coordinator": Silent("proposal", "certificate")}, **settings)
    made.start()
    made.until("vote")
    made.settle(100)
    made.stop("coordinator")
    return made


def header_of(made: World, device: str) -> bytes:
    assert made.round.bodies is not None
    return made.round.bodies.raw(made.roster.numbers[device])  # type: ignore[attr-defined]


def listed(made: World, rows: list[list[object]]) -> Forged:
    """A proposal of any list."""
    ref, chunks = chunks_of(encode(rows), made.base.chunk_size)
    body = made.forge("proposal", "coordinator", "parties", Proposal(roster=made.roster.digest, survivors=ref))
    return Forged(body, tuple(encode_chunk(ref.id, index, chunk) for index, chunk in enumerate(chunks)))


# -- rounds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(len(MIXES)))
def test_rounds_without_a_roster_keep_every_rule_under_faults_and_finish_without(seed: int) -> None:
    played = scenario(seed, no_roster=True).play()
    assert played.results, scenario(seed, no_roster=True)


def test_device_sends_one_header_and_its_body_and_nothing_else() -> None:
    made = world()
    kinds: set[str] = set()
    made.network.tap = lambda source, _target, body: (
        kinds.add(open_envelope(body).head.type) if source.startswith("device/") and body[0] == 0xD2 else None,
        body,
    )[1]
    made.run()
    assert kinds <= {"header", "ask"}
    assert made.results[0].count == 6
    assert [event.data["phase"] for event in made.happened("phase")] == [
        *("offer", "manifest", "upload", "check", "vote", "open", "done")
    ]
    made.check()


def test_round_closes_as_soon_as_it_is_full_and_who_came_late_is_in_a_later_one() -> None:
    made = world(devices=9, devices_max=4, corrupt_permille=0, ballots=False)
    made.run(6)
    assert [result.count for result in made.results] == [4] * 6
    assert made.refused("round-stale") + made.refused("upload-late") + made.refused("cohort-full") > 0
    made.check()


def test_round_that_is_not_full_closes_at_its_deadline_with_the_devices_it_has() -> None:
    made = world(devices=5, devices_max=20, devices_min=4, corrupt_permille=50)
    made.run()
    assert made.results[0].count == 5
    made.check()


def test_round_with_fewer_uploads_than_the_least_opens_nothing() -> None:
    made = world(devices=3, devices_max=20, devices_min=4, corrupt_permille=0)
    made.run()
    assert (made.results, made.failure) == ([], "survivors-too-few")
    made.check()


def test_coordinator_that_dies_between_uploads_and_the_vote_goes_on_where_it_was() -> None:
    made = world()
    made.start()
    for phase in ("upload", "check", "vote", "open"):
        made.until(phase)
        made.crash("coordinator")
        for party in (1, 2, 3, 4):
            made.crash(f"party/{party}")
    made.finish()
    assert made.results[0].count == 6
    made.check()


# -- devices that misbehave -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("behaviour", "code"), [(GarbageBox(2), "box-unreadable"), (WrongSeeds(2), "commitment-differs")]
)
def test_device_with_a_bad_box_for_one_party_is_left_out(behaviour: GarbageBox, code: str) -> None:
    made = world(behaviours={"device/d-0003": behaviour}, ballots=True)
    made.run()
    assert made.results[0].survivors == tuple(name for name in made.devices if name != "d-0003")
    assert [(event.data["device"], event.data["code"]) for event in made.happened("left-out")] == [("d-0003", code)]
    made.check()


def test_device_with_no_good_box_is_blamed_by_name_in_the_transcript() -> None:
    made = world(behaviours={"device/d-0003": WrongSeeds(1, 2, 3, 4)})
    made.run()
    made.check()
    report = verify(made.results[0].transcript, trust=made.fleet.trust)
    assert [(fault.principal, fault.code) for fault in report.faults] == [("device/d-0003", "commitment-differs")]


def test_two_headers_of_a_device_are_evidence_that_needs_no_join() -> None:
    made = closed(faulty=["device/d-0002"])
    raw = header_of(made, "d-0002")
    second = made.fleet.resign(raw, altered(body_of(raw, Header), commitments=bytes(32 * 4)))
    step = made.give("party/1", second)
    assert (step.refused.code, step.refused.culprit) == ("second-header", "device/d-0002")
    (row,) = [write.value for write in step.writes if write.key.startswith("evidence/")]
    report = verify_evidence(write_evidence(made.fleet.trust, *decode(row)[1:]), trust=made.fleet.trust)
    assert [(fault.principal, fault.code) for fault in report.faults] == [("device/d-0002", "second-header")]


def test_device_that_shows_parties_different_headers_is_left_out() -> None:
    made = world(behaviours={"device/d-0002": TwoHeaders(1)})
    made.run()
    assert made.results[0].survivors == tuple(name for name in made.devices if name != "d-0002")
    made.check()


def test_upload_with_somebody_elses_certificate_or_none_is_refused() -> None:
    made = closed()
    header = body_of(header_of(made, "d-0001"), Header)
    other = body_of(header_of(made, "d-0002"), Header)
    stolen = made.forge("header", "device/d-0001", "all", altered(header, certificate=other.certificate))
    renamed = made.forge("header", "device/d-0002", "all", altered(header, certificate=header.certificate))
    rows = {name: getattr(header, name) for name in header.__struct_fields__ if name != "certificate"}
    bare = made.forge("header", "device/d-0001", "all", Header(**rows))
    for raw, code in ((stolen, "signature-invalid"), (renamed, "signature-invalid"), (bare, "header-malformed")):
        found = open_arrival(made.view, open_envelope(raw))
        assert isinstance(found, Refused) and found.code == code


def test_upload_copied_from_another_device_cannot_be_opened() -> None:
    """Boxes and commitments are bound to who made them: else a sybil could put an update into a sum that left it out."""
    made = world(devices=6, faulty=["device/d-0005"], behaviours={"device/d-0005": Silent("header", "chunk")})
    made.start()
    made.until(lambda: made.round.bodies and len(made.round.bodies.headers) >= 3)
    victim = next(name for name in made.roster.devices)
    header = body_of(header_of(made, victim), Header)
    own = made.fleet.devices[5].certificate
    body = altered(header.body, digests=bytes(32 * header.body.count))
    copy = made.forge("header", "device/d-0005", "all", altered(header, certificate=own, body=body))
    made.give("party/1", copy)
    assert [event.data["code"] for event in made.happened("complaint", "party/1")] == ["box-unreadable"]
    same = made.forge("header", "device/d-0005", "all", altered(header, certificate=own))
    assert made.give("coordinator", same).refused.code == "header-foreign"
    made.finish()
    made.check()


def test_upload_of_an_earlier_round_is_refused_in_a_later_one() -> None:
    made = world(faulty=["device/d-0001"])
    made.run()
    raw = header_of(made, "d-0001")
    made.start()
    made.until("upload")
    for role in ("coordinator", "party/1"):
        assert made.give(role, raw).refused.code == "round-stale"
    again = made.forge("header", "device/d-0001", "all", body_of(raw, Header))
    assert made.give("coordinator", again).refused.code == "header-foreign"
    made.finish()
    made.check()


# -- parties and coordinators that misbehave --------------------------------------------------------------------------


@pytest.mark.parametrize("behaviour", [WrongSums(), FalseComplaints(), Silent("vote"), Silent("opening", "check")])
def test_one_bad_party_stops_no_round(behaviour: WrongSums) -> None:
    made = world(behaviours={"party/2": behaviour}, ballots=True)
    made.run()
    assert made.results[0].count >= 5
    made.check()


@pytest.mark.parametrize("first", range(4))
def test_two_sets_are_never_both_opened_though_a_party_signs_both(first: int) -> None:
    made = closed(faulty=["party/4"])
    sets = proposal(made, range(6)), proposal(made, range(5))
    shown = [1, 2, 3][:first], [1, 2, 3][first:]
    ballots = []
    for proposed, parties in zip(sets, shown, strict=True):
        votes = [body for party in parties for body in said(hand(made, f"party/{party}", proposed), "vote")]
        ballots.append([*votes, vote(made, 4, "set", proposed.digest)])
    for proposed, votes in zip(sets, ballots, strict=True):
        for party in (1, 2, 3):
            hand(made, f"party/{party}", certificate(made, proposed, votes))
    opened = set()
    for party in (1, 2, 3):
        state = decode(made.actors[f"party/{party}"].store.rows[f"state/{made.task}"])
        opened |= {open_envelope(raw).payload["proposal"] for raw in state["openings"]}
    assert opened == {proposed.digest for proposed, votes in zip(sets, ballots, strict=True) if len(votes) >= 3}
    assert len(opened) <= 1


def test_list_that_names_a_device_twice_or_too_few_of_them_gets_no_vote() -> None:
    made = closed(devices_min=5)
    assert made.round.bodies is not None
    digests = {made.roster.devices[index]: held.digest for index, held in made.round.bodies.headers.items()}
    rows = [[name, digests[name]] for name in sorted(digests)]
    for wrong, code in (
        ([rows[0], *rows], "survivors-malformed"),
        (rows[::-1], "survivors-malformed"),
        ([["D 1", bytes(32)], *rows], "survivors-malformed"),
        ([[0, bytes(32)]], "survivors-malformed"),
        (rows[:4], "survivors-too-few"),
    ):
        step = hand(made, "party/1", listed(made, wrong))
        assert step.refused.code == code
        assert not said(step, "vote")
    unknown = hand(made, "party/1", listed(made, [*rows[:5], ["d-9999", bytes(32)]]))
    assert [decode(encode(open_envelope(raw).payload["missing"])) for raw in said(unknown, "check")] == [[5]]
    assert not said(unknown, "vote")
    assert said(hand(made, "party/1", listed(made, rows)), "vote")


def test_roster_where_the_task_has_none_is_refused() -> None:
    made = closed()
    other = World(3, devices=6)
    other.run()
    proposed = other.forge("roster-proposal", "coordinator", "parties", _roster_proposal(other, made.view.digest))
    assert made.give("party/1", proposed).refused.code == "message-misplaced"


def _roster_proposal(other: World, manifest: bytes) -> RosterProposal:
    return altered(body_of(other.round.state.roster_proposal, RosterProposal), manifest=manifest)


# -- what is lost, and who may refuse it ------------------------------------------------------------------------------


def test_coalitions_below_the_threshold_compute_the_sum_alone_and_from_there_on_every_update() -> None:
    made = world(devices=4, checkers=(OnlySums,))
    made.run()
    made.check()
    round_ = rounds(made, next(each for each in made.checkers if isinstance(each, OnlySums)).tap)[-1]
    parties = [f"party/{number}" for number in range(1, 5)]
    for chosen in chain.from_iterable(combinations(parties, size) for size in range(5)):
        told = sorted(len(combination) for combination in round_.derivable(chosen))
        assert told == ([4] if len(chosen) <= 1 else [1, 1, 1, 1]), chosen


def test_device_takes_part_only_where_its_owner_allows_it() -> None:
    made = world()
    device = made.actors["device/d-0001"].machine
    assert isinstance(device, DeviceMachine)
    device._floor = Floor()
    made.run()
    assert "d-0001" not in made.results[0].survivors
    assert made.actors["device/d-0001"].refusals["policy-floor"] > 0
    made.check()


def test_party_that_insists_on_a_roster_offers_nothing() -> None:
    made = world()
    party = made.actors["party/2"].machine
    assert isinstance(party, PartyMachine)
    party._floor = PartyFloor(roster=True)
    made.run()
    assert made.actors["party/2"].refusals["policy-floor"] > 0
    assert [member.party for member in made.view.members] == [1, 3, 4]
    made.check()


@pytest.mark.parametrize("told", [("coordinator", "party/1", "party/2", "party/3"), ("party/1", "party/2")])
def test_device_revoked_after_its_upload_is_left_out_and_nobody_is_blamed(told: tuple[str, ...]) -> None:
    made = world(devices_max=9, upload_ms=5_000, join_ms=1_000)
    made.start()
    made.until(lambda: made.round.bodies and "d-0002" in made.roster.numbers)  # type: ignore[attr-defined]
    serial = certificate_serial(made.fleet.devices[2].certificate)
    raw = revocations_issue(issuer="test", issuer_key=made.fleet.ca, number=1, revoked={serial: made.now}, now=made.now)
    for role in told:
        machine = made.actors[role].machine
        assert isinstance(machine, PartyMachine | CoordinatorMachine)
        made.apply(made.actors[role], machine.revoke(raw), faulty=False)
    made.finish()
    assert made.results[0].survivors == tuple(name for name in made.devices if name != "d-0002")
    made.check()


def test_headers_beyond_twice_the_cohort_are_not_looked_at() -> None:
    """Nine devices announce uploads for a round of two, and send none. The broker shows the headers to a party, too."""
    names = [f"device/d-{number:04d}" for number in range(9)]
    made = world(devices=9, devices_max=2, corrupt_permille=0, behaviours=dict.fromkeys(names, Silent("chunk")))

    def show(source: str, target: str, body: bytes) -> bytes:
        if source in names and open_envelope(body).head.type == "header":
            made.network.push("party/1", body, made.now + 20)
        return body

    made.network.tap = show
    made.run()
    assert made.failure == "survivors-too-few"
    assert made.round.bodies is not None and len(made.round.bodies.headers) == ARRIVALS_SPARE * 2
    for role in ("coordinator", "party/1"):
        assert made.actors[role].refusals["cohort-full"] > 0
