"""The sum that comes out is the sum that went in, bit for bit, whoever drops: in the straight-line round and through openings."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from blindsum.protocol.keys import edge_keypair
from blindsum.protocol.masks import Seeds, mask_upload
from blindsum.protocol.messages import Header, OpeningContent
from blindsum.protocol.openings import combine, make_content
from blindsum.protocol.params import Committee
from blindsum.protocol.prg import SUITES
from blindsum.protocol.reference import run_round
from blindsum.protocol.ring import (
    WIDTHS,
    Lane,
    Segment,
    add_packed,
    equal,
    lane_dtype,
    pack,
    reduce,
    subtract_packed,
    zeros,
)
from blindsum.protocol.roster import RosterView
from blindsum.protocol.view import Member, RoundView
from blindsum.testing.entropy import Entropy
from blindsum.testing.world import World

COMMITTEES = (
    Committee.for_f(1),
    Committee.for_f(2),
    Committee.custom(parties=5, threshold=2, quorum=4, equivocators=1),
)
digests = st.binary(min_size=32, max_size=32)
shapes = st.lists(st.tuples(st.integers(1, 9), st.sampled_from(WIDTHS)), min_size=1, max_size=3).map(
    lambda parts: [Segment(f"s{place}", length, width) for place, (length, width) in enumerate(parts)]
)


def vectors_of(segments: list[Segment], count: int, seed: int) -> list[list[Lane]]:
    """`count` vectors that are anything in the ring, with its ends among them."""
    dice = np.random.default_rng(seed)
    out = []
    for _ in range(count):
        lanes = []
        for segment in segments:
            values = dice.integers(0, 2**segment.width - 1, segment.length, dtype=np.uint64, endpoint=True)
            ends = (0, 1, 2**segment.width - 1, 2 ** (segment.width - 1))
            values[0] = np.uint64(ends[dice.integers(len(ends))])
            lanes.append(values.astype(lane_dtype(segment.width)))
        out.append(lanes)
    return out


def plain_sum(segments: list[Segment], vectors: list[list[Lane]], survivors: list[int]) -> bytes:
    """With Python's own integers, mod 2^w."""
    lanes = []
    for place, segment in enumerate(segments):
        columns = zip(*(vectors[index][place].tolist() for index in survivors), strict=True)
        lanes.append(np.array([sum(column) % 2**segment.width for column in columns], lane_dtype(segment.width)))
    return pack(segments, lanes)


@settings(deadline=None, max_examples=60)
@given(
    shapes, st.integers(2, 9), st.sampled_from(COMMITTEES), st.sampled_from(sorted(SUITES)), digests, digests, st.data()
)
def test_reference_round_gives_the_plain_sum_for_any_dropouts(
    segments: list[Segment],
    n: int,
    committee: Committee,
    suite: str,
    manifest: bytes,
    roster: bytes,
    data: st.DataObject,
) -> None:
    survivors = sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1)))
    degree = data.draw(st.integers(1, n))
    vectors = vectors_of(segments, n, data.draw(st.integers(0, 2**32)))
    made = run_round(
        segments,
        vectors,
        survivors,
        committee=committee,
        degree=degree,
        manifest=manifest,
        roster=roster,
        random=Entropy(n, roster.hex()),
        suite=suite,
    )
    assert made.total == plain_sum(segments, vectors, survivors)
    plain = {pack(segments, vector) for vector in vectors}
    if sum(segment.packed_size for segment in segments) >= 16:
        assert not plain & set(made.bodies), "no body is its vector"


# -- through headers, boxes and openings ------------------------------------------------------------------------------


def bare_round(committee: Committee, n: int, width: int, suite: str) -> tuple[RoundView, RosterView, list[bytes]]:
    """A round of `n` devices with fresh keys, under a manifest that all parties offered for, and the devices' private keys."""
    world = World(n, devices=max(n, 2), committee=committee, width=width, suite=suite, length=7, checkers=())
    world.start()
    world.until("manifest")
    random = Entropy(n, "keys")
    keys = [random(32) for _ in range(n)]
    members = tuple(Member(party, bytes([party]), bytes(32), bytes(32)) for party in range(1, committee.parties + 1))
    view = replace(world.view, members=members)
    names = tuple(f"d-{index:04d}" for index in range(n))
    roster = RosterView(
        random(32), names, tuple(edge_keypair(key)[1] for key in keys), survivors_min=1, degree=max(n - 1, 1)
    )
    return view, roster, keys


