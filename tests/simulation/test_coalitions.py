"""What coalitions can compute of a run, worked out from its bytes: exactly what the protocol says, and more as soon as one of its
rules is switched off."""

from __future__ import annotations

from itertools import chain, combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blindsum.protocol import roster as roster_module
from blindsum.protocol import view as view_module
from blindsum.protocol.codec import encode_chunk
from blindsum.protocol.envelope import peek
from blindsum.protocol.graph import Graph
from blindsum.protocol.machines import partyclosing
from blindsum.protocol.masks import pad
from blindsum.protocol.messages import OpeningContent
from blindsum.protocol.openings import make_content
from blindsum.protocol.params import Committee
from blindsum.protocol.sharing import subsets
from blindsum.testing.behaviours import Silent
from blindsum.testing.checkers import OnlySums
from blindsum.testing.closure import Round, rounds
from blindsum.testing.elimination import MODULUS, derivable
from blindsum.testing.forgery import altered, certificate, hand, proposal, said, want_all
from blindsum.testing.world import World


def every_subset(items: list[str]) -> list[tuple[str, ...]]:
    return list(chain.from_iterable(combinations(items, size) for size in range(len(items) + 1)))


def learned(round_: Round, coalition: tuple[str, ...]) -> set[tuple[frozenset[str], int]]:
    """The sums that a coalition computes, as (devices, common coefficient up to sign)."""
    out = set()
    for combination in round_.derivable(coalition):
        values = {min(value, MODULUS - value) for value in combination.values()}
        assert len(values) == 1, combination
        out.add((frozenset(round_.uploads[header] for header in combination), values.pop()))
    return out


def seen(world: World) -> Round:
    checker = next(each for each in world.checkers if isinstance(each, OnlySums))
    return rounds(world, checker.tap)[-1]


# -- exactly what the protocol says -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("f", "devices"), [(1, 5), (2, 4)])
def test_every_coalition_computes_exactly_what_the_layers_leave_open(f: int, devices: int) -> None:
    """All subsets of parties and devices; the last device uploads and is then left out of the set."""
    world = World(3, devices=devices, committee=Committee.for_f(f), checkers=(OnlySums,))
    late = f"device/d-{devices - 1:04d}"
    world.network.tap = lambda source, target, body: (
        None if source == late and not peek(body) else body
    )  # keeps its chunks
    world.run()
    assert world.results[0].count == devices - 1
    world.check()
    round_, survivors = seen(world), {f"device/{name}" for name in world.results[0].survivors}
    assert set(round_.uploads.values()) == survivors | {late}
    parties = [f"party/{number}" for number in range(1, 3 * f + 2)]
    for corrupt in every_subset([*sorted(survivors), late]):
        honest, outside = frozenset(survivors.difference(corrupt)), frozenset({late}.difference(corrupt))
        allowed: dict[bool, set[frozenset[str]]] = {}
        allowed[True] = {honest} - {frozenset[str]()}
        allowed[False] = allowed[True] | ({outside} - {frozenset[str]()})
        singly = {frozenset({device}) for device in honest | outside}
        for chosen in every_subset(parties):
            wanted = singly if len(chosen) > 2 * f else allowed[len(chosen) <= f]
            assert learned(round_, (*chosen, *corrupt)) == {(devices_, 1) for devices_ in wanted}, (chosen, corrupt)


def test_device_that_uploads_twice_from_an_old_backup_gives_nothing_away() -> None:
    world = World(2, devices=4, faulty=["device/d-0003"], checkers=(OnlySums,))
    world.actors["device/d-0003"].behaviour = Silent("header")
    world.start()
    world.until("upload")
    backup = world.backup("device/d-0001")
    world.until(lambda: world.happened("uploading", "device/d-0001"))
    world.restore("device/d-0001", backup)
    world.finish()
    round_ = seen(world)
    assert sorted(round_.uploads.values()).count("device/d-0001") == 2
    for party in (1, 2, 3, 4):
        told = learned(round_, (f"party/{party}", "device/d-0003"))
        assert all(len(devices) >= 2 for devices, _ in told), told


