"""Keys, hashes and identities: HKDF labels, commitments, certificates, HPKE boxes (SPEC.md section 4).

Every key is HKDF-SHA-256 (RFC 5869) of a secret under an info string that names the purpose, the manifest and roster hashes
and every identity it belongs to, so that nothing derived for one use can serve another. Signatures are Ed25519 (RFC
8032), key agreement X25519 (RFC 7748), boxes HPKE (RFC 9180) with MLKEM768_X25519, HKDF-SHA-256 and AES-128-GCM.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, MLKEM768X25519PrivateKey, MLKEM768X25519PublicKey, Suite
from cryptography.x509.oid import NameOID

from blindsum.protocol.codec import encode
from blindsum.protocol.memo import shared

__all__ = [
    "BOX_OVERHEAD",
    "BOX_PRIVATE_SIZE",
    "BOX_PUBLIC_SIZE",
    "BROADCAST_KEY_SIZE",
    "CERTIFICATE_SIZE_MAX",
    "HASH_SIZE",
    "MLKEM_PUBLIC_SIZE",
    "SEED_SIZE",
    "agree",
    "box_keypair",
    "box_open",
    "box_private",
    "box_seal",
    "box_usable",
    "certificate_fault",
    "certificate_issue",
    "certificate_validity",
    "certificate_verify",
    "chunk_open",
    "chunk_seal",
    "derive",
    "deriver",
    "digest",
    "digester",
    "edge_keypair",
    "edge_private",
    "equal",
    "expander",
    "hmac_blocks",
    "info",
    "key_usable",
    "public_of",
    "sign",
    "sign_verify",
    "xor_deriver",
]

HASH_SIZE: Final = 32
SEED_SIZE: Final = 32
BROADCAST_KEY_SIZE: Final = 32
BOX_PUBLIC_SIZE: Final = 1216
BOX_PRIVATE_SIZE: Final = 96
"""ML-KEM-768 seed (64) followed by the X25519 private key (32)."""
MLKEM_PUBLIC_SIZE: Final = 1184
BOX_OVERHEAD: Final = 1136
CERTIFICATE_SIZE_MAX: Final = 1024
CERTIFICATES_KEPT: Final = 16_384
"""Certificates that were found genuine and are remembered: a device shows the same one in every round."""
EDGE_PUBLICS_KEPT: Final = 4_096
LABEL: Final = "blindsum/1 "
_PROBE: Final = bytes(31) + b"\x40"

_sha256 = hashlib.sha256
_INNER, _OUTER = (bytes(octet ^ pad for octet in range(256)) for pad in (0x36, 0x5C))
_INNER_REST, _OUTER_REST = (bytes([pad]) * HASH_SIZE for pad in (0x36, 0x5C))
_EXTRACT_INNER, _EXTRACT_OUTER = 2 * _INNER_REST, 2 * _OUTER_REST

_BOX = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_128_GCM)


def digest(label: str, *parts: object) -> bytes:
    """SHA-256 of the deterministic encoding of [label, *parts]: domain-separated and injective. 32 bytes."""
    return hashlib.sha256(info(label, *parts)).digest()


def digester(label: str, *context: object, more: int) -> Callable[..., bytes]:
    """digest(label, *context, *rest) as a function of `more` values `rest`: what does not change is encoded once."""
    start = info(label, *context, more=more)

    def made(*rest: object) -> bytes:
        return _sha256(start + b"".join(map(_item, rest))).digest()

    return made


def derive(secret: bytes, label: str, *context: object, size: int = 32) -> bytes:
    """HKDF-SHA-256 with empty salt and info = encode([label, *context]). `size` bytes, at most 8160."""
    return _hkdf(secret, info(label, *context), size)


def deriver(secret: bytes, label: str, *context: object, more: int) -> Callable[..., bytes]:
    """derive(secret, label, *context, *rest) as a function of `more` values `rest`: what does not change is reckoned once."""
    inner, outer = hmac_blocks(_hkdf_extract(secret))
    start = inner + info(label, *context, more=more)

    def made(*rest: int) -> bytes:
        message = start + b"".join(map(_atom, rest)) + b"\x01"
        return _sha256(outer + _sha256(message).digest()).digest()

    return made


def expander(label: str, *context: object, more: int, size: int = 32) -> Callable[..., bytes]:
    """derive(secret, label, *context, *rest, size=size) as a function of `secret` and `more` values `rest`."""
    start = info(label, *context, more=more)

    def made(secret: bytes, *rest: int) -> bytes:
        return _hkdf(secret, start + b"".join(map(_atom, rest)), size)

    return made


def xor_deriver(secrets: Sequence[bytes], label: str, *context: object) -> Callable[[bytes, Sequence[int]], bytes]:
    """value XOR derive(secrets[0], label, *context, number, 0) XOR derive(secrets[1], label, *context, number, 1) and so on, of all
    `numbers` at once: as a function of the values, joined (32 bytes a number), and the numbers."""
    use = info(label, *context, more=2)
    blocks = [hmac_blocks(_hkdf_extract(secret)) for secret in secrets]
    rows = [(outer, inner + use, _atom(place) + b"\x01") for place, (inner, outer) in enumerate(blocks)]

    def made(values: bytes, numbers: Sequence[int]) -> bytes:
        atoms, total = list(map(_atom, numbers)), int.from_bytes(values)
        for outer, start, end in rows:
            parts = [_sha256(outer + _sha256(start + atom + end).digest()).digest() for atom in atoms]
            total ^= int.from_bytes(b"".join(parts))
        return total.to_bytes(HASH_SIZE * len(atoms))

    return made


def equal(left: bytes, right: bytes) -> bool:
    """Constant-time comparison of secrets."""
    return hmac.compare_digest(left, right)


def info(label: str, *context: object, more: int = 0) -> bytes:
    """encode([LABEL + label, *context]), item by item: what binds a key, a digest or a box to its use. With `more` above 0 all but
    the last so many of such a list."""
    return b"".join((_label(label, 1 + len(context) + more), *map(_item, context)))


def _item(value: object) -> bytes:
    """encode(value)"""
    if type(value) is bytes and len(value) == HASH_SIZE:
        return b"\x58\x20" + value
    return _atom(value) if type(value) is int or type(value) is str else encode(value)


@lru_cache(maxsize=256)
def _label(label: str, items: int) -> bytes:
    return encode([LABEL + label, *[0] * (items - 1)])[: 1 - items or None]


@lru_cache(maxsize=4096)
def _atom(value: object) -> bytes:
    return encode(value)


def _hkdf(secret: bytes, info: bytes, size: int) -> bytes:
    """RFC 5869 with SHA-256 and no salt."""
    inner, outer = hmac_blocks(_hkdf_extract(secret))
    out = block = _sha256(outer + _sha256(inner + info + b"\x01").digest()).digest()
    counter = 1
    while len(out) < size:
        counter += 1
        block = _sha256(outer + _sha256(inner + block + info + bytes([counter])).digest()).digest()
        out += block
    return out[:size]


# HMAC (RFC 2104) is written out, in two hashes: `hmac.digest` has OpenSSL look its algorithm up in each call, four times the
# work of hashing messages as short as these.


def _hkdf_extract(secret: bytes) -> bytes:
    """HMAC of `secret` under a key of zeros."""
    return _sha256(_EXTRACT_OUTER + _sha256(_EXTRACT_INNER + secret).digest()).digest()


def hmac_blocks(key: bytes) -> tuple[bytes, bytes]:
    """What the inner and the outer hash begin with under a key of 32 bytes."""
    return key.translate(_INNER) + _INNER_REST, key.translate(_OUTER) + _OUTER_REST


# -- pairwise keys ----------------------------------------------------------------------------------------------------


def edge_keypair(secret: bytes) -> tuple[bytes, bytes]:
    """(private, public) X25519 keys, 32 bytes each, from 32 bytes of randomness."""
    return secret, X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def edge_private(private: bytes) -> X25519PrivateKey:
    """A private key made ready, for whoever agrees with many."""
    return X25519PrivateKey.from_private_bytes(private)


def agree(private: bytes | X25519PrivateKey, public: bytes) -> bytes | None:
    """The X25519 shared secret, or None where `public` is a point of small order (all-zero result)."""
    own = edge_private(private) if isinstance(private, bytes) else private
    try:
        return own.exchange(_edge_public(public))
    except ValueError:
        return None


def key_usable(public: bytes) -> bool:
    """Whether an X25519 public key agrees with others on anything but zeros (any private key tells)."""
    return agree(_probe(), public) is not None


@lru_cache(maxsize=EDGE_PUBLICS_KEPT)
def _edge_public(public: bytes) -> X25519PublicKey:
    """A device's key of a round, taken apart once: a process that plays many devices agrees with it for each of its neighbours."""
    return X25519PublicKey.from_public_bytes(public)


