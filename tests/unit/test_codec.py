"""Deterministic CBOR: SPEC.md section 3.1."""

from __future__ import annotations

from contextlib import suppress

import cbor2
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from blindsum.protocol.codec import DEPTH_MAX, DecodeError, convert, decode, decode_chunk, encode, encode_chunk
from blindsum.protocol.memo import sharing
from blindsum.protocol.messages import Ask, BlobRef, Check, Receipt, SegmentSpec

INTEGERS = st.integers(-(2**64), 2**64 - 1)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
ATOMS = st.one_of(INTEGERS, st.binary(max_size=300), TEXTS, st.booleans(), st.none())
KEYS = st.one_of(TEXTS, INTEGERS)


def nested(inner: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4)


VALUES = st.recursive(ATOMS, nested, max_leaves=12).filter(lambda value: depth(value) <= DEPTH_MAX)
CHUNK_INDICES = st.one_of(st.integers(0, 2**20 - 1), st.sampled_from([0, 23, 24, 255, 256, 65_535, 65_536, 2**20 - 1]))


def depth(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max((depth(item) for item in value.values()), default=0)
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


def same(left: object, right: object) -> bool:
    """Equal, and of the same types throughout (True is no 1)."""
    if type(left) is not type(right):
        return False
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return left == right


@given(VALUES)
def test_what_is_encoded_decodes_to_itself(value: object) -> None:
    assert same(decode(encode(value)), value)


@given(st.dictionaries(KEYS, ATOMS, max_size=8).flatmap(lambda d: st.tuples(st.just(d), st.permutations(list(d)))))
def test_encoding_does_not_depend_on_the_order_of_a_map(drawn: tuple[dict[object, object], list[object]]) -> None:
    value, order = drawn
    assert encode({key: value[key] for key in order}) == encode(value)


@given(st.binary(max_size=200))
@example(b"")
@example(b"\x9f\xff")
@example(b"\xa1\xf5\x01")
@example(b"\xd9\x01\x02\x80")
@example(b"\xfb" + bytes(8))
def test_any_bytes_give_the_one_value_they_encode_or_a_decode_error(data: bytes) -> None:
    try:
        value = decode(data)
    except DecodeError:
        return
    assert encode(value) == data


@given(VALUES, st.data())
def test_altered_encoding_gives_the_value_it_then_encodes_or_a_decode_error(value: object, data: st.DataObject) -> None:
    raw = bytearray(encode(value))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    with suppress(DecodeError):
        assert encode(decode(bytes(raw))) == raw


@given(VALUES, st.binary(min_size=1, max_size=3))
def test_trailing_bytes_are_refused(value: object, tail: bytes) -> None:
    with pytest.raises(DecodeError):
        decode(encode(value) + tail)


@given(VALUES, st.data())
def test_encoding_that_is_cut_off_is_refused(value: object, data: st.DataObject) -> None:
    raw = encode(value)
    with pytest.raises(DecodeError):
        decode(raw[: data.draw(st.integers(0, len(raw) - 1))])


@pytest.mark.parametrize("content", ["00", "60", "40", "80", "a0", "820102", "82c24101c24103"])
def test_every_tag_is_refused(content: str) -> None:
    for tag in [*range(300), 1004, 43_000, 55_799, 2**32 - 1]:
        tagged = cbor2.dumps(cbor2.CBORTag(tag, 0))[:-1] + bytes.fromhex(content)
        for raw in (tagged, b"\x81" + tagged):
            with pytest.raises(DecodeError):
                decode(raw)


@pytest.mark.parametrize("head", [b"\xc4\x82\x01", b"\xc5\x82\x01", b"\xd8\x1e\x82\x01"])
def test_numbers_that_take_minutes_to_make_are_not_made(head: bytes) -> None:
    """Half a megabyte of bignum in a decimal fraction or bigfloat cost a minute before anybody had signed anything."""
    with pytest.raises(DecodeError):
        decode(head + b"\xc2\x5a\x00\x07\xa1\x20" + b"\xff" * 500_000)


@pytest.mark.parametrize("text", ["f93c00", "fa3f800000", "fb3ff0000000000000", "f97e00", "f7", "e0", "f820"])
def test_floats_and_simple_values_are_refused(text: str) -> None:
    with pytest.raises(DecodeError):
        decode(bytes.fromhex(text))


def test_items_lie_inside_eight_containers_at_most() -> None:
    value: object = 0
    for _ in range(DEPTH_MAX):
        value = [value]
    assert decode(encode(value)) == value
    with pytest.raises(DecodeError):
        decode(encode([value]))
    with pytest.raises(DecodeError):
        decode(b"\x81" * 100_000 + b"\x00")


@given(st.binary(min_size=32, max_size=32), st.integers(0, 1024), st.integers(1, 64))
def test_body_of_a_message_round_trips_through_its_type(blob: bytes, count: int, window: int) -> None:
    ask = Ask(blob=blob, have=bytes(count // 8), window=window)
    assert convert(decode(encode(ask)), Ask) == ask
    assert encode(ask) == encode({"window": window, "have": bytes(count // 8), "blob": blob})


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Ask, {"blob": bytes(32), "have": b"", "window": 1.0}),
        (Ask, {"blob": bytes(32), "have": b"", "window": True}),
        (Ask, {"blob": bytes(32), "have": b"", "window": "1"}),
        (Ask, {"blob": bytes(32), "have": b"", "window": 65}),
        (Ask, {"blob": bytes(32), "have": b"", "window": 0}),
        (Ask, {"blob": bytes(31), "have": b"", "window": 1}),
        (Ask, {"blob": "0" * 32, "have": b"", "window": 1}),
        (Ask, {"blob": bytes(32), "have": b""}),
        (Ask, {"blob": bytes(32), "have": b"", "window": 1, "more": 0}),
        (Ask, [bytes(32), b"", 1]),
        (Receipt, {"subject": bytes(32), "status": "lost", "code": ""}),
        (Check, {"survivors": bytes(32), "missing": [], "bad": [[1]]}),
        (Check, {"survivors": bytes(32), "missing": [-1], "bad": []}),
        (BlobRef, {"size": 2**64, "chunk_size": 1024, "digests": b""}),
        (BlobRef, {"size": 0, "chunk_size": 1023, "digests": b""}),
        (SegmentSpec, {"name": "s\n", "length": 1, "width": 64, "codec": "exact"}),
        (SegmentSpec, {"name": "S", "length": 1, "width": 64, "codec": "exact"}),
        (SegmentSpec, {"name": "s", "length": 1, "width": 8, "codec": "exact"}),
    ],
)
def test_values_of_another_shape_are_refused(kind: type, value: object) -> None:
    with pytest.raises(DecodeError):
        convert(value, kind)


@given(st.binary(min_size=32, max_size=32), CHUNK_INDICES, st.binary(max_size=400))
def test_chunk_is_the_encoding_of_a_list_and_comes_back(blob: bytes, index: int, data: bytes) -> None:
    raw = encode_chunk(blob, index, data)
    assert raw == encode([1, blob, index, data]) == cbor2.dumps([1, blob, index, data], canonical=True)
    assert decode_chunk(raw) == (blob, index, data)


@pytest.mark.parametrize("size", [0, 1, 23, 24, 255, 256, 65_535, 65_536, 262_144, 262_160])
def test_chunk_of_any_size_comes_back(size: int) -> None:
    data = bytes(size)
    assert decode_chunk(encode_chunk(b"b" * 32, 3, data)) == (b"b" * 32, 3, data)


def test_long_chunks_that_end_alike_are_told_apart_where_readings_are_shared() -> None:
    raws = [encode_chunk(bytes([name]) * 32, 3, bytes([fill]) + bytes(5000)) for name in (1, 2) for fill in (1, 2)]
    apart = [decode_chunk(raw) for raw in raws]
    with sharing():
        assert [decode_chunk(raw) for raw in raws + raws] == apart + apart


def is_chunk(raw: bytes) -> bool:
    """By the general decoder: whether `raw` encodes [1, id, index, data]."""
    try:
        value = decode(raw)
    except DecodeError:
        return False
    if not (isinstance(value, list) and [type(item) for item in value] == [int, bytes, int, bytes]):
        return False
    return value[0] == 1 and len(value[1]) == 32 and 0 <= value[2] < 2**20


@given(st.binary(min_size=32, max_size=32), CHUNK_INDICES, st.binary(max_size=300), st.data())
def test_chunk_decoder_takes_exactly_what_the_general_one_takes(
    blob: bytes, index: int, content: bytes, data: st.DataObject
) -> None:
    raw = bytearray(encode_chunk(blob, index, content))
    at = data.draw(st.integers(0, min(len(raw), 48) - 1))
    change = data.draw(st.sampled_from(["set", "insert", "remove", "cut"]))
    if change == "set":
        raw[at] = data.draw(st.integers(0, 255))
    elif change == "insert":
        raw.insert(at, data.draw(st.integers(0, 255)))
    elif change == "remove":
        del raw[at]
    else:
        del raw[at:]
    try:
        found = decode_chunk(bytes(raw))
    except DecodeError:
        assert not is_chunk(bytes(raw))
    else:
        assert is_chunk(bytes(raw)) and encode_chunk(*found) == raw


@given(st.binary(max_size=120))
def test_chunk_decoder_never_raises_anything_else(raw: bytes) -> None:
    with suppress(DecodeError):
        decode_chunk(raw)
