"""What a fleet's processes share of their cryptography: what each would have found by itself, and agreements charged to whoever
takes them."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from blindsum.fleet import pairs as fleet_pairs
from blindsum.fleet.pairs import Pairs, paired
from blindsum.fleet.table import Table
from blindsum.protocol import masks
from blindsum.protocol.keys import box_keypair, box_seal, edge_keypair, edge_private, public_of
from blindsum.protocol.masks import edge_keys


def a_round(publics: list[bytes], suite: str = "aes128-ctr") -> tuple[SimpleNamespace, SimpleNamespace]:
    """What of a view and a roster the keys of edges follow from."""
    view = SimpleNamespace(digest=os.urandom(32), task=SimpleNamespace(suite=suite))
    return view, SimpleNamespace(digest=os.urandom(32), keys=publics)


@pytest.mark.parametrize("suite", ["aes128-ctr", "chacha20"])
def test_both_ends_get_the_keys_of_their_edge_and_the_second_is_charged_for_them(suite: str) -> None:
    pairs = Pairs(4)
    ends = [edge_keypair(os.urandom(32)) for _ in range(12)]
    place = a_round([public for _, public in ends], suite)
    for mine, (private, _) in enumerate(ends):
        for other in range(mine + 1, 12):
            assert pairs.edge_keys(*place, edge_private(private), mine, other) == edge_keys(
                *place, private, mine, other
            )
    assert pairs.spared_s == 0.0
    for mine, (private, _) in enumerate(ends):
        for other in range(mine):
            assert pairs.edge_keys(*place, private, mine, other) == edge_keys(*place, private, mine, other)
    assert pairs.spared_s > 0.0


def test_no_edge_has_the_keys_of_another_round_roster_place_or_key() -> None:
    pairs = Pairs(4)
    (one, first), (other, second) = (edge_keypair(os.urandom(32)) for _ in range(2))
    view, roster = a_round([first, second, second])
    found = {pairs.edge_keys(view, roster, one, 0, 1), pairs.edge_keys(view, roster, one, 0, 2)}
    for place in (a_round([first, second]), (view, a_round([first, second])[1]), (a_round([first, second])[0], roster)):
        found.add(pairs.edge_keys(*place, one, 0, 1))
    found.add(pairs.edge_keys(view, roster, other, 0, 1))
    assert len(found) == 6


def test_values_that_meet_in_one_place_are_told_apart() -> None:
    table = Table(1, 32)
    keys = [os.urandom(32) for _ in range(3)]
    for key in keys:
        assert table.get(key) is None
        table.put(key, key[:7])
        assert table.get(key) == key[:7]
    assert [table.get(key) for key in keys] == [None, None, keys[2][:7]]


def test_half_written_values_are_not_found() -> None:
    table, key = Table(1, 32), os.urandom(32)
    table.put(key, b"whole")
    for at in range(len(table._room)):
        before = table._room[at]
        table._room[at] = before ^ 1
        assert table.get(key) == (b"whole" if at >= 18 + len(b"whole") else None)
        table._room[at] = before


def test_signatures_of_the_fleet_are_known_and_others_are_verified() -> None:
    pairs, key, data = Pairs(1), Ed25519PrivateKey.generate(), os.urandom(100)
    public, own = public_of(key), Pairs(1).sign(key, data)
    assert pairs.sign(key, data) == own
    assert pairs.sign_verify(public, own, data)
    assert Pairs(1).sign_verify(public, own, data)
    wrong = own[:-1] + bytes([own[-1] ^ 1])
    other = public_of(Ed25519PrivateKey.generate())
    for claimed in ((public, wrong, data), (public, own, data + b"x"), (other, own, data), (public, bytes(64), data)):
        assert not pairs.sign_verify(*claimed)


def test_boxes_open_to_what_was_sealed_for_this_key_and_info_alone() -> None:
    pairs, plain = Pairs(1), os.urandom(192)
    (mine, public), (theirs, _) = (box_keypair(os.urandom(96)) for _ in range(2))
    sealed = pairs.box_seal(public, b"info", plain)
    private, other = pairs.box_private(mine), pairs.box_private(theirs)
    assert pairs.box_open(private, b"info", sealed) == plain
    assert pairs.box_open(private, b"else", sealed) is None
    assert pairs.box_open(other, b"info", sealed) is None
    assert pairs.box_open(private, b"info", sealed[:-1] + bytes([sealed[-1] ^ 1])) is None
    foreign = box_seal(public, b"info", plain)
    assert pairs.box_open(private, b"info", foreign) == plain
    large = pairs.box_seal(public, b"info", bytes(1000))
    assert pairs.box_open(private, b"info", large) == bytes(1000)


def test_points_of_small_order_agree_on_nothing() -> None:
    pairs = Pairs(1)
    private, public = edge_keypair(os.urandom(32))
    for _ in range(2):
        assert pairs.edge_keys(*a_round([public, bytes(32)]), private, 0, 1) is None


def test_tables_are_shared_with_processes_that_are_forked_meanwhile() -> None:
    pairs = Pairs(2)
    (one, first), (other, second) = (edge_keypair(os.urandom(32)) for _ in range(2))
    place = a_round([first, second])
    if (child := os.fork()) == 0:
        pairs.edge_keys(*place, one, 0, 1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    reckoned = pairs._reckoned
    assert pairs.edge_keys(*place, other, 1, 0) == edge_keys(*place, other, 1, 0)
    assert pairs._reckoned == reckoned


def test_only_what_runs_inside_agrees_by_the_table() -> None:
    with paired(Pairs(1)):
        assert masks.edge_keys is not edge_keys
    assert masks.edge_keys is edge_keys


def test_sums_of_the_same_seeds_are_reckoned_once_and_others_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    reckoned: list[object] = []

    def reckon(view: object, roster: object, subset: int, seeds: object, *, threads: int) -> bytes:
        reckoned.append(subset)
        return os.urandom(8)

    monkeypatch.setattr(fleet_pairs, "self_sum", reckon)
    pairs, view = Pairs(1), SimpleNamespace(digest=bytes(32))
    others = [SimpleNamespace(digest=os.urandom(32)) for _ in range(2)]
    seeds = [(number, os.urandom(32)) for number in range(3)]
    first = pairs.self_sum(view, view, 0, iter(seeds))
    assert pairs.self_sum(view, view, 0, seeds, threads=2) == first and len(reckoned) == 1
    for changed in (
        (others[0], view, 0, seeds),
        (view, others[1], 0, seeds),
        (view, view, 1, seeds),
        (view, view, 0, seeds[:2]),
        (view, view, 0, [*seeds[:2], (3, seeds[2][1])]),
        (view, view, 0, [*seeds[:2], (2, bytes(32))]),
    ):
        assert pairs.self_sum(*changed) != first
    assert len(reckoned) == 7
