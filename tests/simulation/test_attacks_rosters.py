"""Attacks on who takes part: sybils, small cohorts, substituted and useless keys, graphs and dropouts that isolate a device."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from blindsum.protocol.codec import decode, encode
from blindsum.protocol.envelope import Head, open_envelope, seal_envelope
from blindsum.protocol.graph import adjacency
from blindsum.protocol.keys import certificate_issue, edge_keypair, public_of
from blindsum.protocol.masks import edge_secret, edge_stream, self_stream
from blindsum.protocol.messages import Join, RosterAnnouncement, Vote
from blindsum.protocol.prg import apply
from blindsum.protocol.ring import equal, unpack
from blindsum.protocol.roster import open_roster_announcement
from blindsum.testing.behaviours import Silent
from blindsum.testing.entropy import Entropy
from blindsum.testing.fleet import START, make_fleet
from blindsum.testing.forgery import Forged, altered, body_of, hand, roster, roster_blobs, roster_proposal, said, vote
from blindsum.testing.world import World


def world_before_the_roster(*, corrupt: tuple[int, ...] = (), devices: int = 5, **task: object) -> World:
    """A world in which everybody has joined; its coordinator is corrupt and has shown the parties no roster yet."""
    world = World(
        8,
        devices=devices,
        behaviours={"coordinator": Silent("roster-proposal", "roster")},
        faulty=[f"party/{party}" for party in corrupt],
        **task,
    )
    world.start()
    world.until("roster")
    world.settle(100)
    world.stop("coordinator")
    return world


def joins(world: World) -> dict[str, bytes]:
    return {device: raw for device, (raw, _) in world.round.joins.items()}


def entries(chosen: dict[str, bytes]) -> bytes:
    return encode([[device, body_of(chosen[device], Join).key] for device in sorted(chosen)])


def proposed(world: World, chosen: dict[str, bytes]) -> Forged:
    return roster_proposal(world, chosen, entries(chosen))


def refusal(world: World, forged: Forged, party: int = 1) -> str:
    """The code a party refuses a roster with; it must not vote for it."""
    step = hand(world, f"party/{party}", forged)
    assert not said(step, "vote")
    assert step.refused is not None
    return step.refused.code


def test_parties_vote_for_the_roster_of_those_who_joined() -> None:
    world = world_before_the_roster()
    assert said(hand(world, "party/1", proposed(world, joins(world))), "vote")


# -- sybils and small cohorts -----------------------------------------------------------------------------------------


def test_roster_below_the_smallest_cohort_gets_no_vote() -> None:
    world = world_before_the_roster(devices_min=4)
    for count in (0, 1, 3):
        chosen = dict(list(joins(world).items())[:count])
        assert refusal(world, proposed(world, chosen)) == "roster-malformed"
    assert said(hand(world, "party/1", proposed(world, dict(list(joins(world).items())[:4]))), "vote")


def join_of(
    world: World, device: str, *, certificate: bytes, key: Ed25519PrivateKey, edge: bytes = bytes(31) + b"\x09"
) -> bytes:
    """A join of any device with any certificate, signed with any key."""
    payload = Join(manifest=world.view.digest, certificate=certificate, key=edge_keypair(edge)[1])
    head = Head(type="join", fleet="test", task=world.task, round=1, sender=f"device/{device}", to="coordinator")
    return seal_envelope(key, head, payload)


def test_devices_that_the_fleet_did_not_enrol_are_in_no_roster() -> None:
    """A coordinator that invents devices to fill a cohort needs certificates it cannot make."""
    world = world_before_the_roster()
    stranger = make_fleet(99, parties=4, devices=1).devices[0]
    own = world.fleet.coordinator
    self_signed = certificate_issue(
        name="d-9999", public=public_of(own), issuer="test", issuer_key=own, serial=9, now=START, days=30
    )
    expired = certificate_issue(
        name="d-9999", public=public_of(own), issuer="test", issuer_key=world.fleet.ca, serial=9,
        now=START - 90 * 86_400_000, days=30,
    )  # fmt: skip
    victim = world.fleet.devices[0]
    sybils = {
        "of another fleet": ("d-0000", stranger.certificate, stranger.key),
        "signed by the coordinator": ("d-9999", self_signed, own),
        "expired": ("d-9999", expired, own),
        "another device's certificate": ("d-9999", victim.certificate, own),
        "another device's name": (victim.name, victim.certificate, own),
        "no certificate": ("d-9999", b"\x30\x00", own),
        "the authority itself": ("test", world.fleet.trust.ca, world.fleet.ca),
    }
    for device, certificate, key in sybils.values():
        raw = join_of(world, device, certificate=certificate, key=key)
        assert refusal(world, proposed(world, {**joins(world), device: raw})) == "roster-malformed"
        step = world.give("coordinator", raw)
        assert step.refused is not None and not step.writes


def test_device_counts_once_however_often_it_is_listed() -> None:
    world = world_before_the_roster()
    chosen = joins(world)
    raws = [chosen[device] for device in sorted(chosen)]
    for listed in ([raws[0], *raws], raws[::-1], [*raws, raws[-1]]):
        rows = [[open_envelope(raw).head.sender.removeprefix("device/"), body_of(raw, Join).key] for raw in listed]
        assert refusal(world, roster_blobs(world, encode(listed), encode(rows))) == "roster-malformed"


def test_second_join_of_a_device_does_not_count() -> None:
    world = World(8, devices=4, faulty=("device/d-0001",), join_ms=10_000, devices_max=5)
    world.start()
    world.until(lambda: len(world.round.joins) == 4)
    first = world.round.joins["d-0001"][0]
    identity = world.fleet.devices[1]
    other = join_of(world, "d-0001", certificate=identity.certificate, key=identity.key)
    refused = world.give("coordinator", other).refused
    assert (refused.code, refused.culprit) == ("second-join", "device/d-0001")
    world.finish()
    assert world.round.joins["d-0001"][0] == first
    world.check()


def test_joins_of_another_round_or_manifest_are_refused() -> None:
    world = world_before_the_roster()
    chosen = joins(world)
    join = body_of(chosen["d-0000"], Join)
    other_round = world.forge("join", "device/d-0000", "coordinator", join, number=2)
    other_manifest = world.forge("join", "device/d-0000", "coordinator", altered(join, manifest=bytes(32)))
    for raw in (other_round, other_manifest):
        assert refusal(world, proposed(world, {**chosen, "d-0000": raw})) == "roster-malformed"


# -- keys -------------------------------------------------------------------------------------------------------------


def test_join_whose_key_the_broker_swaps_is_refused() -> None:
    swapped: list[bytes] = []

    def broker(source: str, target: str, body: bytes) -> bytes:
        if source != "device/d-0002" or target != "coordinator" or open_envelope(body).head.type != "join":
            return body
        key = body_of(body, Join).key
        swapped.append(body.replace(key, edge_keypair(bytes(32))[1]))
        return swapped[-1]

    world = World(8, devices=4, join_ms=10_000)
    world.network.tap = broker
    world.run()
    assert swapped
    assert world.actors["coordinator"].refusals["signature-invalid"] == len(swapped)
    assert "d-0002" not in world.results[0].survivors and world.results[0].count == 3
    world.check()


def test_entries_that_do_not_follow_from_the_joins_get_no_vote() -> None:
    world = world_before_the_roster()
    chosen = joins(world)
    rows = decode(entries(chosen))
    mine = edge_keypair(b"coordinator's own key, 32 bytes!")[1]
    for changed in ([[rows[0][0], mine], *rows[1:]], rows[1:], [*rows, ["d-9999", mine]]):
        assert refusal(world, roster_proposal(world, chosen, encode(changed))) == "roster-malformed"


def test_device_leaves_a_round_whose_roster_names_another_key_though_a_quorum_signed_it() -> None:
    world = world_before_the_roster(corrupt=(1, 2, 3))
    chosen = joins(world)
    rows = [[device, edge_keypair(bytes([place] * 32))[1]] for place, device in enumerate(sorted(chosen))]
    forged = roster_proposal(world, chosen, encode(rows))
    announced = roster(world, forged, [vote_with_beacon(world, party, forged) for party in (1, 2, 3)])
    for body in (announced.body, *announced.chunks):
        world.give("device/d-0000", body)
    assert world.happened("round-abandoned", "device/d-0000")[-1].data["code"] == "roster-key-differs"
    assert not world.happened("train", "device/d-0000")


def test_device_leaves_a_round_that_does_not_name_it() -> None:
    world = world_before_the_roster(corrupt=(1, 2, 3))
    chosen = {device: raw for device, raw in joins(world).items() if device != "d-0000"}
    forged = proposed(world, chosen)
    announced = roster(world, forged, [vote_with_beacon(world, party, forged) for party in (1, 2, 3)])
    for body in (announced.body, *announced.chunks):
        world.give("device/d-0000", body)
    assert world.happened("round-abandoned", "device/d-0000")[-1].data["code"] == "not-selected"


def vote_with_beacon(world: World, party: int, forged: Forged) -> bytes:
    """A party's vote for a roster with the beacon that it holds."""
    state = decode(world.actors[f"party/{party}"].store.rows[f"state/{world.task}"])
    return vote(world, party, "roster", forged.digest, beacon=state["beacon"])