@lru_cache(maxsize=1)
def _probe() -> X25519PrivateKey:
    return edge_private(_PROBE)


# -- boxes ------------------------------------------------------------------------------------------------------------


def box_keypair(secret: bytes) -> tuple[bytes, bytes]:
    """(private, public) HPKE keys of MLKEM768_X25519 from 96 bytes of randomness; public is 1216 bytes."""
    mlkem, x25519 = _box_parts(secret)
    return secret, mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw()


def box_seal(public: bytes, info: bytes, plaintext: bytes) -> bytes:
    """HPKE base mode, single shot: enc || ciphertext. Draws its own randomness from the operating system, so it is a port
    of the machines, never called by them directly. Raises ValueError for a malformed public key."""
    return _BOX.encrypt(plaintext, _box_public(public), info)


@lru_cache(maxsize=16)
def _box_public(public: bytes) -> MLKEM768X25519PublicKey:
    """A party's key of a round, taken apart once: a process that plays many devices seals to it for each."""
    if len(public) != BOX_PUBLIC_SIZE:
        raise ValueError("an HPKE public key has 1216 bytes")
    mlkem, x25519 = public[:MLKEM_PUBLIC_SIZE], public[MLKEM_PUBLIC_SIZE:]
    return MLKEM768X25519PublicKey(
        MLKEM768PublicKey.from_public_bytes(mlkem), X25519PublicKey.from_public_bytes(x25519)
    )


