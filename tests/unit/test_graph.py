"""The neighbour graph and its degree: SPEC.md section 2.4."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import pytest

from blindsum.protocol.graph import SIGMA_BITS, Graph, _cycle, adjacency, degree_for
from blindsum.protocol.keys import derive
from blindsum.protocol.prg import keystream

SIZES = (100, 1_000, 10_000, 100_000)
TABLE = {
    (50, 50): (12, 18, 20, 22),
    (100, 100): (18, 26, 30, 32),
    (100, 300): (30, 44, 50, 56),
    (330, 330): (54, 94, 110, 122),
}
"""k for disconnection below 2^-40 by (gamma, delta) in permille and n."""


@pytest.mark.parametrize(("gamma", "delta"), TABLE)
def test_degrees_are_those_of_the_published_table(gamma: int, delta: int) -> None:
    assert tuple(degree_for(n, gamma, delta) for n in SIZES) == TABLE[gamma, delta]


@pytest.mark.parametrize(("gamma", "delta"), TABLE)
def test_one_more_bit_of_safety_costs_at_most_two_neighbours(gamma: int, delta: int) -> None:
    for n, degree in zip(SIZES, TABLE[gamma, delta], strict=True):
        assert degree_for(n, gamma, delta, SIGMA_BITS + 1) - degree in (0, 2)


@pytest.mark.parametrize("n", [20, 77, 100, 999])
@pytest.mark.parametrize(("gamma", "delta"), TABLE)
def test_degree_is_the_smallest_even_one_below_the_bound(n: int, gamma: int, delta: int) -> None:
    lost = n * gamma // 1000 + n * delta // 1000

    def risk(k: int) -> Fraction:
        return Fraction(n * (n - k - 1), 2) * Fraction(comb(lost, k), comb(n, k))

    k = degree_for(n, gamma, delta)
    limit = Fraction(1, 1 << SIGMA_BITS)
    if k < n - 1:
        assert k % 2 == 0
        assert risk(k) < limit
    assert all(risk(smaller) >= limit for smaller in range(2, k, 2))


def test_without_a_sparse_answer_the_graph_is_complete() -> None:
    assert degree_for(10, 500, 400) == 9
    assert degree_for(2, 0, 0) == 1
    assert degree_for(1, 0, 0) == 0
    assert adjacency(10, 9, b"seed").complete
    assert adjacency(10, 40, b"seed").neighbours(3) == (0, 1, 2, 4, 5, 6, 7, 8, 9)
    assert adjacency(10, 9, b"seed").edges == 45
    assert adjacency(1, 0, b"seed").neighbours(0) == ()


@pytest.mark.parametrize(("n", "k"), [(4, 2), (12, 10), (30, 18), (100, 18), (101, 7), (1000, 26)])
def test_every_device_has_at_least_k_neighbours_both_ways(n: int, k: int) -> None:
    graph = adjacency(n, k, b"seed")
    sets = [graph.neighbours(i) for i in range(n)]
    for device, neighbours in enumerate(sets):
        assert list(neighbours) == sorted(set(neighbours) - {device})
        assert len(neighbours) >= k
        assert all(type(other) is int and device in sets[other] for other in neighbours)
    assert graph.edges == sum(map(len, sets)) // 2


def test_the_graph_is_the_same_on_every_platform() -> None:
    seed = bytes(range(32))
    graph = adjacency(20, 4, seed)
    assert [graph.neighbours(i) for i in (0, 7, 19)] == [
        (3, 4, 5, 8, 9, 15),
        (1, 6, 9, 10, 11, 15),
        (1, 6, 9, 13, 17),
    ]
    assert adjacency(20, 4, bytes(32)).neighbours(7) != graph.neighbours(7)


def test_cycles_follow_the_order_of_64_bit_keys_from_the_prg() -> None:
    n, seed = 57, b"seed"
    stream = keystream("aes128-ctr", derive(seed, "graph cycle", 3, size=24), 0, 8 * n)
    order = sorted(range(n), key=lambda i: (int.from_bytes(stream[8 * i : 8 * i + 8], "little"), i))
    pairs = list(zip(order, [*order[1:], order[0]], strict=True))
    assert _cycle(n, seed, 3).tolist() == [a * n + b for a, b in pairs] + [b * n + a for a, b in pairs]


def test_a_large_graph_costs_no_more_cycles_than_it_needs() -> None:
    graph = adjacency(20_000, 30, b"seed")
    assert 30 * 20_000 <= 2 * graph.edges <= 34 * 20_000


def test_union_of_cycles_is_cut_less_often_than_the_ring_the_bound_is_for() -> None:
    """With 15 of 60 devices lost and k = 6, of 1000 graphs the permuted ring is cut 90 times (the bound says at most
    159), the union of cycles once. The ring is cut wherever two stretches of k / 2 places are lost, in
    n (n - k - 1) / 2 ways; a union of cycles almost only by one device losing all its neighbours, in n ways."""
    n, k, lost, trials = 60, 6, 15, 1000
    alive = (1 << n) - (1 << lost)  # graphs are random, so which devices are lost does not matter
    seeds = [trial.to_bytes(4, "big") for trial in range(trials)]
    ring = sum(not connected(permuted_ring(n, k, seed), alive) for seed in seeds)
    union = sum(not connected(masks_of(adjacency(n, k, seed)), alive) for seed in seeds)
    bound = trials * n * (n - k - 1) / 2 * comb(lost, k) / comb(n, k)
    assert union <= ring <= bound
    assert (ring, union) == (90, 1)


def masks_of(graph: Graph) -> list[int]:
    return [sum(1 << other for other in graph.neighbours(i)) for i in range(graph.size)]


def permuted_ring(n: int, k: int, seed: bytes) -> list[int]:
    """The Harary graph of the formula: k / 2 places either way on one random cycle."""
    order = (_cycle(n, seed, 0)[:n] // n).tolist()
    masks = [0] * n
    for place, device in enumerate(order):
        for step in range(1, k // 2 + 1):
            other = order[(place + step) % n]
            masks[device] |= 1 << other
            masks[other] |= 1 << device
    return masks


def connected(masks: list[int], alive: int) -> bool:
    """Whether the devices in the bit set `alive` reach each other."""
    seen = frontier = alive & -alive
    while frontier:
        reached = 0
        for device, mask in enumerate(masks):
            if frontier >> device & 1:
                reached |= mask
        frontier = reached & alive & ~seen
        seen |= frontier
    return seen == alive
