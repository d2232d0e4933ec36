"""Attacks on what a round is: manifests without a quorum, two manifests, forged models, wrong clocks, unsafe tasks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from blindsum.protocol.blobs import read_blob
from blindsum.protocol.codec import encode_chunk
from blindsum.protocol.errors import BlindsumError, Refused
from blindsum.protocol.keys import edge_keypair
from blindsum.protocol.machines.device import Floor
from blindsum.protocol.machines.party import PartyFloor
from blindsum.protocol.masks import header_fault, mask_upload, self_sum
from blindsum.protocol.messages import Header, Offer, OfferRequest, Result, Task, Vote, chunks_of
from blindsum.protocol.params import Committee
from blindsum.protocol.ring import add_packed, equal, pack, packed_size, reduce, subtract_packed, unpack, zeros
from blindsum.protocol.view import RoundView, open_manifest, open_task
from blindsum.testing.behaviours import Silent
from blindsum.testing.entropy import Entropy
from blindsum.testing.fleet import make_fleet, make_task
from blindsum.testing.forgery import Forged, altered, announcement, body_of, hand, manifest, said, vote
from blindsum.testing.world import World


def world_with_a_manifest(*, corrupt: tuple[int, ...] = (), **settings: object) -> World:
    """A world whose coordinator is corrupt: parties have voted, and no device has been shown anything."""
    world = World(
        4,
        behaviours={"coordinator": Silent("announcement", "manifest")},
        faulty=[f"party/{party}" for party in corrupt],
        **settings,
    )
    world.start()
    world.until("manifest")
    world.settle(100)
    world.stop("coordinator")
    return world


def votes_of(world: World, parties: list[int], shown: Forged) -> list[bytes]:
    return [body for party in parties for body in said(hand(world, f"party/{party}", shown), "vote")]


# -- too few votes ----------------------------------------------------------------------------------------------------


def test_device_joins_no_round_without_a_quorum_of_distinct_genuine_votes() -> None:
    world = world_with_a_manifest(corrupt=(4,))
    shown = manifest(world)
    one = votes_of(world, [1], shown)[0]
    corrupt = vote(world, 4, "manifest", shown.digest)
    signed_by_another = world.fleet.forge(
        "vote", "party/1", "coordinator", body_of(one, Vote), task=world.task, number=1
    )
    assert signed_by_another == one
    forged = one[:-64] + corrupt[-64:]
    for votes in (
        [],
        [one, corrupt],
        [one, one, one],
        [one, corrupt, forged],
        [one, corrupt, vote(world, 4, "set", shown.digest)],
        [one, corrupt, world.forge("vote", "party/4", "coordinator", body_of(corrupt, Vote), number=2)],
    ):
        step = world.give("device/d-0000", announcement(world, shown, votes))
        assert step.refused.code == "votes-too-few"
        assert not said(step, "join")
    everybody = [one, corrupt, *votes_of(world, [2], shown)]
    assert said(world.give("device/d-0000", announcement(world, shown, everybody)), "join")


def test_party_that_was_away_follows_no_manifest_without_a_quorum() -> None:
    world = world_with_a_manifest(corrupt=(3, 4))
    shown = manifest(world)
    votes = votes_of(world, [2], shown)
    step = world.give("party/1", announcement(world, shown, [*votes, vote(world, 4, "manifest", shown.digest)]))
    assert step.refused.code == "votes-too-few"
    assert "manifest" not in str(step.writes)


# -- two manifests ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [0, 1, 2, 3])
def test_two_manifests_never_both_have_a_quorum_though_one_party_signs_both(first: int) -> None:
    world = world_with_a_manifest(corrupt=(4,))
    one = manifest(world)
    other = manifest(world, expires_at=world.view.manifest.expires_at - 1)
    votes = {
        shown.digest: [*votes_of(world, parties, shown), vote(world, 4, "manifest", shown.digest)]
        for shown, parties in ((one, [1, 2, 3][:first]), (other, [1, 2, 3][first:]))
    }
    joined = [
        device
        for device, shown in (("device/d-0000", one), ("device/d-0001", other))
        if said(world.give(device, announcement(world, shown, votes[shown.digest])), "join")
    ]
    assert len(joined) <= 1


def test_party_refuses_second_manifest_after_restart_and_keeps_the_proof() -> None:
    world = world_with_a_manifest()
    one, other = manifest(world), manifest(world, expires_at=world.view.manifest.expires_at - 1)
    first = votes_of(world, [1], one)
    world.crash("party/1")
    step = hand(world, "party/1", other)
    assert (step.refused.code, step.refused.culprit) == ("second-manifest", "coordinator")
    assert any(write.key.startswith("evidence/") for write in step.writes)
    assert votes_of(world, [1], one) == first, "the same vote, byte for byte"


def other_manifest(world: World) -> RoundView:
    """The round as a device sees it that is shown another model: any difference in the manifest does the same."""
    shown = manifest(world, expires_at=world.view.manifest.expires_at - 1)
    view = open_manifest(world.base, shown.body)
    assert isinstance(view, RoundView)
    return view


def test_devices_shown_different_manifests_give_a_sum_of_noise() -> None:
    """Every key depends on the manifest, so what one device was shown and the others were not cannot be taken out of the sum
    (Pasquini et al., CCS 2022)."""
    world = World(4, devices=4)
    world.run()
    roster, view, base = world.roster, world.view, world.base
    random = Entropy(9, "masks")
    keys = [random(32) for _ in range(4)]
    roster = replace(roster, keys=tuple(edge_keypair(key)[1] for key in keys))
    boxes: dict[tuple[int, bytes], bytes] = {}

    def upload(index: int, seen: RoundView) -> bytes:
        def seal(public: bytes, info: bytes, plain: bytes) -> bytes:
            boxes[index, public] = plain
            return b"sealed"

        made = mask_upload(
            seen, roster, index=index, private=keys[index], lanes=zeros(base.segments), random=random, seal=seal
        )
        return b"".join(made.chunks)

    def opened(views: list[RoundView]) -> bool:
        """Whether the sum of four zero vectors, unmasked under `view`, is zero."""
        lanes = zeros(base.segments)
        for index, seen in enumerate(views):
            add_packed(base.segments, lanes, upload(index, seen))
        for subset, outside in enumerate(base.self_subsets):
            holder = next(member for member in view.members if member.party not in outside)
            place = [s for s, other in enumerate(base.self_subsets) if holder.party not in other].index(subset)
            seeds = [(index, boxes[index, holder.box_key][32 * place : 32 * place + 32]) for index in range(4)]
            subtract_packed(base.segments, lanes, self_sum(view, roster, subset, seeds))
        reduce(base.segments, lanes)
        return equal(base.segments, lanes, zeros(base.segments))

    assert opened([view] * 4)
    for stranger in range(4):
        views = [view] * 4
        views[stranger] = other_manifest(world)
        assert not opened(views)


def test_header_made_under_another_manifest_is_a_complaint() -> None:
    world = World(4, devices=4)
    world.run()
    header = body_of(world.round.bodies.raw(0), Header)
    strange = altered(header, manifest=other_manifest(world).digest)
    size = packed_size(world.base.segments)
    assert header_fault(world.view, world.roster, header, size) == ""
    assert header_fault(world.view, world.roster, strange, size) == "header-foreign"


# -- the chain of models ----------------------------------------------------------------------------------------------


def test_parties_vote_for_no_model_that_does_not_follow_from_the_last_sum() -> None:
    world = World(4, devices=4, faulty=("coordinator",))
    world.run(2)
    world.settle()
    model = np.frombuffer(world.coordinator.model(world.task), "<f4").copy()
    model[0] += 1.0
    poisoned = chunks_of(model.tobytes(), world.base.chunk_size)[0]
    chain = world.coordinator._desk.chain(world.base)[0]
    started(world)
    for changes in (
        {"model": poisoned},
        {"previous": bytes(range(32))},
        {"previous": bytes(range(32)), "model": poisoned},
    ):
        shown = manifest(world, **changes)
        for party in (1, 2, 3, 4):
            step = hand(world, f"party/{party}", shown)
            assert step.refused.code == "chain-differs"
            assert step.refused.culprit == ("" if "previous" in changes else "coordinator")
            assert not said(step, "vote")
    assert world.view.manifest.previous == chain
    restart = manifest(world, previous=bytes(32), model=world.base.task.model)
    assert hand(world, "party/1", restart).refused.code == "chain-differs", "nor back to the first model"
    assert votes_of(world, [1, 2, 3, 4], manifest(world)), "the right one gets its votes"


def started(world: World) -> None:
    """Begin a round, and keep the coordinator's own manifest from the parties."""
    world.actors["coordinator"].behaviour = Silent("manifest")
    world.start()
    world.until("manifest")
    world.settle(100)
    world.stop("coordinator")


