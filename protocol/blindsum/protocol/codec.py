"""Deterministic CBOR in and out (RFC 8949 section 4.2; SPEC.md section 3.1).

`decode` accepts exactly the bytes that `encode` makes of integers, byte and text strings, booleans, null, lists and maps:
duplicate keys, long integers, indefinite lengths, trailing bytes, floats and tags are refused, so one value has one
encoding and one hash.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn, TypeVar

import cbor2
import msgspec

from blindsum.protocol.memo import LongKey, shared

__all__ = [
    "DEPTH_MAX",
    "NO_TAGS",
    "DecodeError",
    "convert",
    "decode",
    "decode_chunk",
    "encode",
    "encode_chunk",
    "ready",
]

DEPTH_MAX = 8
"""Containers nested deeper than this are refused before they are built."""

CHUNK_VERSION = 1
CHUNK_INDEX_MAX = 1 << 20

T = TypeVar("T")


class DecodeError(ValueError):
    """Bytes from a peer that are not one deterministic CBOR value of the expected type."""


def encode(value: object) -> bytes:
    """The one encoding of `value`: ints, bytes, str, bool, None, lists, maps and `msgspec.Struct`s (as maps of their fields)."""
    if isinstance(value, msgspec.Struct):
        value = msgspec.to_builtins(value, builtin_types=(bytes,))
    return cbor2.dumps(value, canonical=True, default=_encode_struct)


def decode(data: bytes) -> Any:
    """The value whose encoding is `data`. Raises `DecodeError` and nothing else."""
    try:
        value = cbor2.loads(
            data,
            max_depth=DEPTH_MAX,
            allow_indefinite=False,
            allow_duplicate_keys=False,
            strict_hashable_types=False,
            semantic_decoders=NO_TAGS,
        )
        same = cbor2.dumps(value, canonical=True) == data
    except Exception as error:  # every fault of the decoder is the sender's
        raise DecodeError(f"not CBOR: {type(error).__name__}") from None
    if not same:
        raise DecodeError("not the deterministic encoding of one value")
    if not _is_plain(value):
        raise DecodeError("a float or another type that no message has")
    return value


def convert(value: Any, kind: type[T]) -> T:
    """`value` as the struct `kind`, strictly: exact types, lengths and ranges, no unknown and no missing fields."""
    try:
        return msgspec.convert(value, kind, strict=True, builtin_types=(bytes,))
    except (msgspec.ValidationError, ValueError, TypeError, OverflowError) as error:
        raise DecodeError(f"not a {kind.__name__}: {error}") from None


def ready(kind: type[T]) -> type[T]:
    """Have msgspec describe the struct `kind` now, while one thread imports it. It would do so in the first `convert`, where
    a second thread that comes by finds half a description and crashes the process."""
    msgspec.json.Decoder(kind)
    return kind


def encode_chunk(blob: bytes, index: int, data: bytes) -> bytes:
    """One chunk of a blob on the wire. It is not signed: the blob's id, which is, commits to its digest."""
    return encode([CHUNK_VERSION, blob, index, data])


@shared(16, LongKey)
def decode_chunk(data: bytes) -> tuple[bytes, int, bytes]:
    """The (blob id, index, data) of a chunk message, data a view of `data`'s tail copied once. Raises `DecodeError`."""
    blob = bytes(data[len(_CHUNK_HEAD) : len(_CHUNK_HEAD) + 32])
    at = len(_CHUNK_HEAD) + 32
    first = data[at] if len(data) > at else 0xFF
    size = {0x18: 1, 0x19: 2, 0x1A: 4}.get(first, 0)
    index = int.from_bytes(data[at + 1 : at + 1 + size], "big") if size else first
    at += 1 + size
    first = data[at] if len(data) > at else 0xFF
    size = {0x58: 1, 0x59: 2, 0x5A: 4}.get(first, 0)
    start = at + 1 + size
    body = bytes(data[start:])
    # one comparison with what `encode_chunk` would write decides; everything above only guesses where fields lie
    if index >= CHUNK_INDEX_MAX or data[:start] != _chunk_head(blob, index, len(body)):
        raise DecodeError("not a chunk")
    return blob, index, body


class NoTags(Mapping[int, Callable[..., NoReturn]]):
    """Refuses every tag before what it would be made into is made: half a megabyte of decimal fraction takes a minute."""

    def __getitem__(self, tag: int) -> Callable[..., NoReturn]:
        return self._refuse

    def __iter__(self) -> Iterator[int]:
        return iter(())

    def __len__(self) -> int:
        return 1

    @staticmethod
    def _refuse(*_: object) -> NoReturn:
        raise ValueError("a tag")


NO_TAGS = NoTags()
_ATOMS = frozenset({int, bytes, str, bool, type(None)})


def _is_plain(value: Any) -> bool:
    """Whether only the types of SPEC.md section 3.1 occur: no floats, no simple values, no lists or maps as keys."""
    kind = type(value)
    if kind in _ATOMS:
        return True
    if kind is list:
        return all(map(_is_plain, value))
    return kind is dict and all(type(key) in (int, str) and _is_plain(value[key]) for key in value)


_CHUNK_HEAD = bytes([0x84, CHUNK_VERSION, 0x58, 32])


def _chunk_head(blob: bytes, index: int, size: int) -> bytes:
    head = bytes([0x40 | size]) if size < 24 else encode(size)
    if size >= 24:
        head = bytes([head[0] | 0x40]) + head[1:]
    return _CHUNK_HEAD + blob + encode(index) + head


def _encode_struct(encoder: cbor2.CBOREncoder, value: object) -> None:
    encoder.encode(msgspec.to_builtins(value, builtin_types=(bytes,)))
