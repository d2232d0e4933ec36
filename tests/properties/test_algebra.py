"""The algebra that the protocol rests on, for vectors, streams and committees of any shape."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.graph import adjacency
from blindsum.protocol.params import Committee
from blindsum.protocol.prg import SUITES, apply
from blindsum.protocol.quantize import Codec, bits_for, dequantise, quantise, rotated_range
from blindsum.protocol.ring import (
    WIDTHS,
    Lane,
    PackedSum,
    Segment,
    add_packed,
    equal,
    from_signed,
    lane_dtype,
    pack,
    packed_size,
    reduce,
    subtract_packed,
    to_signed,
    unpack,
    zeros,
)
from blindsum.protocol.rotation import rotate, unrotate
from blindsum.protocol.sharing import combine, held_by, holders, subsets

untimed = settings(deadline=None)
shapes = st.lists(st.tuples(st.integers(0, 40), st.sampled_from(WIDTHS)), min_size=1, max_size=4).map(
    lambda parts: [Segment(f"s{i}", length, width) for i, (length, width) in enumerate(parts)]
)
seeds = st.binary(min_size=32, max_size=32)


def random_lanes(segments: list[Segment], seed: bytes) -> list[Lane]:
    """A uniform vector, from the PRG itself."""
    lanes = zeros(segments)
    apply(segments, lanes, [(seed[:24], 1)], suite="aes128-ctr")
    reduce(segments, lanes)
    return lanes


@untimed
@given(shapes, seeds)
def test_packing_is_a_bijection_between_vectors_and_bytes(segments: list[Segment], seed: bytes) -> None:
    lanes = random_lanes(segments, seed)
    data = pack(segments, lanes)
    assert len(data) == packed_size(segments)
    assert equal(segments, unpack(segments, data), lanes)
    assert pack(segments, unpack(segments, data)) == data


@untimed
@given(shapes, st.data())
def test_any_bytes_of_the_right_length_are_a_vector_and_no_others(segments: list[Segment], data: st.DataObject) -> None:
    raw = data.draw(st.binary(max_size=2 * packed_size(segments) + 2))
    try:
        lanes = unpack(segments, raw)
    except BlindsumError as error:
        assert error.code == "update-wrong-shape"
        assert len(raw) != packed_size(segments)
    else:
        assert pack(segments, lanes) == raw


@untimed
@given(shapes, st.lists(seeds, min_size=1, max_size=5))
def test_sums_of_uploads_do_not_depend_on_their_order(segments: list[Segment], each: list[bytes]) -> None:
    uploads = [pack(segments, random_lanes(segments, seed)) for seed in each]
    forward, backward = zeros(segments), zeros(segments)
    for upload in uploads:
        add_packed(segments, forward, upload)
    for upload in reversed(uploads):
        add_packed(segments, backward, upload)
    assert pack(segments, forward) == pack(segments, backward)
    for upload in uploads:
        subtract_packed(segments, forward, upload)
    assert equal(segments, forward, zeros(segments))


@untimed
@given(shapes, st.lists(seeds, min_size=1, max_size=6, unique=True), st.sampled_from(list(SUITES)), seeds)
def test_masks_cancel_in_any_grouping(segments: list[Segment], keys: list[bytes], suite: str, seed: bytes) -> None:
    streams = [((key * 2)[: SUITES[suite]], 1 if key[0] % 2 else -1) for key in keys]
    lanes = random_lanes(segments, seed)
    masked = [lane.copy() for lane in lanes]
    apply(segments, masked, streams, suite=suite)
    packed = unpack(segments, pack(segments, masked))
    for key, sign in sorted(streams):
        apply(segments, packed, [(key, -sign)], suite=suite)
    assert equal(segments, packed, lanes)


@untimed
@given(st.sampled_from(WIDTHS), st.data())
def test_signed_values_survive_the_ring(width: int, data: st.DataObject) -> None:
    half = 1 << (width - 1)
    values = data.draw(st.lists(st.integers(-half, half - 1), max_size=20))
    segment = Segment("m", len(values), width)
    assert to_signed(segment, from_signed(segment, np.array(values, np.int64))).tolist() == values


@untimed
@given(st.sampled_from(WIDTHS), st.data())
def test_a_sum_that_fits_is_exact_however_the_parts_wrapped(width: int, data: st.DataObject) -> None:
    half = 1 << (width - 1)
    values = data.draw(st.lists(st.integers(-half, half - 1), min_size=1, max_size=10))
    segment = Segment("m", 1, width)
    total = zeros([segment])[0]
    for value in values:
        total += from_signed(segment, np.array([value], np.int64))
    expected = (sum(values) + half) % (2 * half) - half
    assert to_signed(segment, total).tolist() == [expected]


@untimed
@given(
    width=st.sampled_from(WIDTHS),
    devices=st.integers(1, 8),
    length=st.integers(1, 50),
    weight_max=st.integers(1, 20),
    rotated=st.booleans(),
    seed=seeds,
)
def test_the_mean_is_within_a_level_of_the_weighted_mean(
    *, width: int, devices: int, length: int, weight_max: int, rotated: bool, seed: bytes
) -> None:
    bits = bits_for(width, devices, weight_max)
    segment = Segment("m", length, width)
    value_range = rotated_range(1.0, length) if rotated else 1.0
    codec = Codec(1.0, value_range, bits, weight_max, seed[:16] if rotated else b"")
    noise = random_lanes([Segment("x", devices * length, 32)], seed)[0].reshape(devices, length)
    updates = (noise / 2**31 - 1).astype(np.float32)
    updates /= np.maximum(1.0, np.linalg.norm(updates, axis=1, keepdims=True) * 1.001).astype(np.float32)
    weights = [1 + key % weight_max for key in seed[:devices]]
    total = np.zeros(length, lane_dtype(width))
    for number, (update, weight) in enumerate(zip(updates, weights, strict=True)):
        total += quantise(update, weight, codec, segment, bytes([number]) + seed)
    mean = dequantise(total, sum(weights), codec, segment)
    expected = np.average(updates.astype(np.float64), axis=0, weights=weights)
    level = value_range / codec.level_max
    bound = devices * level / sum(weights) + 1e-6
    assert np.linalg.norm(mean - expected) <= bound * np.sqrt(length)


@untimed
@given(
    width=st.sampled_from(WIDTHS),
    devices=st.integers(1, 10**6),
    weight=st.integers(1, 10**6),
    headroom=st.integers(0, 8),
)
def test_bits_never_let_a_sum_wrap(width: int, devices: int, weight: int, headroom: int) -> None:
    try:
        bits = bits_for(width, devices, weight, headroom)
    except BlindsumError:
        bits = 3  # refused: the smallest that would be accepted is unsafe
        assert not _fits(width, devices, weight, headroom, 4)
    assert bits == 3 or _fits(width, devices, weight, headroom, bits)
    assert not _fits(width, devices, weight, headroom, bits + 1)


def _fits(width: int, devices: int, weight: int, headroom: int, bits: int) -> bool:
    level = (1 << (bits - 1)) - 1
    return (devices * level * weight) << headroom < 1 << (width - 1) and level * weight < 1 << 36


@untimed
@given(st.integers(1, 300), seeds)
def test_rotation_is_linear_and_keeps_inner_products(length: int, seed: bytes) -> None:
    both = random_lanes([Segment("x", 2 * length, 32)], seed)[0].reshape(2, length)
    one, other = (both / 2**31 - 1).astype(np.float32)
    a, b = rotate(one, seed[:16]), rotate(other, seed[:16])
    assert np.allclose(rotate(one + other, seed[:16]), a + b, atol=1e-4)
    assert np.isclose(np.dot(a, b), np.dot(one, other), atol=1e-3)
    assert np.allclose(unrotate(a, seed[:16]), one, atol=1e-5)


@untimed
@given(st.integers(1, 10), st.data())
def test_every_seed_is_missed_by_its_subset_alone(parties: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(0, parties - 1))
    index = data.draw(st.integers(0, len(subsets(parties, size)) - 1))
    subset = subsets(parties, size)[index]
    assert sorted((*subset, *holders(subset, parties))) == list(range(1, parties + 1))
    assert [index in held_by(party, subsets(parties, size)) for party in range(1, parties + 1)] == [
        party not in subset for party in range(1, parties + 1)
    ]


@untimed
@given(seeds, st.lists(seeds, max_size=10))
def test_capping_twice_is_the_identity(key: bytes, pads: list[bytes]) -> None:
    assert combine(combine(key, pads), sorted(pads)) == key


@untimed
@given(st.integers(1, 60), st.integers(1, 12), seeds)
def test_graphs_are_symmetric_loopless_and_dense_enough(n: int, k: int, seed: bytes) -> None:
    graph = adjacency(n, k, seed)
    sets = [set(graph.neighbours(device)) for device in range(n)]
    for device, neighbours in enumerate(sets):
        assert device not in neighbours
        assert len(neighbours) >= min(k, n - 1)
        assert all(device in sets[other] for other in neighbours)


@settings(deadline=None, max_examples=25)
@given(
    f=st.integers(1, 2),
    n=st.integers(2, 12),
    length=st.integers(1, 40),
    width=st.sampled_from(WIDTHS),
    seed=seeds,
    data=st.data(),
)
def test_double_masked_uploads_open_to_the_sum_of_the_survivors_and_nothing_less(
    *, f: int, n: int, length: int, width: int, seed: bytes, data: st.DataObject
) -> None:
    """A round's arithmetic from the parts: self masks per subset, pairwise masks per edge, any dropouts."""
    committee, suite = Committee.for_f(f), "aes128-ctr"
    segments = [Segment("m", length, width), Segment("s", 2, 64)]
    graph = adjacency(n, 4, seed)
    survivors = sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1)))

    def secret(*labels: int) -> bytes:
        return (bytes(labels) + seed)[:24]

    values = [random_lanes(segments, secret(0, u)) for u in range(n)]
    uploads = []
    for u in range(n):
        lanes = [lane.copy() for lane in values[u]]
        selfs = [(secret(1, u, i), 1) for i in range(len(committee.self_subsets))]
        edges = [(secret(2, min(u, v), max(u, v)), 1 if u < v else -1) for v in graph.neighbours(u)]
        apply(segments, lanes, selfs + edges, suite=suite)
        uploads.append(pack(segments, lanes))

    opened, expected = zeros(segments), zeros(segments)
    for u in survivors:
        add_packed(segments, opened, uploads[u])
        for lane, value in zip(expected, values[u], strict=True):
            lane += value
    cut = [
        (secret(2, min(u, v), max(u, v)), -1 if u < v else 1)
        for u in survivors
        for v in graph.neighbours(u)
        if v not in survivors
    ]
    apply(segments, opened, cut, suite=suite)
    for i in range(len(committee.self_subsets)):
        assert not equal(segments, opened, expected), "still masked by the subsets that are not open"
        sums = zeros(segments)
        apply(segments, sums, ((secret(1, u, i), 1) for u in survivors), suite=suite)
        subtract_packed(segments, opened, pack(segments, sums))
    assert equal(segments, opened, expected)


@given(st.sampled_from(WIDTHS), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_a_packed_sum_equals_adding_lanes_and_taking_out_again(width: int, count: int, seed: int) -> None:
    segments = [Segment("a", 70_001 if width == 24 else 33, width), Segment("b", 5, 64)]
    dice = np.random.default_rng(seed)
    uploads = [dice.bytes(packed_size(segments)) for _ in range(count)]
    running, lanes = PackedSum(segments), zeros(segments)
    for upload in uploads:
        running.add(upload)
        add_packed(segments, lanes, upload)
    reduce(segments, lanes)
    assert pack(segments, running.lanes()) == pack(segments, lanes)
    for upload in uploads[1:]:
        running.subtract(upload)
    assert pack(segments, running.lanes()) == uploads[0]
