"""What a fleet's processes share of their cryptography: what each would have found by itself, and agreements charged to whoever
takes them."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from blindsum.fleet import pairs as fleet_pairs
from blindsum.fleet.identities import START, Identities
from blindsum.fleet.pairs import TIMED_EVERY, Pairs, paired
from blindsum.fleet.table import HEAD_SIZE, Table
from blindsum.protocol import masks
from blindsum.protocol.keys import (
    box_keypair,
    box_open,
    box_seal,
    certificate_fault,
    certificate_verify,
    edge_keypair,
    edge_private,
    public_of,
)
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
        others = list(range(mine + 1, 12))
        assert pairs.edge_keys(*place, edge_private(private), mine, others) == edge_keys(*place, private, mine, others)
    assert pairs.spared_s == 0.0
    for mine, (private, _) in enumerate(ends):
        others = list(range(mine))
        assert pairs.edge_keys(*place, private, mine, others) == edge_keys(*place, private, mine, others)
    assert pairs.spared_s > 0.0


def test_edges_that_were_left_and_others_keep_their_order() -> None:
    pairs = Pairs(4)
    ends = [edge_keypair(os.urandom(32)) for _ in range(6)]
    place = a_round([public for _, public in ends])
    for mine in (1, 4):
        pairs.edge_keys(*place, ends[mine][0], mine, [0])
    others = [1, 2, 3, 4, 5]
    assert pairs.edge_keys(*place, ends[0][0], 0, others) == edge_keys(*place, ends[0][0], 0, others)
    assert pairs._edge.calls == 3


def test_no_edge_has_the_keys_of_another_round_roster_place_or_key() -> None:
    pairs = Pairs(4)
    (one, first), (other, second) = (edge_keypair(os.urandom(32)) for _ in range(2))
    view, roster = a_round([first, second, second])
    found = set(pairs.edge_keys(view, roster, one, 0, [1, 2]))
    for place in (a_round([first, second]), (view, a_round([first, second])[1]), (a_round([first, second])[0], roster)):
        found.update(pairs.edge_keys(*place, one, 0, [1]))
    found.update(pairs.edge_keys(view, roster, other, 0, [1]))
    assert len(found) == 6 and None not in found


def test_values_that_meet_in_one_place_are_told_apart() -> None:
    table = Table(2, 32)
    keys = [os.urandom(32) for _ in range(3)]
    for key in keys:
        assert table.get(key) is None
        table.put(key, key[:7])
        assert table.get(key) == key[:7]
    kept = [table.get(key) for key in keys]
    assert sorted(value is None for value in kept) == [False, False, True]
    assert all(value in (None, key[:7]) for key, value in zip(keys, kept, strict=True))
    table.put(keys[2], b"again")
    assert table.get(keys[2]) == b"again"
    assert [table.get(key) for key in keys[:2]] == kept[:2]


def test_what_is_taken_leaves_its_place_to_others() -> None:
    table = Table(2, 32)
    keys = [os.urandom(32) for _ in range(3)]
    for key in keys[:2]:
        table.put(key, key[:7])
    assert table.take(keys[0]) == keys[0][:7]
    assert table.take(keys[0]) is None and table.get(keys[0]) is None
    table.put(keys[2], keys[2][:7])
    assert [table.get(key) for key in keys] == [None, keys[1][:7], keys[2][:7]]


def test_half_written_values_are_not_found() -> None:
    table, key = Table(2, 32), os.urandom(32)
    table.put(key, b"whole")
    for at in range(len(table._room)):
        before = table._room[at]
        table._room[at] = before ^ 1
        assert table.get(key) == (b"whole" if at >= HEAD_SIZE + len(b"whole") else None)
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


def test_boxes_under_one_encapsulation_are_boxes_as_any_other() -> None:
    pairs, (private, public) = Pairs(1), box_keypair(os.urandom(96))
    other, foreign = box_keypair(os.urandom(96))
    infos = [os.urandom(40) for _ in range(2 * TIMED_EVERY)]
    sealed = [pairs.box_seal(public, info, info[::-1]) for info in infos]
    assert len({box[:32] for box in sealed}) < len(infos) < len({box[-32:] for box in sealed}) + 1
    for info, box in zip(infos, sealed, strict=True):
        assert len(box) == len(box_seal(public, info, info))
        assert box_open(private, info, box) == info[::-1]
        assert box_open(private, info + b"x", box) is None
        assert box_open(other, info, box) is None
    assert box_open(other, b"", pairs.box_seal(foreign, b"", b"plain")) == b"plain"
    assert pairs.spared_s > 0.0


def test_certificates_of_the_fleet_are_known_and_others_are_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    verified: list[object] = []

    def verify(certificate: x509.Certificate, authority: x509.Certificate) -> None:
        verified.append(certificate)
        certificate_verify(certificate, authority)

    monkeypatch.setattr(fleet_pairs, "certificate_verify", verify)
    ours, theirs = Identities(1, 4), Identities(2, 4)
    with paired(Pairs(1)):
        genuine = ours.device(0)
        foreign = theirs.device(0)
        trust = ours.trust
        fault, name, key = certificate_fault(genuine.certificate, ca=trust.ca, now=START)
        assert (fault, name, key) == ("", genuine.name, public_of(genuine.key)) and not verified
        broken = genuine.certificate[:-1] + bytes([genuine.certificate[-1] ^ 1])
        for number, wrong in enumerate((foreign.certificate, broken)):
            assert certificate_fault(wrong, ca=trust.ca, now=START)[0] == "certificate-invalid"
            assert len(verified) == number + 1


def test_keys_of_joins_are_known_to_be_usable_and_others_are_tried() -> None:
    pairs = Pairs(1)
    own = edge_private(os.urandom(32))
    assert pairs.join_public(own) == public_of(own)
    assert pairs.key_usable(public_of(own))
    assert pairs.key_usable(edge_keypair(os.urandom(32))[1])
    assert not pairs.key_usable(bytes(32))


def test_points_of_small_order_agree_on_nothing() -> None:
    pairs = Pairs(1)
    private, public = edge_keypair(os.urandom(32))
    for _ in range(2):
        assert pairs.edge_keys(*a_round([public, bytes(32)]), private, 0, [1]) == [None]


def test_tables_are_shared_with_processes_that_are_forked_meanwhile() -> None:
    pairs = Pairs(2)
    (one, first), (other, second) = (edge_keypair(os.urandom(32)) for _ in range(2))
    place = a_round([first, second])
    if (child := os.fork()) == 0:
        pairs.edge_keys(*place, one, 0, [1])
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert pairs._edge.calls == 0
    assert pairs.edge_keys(*place, other, 1, [0]) == edge_keys(*place, other, 1, [0])
    assert pairs._edge.calls == 0


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


def test_shares_of_the_same_seeds_and_edges_are_reckoned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reckoned: list[object] = []

    def reckon(view: object, roster: object, subset: int, lost: object, seeds: object) -> bytes:
        reckoned.append(subset)
        return os.urandom(8)

    monkeypatch.setattr(fleet_pairs, "edge_shares", reckon)
    pairs, view = Pairs(1), SimpleNamespace(digest=bytes(32))
    other = SimpleNamespace(digest=os.urandom(32))
    seeds = [os.urandom(32) for _ in range(2)]
    lost = [(0, [2, 3]), (1, [3])]
    first = pairs.edge_shares(view, view, 0, lost, seeds)
    assert pairs.edge_shares(view, view, 0, lost, seeds) == first and len(reckoned) == 1
    for changed in (
        (other, view, 0, lost, seeds),
        (view, other, 0, lost, seeds),
        (view, view, 1, lost, seeds),
        (view, view, 0, [(0, [2]), (1, [3, 4])], seeds),
        (view, view, 0, lost, seeds[::-1]),
    ):
        assert pairs.edge_shares(*changed) != first
    assert len(reckoned) == 6
