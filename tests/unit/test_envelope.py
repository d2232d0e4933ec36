"""The signed envelope: SPEC.md sections 3.2 and 3.3."""

from __future__ import annotations

import hashlib
from contextlib import suppress

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from blindsum.protocol import envelope
from blindsum.protocol.codec import DecodeError, decode, encode
from blindsum.protocol.envelope import Head, Signed, glance, is_name, open_envelope, peek, seal_envelope
from blindsum.protocol.errors import Refused
from blindsum.protocol.keys import public_of
from blindsum.protocol.messages import MESSAGE_SIZE_MAX, MESSAGES
from blindsum.protocol.view import open_message
from blindsum.testing.fleet import TestFleet, make_fleet

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
HEAD = Head(type="vote", fleet="vectors", task="sum", round=7, sender="party/2", to="coordinator")
BODY = {"decides": "roster", "digest": bytes(range(32, 64)), "beacon": bytes(32)}
NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=64)
HEADS = st.builds(
    Head,
    type=st.sampled_from(list(MESSAGES)),
    fleet=NAMES,
    task=NAMES,
    round=st.integers(0, 2**31 - 1),
    sender=st.one_of(st.sampled_from(["operator", "coordinator", "party/3"]), NAMES.map("device/{}".format)),
    to=st.one_of(st.sampled_from(["all", "parties", "coordinator"]), NAMES.map("device/{}".format)),
)

FOREIGN = bytes.fromhex(
    "d284584aa8012761760162746f6b636f6f7264696e61746f726466726f6d6770617274792f32647461736b6373756d647479706564766f74656566"
    "6c65657467766563746f727365726f756e6407a05862a366626561636f6e5820000000000000000000000000000000000000000000000000000000"
    "0000000000666469676573745820202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f676465636964657366726f7374"
    "657258401163f6e1b4d85925ec57fa2ec20931cf896559fafaa08e0d23bb8d54d9f3015b0cd46f7c84bc06523144cac72ad7e51cc9c73c234157"
    "354d13f8c56dbd6fb60a"
)
"""The COSE_Sign1 message that pycose 1.1.0 makes of these headers, body and key; that of cwt 3.3.0 has the same bytes."""
FOREIGN_TO_SIGN = bytes.fromhex(
    "846a5369676e617475726531584aa8012761760162746f6b636f6f7264696e61746f726466726f6d6770617274792f32647461736b6373756d6474"
    "79706564766f746565666c65657467766563746f727365726f756e6407405862a366626561636f6e58200000000000000000000000000000000000"
    "000000000000000000000000000000666469676573745820202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f676465"
    "636964657366726f73746572"
)
"""What pycose 1.1.0 signs for it."""


@pytest.fixture(scope="module")
def fleet() -> TestFleet:
    return make_fleet(1, parties=4, devices=1)


def test_message_has_the_bytes_that_two_other_cose_libraries_make() -> None:
    assert seal_envelope(KEY, HEAD, BODY) == FOREIGN
    signed = open_envelope(FOREIGN)
    assert (signed.head, signed.payload) == (HEAD, BODY)
    assert signed.tbs == FOREIGN_TO_SIGN
    assert signed.valid(public_of(KEY))


@given(HEADS, st.dictionaries(st.text("abc", max_size=3), st.integers(0, 99), max_size=3))
def test_message_comes_back_with_its_head_and_body(head: Head, body: dict[str, int]) -> None:
    raw = seal_envelope(KEY, head, body)
    signed = open_envelope(raw)
    assert (signed.head, signed.payload, signed.raw) == (head, body, raw)
    assert signed.valid(public_of(KEY)) and peek(raw)


@given(HEADS, HEADS)
def test_signature_holds_for_one_head_only(one: Head, other: Head) -> None:
    first, second = open_envelope(seal_envelope(KEY, one, BODY)), open_envelope(seal_envelope(KEY, other, BODY))
    moved = Signed(second.head, second.payload, second.digest, second.raw, second.tbs, first.signature)
    assert moved.valid(public_of(KEY)) == (one == other)


@given(HEADS, st.binary(max_size=4))
def test_glance_shows_the_head_that_opening_shows(head: Head, body: bytes) -> None:
    raw = seal_envelope(KEY, head, body)
    assert glance(raw) == open_envelope(raw).head == head
    assert glance(raw[:20]) is None


@given(HEADS, st.integers(0, 399), st.integers(1, 255))
def test_whatever_opens_was_glanced_at_rightly(head: Head, at: int, flip: int) -> None:
    raw = bytearray(seal_envelope(KEY, head, {}))
    raw[at % len(raw)] ^= flip
    try:
        opened = open_envelope(bytes(raw))
    except DecodeError:
        return
    assert glance(bytes(raw)) == opened.head


def test_digest_names_what_was_signed_and_not_the_signature() -> None:
    own, foreign = open_envelope(FOREIGN), open_envelope(FOREIGN[:-64] + bytes(64))
    assert own.digest == foreign.digest == hashlib.sha256(FOREIGN_TO_SIGN).digest()
    assert not foreign.valid(public_of(KEY))


