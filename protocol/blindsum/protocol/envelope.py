"""The signed envelope: COSE_Sign1 with EdDSA (RFC 9052 section 4.2; SPEC.md section 3.2).

The protected header names version, type, fleet, task, round, sender and recipient, so a signature made for one place in the
protocol verifies nowhere else. `Signed.digest` hashes what was signed and not the signature: it is the message's identity.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from blindsum.protocol import PROTOCOL_VERSION
from blindsum.protocol.codec import DecodeError, decode, encode
from blindsum.protocol.keys import sign, sign_verify

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

__all__ = [
    "NAME_SIZE_MAX",
    "Head",
    "Signed",
    "glance",
    "is_name",
    "message_digest",
    "open_envelope",
    "peek",
    "seal_envelope",
]

COSE_SIGN1: Final = b"\xd2"
"""Tag 18, before the array of four."""
COSE_ALG: Final = 1
COSE_EDDSA: Final = -8
SIGNATURE_SIZE: Final = 64
NAME_SIZE_MAX: Final = 64
ROUND_MAX: Final = 2**31 - 1
HEAD_SIZE_MAX: Final = 512
"""Bytes of a protected header, which five names of the greatest length do not fill."""
HEADS_KEPT: Final = 1024
"""Protected headers that have been read lately: most messages of a sender in a round have the same few."""
_FOUR: Final = COSE_SIGN1 + b"\x84"
_SIGNED: Final = b"\x58\x40"
_CONTEXT: Final = b"\x84\x6aSignature1"
_WIDTHS: Final = {0x58: 1, 0x59: 2, 0x5A: 4}
"""First byte of a longer byte string to how many bytes its length has."""
_NAME: Final = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """Where a message belongs. `sender` and `to` are principals: "operator", "coordinator", "party/1", "device/<id>"; `to` may
    also be "parties" or "all"."""

    type: str
    fleet: str
    task: str
    round: int
    sender: str
    to: str


@dataclass(frozen=True, slots=True)
class Signed:
    """A parsed envelope whose signature is not checked yet: `valid(public)` says whether it is."""

    head: Head
    payload: Any = field(repr=False)
    digest: bytes
    raw: bytes = field(repr=False)
    tbs: bytes = field(repr=False)
    signature: bytes = field(repr=False)

    def valid(self, public: bytes) -> bool:
        return sign_verify(public, self.signature, self.tbs)


def is_name(value: str) -> bool:
    """Whether `value` may name a fleet, task or device: 1 to 64 of a-z, 0-9 and "-" (it becomes one topic level)."""
    return 0 < len(value) <= NAME_SIZE_MAX and _NAME.issuperset(value)


def seal_envelope(key: Ed25519PrivateKey, head: Head, payload: object) -> bytes:
    """The COSE_Sign1 message of `payload` under `head`, signed with `key`."""
    protected = encode(
        {
            COSE_ALG: COSE_EDDSA,
            "v": PROTOCOL_VERSION,
            "type": head.type,
            "fleet": head.fleet,
            "task": head.task,
            "round": head.round,
            "from": head.sender,
            "to": head.to,
        }
    )
    body = encode(payload)
    signature = sign(key, _tbs(protected, body))
    return b"".join(
        (COSE_SIGN1, b"\x84", _string(protected), protected, b"\xa0", _string(body), body, _SIGNED, signature)
    )


def open_envelope(raw: bytes) -> Signed:
    """Parse strictly; the signature is left to `Signed.valid`. Raises `DecodeError`; `DecodeError("version")` where only the
    protocol version is foreign."""
    protected, body, signature = _parts(raw)
    head = _head(protected)
    tbs = _tbs(protected, body)
    return Signed(head, decode(body), hashlib.sha256(tbs).digest(), raw, tbs, signature)


def glance(raw: bytes) -> Head | None:
    """The head that `raw` claims, read from its first bytes alone: so much is known for a hundredth of the price of a signature.
    None where `open_envelope` would refuse the head."""
    if raw[:2] != COSE_SIGN1 + b"\x84" or raw[2:3] not in (b"\x58", b"\x59"):
        return None
    at = 4 if raw[2] == 0x58 else 5
    size = int.from_bytes(raw[3:at])
    try:
        return _head(raw[at : at + size]) if size <= HEAD_SIZE_MAX else None
    except DecodeError:
        return None


def message_digest(raw: bytes) -> bytes:
    """`Signed.digest` of a message that one has made or checked oneself."""
    protected, body, _ = _parts(raw)
    return hashlib.sha256(_tbs(protected, body)).digest()


def peek(raw: bytes) -> bool:
    """Whether `raw` looks like a signed message (the others are chunks)."""
    return raw[:1] == COSE_SIGN1


def _tbs(protected: bytes, body: bytes) -> bytes:
    """Sig_structure of RFC 9052 section 4.4, with empty external data."""
    return b"".join((_CONTEXT, _string(protected), protected, b"\x40", _string(body), body))


def _string(data: bytes) -> bytes:
    """What deterministic CBOR begins a byte string like `data` with."""
    size = len(data)
    if size < 24:
        return bytes((0x40 | size,))
    width = 1 if size < 1 << 8 else 2 if size < 1 << 16 else 4
    return (b"\x58", b"\x59", b"\x5a")[width >> 1] + size.to_bytes(width)


def _parts(raw: bytes) -> tuple[bytes, bytes, bytes]:
    """(protected header, body, signature) of exactly what `seal_envelope` makes of them. Taken apart by hand: the general decoder
    reads and writes the whole to see that it is deterministic."""
    protected, at = _taken(raw, 2) if raw[:2] == _FOUR else (b"", -1)
    if at < 0 or raw[at : at + 1] != b"\xa0":
        raise DecodeError("not a COSE_Sign1 message with an empty unprotected header")
    body, at = _taken(raw, at + 1)
    signature = raw[at + 2 :]
    if raw[at : at + 2] != _SIGNED or len(signature) != SIGNATURE_SIZE:
        raise DecodeError("not a COSE_Sign1 message with an Ed25519 signature")
    return protected, body, signature


def _taken(raw: bytes, at: int) -> tuple[bytes, int]:
    """(the deterministic byte string at `at`, where it ends). Raises `DecodeError`."""
    first = raw[at] if at < len(raw) else 0
    wide = _WIDTHS.get(first)
    size = int.from_bytes(raw[at + 1 : at + 1 + wide]) if wide else first - 0x40
    start = at + 1 + (wide or 0)
    data = raw[start : start + max(size, 0)]
    if not 0 <= size == len(data) or (wide is None and size >= 24) or raw[at:start] != _string(data):
        raise DecodeError("not a COSE_Sign1 message")
    return data, start + size


@lru_cache(HEADS_KEPT)
def _head(protected: bytes) -> Head:
    if len(protected) > HEAD_SIZE_MAX:
        raise DecodeError("header too large")
    value: Any = decode(protected)
    if not isinstance(value, dict) or value.get("v") != PROTOCOL_VERSION or type(value.get("v")) is not int:
        raise DecodeError("version")
    if set(value) != {COSE_ALG, "v", "type", "fleet", "task", "round", "from", "to"} or value[COSE_ALG] != COSE_EDDSA:
        raise DecodeError("unknown or missing header fields")
    number = value["round"]
    texts = [value[name] for name in ("type", "fleet", "task", "from", "to")]
    if not all(isinstance(text, str) and len(text) <= NAME_SIZE_MAX + 8 for text in texts):
        raise DecodeError("header field of the wrong type")
    if type(number) is not int or not 0 <= number <= ROUND_MAX:
        raise DecodeError("round out of range")
    kind, fleet, task, sender, to = texts
    if not (is_name(fleet) and is_name(task)):
        raise DecodeError("malformed name")
    return Head(type=kind, fleet=fleet, task=task, round=number, sender=sender, to=to)
