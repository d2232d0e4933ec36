"""CBOR, chunks, blobs, the trust bundle and the envelope: SPEC.md sections 3, 4.1 and 6."""

from __future__ import annotations

from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from blindsum.protocol.codec import encode, encode_chunk
from blindsum.protocol.keys import chunk_seal
from blindsum.protocol.messages import chunks_of
from scenarios.case import File, secret
from scenarios.scene import FLEET, TASK, Scene

__all__ = ["files"]

_MALFORMED: Final = "message-malformed"

_FOREIGN: Final = bytes.fromhex(
    "d284584aa8012761760162746f6b636f6f7264696e61746f726466726f6d6770617274792f32647461736b6373756d647479706564766f74656566"
    "6c65657467766563746f727365726f756e6407a05862a366626561636f6e5820000000000000000000000000000000000000000000000000000000"
    "0000000000666469676573745820202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f676465636964657366726f7374"
    "657258401163f6e1b4d85925ec57fa2ec20931cf896559fafaa08e0d23bb8d54d9f3015b0cd46f7c84bc06523144cac72ad7e51cc9c73c234157"
    "354d13f8c56dbd6fb60a"
)
"""Made by pycose 1.1.0 and, byte for byte the same, by cwt 3.3.0, with the key of party 2."""

_VALUES: Final = (
    *(("integer", n) for n in (0, 23, 24, 255, 256, 65_535, 65_536, 2**32 - 1, 2**32, 2**53, 2**64 - 1)),
    *(("negative integer", n) for n in (-1, -24, -25, -256, -257, -(2**32), -(2**64))),
    ("byte string, empty", b""),
    ("byte string of 24", bytes(range(24))),
    ("text, empty", ""),
    ("text beyond ASCII", "Größe ≥ 3 中 🜁"),
    ("false", False),
    ("true", True),
    ("null", None),
    ("array, empty", []),
    ("array of arrays", [[], [1, [2, b"3"]], "4"]),
    ("an integer inside eight arrays", [[[[[[[[0]]]]]]]]),
    ("an array inside eight arrays", [[[[[[[[[]]]]]]]]]),
    ("a map inside eight maps", {"a": {"a": {"a": {"a": {"a": {"a": {"a": {"a": {}}}}}}}}}),
    ("map in order of encoded keys", {"v": 1, "to": 2, "from": 3, "type": 4, "round": 5, 1: 6}),
)

_BROKEN: Final = (
    ("nothing", ""),
    ("trailing byte", "0000"),
    ("integer in two bytes that fits one", "1817"),
    ("integer in three bytes that fits two", "1900ff"),
    ("integer in five bytes that fits three", "1a0000ffff"),
    ("integer in nine bytes that fits five", "1b00000000ffffffff"),
    ("integer cut off", "19ff"),
    ("length in two bytes that fits one", "580161"),
    ("byte string cut off", "4361"),
    ("byte string of indefinite length", "5f4101ff"),
    ("text of indefinite length", "7f6161ff"),
    ("array of indefinite length", "9f01ff"),
    ("map of indefinite length", "bf616101ff"),
    ("break alone", "ff"),
    ("reserved length", "1c"),
    ("text that is not UTF-8", "62c328"),
    ("text with a surrogate", "63eda080"),
    ("duplicate key", "a2616101616102"),
    ("keys out of order", "a2616201616101"),
    ("array as a key", "a18001"),
    ("boolean as a key", "a1f501"),
    ("byte string as a key", "a1416101"),
    ("an integer inside nine arrays", "81" * 9 + "00"),
    ("an array inside nine arrays and maps", "a10081" * 4 + "a10080"),
    ("tag 18", "d201"),
    ("bignum", "c249010000000000000000"),
    ("decimal fraction", "c4820102"),
    ("set", "d901028101"),
    ("float that is whole", "f93c00"),
    ("float", "fb3ff199999999999a"),
    ("undefined", "f7"),
    ("simple value", "f820"),
    ("array cut off", "8201"),
)


def files(scene: Scene) -> list[File]:
    return [_cbor(), _chunk(), _broadcast(), _blob(), _bitmap(), _trust(scene), _envelope(scene)]