def test_first_round_starts_from_the_model_the_operator_signed() -> None:
    world = world_with_a_manifest()
    other = chunks_of(np.ones(50, "<f4").tobytes(), world.base.chunk_size)[0]
    step = hand(world, "party/1", manifest(world, model=other))
    assert (step.refused.code, step.refused.culprit) == ("manifest-differs", "coordinator")


def test_party_that_was_away_catches_up_and_votes_again() -> None:
    world = World(4, devices=4)
    world.start()
    world.stop("party/3")
    world.finish()
    world.start()
    world.stop("party/3")
    world.finish()
    world.run(2)
    world.settle()
    assert [event.data["round"] for event in world.happened("followed", "party/3")] == [1, 2, 3, 4]
    assert world.happened("opened", "party/3")[-1].data["round"] == 4
    world.check()


def test_second_result_of_a_round_is_refused_before_and_after_the_first_is_followed() -> None:
    world = World(4, devices=4, faulty=("coordinator",))
    world.start()
    world.until("join")
    world.stop("party/3")
    world.finish()
    world.settle()
    result = body_of(world.round.state.result, Result)
    other = world.forge("result", "coordinator", "all", altered(result, count=1))
    world.crash("party/3")
    assert world.give("party/3", world.round.state.result).refused is None
    for party in ("party/1", "party/3"):
        refused = world.give(party, other).refused
        assert (refused.code, refused.culprit) == ("second-result", "coordinator")