def box_private(secret: bytes) -> MLKEM768X25519PrivateKey:
    """A private key made ready, for whoever opens many boxes. Raises ValueError unless `secret` has 96 bytes."""
    return MLKEM768X25519PrivateKey(*_box_parts(secret))


def box_usable(public: bytes) -> bool:
    """Whether `box_seal` takes this public key."""
    if len(public) != BOX_PUBLIC_SIZE:
        return False
    try:
        MLKEM768PublicKey.from_public_bytes(public[:MLKEM_PUBLIC_SIZE])
    except ValueError:
        return False
    return key_usable(public[MLKEM_PUBLIC_SIZE:])


def box_open(private: bytes | MLKEM768X25519PrivateKey, info: bytes, sealed: bytes) -> bytes | None:
    """The plaintext, or None where `sealed` was not made for this key and info."""
    try:
        return _BOX.decrypt(sealed, box_private(private) if isinstance(private, bytes) else private, info)
    except Exception:  # InvalidTag, ValueError: malformed and forged boxes look alike
        return None


def _box_parts(secret: bytes) -> tuple[MLKEM768PrivateKey, X25519PrivateKey]:
    if len(secret) != BOX_PRIVATE_SIZE:
        raise ValueError("an HPKE private key has 96 bytes")
    return MLKEM768PrivateKey.from_seed_bytes(secret[:64]), X25519PrivateKey.from_private_bytes(secret[64:])


# -- broadcasts -------------------------------------------------------------------------------------------------------


def chunk_seal(key: bytes, blob: bytes, index: int, data: bytes) -> bytes:
    """A chunk that the coordinator sends, closed to the broker: AES-128-GCM under a key of its own for each blob, the index as
    nonce. A blob's id commits to its content, so one (key, nonce) never seals two plaintexts. 16 bytes longer than `data`."""
    return AESGCM(derive(key, "broadcast", blob, size=16)).encrypt(index.to_bytes(12, "big"), data, None)


