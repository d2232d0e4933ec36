"""Keys, labels, boxes and certificates against the vectors of their RFCs: SPEC.md section 4."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st

from blindsum.protocol import keys
from blindsum.protocol.codec import encode
from blindsum.protocol.keys import (
    BOX_OVERHEAD,
    BOX_PRIVATE_SIZE,
    BOX_PUBLIC_SIZE,
    agree,
    box_keypair,
    box_open,
    box_seal,
    box_usable,
    certificate_fault,
    certificate_issue,
    derive,
    digest,
    edge_keypair,
    equal,
    key_usable,
    public_of,
    sign_verify,
    xor_deriver,
)

NOW = 1_760_000_000_000
DAY = 86_400_000
SECRETS = st.binary(min_size=1, max_size=80)


# -- HKDF -------------------------------------------------------------------------------------------------------------


def test_hkdf_without_salt_and_info_is_that_of_rfc_5869_appendix_a_3() -> None:
    expected = "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"
    assert keys._hkdf(b"\x0b" * 22, b"", 42).hex() == expected


@given(SECRETS, st.binary(max_size=100), st.integers(1, 300))
def test_hkdf_is_that_of_another_implementation(secret: bytes, info: bytes, size: int) -> None:
    assert keys._hkdf(secret, info, size) == HKDF(hashes.SHA256(), size, None, info).derive(secret)


def test_derived_key_depends_on_label_and_every_part_of_the_context() -> None:
    secret, base = bytes(32), ["self", b"m" * 32, b"r" * 32, 1, 2]
    variants = [base, ["cap", *base[1:]], [*base, 3], base[:-1], [*base[:3], 2, 1], [*base[:3], 12, b""]]
    variants += [[base[0], base[1] + b"r", base[2][1:], 1, 2], [base[0], base[1], base[2], "1", 2]]
    found = {derive(secret, *variant) for variant in variants}  # type: ignore[arg-type]
    assert len(found) == len(variants)
    assert derive(secret, "self", 1) == keys._hkdf(secret, encode(["blindsum/1 self", 1]), 32)
    assert derive(secret, "self", 1, size=40)[:24] == derive(secret, "self", 1, size=24)


@given(
    st.lists(st.tuples(st.binary(min_size=32, max_size=32), st.integers(0, 99_999)), max_size=4),
    st.lists(SECRETS, max_size=6),
)
def test_xor_deriver_is_derivation_by_derivation(values: list[tuple[bytes, int]], secrets: list[bytes]) -> None:
    expected = b""
    for value, number in values:
        total = int.from_bytes(value)
        for place, secret in enumerate(secrets):
            total ^= int.from_bytes(derive(secret, "cap", b"m" * 32, 7, number, place))
        expected += total.to_bytes(32)
    numbers = [number for _, number in values]
    assert xor_deriver(secrets, "cap", b"m" * 32, 7)(b"".join(value for value, _ in values), numbers) == expected


def test_digest_is_of_the_encoded_list_of_label_and_parts() -> None:
    assert digest("blob", 1, b"x") == hashlib.sha256(encode(["blindsum/1 blob", 1, b"x"])).digest()
    assert digest("blob", b"ab", b"c") != digest("blob", b"a", b"bc")


def test_equal_compares_all_bytes() -> None:
    assert equal(b"secret", b"secret")
    assert not equal(b"secret", b"secreT") and not equal(b"secret", b"secre")


# -- X25519 -----------------------------------------------------------------------------------------------------------

ALICE = "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a"
ALICE_PUBLIC = "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
BOB = "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"
BOB_PUBLIC = "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
SHARED = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
SMALL_ORDER = [
    "00" * 32,
    "01" + "00" * 31,
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
]


@pytest.mark.parametrize(
    ("scalar", "point", "product"),
    [
        (
            "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4",
            "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c",
            "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552",
        ),
        (
            "4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d",
            "e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493",
            "95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957",
        ),
        (ALICE, BOB_PUBLIC, SHARED),
        (BOB, ALICE_PUBLIC, SHARED),
    ],
)
def test_agreement_is_that_of_rfc_7748_sections_5_2_and_6_1(scalar: str, point: str, product: str) -> None:
    shared = agree(bytes.fromhex(scalar), bytes.fromhex(point))
    assert shared is not None and shared.hex() == product


def test_edge_keypair_is_that_of_rfc_7748_section_6_1() -> None:
    for private, public in ((ALICE, ALICE_PUBLIC), (BOB, BOB_PUBLIC)):
        assert edge_keypair(bytes.fromhex(private)) == (bytes.fromhex(private), bytes.fromhex(public))


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_both_ends_of_an_edge_agree(one: bytes, other: bytes) -> None:
    shared = agree(one, edge_keypair(other)[1])
    assert shared is not None and shared == agree(other, edge_keypair(one)[1])


@pytest.mark.parametrize("point", SMALL_ORDER)
def test_points_of_small_order_agree_on_nothing(point: str) -> None:
    assert agree(bytes.fromhex(ALICE), bytes.fromhex(point)) is None
    assert not key_usable(bytes.fromhex(point))
    assert key_usable(bytes.fromhex(ALICE_PUBLIC))


# -- Ed25519 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seed", "public", "message", "signature"),
    [
        (
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "",
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24"
            "655141438e7a100b",
        ),
        (
            "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
            "72",
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aee"
            "b00d291612bb0c00",
        ),
        (
            "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
            "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
            "af82",
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28d"
            "c027beceea1ec40a",
        ),
    ],
)
def test_signatures_are_those_of_rfc_8032_section_7_1(seed: str, public: str, message: str, signature: str) -> None:
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(seed))
    data, signed = bytes.fromhex(message), bytes.fromhex(signature)
    assert public_of(key).hex() == public
    assert key.sign(data) == signed
    assert sign_verify(public_of(key), signed, data)
    assert not sign_verify(public_of(key), signed, data + b"x")
    for at in range(64):
        assert not sign_verify(public_of(key), signed[:at] + bytes([signed[at] ^ 1]) + signed[at + 1 :], data)


def test_signature_whose_s_is_not_reduced_is_refused() -> None:
    order = 2**252 + 27742317777372353535851937790883648493
    key = Ed25519PrivateKey.from_private_bytes(bytes(32))
    signature = key.sign(b"data")
    s = int.from_bytes(signature[32:], "little") + order
    assert not sign_verify(public_of(key), signature[:32] + s.to_bytes(32, "little"), b"data")


@given(st.binary(max_size=70), st.binary(max_size=70))
def test_malformed_keys_and_signatures_verify_nothing_and_raise_nothing(public: bytes, signature: bytes) -> None:
    assert not sign_verify(public, signature, b"data")


# -- boxes ------------------------------------------------------------------------------------------------------------

PRIVATE, PUBLIC = box_keypair(bytes(range(BOX_PRIVATE_SIZE)))
OTHER, _ = box_keypair(bytes(BOX_PRIVATE_SIZE))


@settings(max_examples=25)
@given(st.binary(max_size=200), st.binary(max_size=60))
def test_box_opens_for_its_key_and_info_only(plain: bytes, info: bytes) -> None:
    box = box_seal(PUBLIC, info, plain)
    assert len(box) == len(plain) + BOX_OVERHEAD
    assert box_open(PRIVATE, info, box) == plain
    assert box_open(PRIVATE, info + b"x", box) is None
    assert box_open(OTHER, info, box) is None


def test_no_two_boxes_of_one_content_are_alike() -> None:
    assert box_seal(PUBLIC, b"", b"seed") != box_seal(PUBLIC, b"", b"seed")


@pytest.mark.parametrize("part", [range(0, 1088, 17), range(1088, 1120), range(1120, 1140)])
def test_box_with_one_flipped_bit_does_not_open(part: range) -> None:
    box = box_seal(PUBLIC, b"info", b"seed")
    for at in part:
        assert box_open(PRIVATE, b"info", box[:at] + bytes([box[at] ^ 0x40]) + box[at + 1 :]) is None, f"byte {at}"


@pytest.mark.parametrize("size", [0, 1, 1087, 1120, 1135])
def test_box_that_is_cut_off_does_not_open(size: int) -> None:
    assert box_open(PRIVATE, b"info", box_seal(PUBLIC, b"info", b"seed")[:size]) is None


def test_box_keys_are_checked_before_use() -> None:
    assert len(PUBLIC) == BOX_PUBLIC_SIZE and box_usable(PUBLIC)
    for spoilt in (PUBLIC[:-1], PUBLIC + b"x", b"\xff\xff\xff" + PUBLIC[3:], PUBLIC[:1184] + bytes(32)):
        assert not box_usable(spoilt)
    with pytest.raises(ValueError, match="1216 bytes"):
        box_seal(PUBLIC[:-1], b"", b"")
    with pytest.raises(ValueError, match="96 bytes"):
        box_keypair(bytes(95))


# -- certificates -----------------------------------------------------------------------------------------------------

CA = Ed25519PrivateKey.from_private_bytes(b"c" * 32)
DEVICE = Ed25519PrivateKey.from_private_bytes(b"d" * 32)


def issue(**changes: object) -> bytes:
    given: dict[str, object] = {
        "name": "d-1",
        "public": public_of(DEVICE),
        "issuer": "fleet",
        "issuer_key": CA,
        "serial": 2,
    }
    return certificate_issue(**{**given, "now": NOW, "days": 30, **changes})  # type: ignore[arg-type]


ROOT = issue(name="fleet", public=public_of(CA), serial=1, days=3650, ca=True)


def test_certificate_names_its_device_and_key_while_it_is_valid() -> None:
    end = NOW - 3_600_000 + 30 * DAY
    for now, fault in ((NOW, ""), (NOW - 3_600_000, ""), (end, ""), (NOW - 3_601_000, "certificate-expired")):
        assert certificate_fault(issue(), ca=ROOT, now=now)[0] == fault
    assert certificate_fault(issue(), ca=ROOT, now=NOW) == ("", "d-1", public_of(DEVICE))
    assert certificate_fault(issue(), ca=ROOT, now=end + 1000) == ("certificate-expired", "d-1", b"")


@pytest.mark.parametrize(
    "changes",
    [
        {"issuer_key": DEVICE},
        {"issuer": "other"},
        {"ca": True},
    ],
)
def test_certificate_that_the_ca_did_not_give_a_device_is_invalid(changes: dict[str, object]) -> None:
    assert certificate_fault(issue(**changes), ca=ROOT, now=NOW) == ("certificate-invalid", "", b"")


def test_ca_is_no_device_and_signs_for_its_own_fleet_only() -> None:
    assert certificate_fault(ROOT, ca=ROOT, now=NOW)[0] == "certificate-invalid"
    foreign = issue(name="fleet", public=public_of(DEVICE), serial=1, ca=True, issuer_key=DEVICE)
    assert certificate_fault(issue(), ca=foreign, now=NOW)[0] == "certificate-invalid"


def test_certificate_with_one_flipped_bit_is_refused() -> None:
    good = issue()
    for at in range(len(good)):
        fault, name, key = certificate_fault(good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :], ca=ROOT, now=NOW)
        assert fault in ("certificate-invalid", "certificate-expired"), f"byte {at}: {name} {key.hex()}"


@given(st.binary(max_size=200))
def test_bytes_that_are_no_certificate_are_invalid(data: bytes) -> None:
    assert certificate_fault(data, ca=ROOT, now=NOW) == ("certificate-invalid", "", b"")


def test_validity_is_stated_in_utc() -> None:
    day = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp() * 1000)
    certificate = issue(now=day, days=1)
    assert certificate_fault(certificate, ca=ROOT, now=day + DAY - 3_600_000)[0] == ""
    assert certificate_fault(certificate, ca=ROOT, now=day + DAY - 3_599_000)[0] == "certificate-expired"