def test_published_sum_or_model_that_does_not_fit_is_not_followed() -> None:
    for field, code in (("model", "model-differs"), ("sum", "sum-malformed")):
        world = World(4, devices=4, faulty=("coordinator",))
        world.start()
        world.until("open")
        world.actors["coordinator"].behaviour = Silent("result", "chunk")
        world.finish()
        world.settle()
        result = body_of(world.round.state.result, Result)
        rows = world.actors["coordinator"].store
        data = read_blob(rows, getattr(result, field))
        at = 3 * 50 + 7  # in a sum: the sign of the total weight
        ref, chunks = chunks_of(data[:at] + b"\xff" + data[at + 1 :], world.base.chunk_size)
        lie = world.forge("result", "coordinator", "all", altered(result, **{field: ref}))
        blob, right = (ref, chunks) if field == "sum" else (result.sum, [read_blob(rows, result.sum)])
        step = hand(world, "party/1", Forged(lie, (encode_chunk(blob.id, 0, right[0]),)))
        assert (step.refused.code, step.refused.culprit) == (code, "coordinator")
        assert not world.happened("followed", "party/1")


# -- clocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skew_s", [-301, 301])
def test_manifest_from_another_time_gets_no_vote(skew_s: int) -> None:
    world = world_with_a_manifest()
    times = ("issued_at", "join_until", "upload_until", "expires_at")
    shown = manifest(world, **{name: getattr(world.view.manifest, name) + skew_s * 1000 for name in times})
    for party in (1, 2, 3, 4):
        step = hand(world, f"party/{party}", shown)
        assert step.refused.code == "clock-skew"
        assert not said(step, "vote")


