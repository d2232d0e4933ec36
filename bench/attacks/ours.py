"""The attacks of flower.py against blindsum's production machines, in the virtual world of `blindsum.testing`.

Prints one JSON object: for each attack the code that it was refused with, and what the attackers could compute in the end (the
generators of all combinations of honest updates that follow from everything they saw).
"""

from __future__ import annotations

import json
from importlib.metadata import version

from blindsum.protocol.envelope import open_envelope, seal_envelope
from blindsum.protocol.errors import Refused
from blindsum.protocol.keys import certificate_issue, edge_keypair, public_of
from blindsum.protocol.messages import Join, Task
from blindsum.protocol.params import Committee
from blindsum.protocol.view import open_task
from blindsum.testing.behaviours import Silent
from blindsum.testing.checkers import OnlySums, Unreadable
from blindsum.testing.closure import rounds
from blindsum.testing.fleet import START, make_fleet, make_task
from blindsum.testing.forgery import (
    Forged,
    altered,
    announcement,
    body_of,
    certificate,
    hand,
    manifest,
    proposal,
    said,
    vote,
    want_all,
)
from blindsum.testing.world import World

DEVICES, LIAR = 6, 4
"""Party 4 signs whatever the coordinator likes."""
KEYS_LOOKED_AT = 400
SEARCHABLE_BITS = 80
WRAPPING_BITS = 23
"""Flower's 2^22 levels with a sign."""


def before_the_vote() -> World:
    """Devices have uploaded; the coordinator and party 4 are in league."""
    quiet = {"coordinator": Silent("proposal", "certificate")}
    world = World(3, devices=DEVICES, behaviours=quiet, faulty=[f"party/{LIAR}"], checkers=(OnlySums,))
    world.start()
    world.until("vote")
    world.settle(100)
    world.stop("coordinator")
    return world


def certified(world: World, proposed: Forged, honest: tuple[int, ...]) -> Forged:
    """What the coordinator makes of the votes it gets from these parties and the liar."""
    votes = [body for party in honest for body in said(hand(world, f"party/{party}", proposed), "vote")]
    return certificate(world, proposed, [*votes, vote(world, LIAR, "set", proposed.digest)])


def computed(world: World) -> list[str]:
    """The sums of honest updates that coordinator, broker and party 4 can compute."""
    checker = next(each for each in world.checkers if isinstance(each, OnlySums))
    combinations = (one for round_ in rounds(world, checker.tap) for one in round_.derivable((f"party/{LIAR}",)))
    return [f"a sum of {len(one)} updates" for one in combinations]


def both_secrets() -> dict[str, object]:
    """Open everybody, then ask for the same devices as dropped: for the other secret of each."""
    world = before_the_vote()
    everybody, nearly_nobody = proposal(world, range(DEVICES)), proposal(world, range(3))
    first, codes = certified(world, everybody, (1, 2, 3)), set()
    for party in (1, 2, 3):
        hand(world, f"party/{party}", first)
        want_all(world, party, everybody)
        codes.add(code(hand(world, f"party/{party}", nearly_nobody).refused))
        codes.add(code(hand(world, f"party/{party}", certified(world, nearly_nobody, ())).refused))
    return {"succeeds": single(world), "codes": sorted(codes), "computed": computed(world)}


def two_dropout_sets() -> dict[str, object]:
    """Two honest parties are shown one set, the third another; the liar votes for both."""
    world = before_the_vote()
    shown = ((proposal(world, range(DEVICES)), (1, 2)), (proposal(world, range(DEVICES - 1)), (3,)))
    codes = set()
    for proposed, parties in shown:
        made = certified(world, proposed, parties)
        for party in (1, 2, 3):
            if said(step := hand(world, f"party/{party}", made), "opening"):
                want_all(world, party, proposed)
            codes.add(code(step.refused))
    return {"succeeds": single(world), "codes": sorted(codes - {""}), "computed": computed(world)}


