"""Attacks on uploads: bad boxes, two headers, copies, late ones, and a coordinator that drops, adds or alters them."""

from __future__ import annotations

import pytest

from blindsum.protocol.codec import decode, decode_chunk, encode_chunk
from blindsum.protocol.envelope import open_envelope, peek
from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.machines.coordinator import CoordinatorMachine
from blindsum.protocol.machines.device import DeviceMachine
from blindsum.protocol.masks import edge_secret, edge_stream, mask_upload
from blindsum.protocol.messages import Check, Header, Receipt, Result, chunks_of
from blindsum.protocol.params import Committee
from blindsum.protocol.prg import apply
from blindsum.protocol.ring import equal, pack, reduce, subtract_packed, unpack, zeros
from blindsum.protocol.transcript import read_records, verify, write_records
from blindsum.testing.behaviours import Behaviour, GarbageBox, Silent, TwoHeaders, WrongSeeds
from blindsum.testing.entropy import Entropy
from blindsum.testing.forgery import altered, body_of, hand, proposal, said
from blindsum.testing.store import DictStore
from blindsum.testing.world import World


def is_kind(body: bytes, kind: str) -> bool:
    return peek(body) and open_envelope(body).head.type == kind


def body_bytes(world: World, index: int) -> bytes:
    """The masked vector of a device as the coordinator holds it."""
    rows = world.actors["coordinator"].store.scan(f"blob/{world.round.bodies.headers[index].body.id.hex()}/")
    return b"".join(value for _, value in rows)


# -- boxes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("party", [1, 2, 3, 4])
@pytest.mark.parametrize(("behaviour", "code"), [(GarbageBox, "box-unreadable"), (WrongSeeds, "commitment-differs")])
def test_device_with_a_bad_box_for_one_party_is_left_out_and_the_round_finishes(
    party: int, behaviour: type[GarbageBox], code: str
) -> None:
    world = World(6, devices=6, behaviours={"device/d-0003": behaviour(party)}, ballots=True)
    world.run()
    assert world.results[0].survivors == tuple(name for name in world.devices if name != "d-0003")
    assert world.happened("complaint", f"party/{party}")[0].data["code"] == code
    assert [event.data for event in world.happened("left-out")] == [
        {"task": "sum", "round": 1, "device": "d-0003", "code": code}
    ]
    world.check()


def test_device_with_no_good_box_at_all_is_blamed() -> None:
    world = World(6, devices=6, behaviours={"device/d-0003": WrongSeeds(1, 2, 3, 4)})
    world.run()
    faults = {(event.data["culprit"], event.data["code"]) for event in world.happened("fault")}
    assert faults == {("device/d-0003", "commitment-differs")}
    world.check()