def _cbor() -> File:
    file = File("cbor.json", "one value has one encoding; everything else is refused", "3.1", "cbor")
    for name, value in _VALUES:
        file.ok(f"{name} {value}" if "integer" in name else name, bytes=encode(value))
    for name, text in _BROKEN:
        file.bad(_MALFORMED, name, bytes=bytes.fromhex(text))
    return file


def _chunk() -> File:
    file = File("chunk.json", "a chunk of a blob on the wire", "6", "chunk")
    data = secret("a blob", 2500)
    ref, chunks = chunks_of(data, 1024)
    named: dict[str, Any] = {"size": ref.size, "chunk_size": ref.chunk_size, "digests": ref.digests}
    for size in (0, 23, 24, 255, 256):
        file.ok(f"{size} bytes", bytes=encode_chunk(ref.id, 7, secret("chunk", size)))
    for index in (0, 23, 24, 255, 256, 65_535, 65_536, (1 << 20) - 1):
        file.ok(f"index {index}", bytes=encode_chunk(ref.id, index, b"x"))
    for index in (0, 2):
        file.ok(f"chunk {index} of a blob", bytes=encode_chunk(ref.id, index, chunks[index]), ref=named)
    file.ok("65536 bytes", bytes=encode_chunk(ref.id, 0, bytes(65_536)))
    file.ok("largest, sealed", bytes=encode_chunk(ref.id, (1 << 20) - 1, bytes(262_144 + 16)))
    file.bad("message-too-large", "larger", bytes=encode_chunk(ref.id, 0, bytes(262_144 + 80)))
    file.bad("chunk-unexpected", "of another blob", bytes=encode_chunk(secret("id"), 0, chunks[0]), ref=named)
    file.bad("chunk-wrong", "beyond the last", bytes=encode_chunk(ref.id, 3, chunks[2]), ref=named)
    file.bad("chunk-wrong", "at another index", bytes=encode_chunk(ref.id, 1, chunks[0]), ref=named)
    file.bad("chunk-wrong", "cut off by one byte", bytes=encode_chunk(ref.id, 2, chunks[2][:-1]), ref=named)
    file.bad(
        "chunk-wrong",
        "one bit flipped",
        bytes=encode_chunk(ref.id, 2, bytes([chunks[2][0] ^ 1]) + chunks[2][1:]),
        ref=named,
    )
    good = encode_chunk(ref.id, 1, b"abc")
    file.bad(_MALFORMED, "index of 2^20", bytes=encode([1, ref.id, 1 << 20, b"abc"]))
    file.bad(_MALFORMED, "negative index", bytes=encode([1, ref.id, -1, b"abc"]))
    file.bad(_MALFORMED, "another version", bytes=encode([2, ref.id, 1, b"abc"]))
    file.bad(_MALFORMED, "id of 31 bytes", bytes=encode([1, ref.id[:-1], 1, b"abc"]))
    file.bad(_MALFORMED, "text for data", bytes=encode([1, ref.id, 1, "abc"]))
    file.bad(_MALFORMED, "five items", bytes=encode([1, ref.id, 1, b"abc", 0]))
    file.bad(_MALFORMED, "trailing byte", bytes=good + b"\0")
    file.bad(_MALFORMED, "cut off", bytes=good[:-1])
    file.bad(_MALFORMED, "long index", bytes=good[:36] + b"\x18\x01" + good[37:])
    file.bad(_MALFORMED, "long length", bytes=good[:37] + b"\x58\x03" + good[38:])
    return file


def _broadcast() -> File:
    key, blob = secret("broadcast"), secret("id")
    given = {"key": key, "blob": blob, "index": 3}
    file = File("broadcast.json", "a chunk of the coordinator, sealed against the broker", "6", "broadcast", given)
    sealed = chunk_seal(key, blob, 3, secret("chunk", 50))
    for size in (1, 16, 50):
        file.ok(f"{size} bytes", data=secret("chunk", size))
    file.ok("another index", data=secret("chunk", 50), index=1023)
    file.ok("another blob", data=secret("chunk", 50), blob=secret("other id"))
    file.ok("opened", sealed=sealed)
    changed: tuple[tuple[str, dict[str, Any]], ...] = (
        ("of another index", {"index": 2}),
        ("of another blob", {"blob": secret("other id")}),
        ("under another key", {"key": secret("another key")}),
        ("one bit flipped", {"sealed": bytes([sealed[0] ^ 1]) + sealed[1:]}),
        ("cut off", {"sealed": sealed[:-1]}),
        ("empty", {"sealed": b""}),
    )
    for name, changes in changed:
        file.bad("chunk-wrong", name, **{"sealed": sealed, **changes})
    return file


