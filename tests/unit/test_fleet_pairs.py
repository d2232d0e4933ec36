"""Agreements that a fleet's processes share: what X25519 gives, whoever asks first, and charged to whoever asks second."""

from __future__ import annotations

import os

from blindsum.fleet.pairs import Pairs, paired
from blindsum.protocol import masks
from blindsum.protocol.keys import agree, edge_keypair, edge_private


def test_both_ends_get_what_x25519_gives_and_the_second_is_charged_for_it() -> None:
    pairs = Pairs(4)
    ends = [edge_keypair(os.urandom(32)) for _ in range(12)]
    for mine, (private, _) in enumerate(ends):
        for _, public in ends[mine + 1 :]:
            assert pairs.agree(edge_private(private), public) == agree(private, public)
    assert pairs.spared_s == 0.0
    for mine, (private, _) in enumerate(ends):
        for _, public in ends[:mine]:
            assert pairs.agree(private, public) == agree(private, public)
    assert pairs.spared_s > 0.0


def test_pairs_that_meet_in_one_place_are_told_apart() -> None:
    pairs = Pairs(1)
    pairs._entries = 1
    ends = [edge_keypair(os.urandom(32)) for _ in range(4)]
    for _ in range(2):
        for private, _ in ends:
            for _, public in ends:
                assert pairs.agree(private, public) == agree(private, public)


def test_half_written_entries_are_reckoned_again() -> None:
    pairs = Pairs(1)
    pairs._entries = 1
    (one, first), (other, second) = (edge_keypair(os.urandom(32)) for _ in range(2))
    secret = pairs.agree(one, second)
    pairs._table[3:5] = b"\0\1"
    assert pairs.agree(other, first) == secret


def test_points_of_small_order_agree_on_nothing() -> None:
    pairs = Pairs(1)
    private, _ = edge_keypair(os.urandom(32))
    for _ in range(2):
        assert pairs.agree(private, bytes(32)) is None


def test_tables_are_shared_with_processes_that_are_forked_meanwhile() -> None:
    pairs = Pairs(2)
    (one, first), (other, second) = (edge_keypair(os.urandom(32)) for _ in range(2))
    if (child := os.fork()) == 0:
        pairs.agree(one, second)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    reckoned = pairs._reckoned
    assert pairs.agree(other, first) == agree(other, first)
    assert pairs._reckoned == reckoned


def test_only_what_runs_inside_agrees_by_the_table() -> None:
    with paired(Pairs(1)):
        assert masks.agree is not agree
    assert masks.agree is agree