def test_key_that_agrees_on_nothing_keeps_only_its_device_out() -> None:
    world = World(8, devices=5, faulty=("device/d-0004",), join_ms=10_000)
    world.stop("device/d-0004")
    world.actors["device/d-0004"].alive = True  # the test speaks for it
    world.start()
    world.until("join")
    identity = world.fleet.devices[4]
    for small_order in (bytes(32), b"\x01" + bytes(31)):
        join = Join(manifest=world.view.digest, certificate=identity.certificate, key=small_order)
        refused = world.give("coordinator", world.forge("join", "device/d-0004", "coordinator", join)).refused
        assert (refused.code, refused.culprit) == ("join-malformed", "device/d-0004")
    world.stop("device/d-0004")
    world.finish()
    assert world.results[0].count == 4
    world.check()


def test_device_that_copies_anothers_key_stops_no_round() -> None:
    """Keys of edges depend on both ends' places in the roster, so a copied public key opens nothing."""
    world = World(8, devices=5, faulty=("device/d-0004",), join_ms=10_000, dropped_permille=300)
    world.start()
    world.stop("device/d-0004")
    world.until(lambda: len(world.round.joins) == 4)
    copied = body_of(world.round.joins["d-0001"][0], Join).key
    join = Join(manifest=world.view.digest, certificate=world.fleet.devices[4].certificate, key=copied)
    assert world.give("coordinator", world.forge("join", "device/d-0004", "coordinator", join)).refused is None
    world.finish()
    assert world.phase == "done", world.failure
    assert world.results[0].count == 4
    private = next(seed for seed in world.drawn["device/d-0001"] if edge_keypair(seed)[1] == copied)
    view, roster_view = world.view, world.roster
    assert edge_secret(view, roster_view, private, 1, 2) != edge_secret(view, roster_view, private, 4, 2)
    world.check()