def _blob() -> File:
    file = File("blob.json", "a blob's chunks, digests and id", "6", "blob")
    for size, chunk_size in ((0, 1024), (1, 1024), (1024, 1024), (1025, 1024), (2500, 1024), (2500, 262_144)):
        file.ok(f"{size} bytes in chunks of {chunk_size}", data=secret("a blob", size), chunk_size=chunk_size)
    unsound = {"size": 1025, "chunk_size": 1024, "digests": secret("digest", 32)}
    file.ok("two chunks, one digest: not sound", ref=unsound)
    for name, change in (
        ("chunks below 1024 bytes", {"chunk_size": 1023}),
        ("chunks above 262144 bytes", {"chunk_size": 262_145}),
        ("larger than 256 MiB", {"size": (1 << 28) + 1}),
        ("negative size", {"size": -1}),
    ):
        file.bad(_MALFORMED, name, ref={**unsound, **change})
    return file


def _bitmap() -> File:
    file = File("bitmap.json", "what an ask says is held", "6", "bitmap")
    for count, held in ((0, []), (1, [0]), (8, [0, 7]), (9, [8]), (20, list(range(0, 20, 3)))):
        file.ok(f"{len(held)} of {count}", count=count, held=held)
    return file


def _trust(scene: Scene) -> File:
    file = File("trust.json", "the trust bundle and its digest", "4.1", "trust")
    trust = scene.trust
    parts = [trust.fleet, trust.ca, trust.operator, trust.coordinator, trust.coordinator_box, list(trust.parties)]
    file.ok("four parties", bytes=trust.encode())
    for name, place, value in (
        ("fleet that is no name", 0, "Vectors"),
        ("operator key of 31 bytes", 2, trust.operator[:-1]),
        ("two roles with one key", 3, trust.operator),
        ("box key of 1215 bytes", 4, trust.coordinator_box[:-1]),
        ("no parties", 5, []),
        ("eleven parties", 5, [secret(f"party {n}") for n in range(11)]),
        ("a party that is no key", 5, [*trust.parties[:3], 4]),
    ):
        file.bad(_MALFORMED, name, bytes=encode([*parts[:place], value, *parts[place + 1 :]]))
    file.bad(_MALFORMED, "seven items", bytes=encode([*parts, 0]))
    file.bad(_MALFORMED, "a map", bytes=encode({"fleet": trust.fleet}))
    return file