def test_device_joins_no_round_from_the_future_nor_from_the_past() -> None:
    world = world_with_a_manifest(corrupt=(1, 2, 3))
    times = ("issued_at", "join_until", "upload_until", "expires_at")
    for skew_ms, code in ((301_000, "clock-skew"), (-301_000, "round-stale")):
        shown = manifest(world, **{name: getattr(world.view.manifest, name) + skew_ms for name in times})
        votes = [vote(world, party, "manifest", shown.digest) for party in (1, 2, 3)]
        step = world.give("device/d-0000", announcement(world, shown, votes))
        assert step.refused.code == code
        assert not said(step, "join")


def test_round_may_not_hold_secrets_longer_than_its_task_allows() -> None:
    world = world_with_a_manifest()
    times = world.view.manifest
    for changes in (
        {"expires_at": times.expires_at + 3_600_000},
        {"upload_until": times.upload_until + 3_600_000, "expires_at": times.expires_at + 3_600_000},
        {"join_until": times.issued_at},
        {"expires_at": times.upload_until},
    ):
        assert hand(world, "party/1", manifest(world, **changes)).refused.code == "manifest-differs"


# -- offers -----------------------------------------------------------------------------------------------------------


def test_manifest_with_another_offer_of_a_party_than_it_made_is_refused() -> None:
    """A coordinator cannot put a box key of its own in a party's place, nor an offer of another round."""
    world = world_with_a_manifest(corrupt=(4,))
    offers = list(world.view.manifest.offers)
    stolen = altered(body_of(offers[3], Offer), box_key=body_of(offers[3], Offer).box_key)
    not_mine = world.forge("offer", "party/4", "coordinator", stolen)
    fakes = {
        "signed by the coordinator": world.fleet.resign(offers[3], stolen)[:-64] + bytes(64),
        "of another round": world.forge("offer", "party/4", "coordinator", stolen, number=2),
        "not an offer": vote(world, 4, "set", bytes(32)),
    }
    assert not_mine == offers[3]
    for offer in fakes.values():
        step = hand(world, "party/1", manifest(world, offers=[*offers[:3], offer]))
        assert (step.refused.code, step.refused.culprit) == ("offer-malformed", "coordinator")
    for chosen in (offers[:2], [offers[0]] * 4, offers[::-1]):
        assert hand(world, "party/1", manifest(world, offers=chosen)).refused.code == "offers-too-few"
    mine = world.forge(
        "offer", "party/4", "coordinator", altered(body_of(offers[3], Offer), beacon_commitment=bytes(32))
    )
    step = hand(world, "party/4", manifest(world, offers=[*offers[:3], mine]))
    assert step.refused.code == "memory-lost", "where its own key signed it, the party has forgotten an earlier life"


# -- tasks ------------------------------------------------------------------------------------------------------------


def signed_task(changes: dict[str, object], *, devices_max: int = 100) -> Task | object:
    """Whether all roles would open a task with these fields."""
    fleet = make_fleet(6, parties=4, devices=0)
    raw, _, _ = make_task(fleet, committee=Committee.for_f(1), devices_max=devices_max)
    task = altered(body_of(raw, Task), **changes)
    return open_task(fleet.trust, fleet.resign(raw, task))


def test_task_whose_sums_could_wrap_is_refused() -> None:
    fleet = make_fleet(6, parties=4, devices=0)
    raw, _, _ = make_task(fleet, committee=Committee.for_f(1), devices_max=100)
    task = body_of(raw, Task)
    one_bit_more = altered(task.codec, bits=task.codec.bits + 1)
    for changes in (
        {"codec": one_bit_more},
        {"codec": altered(task.codec, weight_max=2 * task.codec.weight_max + 1)},
        {"devices_max": 2 * task.devices_max + 1},
        {"segments": [altered(task.segments[0], width=16), task.segments[1]]},
    ):
        refused = signed_task(changes)
        assert isinstance(refused, Refused) and refused.code == "parameters-unsafe", changes
    assert not isinstance(signed_task({}), Refused)