# -- one roster -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [0, 1, 2, 3])
def test_two_rosters_never_both_have_a_quorum_though_one_party_signs_both(first: int) -> None:
    world = world_before_the_roster(corrupt=(4,))
    everybody, fewer = joins(world), dict(list(joins(world).items())[:4])
    agreed = 0
    for chosen, parties in ((everybody, [1, 2, 3][:first]), (fewer, [1, 2, 3][first:])):
        forged = proposed(world, chosen)
        votes = [body for party in parties for body in said(hand(world, f"party/{party}", forged), "vote")]
        announced = roster(world, forged, [*votes, vote_with_beacon(world, 4, forged)])
        shown = body_of(announced.body, RosterAnnouncement).votes
        agreed += isinstance(open_roster_announcement(world.view, forged.body, shown), tuple)
    assert agreed <= 1


def test_party_refuses_second_roster_after_restart_and_after_it_followed_one() -> None:
    world = world_before_the_roster()
    everybody, fewer = proposed(world, joins(world)), proposed(world, dict(list(joins(world).items())[:4]))
    votes = [said(hand(world, f"party/{party}", everybody), "vote")[0] for party in (1, 2, 3)]
    world.crash("party/1")
    refused = hand(world, "party/1", fewer).refused
    assert (refused.code, refused.culprit) == ("second-roster", "coordinator")
    # a party that was away follows the roster of the others, and is no longer free to vote for another
    hand(world, "party/4", roster(world, everybody, votes))
    assert decode(world.actors["party/4"].store.rows[f"state/{world.task}"])["roster"]
    for _ in range(2):
        assert refusal(world, fewer, party=4) == "second-roster"
        world.crash("party/4")


def test_roster_with_too_few_or_strange_votes_is_followed_by_nobody() -> None:
    world = world_before_the_roster(corrupt=(4,))
    forged = proposed(world, joins(world))
    votes = [said(hand(world, f"party/{party}", forged), "vote")[0] for party in (1, 2)]
    false_beacon = vote(world, 4, "roster", forged.digest, beacon=bytes(32))
    for chosen, code in (
        (votes, "votes-too-few"),
        ([*votes, votes[0]], "votes-too-few"),
        ([*votes, false_beacon], "beacon-differs"),
        ([*votes, vote(world, 4, "manifest", forged.digest)], "votes-too-few"),
    ):
        for role in ("party/3", "device/d-0001"):
            refused = hand(world, role, roster(world, forged, chosen)).refused
            assert refused is not None and refused.code == code