def _envelope(scene: Scene) -> File:
    file = File(
        "envelope.json",
        "COSE_Sign1 and the checks before a body is looked at. Devices' signatures are checked later, with their certificate.",
        "3.3",
        "envelope",
        {"trust": scene.trust.encode()},
    )
    body = encode({"beacon": b"", "decides": "set", "digest": secret("proposal")})
    head: dict[Any, Any] = {
        1: -8,
        "v": 1,
        "type": "vote",
        "fleet": FLEET,
        "task": TASK,
        "round": 1,
        "from": "party/2",
        "to": "coordinator",
    }
    key = scene.key("party/2")

    def message(
        changes: dict[Any, Any] | None = None,
        *,
        without: str = "",
        payload: bytes = body,
        signer: Ed25519PrivateKey = key,
        unprotected: Any = None,
    ) -> bytes:
        header = {name: value for name, value in {**head, **(changes or {})}.items() if name != without}
        protected = encode(header)
        signature = signer.sign(encode(["Signature1", protected, b"", payload]))
        return b"\xd2" + encode([protected, {} if unprotected is None else unprotected, payload, signature])

    good = message()
    file.ok("vote", bytes=good)
    file.ok("made by pycose 1.1.0 and byte for byte the same by cwt 3.3.0", bytes=_FOREIGN)
    file.ok("largest round", bytes=message({"round": 2**31 - 1}))
    join = message({"type": "join", "from": "device/d-0"}, signer=scene.key("device/d-0"))
    file.ok("join of a device, signature not yet looked at", bytes=join[:-1] + b"\0")
    file.ok("body of another shape: looked at later", bytes=message(payload=encode([1, 2, 3])))
    for code, name, raw in (
        ("message-too-large", "above the limit of its type", message(payload=encode({"beacon": bytes(1024)}))),
        ("message-version", "version 2", message({"v": 2})),
        ("message-version", "no version", message(without="v")),
        ("message-version", "version true", message({"v": True})),
        ("message-version", "version 2 and other fields", message({"v": 2, "epoch": 7})),
        ("message-type-unknown", "unknown type", message({"type": "votes"})),
        ("fleet-foreign", "another fleet", message({"fleet": "vector"})),
        (
            "sender-wrong-role",
            "a vote of the coordinator",
            message({"from": "coordinator"}, signer=scene.key("coordinator")),
        ),
        ("sender-wrong-role", "a vote of a device", message({"from": "device/d-0"}, signer=scene.key("device/d-0"))),
        ("signature-invalid", "key of another party", message(signer=scene.key("party/1"))),
        ("signature-invalid", "a party there is not", message({"from": "party/5"})),
        ("signature-invalid", "party/02", message({"from": "party/02"})),
        ("signature-invalid", "party/0", message({"from": "party/0"})),
        ("signature-invalid", "body altered", _flip(good, good.index(body) + 40)),
        ("signature-invalid", "round altered", good.replace(b"eround\x01", b"eround\x02")),
        ("signature-invalid", "s of the signature plus the group order", _add_order(good)),
        (_MALFORMED, "no tag", good[1:]),
        (_MALFORMED, "tag 18 in two bytes", b"\xd8\x12" + good[1:]),
        (_MALFORMED, "tag 17", b"\xd1" + good[1:]),
        (_MALFORMED, "trailing byte", good + b"\0"),
        (_MALFORMED, "something in the unprotected header", message(unprotected={4: b"kid"})),
        (_MALFORMED, "an array for the unprotected header", message(unprotected=[])),
        (_MALFORMED, "signature of 63 bytes", _resized(good)),
        (_MALFORMED, "three items", b"\xd2" + encode([encode(head), {}, body])),
        (_MALFORMED, "algorithm -7", message({1: -7})),
        (_MALFORMED, "one header field more", message({"epoch": 7})),
        (_MALFORMED, "one header field less", message(without="to")),
        (_MALFORMED, "round as text", message({"round": "1"})),
        (_MALFORMED, "round 2^31", message({"round": 2**31})),
        (_MALFORMED, "round -1", message({"round": -1})),
        (_MALFORMED, "task that is no name", message({"task": "Sum"})),
        (_MALFORMED, "task of 65 characters", message({"task": "s" * 65})),
        (_MALFORMED, "sender of 73 characters", message({"from": "party/" + "2" * 67})),
        (_MALFORMED, "header that is not deterministic", _unsorted(scene)),
        (_MALFORMED, "body that is not deterministic", message(payload=b"\xa1\x61\x61\x18\x01")),
        (_MALFORMED, "body with a tag", message(payload=b"\xc1\x01")),
        (_MALFORMED, "device that is no name", message({"type": "join", "from": "device/D"})),
        (_MALFORMED, "device without a name", message({"type": "join", "from": "device/"})),
    ):
        file.bad(code, name, bytes=raw)
    return file


def _flip(raw: bytes, at: int) -> bytes:
    return raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]


def _resized(raw: bytes) -> bytes:
    return raw[:-66] + b"\x58\x3f" + raw[-64:-1]


def _add_order(raw: bytes) -> bytes:
    order = 2**252 + 27742317777372353535851937790883648493
    return raw[:-32] + (int.from_bytes(raw[-32:], "little") + order).to_bytes(32, "little")


def _unsorted(scene: Scene) -> bytes:
    """A header whose keys are in the wrong order, under a signature that is right."""
    pairs = [
        (1, -8),
        ("v", 1),
        ("from", "party/2"),
        ("to", "coordinator"),
        ("task", TASK),
        ("type", "vote"),
        ("fleet", FLEET),
        ("round", 1),
    ]
    protected = b"\xa8" + b"".join(encode(key) + encode(value) for key, value in pairs)
    payload = encode({"beacon": b"", "decides": "set", "digest": secret("proposal")})
    signature = scene.key("party/2").sign(encode(["Signature1", protected, b"", payload]))
    return b"\xd2" + encode([protected, {}, payload, signature])
