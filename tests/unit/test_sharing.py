"""Replicated sharing: SPEC.md section 2.3."""

from __future__ import annotations

from itertools import combinations

import pytest

from blindsum.protocol.sharing import combine, deal, held_by, holders, subsets, xor


def test_subsets_are_lexicographic_and_ascending() -> None:
    assert subsets(4, 2) == ((1, 2), (1, 3), (1, 4), (2, 3), (2, 4), (3, 4))
    assert subsets(4, 1) == ((1,), (2,), (3,), (4,))
    assert len(subsets(10, 6)) == 210


def test_a_seed_goes_to_the_parties_outside_its_subset() -> None:
    assert holders((1, 3), 4) == (2, 4)
    for index, subset in enumerate(subsets(7, 3)):
        assert holders(subset, 7) == tuple(p for p in range(1, 8) if index in held_by(p, subsets(7, 3)))


@pytest.mark.parametrize(("parties", "size"), [(4, 1), (4, 2), (7, 3), (7, 4), (10, 3)])
def test_any_size_parties_miss_a_seed_and_one_more_hold_all(parties: int, size: int) -> None:
    everything = set(range(len(subsets(parties, size))))

    def pooled(group: tuple[int, ...]) -> set[int]:
        return set().union(*(held_by(party, subsets(parties, size)) for party in group))

    for group in combinations(range(1, parties + 1), size):
        assert everything - pooled(group) == {subsets(parties, size).index(group)}
    for group in combinations(range(1, parties + 1), size + 1):
        assert pooled(group) == everything


def test_deal_asks_for_one_seed_of_32_bytes_at_a_time() -> None:
    asked: list[int] = []

    def random(size: int) -> bytes:
        asked.append(size)
        return bytes([len(asked)]) * size

    assert deal(random, 3) == (b"\x01" * 32, b"\x02" * 32, b"\x03" * 32)
    assert asked == [32, 32, 32]


def test_the_pads_that_cap_a_key_uncap_it_in_any_order() -> None:
    key = bytes(range(32))
    pads = [bytes([17 * i + 1]) * 32 for i in range(6)]
    cap = combine(key, pads)
    assert cap not in (key, *pads)
    assert combine(cap, reversed(pads)) == key
    assert combine(cap, pads[1:]) != key


def test_xor_keeps_leading_zeros_and_refuses_other_lengths() -> None:
    assert xor(b"\x00\x01\xff", b"\x00\x01\x0f") == b"\x00\x00\xf0"
    assert xor(b"", b"") == b""
    with pytest.raises(AssertionError):
        xor(b"\x00", b"\x00\x00")
