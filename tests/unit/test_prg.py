"""Keystreams: SPEC.md section 2.2."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from blindsum.protocol.prg import (
    GROUP_MAX,
    PAGE_SIZE,
    SUITES,
    THREADED_SIZE_MIN,
    Stream,
    apply,
    keystream,
    uniform_bits,
)
from blindsum.protocol.ring import WIDTHS, Lane, Segment, equal, lane_dtype, pack, zeros


def stream_key(suite: str, number: int) -> bytes:
    return bytes((number * 131 + 7 * i) % 256 for i in range(SUITES[suite]))


def reference(segments: list[Segment], streams: list[Stream], suite: str) -> list[Lane]:
    """The definition, word for word: whole pages, read as lanes, one after the other."""
    lanes = zeros(segments)
    for key, sign in streams:
        page = 0
        for segment, lane in zip(segments, lanes, strict=True):
            size = segment.length * lane.itemsize
            pages = -(-size // PAGE_SIZE)
            data = b"".join(keystream(suite, key, page + i, PAGE_SIZE) for i in range(pages))[:size]
            page += pages
            values = np.frombuffer(data, lane_dtype(segment.width))
            lane += values if sign > 0 else -values
    return lanes


def test_aes_pages_begin_like_the_published_gcm_ciphertext_of_zeros() -> None:
    # Test case 2 of McGrew and Viega, "The Galois/Counter Mode of Operation": all-zero key and IV.
    assert keystream("aes128-ctr", bytes(24), 0, 16).hex() == "0388dace60b6a392f328c2b971b2fe78"


def test_chacha20_pages_begin_like_rfc_8439() -> None:
    # RFC 8439 appendix A.1, test vector 1: all-zero key and nonce, counter 0.
    assert keystream("chacha20", bytes(40), 0, 64).hex() == (
        "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
        "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"
    )


def test_aes_page_is_the_cipher_of_salt_page_number_and_counter_from_two() -> None:
    key = stream_key("aes128-ctr", 3)
    blocks = b"".join(key[16:] + (5).to_bytes(4, "big") + (2 + i).to_bytes(4, "big") for i in range(PAGE_SIZE // 16))
    expected = Cipher(algorithms.AES(key[:16]), modes.ECB()).encryptor().update(blocks)
    assert keystream("aes128-ctr", key, 5, PAGE_SIZE) == expected


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("width", WIDTHS)
def test_apply_adds_and_subtracts_exactly_the_keystreams(suite: str, width: int) -> None:
    page = PAGE_SIZE // lane_dtype(width).itemsize
    segments = [Segment("a", page + 13, width), Segment("none", 0, 32), Segment("b", 3, 64), Segment("c", page, width)]
    streams = [(stream_key(suite, i), 1 if i % 3 else -1) for i in range(4)]
    lanes = zeros(segments)
    apply(segments, lanes, streams, suite=suite)
    assert equal(segments, lanes, reference(segments, streams, suite))


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("length", [30_000, 700_000])
def test_the_result_does_not_depend_on_threads(suite: str, length: int) -> None:
    # The short vector has one page and shares out streams, the long one shares out pages.
    segments = [Segment("m", length, 24), Segment("s", 4, 64)]
    count = THREADED_SIZE_MIN // (4 * length) + 2
    streams = [(stream_key(suite, i), 1 if i % 2 else -1) for i in range(count)]
    one, three = zeros(segments), zeros(segments)
    apply(segments, one, streams, suite=suite, threads=1)
    apply(segments, three, streams, suite=suite, threads=3)
    assert pack(segments, one) == pack(segments, three)
    assert any(lane.any() for lane in one)


def test_applying_with_the_opposite_sign_removes_the_mask() -> None:
    segments = [Segment("m", 1000, 24), Segment("s", 2, 64)]
    lanes = zeros(segments)
    lanes[0][:] = np.arange(1000)
    before = [lane.copy() for lane in lanes]
    streams = [(stream_key("aes128-ctr", i), 1) for i in range(5)]
    apply(segments, lanes, streams, suite="aes128-ctr")
    assert not equal(segments, lanes, before)
    apply(segments, lanes, [(key, -1) for key, _ in reversed(streams)], suite="aes128-ctr")
    assert equal(segments, lanes, before)


def test_a_generator_of_streams_is_taken_in_bounded_groups() -> None:
    segments = [Segment("m", 8, 32)]
    lanes = zeros(segments)

    def streams() -> Iterator[Stream]:
        for number in range(2 * GROUP_MAX + 1):
            assert lanes[0].any() == (number >= GROUP_MAX), "a group is expanded before the next is taken"
            yield stream_key("aes128-ctr", number), 1

    apply(segments, lanes, streams(), suite="aes128-ctr")
    listed = [(stream_key("aes128-ctr", number), 1) for number in range(2 * GROUP_MAX + 1)]
    assert equal(segments, lanes, reference(segments, listed, "aes128-ctr"))


def test_segments_and_salts_never_share_keystream() -> None:
    segments = [Segment("a", 16, 32), Segment("b", 16, 32)]
    key = stream_key("aes128-ctr", 1)
    salted = key[:16] + bytes(8)
    vectors = [zeros(segments), zeros(segments)]
    for vector, each in zip(vectors, (key, salted), strict=True):
        apply(segments, vector, [(each, 1)], suite="aes128-ctr")
    words = np.concatenate([lane for vector in vectors for lane in vector])
    assert len(set(words.tolist())) == words.size


@pytest.mark.parametrize("width", [16, 32, 64])
def test_uniform_bits_are_the_start_of_a_page(width: int) -> None:
    key = stream_key("aes128-ctr", 9)
    values = uniform_bits(key, 4, 1001, width)
    assert values.dtype == lane_dtype(width)
    assert values.tobytes() == keystream("aes128-ctr", key, 4, 1001 * width // 8)


@pytest.mark.parametrize(("suite", "size"), [("aes128-ctr", 23), ("aes128-ctr", 40), ("chacha20", 24)])
def test_a_stream_key_of_another_size_is_our_own_mistake(suite: str, size: int) -> None:
    segments = [Segment("m", 1, 32)]
    with pytest.raises(AssertionError):
        keystream(suite, bytes(size), 0, 16)
    with pytest.raises(AssertionError):
        apply(segments, zeros(segments), [(bytes(size), 1)], suite=suite)
