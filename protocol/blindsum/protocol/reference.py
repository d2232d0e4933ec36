"""The whole round in a straight line: SPEC.md section 7 as code, without messages, signatures, time or failure handling.

Read this first. The machines do the same work spread over roles and restarts; a test holds the two against each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from blindsum.protocol.graph import adjacency
from blindsum.protocol.keys import SEED_SIZE, agree, derive, edge_keypair
from blindsum.protocol.params import Committee
from blindsum.protocol.prg import SUITES, apply
from blindsum.protocol.ring import Lane, Segment, add_packed, pack, reduce, subtract_packed, zeros
from blindsum.protocol.sharing import subsets, xor

__all__ = ["Round", "run_round"]


@dataclass(frozen=True, slots=True)
class Round:
    """What a round leaves: the masked `bodies` of all devices, the parties' `openings` (one packed sum a self subset), the opened
    `edges` as (survivor, dropped, secret), and `total`, the packed sum of the survivors' vectors."""

    bodies: tuple[bytes, ...] = field(repr=False)
    openings: tuple[bytes, ...] = field(repr=False)
    edges: tuple[tuple[int, int, bytes], ...] = field(repr=False)
    total: bytes = field(repr=False)


def run_round(
    segments: Sequence[Segment],
    vectors: Sequence[Sequence[Lane]],
    survivors: Sequence[int],
    *,
    committee: Committee,
    degree: int,
    manifest: bytes,
    roster: bytes,
    random: Callable[[int], bytes],
    suite: str = "aes128-ctr",
) -> Round:
    """Aggregate `vectors` (lanes of ring elements, one list a device) over the device indices `survivors`.

    `manifest` and `roster` are 32-byte digests that every key depends on; `random(n)` gives n secret bytes. All devices upload;
    those outside `survivors` are dropped afterwards, which is the worst case for the masks.
    """
    n = len(vectors)
    self_subsets = subsets(committee.parties, committee.threshold - 1)
    cap_subsets = subsets(committee.parties, committee.quorum - 1)
    graph = adjacency(n, degree, roster)
    key_size = SUITES[suite]

    # every device: keys of the round, one seed a subset of either kind
    keys = [edge_keypair(random(SEED_SIZE)) for _ in range(n)]
    self_seeds = [[random(SEED_SIZE) for _ in self_subsets] for _ in range(n)]
    cap_seeds = [[random(SEED_SIZE) for _ in cap_subsets] for _ in range(n)]

    def self_stream(u: int, subset: int) -> bytes:
        return derive(self_seeds[u][subset], "self", manifest, roster, u, subset, size=key_size)

    def edge_secret(u: int, v: int) -> bytes:
        shared = agree(keys[u][0], keys[v][1])
        assert shared is not None
        return derive(shared, "edge", manifest, roster, min(u, v), max(u, v))

    def edge_stream(secret: bytes) -> bytes:
        return derive(secret, "edge-mask", manifest, size=key_size)

    def cap_pad(u: int, v: int, subset: int) -> bytes:
        return derive(cap_seeds[u][subset], "cap", manifest, roster, u, v, subset)

    # every device: y_u = x_u + sum_T PRG(self) + sum_v sign(u, v) PRG(edge), and a cap on each edge
    bodies: list[bytes] = []
    caps: dict[tuple[int, int], bytes] = {}
    for u in range(n):
        lanes = [lane.copy() for lane in vectors[u]]
        streams = [(self_stream(u, subset), 1) for subset in range(len(self_subsets))]
        for v in graph.neighbours(u):
            secret = edge_secret(u, v)
            streams.append((edge_stream(secret), 1 if u < v else -1))
            cap = secret
            for subset in range(len(cap_subsets)):
                cap = xor(cap, cap_pad(u, v, subset))
            caps[u, v] = cap
        apply(segments, lanes, streams, suite=suite)
        reduce(segments, lanes)
        bodies.append(pack(segments, lanes))

    # the parties: for each T, M_T = sum_{u in S} PRG(self(u, T)), which every party outside T can compute
    openings: list[bytes] = []
    for subset in range(len(self_subsets)):
        lanes = zeros(segments)
        apply(segments, lanes, [(self_stream(u, subset), 1) for u in survivors], suite=suite)
        reduce(segments, lanes)
        openings.append(pack(segments, lanes))

    # the parties: the pads of every edge that lost one end; q parties hold them all
    alive = set(survivors)
    edges: list[tuple[int, int, bytes]] = []
    for u in survivors:
        for v in graph.neighbours(u):
            if v not in alive:
                secret = caps[u, v]
                for subset in range(len(cap_subsets)):
                    secret = xor(secret, cap_pad(u, v, subset))
                edges.append((u, v, secret))

    # the coordinator: sum of uploads - sums of self masks - masks of dropped edges
    lanes = zeros(segments)
    for u in survivors:
        add_packed(segments, lanes, bodies[u])
    for opening in openings:
        subtract_packed(segments, lanes, opening)
    apply(segments, lanes, [(edge_stream(s), -1 if u < v else 1) for u, v, s in edges], suite=suite)
    reduce(segments, lanes)
    total = pack(segments, lanes)
    return Round(tuple(bodies), tuple(openings), tuple(edges), total)
