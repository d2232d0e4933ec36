"""Rings, keystreams, subsets, the graph and the masks of a round (SPEC.md sections 2, 4 and 7)."""

from __future__ import annotations

import hmac
import struct
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from typing import NamedTuple, TypeAlias

from oracle.cbor import Value, digest, encode
from oracle.ciphers import aes128_ctr, chacha20
from oracle.curves import x25519
from oracle.fault import require

PAGE_SIZE = 262_144
STREAM_KEY_SIZE = {"aes128-ctr": 24, "chacha20": 40}
VALUE_SIZE = {16: 2, 24: 4, 32: 4, 64: 8}
EXTRA_CYCLES_MAX = 1023


class Segment(NamedTuple):
    name: str
    length: int
    width: int


Vector: TypeAlias = list[list[int]]
"""Values modulo 2^w, a list a segment."""


# -- ring -------------------------------------------------------------------------------------------------------------


def packed_size(segments: Sequence[Segment]) -> int:
    return sum(s.length * s.width // 8 for s in segments)


def pack(segments: Sequence[Segment], vector: Vector) -> bytes:
    out = b""
    for segment, values in zip(segments, vector, strict=True):
        if segment.width == 24:
            out += b"".join(struct.pack("<H", v & 0xFFFF) for v in values) + bytes(v >> 16 & 0xFF for v in values)
        else:
            out += b"".join(v.to_bytes(segment.width // 8, "little") for v in values)
    return out


def unpack(segments: Sequence[Segment], data: bytes) -> Vector:
    require(len(data) == packed_size(segments), "update-wrong-shape")
    out: Vector = []
    for _, length, width in segments:
        part, data = data[: length * width // 8], data[length * width // 8 :]
        if width == 24:
            low = struct.unpack(f"<{length}H", part[: 2 * length])
            out.append([a | b << 16 for a, b in zip(low, part[2 * length :], strict=True)])
        else:
            size = width // 8
            out.append([int.from_bytes(part[i : i + size], "little") for i in range(0, len(part), size)])
    return out


def zeros(segments: Sequence[Segment]) -> Vector:
    return [[0] * s.length for s in segments]


def add(segments: Sequence[Segment], vector: Vector, other: Vector, sign: int = 1) -> Vector:
    return [
        [(a + sign * b) % (1 << s.width) for a, b in zip(one, two, strict=True)]
        for s, one, two in zip(segments, vector, other, strict=True)
    ]


def signed(segment: Segment, values: Iterable[int]) -> list[int]:
    half = 1 << segment.width - 1
    return [v - 2 * half if v >= half else v for v in values]


# -- keys -------------------------------------------------------------------------------------------------------------


def derive(secret: bytes, label: str, *context: Value, size: int = 32) -> bytes:
    info = encode(["blindsum/1 " + label, *context])
    key, out, block = hmac.digest(bytes(32), secret, "sha256"), b"", b""
    for counter in range(1, -(-size // 32) + 1):
        block = hmac.digest(key, block + info + bytes([counter]), "sha256")
        out += block
    return out[:size]


def keystream(suite: str, stream_key: bytes, page: int, start: int, size: int) -> bytes:
    require(len(stream_key) == STREAM_KEY_SIZE[suite] and start + size <= PAGE_SIZE, "parameters-unsafe")
    key, nonce = stream_key[:-8], stream_key[-8:] + struct.pack(">I", page)
    return aes128_ctr(key, nonce, 2, start, size) if suite == "aes128-ctr" else chacha20(key, nonce, 0, start, size)


def mask(suite: str, stream_key: bytes, segments: Sequence[Segment]) -> Vector:
    """PRG(stream key)."""
    out: Vector = []
    page = 0
    for _, length, width in segments:
        size, values = VALUE_SIZE[width], []
        for at in range(0, length * size, PAGE_SIZE):
            stream = keystream(suite, stream_key, page, 0, min(PAGE_SIZE, length * size - at))
            values += [int.from_bytes(stream[i : i + size], "little") for i in range(0, len(stream), size)]
            page += 1
        out.append([v % (1 << width) for v in values])
    return out


def xor(*parts: bytes) -> bytes:
    out = parts[0]
    for part in parts[1:]:
        out = bytes(a ^ b for a, b in zip(out, part, strict=True))
    return out


# -- subsets and graph ------------------------------------------------------------------------------------------------


def subsets(parties: int, size: int) -> list[tuple[int, ...]]:
    return list(combinations(range(1, parties + 1), size))


def held(party: int, sets: Sequence[tuple[int, ...]]) -> list[int]:
    return [number for number, outside in enumerate(sets) if party not in outside]


def graph(n: int, k: int, seed: bytes) -> list[list[int]]:
    """The neighbours of every device, ascending."""
    complete = [[v for v in range(n) if v != u] for u in range(n)]
    if n <= k + 1:
        return complete
    found: list[set[int]] = [set() for _ in range(n)]
    least = (k + 1) // 2
    for cycle in range(least + EXTRA_CYCLES_MAX):
        key = derive(seed, "graph cycle", cycle, size=24)
        (keys,) = mask("aes128-ctr", key, [Segment("", n, 64)])
        order = sorted(range(n), key=keys.__getitem__)
        for a, b in zip(order, order[1:] + order[:1], strict=True):
            found[a].add(b)
            found[b].add(a)
        if cycle + 1 >= least and min(map(len, found)) >= k:
            return [sorted(neighbours) for neighbours in found]
    return complete


# -- one round --------------------------------------------------------------------------------------------------------


class Place(NamedTuple):
    """What every key of a round depends on."""

    manifest: bytes
    roster: bytes
    suite: str
    segments: Sequence[Segment]
    self_sets: Sequence[tuple[int, ...]]
    cap_sets: Sequence[tuple[int, ...]]

    def self_mask(self, index: int, subset: int, seed: bytes) -> Vector:
        size = STREAM_KEY_SIZE[self.suite]
        key = derive(seed, "self", self.manifest, self.roster, index, subset, size=size)
        return mask(self.suite, key, self.segments)

    def edge_secret(self, private: bytes, public: bytes, u: int, v: int) -> bytes:
        shared = x25519(private, public)
        require(any(shared), "join-malformed")
        return derive(shared, "edge", self.manifest, self.roster, min(u, v), max(u, v))

    def edge_mask(self, secret: bytes) -> Vector:
        key = derive(secret, "edge-mask", self.manifest, size=STREAM_KEY_SIZE[self.suite])
        return mask(self.suite, key, self.segments)

    def edge_check(self, secret: bytes) -> bytes:
        return digest("edge-check", self.manifest, secret)[:16]

    def pad(self, u: int, v: int, subset: int, seed: bytes) -> bytes:
        return derive(seed, "cap", self.manifest, self.roster, u, v, subset)

    def commitment(self, index: int, layer: str, subset: int, seed: bytes) -> bytes:
        return digest("commit", self.manifest, self.roster, index, layer, subset, seed)

    def add(self, vector: Vector, other: Vector, sign: int = 1) -> Vector:
        return add(self.segments, vector, other, sign)


class Upload(NamedTuple):
    body: bytes
    caps: dict[int, bytes]
    secrets: dict[int, bytes]


def upload(
    place: Place,
    index: int,
    vector: Vector,
    private: bytes,
    publics: Sequence[bytes],
    neighbours: Sequence[int],
    self_seeds: Sequence[bytes],
    cap_seeds: Sequence[bytes],
) -> Upload:
    """SPEC.md sections 7.1 and 7.2."""
    for subset, seed in enumerate(self_seeds):
        vector = place.add(vector, place.self_mask(index, subset, seed))
    caps, secrets = {}, {}
    for other in neighbours:
        secret = place.edge_secret(private, publics[other], index, other)
        vector = place.add(vector, place.edge_mask(secret), 1 if index < other else -1)
        secrets[other] = secret
        caps[other] = xor(secret, *(place.pad(index, other, s, seed) for s, seed in enumerate(cap_seeds)))
    return Upload(pack(place.segments, vector), caps, secrets)


class Round(NamedTuple):
    bodies: list[bytes]
    openings: list[bytes]
    edges: list[tuple[int, int, bytes]]
    total: bytes


def whole_round(
    place: Place, vectors: Sequence[Vector], survivors: Sequence[int], degree: int, draw: Callable[[int], bytes]
) -> Round:
    """Every device uploads, those outside `survivors` count as dropped; `draw` gives the devices' secrets in the order: all
    X25519 keys, all self seeds, all cap seeds, each by device."""
    n = len(vectors)
    neighbours = graph(n, degree, place.roster)
    privates = [draw(32) for _ in range(n)]
    publics = [x25519(private, (9).to_bytes(32, "little")) for private in privates]
    self_seeds = [[draw(32) for _ in place.self_sets] for _ in range(n)]
    cap_seeds = [[draw(32) for _ in place.cap_sets] for _ in range(n)]
    uploads = [
        upload(place, u, vectors[u], privates[u], publics, neighbours[u], self_seeds[u], cap_seeds[u]) for u in range(n)
    ]
    total = zeros(place.segments)
    for u in survivors:
        total = place.add(total, unpack(place.segments, uploads[u].body))
    openings = []
    for subset in range(len(place.self_sets)):
        opened = zeros(place.segments)
        for u in survivors:
            opened = place.add(opened, place.self_mask(u, subset, self_seeds[u][subset]))
        openings.append(pack(place.segments, opened))
        total = place.add(total, opened, -1)
    edges = []
    for u in survivors:
        for v in neighbours[u]:
            if v not in survivors:
                pads = [place.pad(u, v, s, seed) for s, seed in enumerate(cap_seeds[u])]
                secret = xor(uploads[u].caps[v], *pads)
                total = place.add(total, place.edge_mask(secret), -1 if u < v else 1)
                edges.append((u, v, secret))
    return Round([u.body for u in uploads], openings, edges, pack(place.segments, total))
