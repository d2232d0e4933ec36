"""Deterministic CBOR (SPEC.md section 3.1), chunks and blobs (section 6), and how vectors write values in JSON."""

from __future__ import annotations

import hashlib
from typing import Any, TypeAlias

from oracle.fault import Fault, require

Value: TypeAlias = Any
"""int, bytes, str, bool, None, list or dict"""

DEPTH_MAX = 8
CHUNK_MESSAGE_SIZE_MAX = 262_144 + 80
BLOB_CHUNKS_MAX = 1024


def encode(value: Value) -> bytes:
    if value is None or isinstance(value, bool):
        return {False: b"\xf4", True: b"\xf5", None: b"\xf6"}[value]
    if isinstance(value, int):
        return _head(0, value) if value >= 0 else _head(1, -1 - value)
    if isinstance(value, bytes):
        return _head(2, len(value)) + value
    if isinstance(value, str):
        text = value.encode()
        return _head(3, len(text)) + text
    if isinstance(value, list):
        return _head(4, len(value)) + b"".join(map(encode, value))
    assert isinstance(value, dict), type(value)
    pairs = sorted((encode(key), encode(item)) for key, item in value.items())
    return _head(5, len(pairs)) + b"".join(key + item for key, item in pairs)


def decode(data: bytes) -> Value:
    """The value whose only encoding is `data`."""
    value, end = _item(data, 0, 0)
    require(end == len(data), "message-malformed")
    return value


def _head(major: int, number: int) -> bytes:
    if number < 24:
        return bytes([major << 5 | number])
    size = next(n for n in (1, 2, 4, 8) if number < 1 << 8 * n)
    return bytes([major << 5 | 23 + size.bit_length()]) + number.to_bytes(size, "big")


def _item(data: bytes, at: int, depth: int) -> tuple[Value, int]:
    require(at < len(data) and depth <= DEPTH_MAX, "message-malformed")
    major, info = data[at] >> 5, data[at] & 31
    at += 1
    if major == 7:
        require(info in (20, 21, 22), "message-malformed")
        return {20: False, 21: True, 22: None}[info], at
    require(major != 6 and info < 28, "message-malformed")
    number = info
    if info >= 24:
        size = 1 << info - 24
        number = int.from_bytes(data[at : at + size], "big")
        at += size
        require(at <= len(data) and number >= (24 if size == 1 else 1 << 4 * size), "message-malformed")
    if major < 2:
        return (number if major == 0 else -1 - number), at
    if major < 4:
        end = at + number
        require(end <= len(data), "message-malformed")
        try:
            return (data[at:end] if major == 2 else data[at:end].decode()), end
        except UnicodeDecodeError:
            raise Fault("message-malformed") from None
    require(number <= len(data), "message-malformed")
    if major == 4:
        items = []
        for _ in range(number):
            item, at = _item(data, at, depth + 1)
            items.append(item)
        return items, at
    pairs: dict[Value, Value] = {}
    last = b""
    for _ in range(number):
        start = at
        key, at = _item(data, at, depth + 1)
        require(type(key) in (int, str) and last < data[start:at], "message-malformed")
        last = data[start:at]
        pairs[key], at = _item(data, at, depth + 1)
    return pairs, at


# -- chunks and blobs -------------------------------------------------------------------------------------------------


def digest(label: str, *parts: Value) -> bytes:
    """SPEC.md section 4."""
    return hashlib.sha256(encode(["blindsum/1 " + label, *parts])).digest()


def chunk_open(raw: bytes) -> tuple[bytes, int, bytes]:
    require(len(raw) <= CHUNK_MESSAGE_SIZE_MAX, "message-too-large")
    value = decode(raw)
    require(isinstance(value, list) and len(value) == 4, "message-malformed")
    version, blob, index, data = value
    require(version == 1 and type(version) is int, "message-malformed")
    require(isinstance(blob, bytes) and len(blob) == 32 and isinstance(data, bytes), "message-malformed")
    require(type(index) is int and 0 <= index < 1 << 20, "message-malformed")
    return blob, index, data


def blob_ref(data: bytes, chunk_size: int) -> dict[str, Value]:
    parts = [data[at : at + chunk_size] for at in range(0, len(data), chunk_size)]
    return {
        "size": len(data),
        "chunk_size": chunk_size,
        "digests": b"".join(hashlib.sha256(part).digest() for part in parts),
    }


def blob_id(ref: dict[str, Value]) -> bytes:
    return digest("blob", ref["size"], ref["chunk_size"], ref["digests"])


def blob_count(ref: dict[str, Value]) -> int:
    return -(-int(ref["size"]) // int(ref["chunk_size"]))


def blob_sound(ref: dict[str, Value]) -> bool:
    return len(ref["digests"]) == 32 * blob_count(ref)


def chunk_check(ref: dict[str, Value], blob: bytes, index: int, data: bytes) -> None:
    require(blob == blob_id(ref), "chunk-unexpected")
    require(index < blob_count(ref), "chunk-wrong")
    size = min(ref["chunk_size"], ref["size"] - index * ref["chunk_size"])
    named = ref["digests"][32 * index : 32 * index + 32]
    require(len(data) == size and hashlib.sha256(data).digest() == named, "chunk-wrong")


# -- JSON -------------------------------------------------------------------------------------------------------------


def from_json(value: Any) -> Value:
    """Vectors write bytes as {"$hex"} (many zeros at their end as {"$zeros"}), integers beyond 2^53 as {"$int"}, maps with
    other than text keys as {"$map"}."""
    if isinstance(value, list):
        return [from_json(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "$hex" in value:
        return bytes.fromhex(value["$hex"]) + bytes(value.get("$zeros", 0))
    if "$int" in value:
        return int(value["$int"])
    if "$map" in value:
        return {from_json(key): from_json(item) for key, item in value["$map"]}
    return {key: from_json(item) for key, item in value.items()}


def to_json(value: Value) -> Any:
    if isinstance(value, bytes):
        zeros = len(value) - len(value.rstrip(b"\0"))
        return {"$hex": value.rstrip(b"\0").hex(), "$zeros": zeros} if zeros >= 256 else {"$hex": value.hex()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value):
            return {key: to_json(item) for key, item in value.items()}
        return {"$map": [[to_json(key), to_json(item)] for key, item in value.items()]}
    if type(value) is int and abs(value) > 1 << 53:
        return {"$int": str(value)}
    return value