def substituted_keys() -> dict[str, object]:
    """The broker swaps the key of a join; the coordinator makes devices of its own."""
    world = World(8, devices=4, join_ms=10_000, checkers=())
    world.network.tap = lambda source, target, body: swapped(body) if source == "device/d-0002" else body
    world.start()
    world.until(lambda: world.refused("signature-invalid"))
    own = world.fleet.coordinator
    forged = certificate_issue(
        name="d-9999", public=public_of(own), issuer="test", issuer_key=own, serial=9, now=START, days=30
    )
    join = Join(manifest=world.view.digest, certificate=forged, key=edge_keypair(bytes(32))[1])
    head = world.view.head("join", "device/d-9999", "coordinator")
    step = world.give("coordinator", seal_envelope(own, head, join))
    return {"succeeds": step.refused is None, "codes": sorted({"signature-invalid", code(step.refused)})}


def swapped(body: bytes) -> bytes:
    if open_envelope(body).head.type != "join":
        return body
    return body.replace(body_of(body, Join).key, edge_keypair(bytes(32))[1])


def two_models() -> dict[str, object]:
    """One device is shown another model than the rest; a party is asked to vote for a model of the coordinator's own."""
    world = World(4, devices=4, join_ms=60_000, checkers=())
    world.run()
    world.start()
    world.stop("device/d-0003")
    world.until(lambda: len(world.round.joins) == 3)
    model = world.view.manifest.model
    strange = manifest(world, model=altered(model, digests=model.digests[::-1]))
    world.crash("device/d-0003")
    votes = list(world.round.state.manifest_votes.values())
    device = world.give("device/d-0003", announcement(world, strange, votes)).refused
    world.finish()
    world.settle()
    codes = {code(device)}
    fresh = World(4, devices=4, checkers=())
    fresh.run()
    fresh.network.tap = lambda source, target, body: None if target == "party/1" and kind(body) == "manifest" else body
    fresh.start()
    fresh.until("join")
    model = fresh.view.manifest.model
    party = fresh.give("party/1", manifest(fresh, model=altered(model, digests=model.digests[::-1])).body).refused
    codes.add(code(party))
    return {"succeeds": device is None or party is None, "codes": sorted(codes)}


def small_seeds() -> dict[str, object]:
    """Bits that occur both ways in the seeds of pairwise and self masks, over as many as flower.py looks at."""
    world = World(5, devices=40, checkers=())
    world.run()
    seeds = [draw for device in world.devices for draw in world.drawn[f"device/{device}"]][:KEYS_LOOKED_AT]
    ever, always = 0, -1
    for seed in seeds:
        ever, always = ever | int.from_bytes(seed, "big"), always & int.from_bytes(seed, "big")
    bits = bin(ever & ~always).count("1")
    return {"succeeds": bits < SEARCHABLE_BITS, "seed_bits": bits, "seeds": len(seeds)}


def wrap() -> dict[str, object]:
    """A task of 1024 devices whose 23-bit values do not fit 32-bit sums."""
    fleet = make_fleet(1, parties=4, devices=0)
    raw, _, _ = make_task(
        fleet, committee=Committee.for_f(1), devices_max=1024, width=32, weight_max=1, chunk_size=262_144
    )
    task = body_of(raw, Task)
    wide = altered(task, codec=altered(task.codec, bits=WRAPPING_BITS))
    opened = open_task(fleet.trust, fleet.resign(raw, wide))
    if not isinstance(opened, Refused):
        return {"succeeds": True}
    return {"succeeds": False, "codes": [opened.code], "detail": opened.detail}


def weights_in_clear() -> dict[str, object]:
    """Look for every device's packed statistics (weight, examples, loss) in all traffic and databases but its own."""
    world = World(13, devices=5, checkers=(Unreadable,), statistics=3)
    try:
        world.run()
    except AssertionError as found:
        return {"succeeds": True, "detail": str(found)}
    return {"succeeds": False, "vectors_looked_for": len(world.truth)}


# -- helpers ----------------------------------------------------------------------------------------------------------


def single(world: World) -> bool:
    return "a sum of 1 updates" in computed(world) or len(computed(world)) > 1


def code(refused: Refused | None) -> str:
    return refused.code if refused is not None else ""


def kind(body: bytes) -> str:
    return open_envelope(body).head.type if body[:1] == b"\xd2" else "chunk"


def main() -> None:
    attacks = (both_secrets, two_dropout_sets, substituted_keys, two_models, small_seeds, wrap, weights_in_clear)
    print(json.dumps({"peer": f"blindsum {version('blindsum')}", **{each.__name__: each() for each in attacks}}))


if __name__ == "__main__":
    main()