@pytest.mark.parametrize(
    "changes",
    [
        {"commitments": b""},
        {"edges": b""},
        {"boxes": []},
        {"roster": bytes(32)},
        {"manifest": bytes(32)},
        {"index": 0},
        {"body": chunks_of(b"short", 1024)[0]},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_header_without_its_parts_is_refused_and_its_device_left_out(changes: dict[str, object]) -> None:
    class Maimed(Behaviour):
        def send(self, world: World, target: str, kind: str, body: bytes) -> bytes | None:
            return world.fleet.resign(body, altered(body_of(body, Header), **changes)) if kind == "header" else body

    world = World(6, devices=5, behaviours={"device/d-0003": Maimed()})
    world.run()
    assert world.results[0].survivors == ("d-0000", "d-0001", "d-0002", "d-0004")
    assert world.refused("header-malformed") + world.refused("header-foreign") > 0
    world.check()


# -- two uploads ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parties", [(1,), (1, 2), (1, 2, 3, 4)])
def test_device_that_shows_two_headers_is_left_out(parties: tuple[int, ...]) -> None:
    world = World(6, devices=6, behaviours={"device/d-0002": TwoHeaders(*parties)}, ballots=True)
    world.run()
    assert "d-0002" not in world.results[0].survivors
    assert world.results[0].count == 5
    world.check()


def test_two_headers_of_a_device_are_kept_as_proof() -> None:
    world = World(6, devices=4, faulty=("device/d-0001",))
    world.start()
    world.until(lambda: 1 in world.round.bodies.headers if world.round.bodies else False)
    world.settle(30)
    first = world.round.bodies.raw(1)
    header = body_of(first, Header)
    other = world.forge("header", "device/d-0001", "all", altered(header, edges=bytes(len(header.edges))))
    for role in ("coordinator", "party/1"):
        refused = world.give(role, other).refused
        assert (refused.code, refused.culprit) == ("second-header", "device/d-0001")
    proof = next(value for _, value in world.actors["coordinator"].store.scan("evidence/"))
    assert decode(proof) == ["device/d-0001", first, other, world.round.joins["d-0001"][0]]
    world.finish()
    assert world.results[0].survivors == ("d-0000", "d-0002", "d-0003")
    world.check()


def test_device_that_shows_a_second_header_after_the_check_is_named_and_stops_nothing() -> None:
    """Found by fuzzing: every party refused the set that it had just found good, and the round failed."""
    world = World(5, devices=4, faulty=("device/d-0001",))
    world.start()
    world.until("vote")
    raw = world.round.bodies.raw(1)
    first = body_of(raw, Header)
    other = world.forge("header", "device/d-0001", "all", altered(first, edges=bytes(len(first.edges))))
    parties = [f"party/{number}" for number in range(1, 5)]
    for role in parties:
        refused = world.give(role, other).refused
        assert (refused.code, refused.culprit) == ("second-header", "device/d-0001")
        world.crash(role)
    world.finish()
    assert world.results[0].survivors == ("d-0000", "d-0001", "d-0002", "d-0003")
    proof = decode(next(value for _, value in world.actors["party/1"].store.scan("evidence/")))
    assert proof[:3] == ["device/d-0001", raw, other]
    world.check()


def test_device_uploads_once_however_often_it_is_asked_or_restarted() -> None:
    world = World(6, devices=4)
    world.start()
    world.until("upload")
    world.until(lambda: world.happened("uploading", "device/d-0000"))
    machine = world.actors["device/d-0000"].machine
    assert isinstance(machine, DeviceMachine)
    for _ in range(2):
        with pytest.raises(BlindsumError) as caught:
            machine.upload(world.task, 1, zeros(world.base.segments), world.now)
        assert caught.value.code == "round-over"
        world.crash("device/d-0000")
        machine = world.actors["device/d-0000"].machine
        assert isinstance(machine, DeviceMachine)
    world.finish()
    world.settle()
    world.crash("device/d-0000")
    assert world.give("device/d-0000", world.round.state.announcement).refused.code == "round-stale"
    world.check()


def test_late_copy_of_an_announcement_does_not_make_a_device_join_again() -> None:
    """Found by simulation: a device that had left a round joined it again under another key, and looked like a cheat."""
    world = World(6, devices=5, devices_max=4, join_ms=20_000)
    world.run()
    world.settle(1_000)
    turned_away = [who for who, event in world.events if event.name == "round-abandoned"]
    assert len(turned_away) == 1, "five devices for four places"
    assert world.now < world.view.manifest.join_until, "and joining is not over yet"
    step = world.give(turned_away[0], world.round.state.announcement)
    assert step.refused.code == "round-stale" and not said(step, "join")
    world.check()


def test_device_from_an_old_backup_gives_two_headers_and_neither_vector_away() -> None:
    """A device that is put back to before its upload makes another: that shows as two headers, and what the two bodies have in
    common stays covered by the self masks, which are fresh in each."""
    world = World(6, devices=4, faulty=("device/d-0000",))
    world.start()
    world.until("upload")
    world.until(lambda: world.actors["device/d-0000"].machine.phase(world.task) == "joined")
    backup = world.backup("device/d-0000")
    world.until(lambda: 0 in world.round.bodies.complete)
    first = body_bytes(world, 0)
    world.restore("device/d-0000", backup)
    world.give("device/d-0000", world.round.state.roster)
    entries = decode_entries(world)
    world.give("device/d-0000", entries)
    assert len(world.happened("uploading", "device/d-0000")) == 2
    rows = world.actors["device/d-0000"].store
    second = b"".join(value for _, value in rows.scan("blob/") if len(value) == len(first))
    assert len(second) == len(first)
    world.finish()
    assert world.refused("second-header") > 0
    segments = world.base.segments
    lanes = unpack(segments, first)
    subtract_packed(segments, lanes, second)
    reduce(segments, lanes)
    assert not equal(segments, lanes, zeros(segments)), "the self masks are fresh"
    world.check()


def decode_entries(world: World) -> bytes:
    """The chunk with the entries of the current roster."""
    ref = world.coordinator._desk.roster_proposal(world.round).entries
    data = world.actors["coordinator"].store.rows[f"blob/{ref.id.hex()}/000000"]
    return encode_chunk(ref.id, 0, data)


def test_copied_body_takes_no_place_and_blames_nobody() -> None:
    """A corrupt device that announces an honest device's vector as its own gains nothing: the second header with a body is
    refused, and since nothing shows whose it was, nobody is blamed."""
    world = World(6, devices=5, faulty=("device/d-0004",))
    world.start()
    world.until("upload")
    world.stop("device/d-0004")
    world.until(lambda: 0 in world.round.bodies.headers)
    stolen = body_of(world.round.bodies.raw(0), Header)
    copy = world.forge("header", "device/d-0004", "all", altered(stolen, index=4))
    step = world.give("coordinator", copy)
    assert (step.refused.code, step.refused.culprit) == ("header-foreign", "")
    assert body_of(said(step, "receipt")[0], Receipt).status == "refused"
    world.finish()
    assert world.results[0].survivors == ("d-0000", "d-0001", "d-0002", "d-0003")
    world.check()


# -- late ones --------------------------------------------------------------------------------------------------------


def test_late_upload_is_refused_and_stays_masked_though_its_edges_were_opened() -> None:
    """The device had been declared dropped: its edges are opened. Its own self masks never are, so its vector stays hidden from
    everybody who holds all its edges."""
    held: list[tuple[str, bytes]] = []
    released = False

    def broker(source: str, target: str, body: bytes) -> bytes | None:
        late = source == "device/d-0004" and (not peek(body) or is_kind(body, "header")) and not released
        if late:
            held.append((target, body))
        return None if late else body

    world = World(6, devices=5, checkers=())
    world.network.tap = broker
    world.start()
    world.until("vote")
    world.settle(200)
    released = True
    held_header = next(body for _, body in held if peek(body))
    codes = {target: world.give(target, held_header).refused.code for target in ("coordinator", "party/1", "party/2")}
    assert codes == {"coordinator": "upload-late", "party/1": "round-closed", "party/2": "round-closed"}
    chunk = next(body for target, body in held if target == "coordinator" and not peek(body))
    assert world.give("coordinator", chunk).refused.code == "chunk-unexpected"
    world.finish()
    assert world.results[0].survivors == ("d-0000", "d-0001", "d-0002", "d-0003")
    # the attacker has all edges of the late device (opened from the other side), its body and its header
    base, header = world.base, body_of(held_header, Header)
    chunks = {body for target, body in held if target == "coordinator" and not peek(body)}
    data = b"".join(decode_chunk(body)[2] for body in sorted(chunks))
    assert chunks_of(data, base.chunk_size)[0] == header.body
    lanes = unpack(base.segments, data)
    streams = []
    for other in range(4):
        private = world.drawn[f"device/d-{other:04d}"][0]
        secret = edge_secret(world.view, world.roster, private, other, 4)
        assert secret is not None
        streams.append((edge_stream(world.view, secret), 1))
    apply(base.segments, lanes, streams, suite=world.view.task.suite)
    assert pack(base.segments, lanes) != world.truth[1, "d-0004"]
    for party in (1, 2, 3, 4):
        store = world.actors[f"party/{party}"].store
        assert not any(store.holds(seed) for seed in world.drawn["device/d-0004"])


def test_receipt_says_that_an_upload_was_too_late() -> None:
    world = World(6, devices=4)
    world.network.tap = lambda source, target, body: (
        None if source == "device/d-0003" and target == "coordinator" and not is_kind(body, "join") else body
    )
    world.start()
    world.until("check")
    header = world.actors["device/d-0003"].store.rows[f"message/{world.task}/header"]
    receipt = said(world.give("coordinator", header), "receipt")[0]
    assert body_of(receipt, Receipt).code == "upload-late"
    world.give("device/d-0003", receipt)
    assert world.happened("round-abandoned", "device/d-0003")[0].data["code"] == "upload-late"
    world.finish()
    assert world.results[0].count == 3
    world.check()


# -- the coordinator and uploads --------------------------------------------------------------------------------------


def closing(*, corrupt: tuple[str, ...] = (), devices: int = 5, **task: object) -> World:
    behaviours = {"coordinator": Silent("proposal", "certificate")}
    world = World(6, devices=devices, behaviours=behaviours, faulty=corrupt, committee=Committee.for_f(1), **task)
    world.start()
    world.until("vote")
    world.settle(100)
    world.stop("coordinator")
    return world


def test_coordinator_that_adds_an_upload_of_its_own_gets_no_vote() -> None:
    """It would need the device's signature under a header the parties have seen."""
    world = closing(devices=6, join_ms=10_000)
    headers = {index: world.round.bodies.headers[index].digest for index in range(6)}
    step = hand(world, "party/1", proposal(world, range(6), headers={**headers, 5: bytes(range(32))}))
    assert not said(step, "vote")
    assert (5, "second-header") in body_of(said(step, "check")[0], Check).bad


def test_party_votes_for_no_device_whose_header_it_has_not_seen() -> None:
    world = closing()
    world.actors["party/1"].machine._rounds[world.task].headers.pop(2)
    step = hand(world, "party/1", proposal(world, range(5)))
    assert not said(step, "vote")
    assert body_of(said(step, "check")[0], Check).missing == [2]
    world.give("party/1", world.round.bodies.raw(2))
    assert said(hand(world, "party/1", proposal(world, range(5))), "vote")


def test_header_that_the_coordinator_signs_for_a_device_is_refused() -> None:
    world = closing()
    header = body_of(world.round.bodies.raw(0), Header)
    forged = altered(header, edges=bytes(len(header.edges)))
    by_coordinator = world.forge("header", "coordinator", "all", forged)
    assert world.give("party/1", by_coordinator).refused.code == "sender-wrong-role"
    own = world.round.bodies.raw(0)
    wrong_signature = world.fleet.resign(own, forged)[:-64] + own[-64:]
    assert world.give("party/1", wrong_signature).refused.code == "signature-invalid"
    other_device = world.fleet.forge("header", "device/d-0001", "all", forged, task=world.task, number=1)
    assert world.give("party/1", other_device).refused.code == "header-foreign"


def finished_world() -> tuple[World, dict[str, list[bytes]]]:
    world = World(6, devices=4)
    world.run()
    world.check()
    return world, read_records(world.results[0].transcript)


def verdict(world: World, records: dict[str, list[bytes]]) -> set[tuple[str, str]]:
    """Whom `verify` names for a transcript that the coordinator has changed."""
    pairs = ((name, data) for name, rows in records.items() for data in rows)
    report = verify(b"".join(write_records(pairs)), trust=world.fleet.trust)
    return {(fault.principal, fault.code) for fault in report.faults}


def test_transcript_shows_an_upload_that_was_altered_dropped_added_or_swapped() -> None:
    world, records = finished_world()
    assert verdict(world, records) == set()
    body = bytearray(records["body"][0])
    body[0] ^= 1
    cases = {
        "altered": {"body": [bytes(body), *records["body"][1:]]},
        "dropped": {"body": records["body"][1:], "header": records["header"][1:]},
        "added": {"body": [*records["body"], records["body"][0]], "header": [*records["header"], records["header"][0]]},
        "swapped": {"body": [records["body"][1], records["body"][0], *records["body"][2:]]},
    }
    for name, changed in cases.items():
        faults = verdict(world, {**records, **changed})
        assert {principal for principal, _ in faults} == {"coordinator"}, name
        assert {code for _, code in faults} <= {"upload-altered", "transcript-malformed"}, name


def test_transcript_shows_a_published_sum_that_is_not_that_of_the_uploads() -> None:
    world, records = finished_world()
    segments, size = world.base.segments, world.base.chunk_size
    lanes = unpack(segments, records["sum"][0])
    lanes[1][1] += 5  # an exact statistic, which the model does not depend on
    total = pack(segments, lanes)
    result = altered(body_of(records["result"][0], Result), sum=chunks_of(total, size)[0])
    changed = {"sum": [total], "result": [world.forge("result", "coordinator", "all", result)]}
    assert verdict(world, {**records, **changed}) == {("coordinator", "sum-differs")}


def test_upload_of_a_stranger_with_its_own_keys_is_no_part_of_any_round() -> None:
    world = closing()
    stranger = Entropy(5, "stranger")
    upload = mask_upload(
        world.view, world.roster, index=0, private=stranger(32), lanes=zeros(world.base.segments), random=stranger,
        seal=lambda public, info, plain: b"box",
    )  # fmt: skip
    body = world.fleet.forge("header", "operator", "all", upload.header, task=world.task, number=1)
    assert world.give("party/1", body).refused.code == "sender-wrong-role"


def test_coordinator_that_lost_its_store_makes_no_second_round_of_a_number() -> None:
    """It begins at round 1 again; the parties have spent that number for ever."""
    world = World(6, devices=4, faulty=("coordinator",))
    world.run()
    world.settle()
    world.restore("coordinator", DictStore())
    machine = world.actors["coordinator"].machine
    assert isinstance(machine, CoordinatorMachine)
    world.apply(world.actors["coordinator"], machine.add_task(world.task_raw, plan=world.plan, model=world.model))
    world.apply(world.actors["coordinator"], machine.start(world.task, world.now))
    world.play(lambda: not world.round.active, 600_000)
    assert (world.phase, world.failure) == ("failed", "offers-too-few")
    assert sum(world.actors[f"party/{party}"].refusals["round-stale"] for party in (1, 2, 3, 4)) >= 4