# -- more, where a rule is switched off ---------------------------------------------------------------------------------


def world_before_the_vote(**task: object) -> World:
    world = World(
        3, devices=6, behaviours={"coordinator": Silent("proposal", "certificate")}, checkers=(OnlySums,), **task
    )
    world.start()
    world.until("vote")
    world.settle(100)
    world.stop("coordinator")
    return world


def open_set(world: World, indices: range, parties: tuple[int, ...]) -> None:
    """What a corrupt coordinator does: have these parties vote for a set, open it, and give every sum they hold."""
    proposed = proposal(world, indices)
    votes = [body for party in parties for body in said(hand(world, f"party/{party}", proposed), "vote")]
    for party in parties:
        step = hand(world, f"party/{party}", certificate(world, proposed, votes))
        assert said(step, "opening"), step.refused
        want_all(world, party, proposed)


def test_parties_that_forget_their_votes_are_found_out() -> None:
    """Without the durable vote: two parties of four answer a second set, and one coalition with a third subtracts."""
    world = world_before_the_vote()
    backups = {party: world.backup(f"party/{party}") for party in (3, 4)}
    open_set(world, range(6), (1, 3, 4))
    for party, backup in backups.items():
        world.restore(f"party/{party}", backup)
    open_set(world, range(5), (2, 3, 4))
    both = {(frozenset(f"device/d-{n:04d}" for n in range(count)), 1) for count in (5, 6)}
    assert learned(seen(world), ("party/1",)) == both
    with pytest.raises(AssertionError, match="can compute a sum over part of the opened set"):
        world.check()


def test_a_set_below_the_cohort_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    world = world_before_the_vote()
    monkeypatch.setattr(roster_module, "survivors_min", lambda n, threat: 1)  # devices looked while it still held
    for party in (1, 2, 3):
        world.crash(f"party/{party}")
    open_set(world, range(1), (1, 2, 3))
    with pytest.raises(AssertionError, match="can compute a sum over fewer than 2 honest updates: device/d-0000 x"):
        world.check()


def test_a_graph_in_two_halves_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layer 2 alone stands between t parties and the sums over each half."""

    def halves(n: int, k: int, seed: bytes) -> Graph:
        near = [[other for other in range(n) if other != one and other // 3 == one // 3] for one in range(n)]
        offsets = np.cumsum([0, *(len(row) for row in near)])
        return Graph(n, offsets, np.concatenate([np.array(row, np.int64) for row in near]))

    monkeypatch.setattr(roster_module, "adjacency", halves)
    world = World(3, devices=6, checkers=(OnlySums,), corrupt_permille=0)
    world.run()
    with pytest.raises(AssertionError, match="some of the survivors, since they are not connected"):
        world.check()
    told = {devices for devices, _ in learned(seen(world), ("party/1", "party/2"))}
    assert told == {frozenset(f"device/d-{n:04d}" for n in half) for half in (range(3), range(3, 6))}
    assert len(learned(seen(world), ("party/1",))) == 1, "layer 1 does not depend on the graph"


def test_both_shares_of_a_device_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parties that open the edges between survivors as well, beside the self masks: t of them then read every update."""

    def everything(view, roster, *, party, survivors, seeds, threads=1):  # type: ignore[no-untyped-def]
        content, sums = make_content(view, roster, party=party, survivors=survivors, seeds=seeds, threads=threads)
        shares = [
            pad(view, roster, mine, theirs, subset, seeds[mine].cap_seeds[subset])
            for subset, outside in enumerate(view.base.cap_subsets)
            if party not in outside
            for mine in survivors
            for theirs in roster.neighbours(mine)
        ]
        given: OpeningContent = altered(content, shares=b"".join(shares))
        return given, sums

    monkeypatch.setattr(partyclosing, "make_content", everything)
    world = World(3, devices=6, checkers=(OnlySums,))
    world.run()
    with pytest.raises(AssertionError, match="can compute a sum over part of the opened set"):
        world.check()
    singly = {(frozenset({f"device/d-{n:04d}"}), 1) for n in range(6)}
    assert learned(seen(world), ("party/1", "party/2")) == singly
    assert len(learned(seen(world), ("party/1",))) == 1, "layer 1 still holds"


