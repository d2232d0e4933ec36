"""Roles of a simulated fleet."""

from __future__ import annotations

from blindsum.fleet.roles import RoundEntropy


def test_randomness_that_was_put_away_goes_on_where_it_stood_until_the_next_round() -> None:
    whole, rested = RoundEntropy(7, "device/one"), RoundEntropy(7, "device/one")
    for number in (3, 4):
        whole.begin(number)
        rested.begin(number)
        rested.rest()
        parts = [rested(32)]
        for size in (1, 47):
            rested.rest()
            parts.append(rested(size))
        assert b"".join(parts) == whole(80)