def chunk_open(key: bytes, blob: bytes, index: int, sealed: bytes) -> bytes | None:
    """What `chunk_seal` sealed, or None where it was not under this key for this place."""
    try:
        return AESGCM(derive(key, "broadcast", blob, size=16)).decrypt(index.to_bytes(12, "big"), sealed, None)
    except (InvalidTag, ValueError):
        return None


# -- signatures and certificates --------------------------------------------------------------------------------------


def public_of(key: Ed25519PrivateKey | X25519PrivateKey) -> bytes:
    """The 32-byte public key."""
    return key.public_key().public_bytes_raw()


def sign(key: Ed25519PrivateKey, data: bytes) -> bytes:
    """The Ed25519 signature of `data`, 64 bytes."""
    return key.sign(data)


@shared(64, lambda public, signature, data: (data, signature, public))
def sign_verify(public: bytes, signature: bytes, data: bytes) -> bool:
    """Whether `signature` is Ed25519 of `data` under `public`."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


def certificate_issue(
    *,
    name: str,
    public: bytes,
    issuer: str,
    issuer_key: Ed25519PrivateKey,
    serial: int,
    now: int,
    days: int,
    ca: bool = False,
) -> bytes:
    """A DER X.509 v3 certificate (Ed25519) for `name`, valid from one hour before `now` (ms) for `days`."""
    start = datetime.fromtimestamp(now / 1000, UTC) - timedelta(hours=1)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(Ed25519PublicKey.from_public_bytes(public))
        .serial_number(serial)
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=0 if ca else None), critical=True)
    )
    return builder.sign(issuer_key, None).public_bytes(serialization.Encoding.DER)


def certificate_fault(der: bytes, *, ca: bytes, now: int | None) -> tuple[str, str, bytes]:
    """(fault, name, public key) of a device certificate: fault "" where the fleet CA (its DER certificate `ca`) signed it for
    an Ed25519 key, it is no CA itself, and `now` (ms; None: any time) lies in its validity. Never raises."""
    try:
        name, key, since, until = _certificate(der, ca)
    except Exception:  # malformed DER has many exceptions; all mean the same
        return "certificate-invalid", "", b""
    if now is not None and not since <= now <= until:
        return "certificate-expired", name, b""
    return "", name, key


def certificate_validity(der: bytes, *, ca: bytes) -> tuple[int, int]:
    """From when until when (ms) a certificate holds in which `certificate_fault` finds no other fault."""
    _name, _key, since, until = _certificate(der, ca)
    return int(since), int(until)


@lru_cache(maxsize=CERTIFICATES_KEPT)
def _certificate(der: bytes, ca: bytes) -> tuple[str, bytes, float, float]:
    """(name, public key, valid from and until in ms) of a certificate of the fleet CA. Raises where it is none: what is kept is
    genuine, so that forgeries drive nothing out."""
    certificate, authority = x509.load_der_x509_certificate(der), _authority(ca)
    key, root = certificate.public_key(), authority.public_key()
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    if not isinstance(key, Ed25519PublicKey) or not isinstance(root, Ed25519PublicKey) or len(names) != 1:
        raise ValueError("another algorithm, or not one name")
    name = names[0].value
    if constraints.value.ca or not isinstance(name, str):
        raise ValueError("a CA, or no name")
    certificate_verify(certificate, authority)
    since, until = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return name, key.public_bytes_raw(), 1000 * since.timestamp(), 1000 * until.timestamp()


def certificate_verify(certificate: x509.Certificate, authority: x509.Certificate) -> None:
    """Check names, both statements of the algorithm, and the signature. Raises ValueError, TypeError or InvalidSignature."""
    certificate.verify_directly_issued_by(authority)


@lru_cache(maxsize=4)
def _authority(ca: bytes) -> x509.Certificate:
    return x509.load_der_x509_certificate(ca)