def test_seeds_dealt_to_one_party_too_many_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Subsets of one party less: every party holds all self seeds, and every q - 1 all cap seeds."""
    monkeypatch.setattr(view_module, "subsets", lambda parties, size: subsets(parties, size - 1))
    world = World(3, devices=4, checkers=(OnlySums,))
    world.run()
    with pytest.raises(AssertionError, match="can compute a sum over part of the opened set"):
        world.check()


def test_seeds_sent_in_clear_are_found_out() -> None:
    world = World(3, devices=4, checkers=(OnlySums,))
    world.run()
    assert len(learned(seen(world), ())) == 1
    seeds = [seed for device in world.devices for seed in world.drawn[f"device/{device}"][1:]]
    world.checkers[0].sent(world, "party/2", "chunk", encode_chunk(bytes(32), 0, b"".join(seeds)))
    assert len(learned(seen(world), ())) == 4
    with pytest.raises(AssertionError, match="can compute a sum over part of the opened set"):
        world.check()


def test_a_checker_that_sees_no_openings_says_so() -> None:
    world = World(3, devices=4, checkers=(OnlySums,))
    world.run()
    seen(world)
    tap = next(each for each in world.checkers if isinstance(each, OnlySums)).tap
    tap.opened = lambda world: []  # type: ignore[method-assign]
    with pytest.raises(AssertionError, match="this checker is blind"):
        world.check()


def test_a_device_that_masks_otherwise_than_stated_is_found_out() -> None:
    world = World(3, devices=4, checkers=(OnlySums,))
    world.run()
    world.truth[1, "d-0002"] = bytes(len(world.truth[1, "d-0002"]))
    with pytest.raises(AssertionError, match="device/d-0002 masks otherwise than stated"):
        world.check()


# -- elimination --------------------------------------------------------------------------------------------------------

MATRICES = st.integers(1, 4).flatmap(
    lambda columns: st.lists(st.lists(st.integers(-3, 4), min_size=columns, max_size=columns), min_size=1, max_size=3)
)


@given(MATRICES)
def test_elimination_finds_all_combinations_without_masks_and_no_other(matrix: list[list[int]]) -> None:
    def mask_of(row: list[int]) -> dict[object, int]:
        return dict(enumerate(row))

    found = derivable((mask_of(row), {place: 1}) for place, row in enumerate(matrix))
    for combination in found:
        for column in range(len(matrix[0])):
            assert sum(value * matrix[place][column] for place, value in combination.items()) % MODULUS == 0
    for chosen in product((0, 1, -1, 2, 1 << 62, 1 << 63), repeat=len(matrix)):
        columns = range(len(matrix[0]))
        if all(sum(v * row[c] for v, row in zip(chosen, matrix, strict=True)) % MODULUS == 0 for c in columns):
            multiples = derivable([*((one, {}) for one in found), (dict(enumerate(chosen)), {"wanted": 1})])
            assert any(value.get("wanted", 0) % 2 for value in multiples), (found, chosen)


def test_elimination_sees_the_bits_that_an_even_coefficient_leaves_open() -> None:
    assert derivable([({"mask": 2}, {"secret": 1})]) == [{"secret": 1 << 63}]
    assert derivable([({"mask": 1}, {"a": 1}), ({"mask": 1}, {"b": 1})]) == [{"a": MODULUS - 1, "b": 1}]
    assert derivable([({"mask": 1}, {"a": 1})]) == []