@pytest.mark.parametrize("bit", range(8))
def test_every_flipped_bit_is_refused_or_breaks_the_signature(bit: int) -> None:
    for at in range(len(FOREIGN)):
        raw = bytearray(FOREIGN)
        raw[at] ^= 1 << bit
        try:
            signed = open_envelope(bytes(raw))
        except DecodeError:
            continue
        assert not signed.valid(public_of(KEY)), f"byte {at}"


@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_a_decode_error(data: bytes) -> None:
    for raw in (data, b"\xd2" + data, b"\xd2\x84" + data):
        with suppress(DecodeError):
            assert open_envelope(raw).raw == raw


@given(
    st.tuples(*[st.one_of(st.binary(max_size=300), st.sampled_from([bytes(255), bytes(256), bytes(65_536)]))] * 2),
    st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), max_size=2),
)
def test_what_is_taken_apart_by_hand_is_what_the_decoder_takes(
    parts: tuple[bytes, bytes], changes: list[tuple[int, int]]
) -> None:
    raw = bytearray(b"\xd2" + encode([parts[0], {}, parts[1], bytes(64)]))
    for at, octet in changes:
        raw[at % len(raw)] = octet
    try:
        whole = decode(bytes(raw[1:])) if raw[0] == 0xD2 else None
    except DecodeError:
        whole = None
    kinds = [bytes, dict, bytes, bytes]
    good = isinstance(whole, list) and [type(part) for part in whole] == kinds and not whole[1] and len(whole[3]) == 64
    try:
        assert (
            envelope._parts(bytes(raw)) == (whole[0], whole[2], whole[3]) if good else not envelope._parts(bytes(raw))
        )
    except DecodeError:
        assert not good


@pytest.mark.parametrize("unprotected", [[], b"", "", 0, False, None, {4: b"kid"}])
def test_only_the_empty_map_is_an_unprotected_header(unprotected: object) -> None:
    """An empty array in its place would change the bytes of a message and not its digest."""
    protected, body = encode({1: -8}), encode({})
    with pytest.raises(DecodeError):
        open_envelope(b"\xd2" + encode([protected, unprotected, body, bytes(64)]))


def test_foreign_version_is_told_from_malformed_messages() -> None:
    message = b"\xd2" + encode([encode({"v": 2, "anything": [1]}), {}, encode(None), bytes(64)])
    with pytest.raises(DecodeError, match=r"^version$"):
        open_envelope(message)


def test_names_are_one_topic_level() -> None:
    assert is_name("a") and is_name("d-0123") and is_name("x" * 64)
    for name in ("", "x" * 65, "A", "a/b", "a+b", "a#", "ä", "a\n", "a b", "a_b"):
        assert not is_name(name), name


def refusal(fleet: TestFleet, raw: bytes) -> str:
    opened = open_message(fleet.trust, raw)
    return opened.code if isinstance(opened, Refused) else ""


def test_each_role_sends_its_own_types_only(fleet: TestFleet) -> None:
    device = fleet.devices[0]
    keys = {"operator": fleet.operator, "coordinator": fleet.coordinator, "party/1": fleet.parties[0]}
    for kind, (_, role, _) in MESSAGES.items():
        for sender, key in (*keys.items(), (f"device/{device.name}", device.key)):
            head = Head(type=kind, fleet=fleet.trust.fleet, task="sum", round=1, sender=sender, to="all")
            expected = "" if role in ("any", sender.split("/")[0]) else "sender-wrong-role"
            assert refusal(fleet, seal_envelope(key, head, {})) == expected


def test_types_have_their_own_limits_below_the_common_one(fleet: TestFleet) -> None:
    for kind, (_, role, limit) in MESSAGES.items():
        assert limit <= MESSAGE_SIZE_MAX
        sender = {"any": "coordinator", "device": "device/d", "party": "party/1"}.get(role, role)
        key = {"operator": fleet.operator, "coordinator": fleet.coordinator, "party/1": fleet.parties[0]}.get(
            sender, KEY
        )
        head = Head(type=kind, fleet=fleet.trust.fleet, task="sum", round=1, sender=sender, to="all")
        spare = limit - len(seal_envelope(key, head, bytes(limit - 300))) + limit - 300
        assert len(seal_envelope(key, head, bytes(spare))) == limit
        assert refusal(fleet, seal_envelope(key, head, bytes(spare))) == ""
        assert refusal(fleet, seal_envelope(key, head, bytes(spare + 1))) == "message-too-large"
    assert refusal(fleet, bytes(MESSAGE_SIZE_MAX + 1)) == "message-too-large"


def test_message_of_another_fleet_or_key_is_refused(fleet: TestFleet) -> None:
    head = Head(type="vote", fleet=fleet.trust.fleet, task="sum", round=1, sender="party/1", to="coordinator")
    other = Head(type="vote", fleet="other", task="sum", round=1, sender="party/1", to="coordinator")
    assert refusal(fleet, seal_envelope(fleet.parties[0], head, BODY)) == ""
    assert refusal(fleet, seal_envelope(fleet.parties[1], head, BODY)) == "signature-invalid"
    assert refusal(fleet, seal_envelope(fleet.parties[0], other, BODY)) == "fleet-foreign"


def test_secrets_and_bodies_are_not_printed() -> None:
    assert "beacon" not in repr(open_envelope(FOREIGN))