# -- the graph --------------------------------------------------------------------------------------------------------


def test_graph_is_fixed_by_beacons_that_were_committed_to_before_anybody_joined() -> None:
    """Whoever sees the roster cannot choose the graph any more, nor could one party by keeping its vote back: what it could choose
    between are P - q + 1 graphs, none of which it can steer."""
    world = world_before_the_roster()
    forged = proposed(world, joins(world))
    votes = [said(hand(world, f"party/{party}", forged), "vote")[0] for party in (1, 2, 3, 4)]
    beacons = {body_of(raw, Vote).beacon for raw in votes}
    assert len(beacons) == 4 and all(len(beacon) == 32 for beacon in beacons)
    digests = set()
    for chosen in (votes, votes[1:], votes[:3]):
        opened = open_roster_announcement(world.view, forged.body, chosen)
        assert isinstance(opened, tuple)
        digests.add(opened[2])
    assert len(digests) == 3
    graphs = [adjacency(40, 12, digest) for digest in sorted(digests)]
    assert len({tuple(graph.neighbours(0)) for graph in graphs}) == 3


def test_dropouts_chosen_after_the_graph_leave_a_device_masked() -> None:
    """The coordinator drops as many neighbours of one device as the parties let it, corrupts the rest, and opens its edges. With
    everything that it, one corrupt party and those devices hold, the device's vector is still covered by a whole self mask."""
    world = World(
        8, devices=40, corrupt_permille=25, dropped_permille=100, faulty=("coordinator", "party/4"), length=20
    )
    world.start()
    world.until("upload")
    graph, roster_view, view = world.roster.graph, world.roster, world.view
    assert not graph.complete
    victim = 7
    neighbours = graph.neighbours(victim)
    dropped = neighbours[: 40 - roster_view.survivors_min]
    assert 0 < len(dropped) < len(neighbours), "the threat model lets nobody drop all neighbours here"
    for index in dropped:
        world.stop(f"device/{roster_view.devices[index]}")
    world.until("check")
    known = secrets_of(world, victim)
    world.finish()
    assert world.phase == "done" and world.results[0].count == 40 - len(dropped)
    base = world.base
    header = world.round.bodies.headers[victim]
    rows = world.actors["coordinator"].store.scan(f"blob/{header.body.id.hex()}/")
    lanes = unpack(base.segments, b"".join(value for _, value in rows))
    private = world.drawn[f"device/{roster_view.devices[victim]}"][0]
    streams = []
    for other in neighbours:  # grant the attacker every edge, those to survivors too
        secret = edge_secret(view, roster_view, private, victim, other)
        assert secret is not None
        streams.append((edge_stream(view, secret), -1 if victim < other else 1))
    streams += [(self_stream(view, roster_view, victim, subset, seed), -1) for subset, seed in known.items()]
    apply(base.segments, lanes, streams, suite=view.task.suite)
    plain = unpack(base.segments, world.truth[1, roster_view.devices[victim]])
    missing = [subset for subset, outside in enumerate(base.self_subsets) if 4 in outside]
    assert sorted(known) == [subset for subset in range(len(base.self_subsets)) if subset not in missing]
    assert not equal(base.segments, lanes, plain), "one self mask remains"
    assert sum(int(a == b) for a, b in zip(lanes[0] & 0xFFFFFF, plain[0], strict=True)) <= 1


def secrets_of(world: World, victim: int) -> dict[int, bytes]:
    """The self-mask seeds of a device that party 4 holds before it opens."""
    row = world.actors["party/4"].store.rows[f"round/{world.task}/header/{victim:06d}"]
    return dict(decode(row)[2])


def test_roster_hash_enters_every_key() -> None:
    world = World(8, devices=4)
    world.run()
    view, roster_view = world.view, world.roster
    other = replace(roster_view, digest=bytes(32))
    private = world.drawn["device/d-0000"][0]
    assert edge_secret(view, roster_view, private, 0, 1) != edge_secret(view, other, private, 0, 1)
    seed = Entropy(1, "seed")(32)
    assert self_stream(view, roster_view, 0, 0, seed) != self_stream(view, other, 0, 0, seed)
