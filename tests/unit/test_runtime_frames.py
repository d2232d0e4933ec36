"""MQTT packets out of a byte stream, against paho's own reading of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt import _packet
from paho.mqtt.client import MQTTv5, MQTTv311

from blindsum.runtime.frames import Frames

SIZE_MAX = 4096


def framed(kind: int, rest: bytes) -> bytes:
    size, length = len(rest), b""
    while True:
        size, byte = size >> 7, size & 127
        length += bytes([byte | (128 if size else 0)])
        if not size:
            return bytes([kind]) + length + rest


def publish(topic: bytes, body: bytes, mid: int, properties: bytes | None) -> bytes:
    packet_id = mid.to_bytes(2) if mid else b""
    between = b"" if properties is None else bytes([len(properties)]) + properties
    return framed(0x32 if mid else 0x30, len(topic).to_bytes(2) + topic + packet_id + between + body)


def read_all(frames: Frames) -> list[object]:
    found: list[object] = []
    while frames.whole():
        if frames.delivery:
            found.append(frames.publish())
        else:
            packet = b""
            while part := frames.take(3):
                packet += part
            found.append(packet)
        frames.drop()
    return found


deliveries = st.tuples(
    st.text("abc/0é", min_size=1, max_size=60), st.binary(max_size=300), st.integers(0, 65535), st.booleans()
)
others = st.builds(framed, st.sampled_from([0x20, 0x40, 0x90, 0xD0, 0xE0, 0x34]), st.binary(max_size=200))


@given(st.lists(st.one_of(deliveries, others), max_size=8), st.booleans(), st.data())
def test_packets_are_the_same_however_the_stream_is_cut(items: list[object], five: bool, data: st.DataObject) -> None:
    stream, expected = b"", []
    for item in items:
        if isinstance(item, bytes):
            stream += item
            expected.append(item)
            continue
        topic, body, mid, stamped = item
        properties = (b"\x02\0\0\0\x07" if stamped else b"") if five else None
        stream += (packet := publish(topic.encode(), body, mid, properties))
        read = _packet.decode_publish(packet[0], packet[len(packet) - _rest(packet) :], MQTTv5 if five else MQTTv311)
        assert (read.topic.decode(), bytes(read.payload), read.mid) == (topic, body, mid)
        expected.append((topic, body, mid))
    frames, found = Frames(SIZE_MAX, properties=five), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        frames.feed(stream[:size])
        stream = stream[size:]
        found += read_all(frames)
    assert found == expected


@given(st.lists(st.binary(max_size=64), max_size=20), st.booleans())
def test_any_bytes_are_packets_or_the_end_of_the_connection(pieces: list[bytes], five: bool) -> None:
    frames = Frames(SIZE_MAX, properties=five)
    try:
        for piece in pieces:
            frames.feed(piece)
            read_all(frames)
    except ConnectionError:
        pass


@given(st.binary(max_size=40), st.booleans(), st.sampled_from([0x30, 0x31, 0x32, 0x3B]))
def test_delivery_never_reads_beyond_its_packet(rest: bytes, five: bool, kind: int) -> None:
    frames = Frames(SIZE_MAX, properties=five)
    frames.feed(framed(kind, rest) + b"\xff" * 100)
    assert frames.whole()
    hasty = frames.topic, frames.mid
    try:
        topic, body, mid = frames.publish()
    except ConnectionError:
        return
    assert hasty == (topic.encode() or hasty[0], mid)
    assert len(topic.encode()) + len(body) + 2 * bool(mid) <= len(rest)


def test_packet_that_is_too_large_or_has_no_length_is_refused_before_it_is_there() -> None:
    with pytest.raises(ConnectionError):
        (frames := Frames(100, properties=True)).feed(b"\x30\x65")
        frames.whole()
    with pytest.raises(ConnectionError):
        (frames := Frames(100, properties=True)).feed(b"\x30\xff\xff\xff\xff")
        frames.whole()


def _rest(packet: bytes) -> int:
    """Bytes after the fixed header."""
    at = 1
    while packet[at] > 127:
        at += 1
    return len(packet) - at - 1