def uploads(
    view: RoundView, roster: RosterView, keys: list[bytes], vectors: list[list[Lane]]
) -> tuple[list[Header], list[bytes], dict[int, dict[int, Seeds]]]:
    """Headers and bodies of all devices, and for each party the seeds that it was given."""
    base = view.base
    headers, bodies = [], []
    held: dict[int, dict[int, Seeds]] = {member.party: {} for member in view.members}
    for index, key in enumerate(keys):

        def seal(public: bytes, info: bytes, plain: bytes, index: int = index) -> bytes:
            party = public[0]
            mine = [s for s, outside in enumerate(base.self_subsets) if party not in outside]
            caps = [s for s, outside in enumerate(base.cap_subsets) if party not in outside]
            seeds = [plain[at : at + 32] for at in range(0, len(plain), 32)]
            held[party][index] = Seeds(
                dict(zip(mine, seeds, strict=False)), dict(zip(caps, seeds[len(mine) :], strict=True))
            )
            return b"box"

        made = mask_upload(
            view,
            roster,
            index=index,
            private=key,
            lanes=[lane.copy() for lane in vectors[index]],
            random=Entropy(index, roster.digest.hex()),
            seal=seal,
        )
        headers.append(made.header)
        bodies.append(b"".join(made.chunks))
    return headers, bodies, held


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from(COMMITTEES),
    st.integers(2, 7),
    st.sampled_from((16, 24, 32, 64)),
    st.sampled_from(sorted(SUITES)),
    st.data(),
)
def test_openings_of_any_quorum_give_the_plain_sum_for_any_dropouts(
    committee: Committee, n: int, width: int, suite: str, data: st.DataObject
) -> None:
    view, roster, keys = bare_round(committee, n, width, suite)
    segments = list(view.base.segments)
    vectors = vectors_of(segments, n, data.draw(st.integers(0, 2**32)))
    headers, bodies, held = uploads(view, roster, keys, vectors)
    survivors = sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1)))
    absent = data.draw(st.sets(st.integers(1, committee.parties), max_size=committee.parties - committee.quorum))
    contents: dict[int, list[OpeningContent]] = {}
    sums: dict[int, dict[int, bytes]] = {}
    for party in range(1, committee.parties + 1):
        if party not in absent:
            content, sums[party] = make_content(view, roster, party=party, survivors=survivors, seeds=held[party])
            contents[party] = [content]
    lanes = zeros(segments)
    for index in survivors:
        add_packed(segments, lanes, bodies[index])
    chosen = {index: headers[index] for index in survivors}
    first = combine(view, roster, lanes, headers=chosen, contents=contents)
    for party, wanted in first.wants.items():
        vectors_wanted = [(subset, sums[party][subset]) for subset in wanted]
        contents[party].append(OpeningContent(hashes=[], shares=b"", vectors=vectors_wanted))
    second = first if first.complete else combine(view, roster, lanes, headers=chosen, contents=contents)
    assert second.complete and not second.faults, second
    assert pack(segments, lanes) == plain_sum(segments, vectors, survivors)
    if not absent:
        assert first.complete, "nothing is asked for twice where everybody opens"


@settings(deadline=None, max_examples=15)
@given(st.integers(3, 6), st.data())
def test_openings_below_the_threshold_give_nothing(n: int, data: st.DataObject) -> None:
    """What t - 1 parties open leaves at least one self-mask sum on, whatever the coordinator does with the rest."""
    committee = Committee.for_f(1)
    view, roster, keys = bare_round(committee, n, 24, "aes128-ctr")
    segments = list(view.base.segments)
    vectors = vectors_of(segments, n, data.draw(st.integers(0, 2**32)))
    headers, bodies, held = uploads(view, roster, keys, vectors)
    survivors = list(range(n))
    party = data.draw(st.integers(1, 4))
    content, sums = make_content(view, roster, party=party, survivors=survivors, seeds=held[party])
    everything = [OpeningContent(hashes=content.hashes, shares=content.shares, vectors=sorted(sums.items()))]
    lanes = zeros(segments)
    for body in bodies:
        add_packed(segments, lanes, body)
    before = [lane.copy() for lane in lanes]
    out = combine(view, roster, lanes, headers=dict(enumerate(headers)), contents={party: everything})
    assert not out.complete
    assert equal(segments, lanes, before), "the sum stays as it is"
    for vector in sums.values():
        subtract_packed(segments, lanes, vector)
    reduce(segments, lanes)
    assert pack(segments, lanes) != plain_sum(segments, vectors, survivors)