def test_coordinator_takes_on_no_task_whose_sums_could_wrap() -> None:
    world = World(4, devices=4)
    task = body_of(world.task_raw, Task)
    worse = altered(task, codec=altered(task.codec, bits=task.codec.bits + 1))
    with pytest.raises(BlindsumError, match="parameters-unsafe") as caught:
        world.coordinator.add_task(world.fleet.resign(world.task_raw, worse), plan=world.plan, model=world.model)
    assert caught.value.code == "task-invalid"


@pytest.mark.parametrize(
    "threat",
    [
        {"quorum": 2},  # 2-of-4: two quorums share nobody
        {"threshold": 1},  # one lying party holds every seed
        {"malicious_parties": 2},
        {"parties": 3, "threshold": 2, "quorum": 2},
        {"corrupt_permille": 600, "dropped_permille": 600},
        {"cohort_min": 101},
    ],
)
def test_task_whose_committee_or_cohort_is_unsafe_is_refused(threat: dict[str, int]) -> None:
    fleet = make_fleet(6, parties=4, devices=0)
    raw, _, _ = make_task(fleet, committee=Committee.for_f(1), devices_max=100)
    task = body_of(raw, Task)
    refused = signed_task({"threat": altered(task.threat, **threat)})
    assert isinstance(refused, Refused) and refused.code == "parameters-unsafe"


def test_task_for_other_organisations_or_not_signed_by_the_operator_is_refused() -> None:
    refused = signed_task({"trust": bytes(32)})
    assert isinstance(refused, Refused) and refused.code == "trust-differs"
    world = World(4, devices=4)
    task = body_of(world.task_raw, Task)
    by_coordinator = world.forge("task", "coordinator", "all", task, number=0)
    refused = open_task(world.fleet.trust, by_coordinator)
    assert isinstance(refused, Refused) and refused.code == "sender-wrong-role"


def test_second_record_under_a_task_name_is_refused_by_a_party() -> None:
    world = World(4, devices=4)
    world.run()
    task = body_of(world.task_raw, Task)
    weaker = world.fleet.resign(world.task_raw, altered(task, devices_min=3))
    body = world.forge("offer-request", "coordinator", "party/1", OfferRequest(task=weaker), number=2)
    assert world.give("party/1", body).refused.code == "task-differs"


def test_floors_of_devices_and_parties_stand_above_any_task() -> None:
    world = world_with_a_manifest(corrupt=(1, 2, 3))
    shown = manifest(world)
    votes = [vote(world, party, "manifest", shown.digest) for party in (1, 2, 3)]
    device = world.actors["device/d-0000"].machine
    device._floor = Floor(cohort_min=3)
    step = world.give("device/d-0000", announcement(world, shown, votes))
    assert step.refused.code == "policy-floor"
    fresh = World(4, devices=4)
    party = fresh.actors["party/1"].machine
    party._floor = PartyFloor(cohort_min=3)
    body = fresh.forge("offer-request", "coordinator", "party/1", OfferRequest(task=fresh.task_raw), number=1)
    assert fresh.give("party/1", body).refused.code == "policy-floor"


def test_unmasked_bytes_are_never_what_a_device_sends() -> None:
    world = World(4, devices=4)
    world.run()
    for index, header in world.round.bodies.headers.items():
        rows = world.actors["coordinator"].store.scan(f"blob/{header.body.id.hex()}/")
        body = b"".join(value for _, value in rows)
        plain = world.truth[1, world.devices[index]]
        same = sum(a == b for a, b in zip(body, plain, strict=True))
        assert same < len(plain) // 8, "a masked vector agrees with the plain one no more often than chance"
        assert pack(world.base.segments, unpack(world.base.segments, body)) == body
