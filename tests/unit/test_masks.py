"""What an upload weighs: the header and the masked body (figures that SPEC.md and the README state)."""

from __future__ import annotations

from blindsum.protocol.codec import convert
from blindsum.protocol.envelope import open_envelope
from blindsum.protocol.keys import chunk_open, chunk_seal
from blindsum.protocol.messages import EDGE_SIZE, Header
from blindsum.protocol.ring import Segment, packed_size
from blindsum.testing.world import World

HEADER_SIZE_MAX = 10_240
BYTES_PER_PARAMETER_MAX = 3.01


def test_header_stays_below_ten_kilobytes_with_four_parties_and_32_or_more_neighbours() -> None:
    headers: list[bytes] = []

    def tap(_source: str, target: str, body: bytes) -> bytes:
        if target == "coordinator" and body[:1] == b"\xd2" and open_envelope(body).head.type == "header":
            headers.append(body)
        return body

    world = World(5, devices=40, length=4_096, corrupt_permille=450, dropped_permille=450)
    world.network.tap = tap
    world.run(1)
    world.check()
    sizes = []
    for raw in headers:
        header = convert(open_envelope(raw).payload, Header)
        assert len(header.edges) >= 32 * EDGE_SIZE
        assert len(header.boxes) == 4
        assert header.body.count >= 12
        sizes.append(len(raw))
    assert len({open_envelope(raw).head.sender for raw in headers}) == 40
    assert max(sizes) <= HEADER_SIZE_MAX


def test_body_of_a_million_parameters_takes_three_bytes_each() -> None:
    segments = [Segment("parameters", 1_000_000, 24), Segment("statistics", 3, 64)]
    assert packed_size(segments) / 1_000_000 <= BYTES_PER_PARAMETER_MAX


def test_a_sealed_chunk_opens_only_with_its_key_at_its_place() -> None:
    key, blob, data = bytes(range(32)), b"b" * 32, b"parameters" * 100
    sealed = chunk_seal(key, blob, 3, data)
    assert len(sealed) == len(data) + 16
    assert data[:16] not in sealed
    assert chunk_open(key, blob, 3, sealed) == data
    assert chunk_open(key, blob, 2, sealed) is None
    assert chunk_open(key, b"c" * 32, 3, sealed) is None
    assert chunk_open(bytes(32), blob, 3, sealed) is None
    assert chunk_open(key, blob, 3, sealed[:-1]) is None
