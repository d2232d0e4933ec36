"""Field types that every message shares, and the reference to a blob (SPEC.md sections 3 and 5)."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from blindsum.protocol.keys import digest
from blindsum.protocol.memo import LongKey, shared

__all__ = [
    "BLOB_CHUNKS_MAX",
    "BYTES_MAX",
    "CHUNK_SIZE",
    "CHUNK_SIZE_MAX",
    "DEVICES_MAX",
    "KEYS_MAX",
    "PARTIES_MAX",
    "SMALL_CHUNK_SIZE",
    "BlobRef",
    "Bytes16",
    "Bytes32",
    "Count",
    "KeyStep",
    "KeySteps",
    "Millis",
    "Name",
    "Payload",
    "Raw",
    "chunk_key",
    "chunks_of",
]

CHUNK_SIZE: Final = 262_144
SMALL_CHUNK_SIZE: Final = 122_880
"""With its envelope below the 128 KB that AWS IoT Core takes as a payload."""
CHUNK_SIZE_MAX: Final = 262_144
BLOB_CHUNKS_MAX: Final = 1024
"""A blob has at most 256 MiB at the default chunk size."""
BYTES_MAX: Final = BLOB_CHUNKS_MAX * CHUNK_SIZE_MAX
DEVICES_MAX: Final = 100_000
PARTIES_MAX: Final = 10

IDS_MAX: Final = 256
"""Blob references whose ids are remembered: a role asks for the id of the same few again and again."""

Bytes16 = Annotated[bytes, Meta(min_length=16, max_length=16)]
Bytes32 = Annotated[bytes, Meta(min_length=32, max_length=32)]
KEYS_MAX: Final = 9
"""Steps to a party's key: the operator's, and eight that it signed itself."""
KeyStep = tuple[
    Annotated[int, Meta(ge=0, le=2**31 - 1)],
    Annotated[int, Meta(ge=0, le=KEYS_MAX - 1)],
    Bytes32,
    Annotated[bytes, Meta(min_length=64, max_length=64)],
]
"""(epoch, step, key, signature)."""
KeySteps = Annotated[list[KeyStep], Meta(max_length=KEYS_MAX)]
Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Millis = Annotated[int, Meta(ge=0, le=2**53)]
Name = Annotated[str, Meta(pattern=r"^[a-z0-9-]{1,64}\Z")]
Raw = Annotated[bytes, Meta(min_length=1, max_length=65_536)]
"""A signed message inside another."""


class Payload(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The base of every message body: a map of exactly the fields named."""


class BlobRef(Payload, frozen=True):
    """Bytes too large for a message, cut into chunks that each verify on arrival: `digests` is their SHA-256s, concatenated."""

    size: Annotated[int, Meta(ge=0, le=BYTES_MAX)]
    chunk_size: Annotated[int, Meta(ge=1024, le=CHUNK_SIZE_MAX)]
    digests: Annotated[bytes, Meta(max_length=32 * BLOB_CHUNKS_MAX)]

    @property
    def count(self) -> int:
        """Number of chunks."""
        return -(-self.size // self.chunk_size)

    @property
    def sound(self) -> bool:
        """Whether there is one digest for each chunk."""
        return len(self.digests) == 32 * self.count

    @property
    def id(self) -> bytes:
        """The blob's name, which commits to every byte of it."""
        return _blob_id(self.size, self.chunk_size, self.digests)

    def accepts(self, index: int, data: bytes) -> bool:
        """Whether `data` is chunk `index`."""
        if not 0 <= index < self.count:
            return False
        size = min(self.chunk_size, self.size - index * self.chunk_size)
        return len(data) == size and _chunk_digest(data) == self.digests[32 * index : 32 * index + 32]


def chunks_of(data: bytes, chunk_size: int = CHUNK_SIZE) -> tuple[BlobRef, list[bytes]]:
    """The reference to `data` and its chunks. Raises ValueError over `BLOB_CHUNKS_MAX` chunks."""
    chunks = [data[at : at + chunk_size] for at in range(0, len(data), chunk_size)]
    if len(chunks) > BLOB_CHUNKS_MAX:
        raise ValueError(f"{len(data)} bytes are more than {BLOB_CHUNKS_MAX} chunks of {chunk_size}")
    digests = b"".join(hashlib.sha256(chunk).digest() for chunk in chunks)
    return BlobRef(size=len(data), chunk_size=chunk_size, digests=digests), chunks


def chunk_key(blob: bytes, index: int) -> str:
    """Where a chunk lives in a role's store."""
    return f"blob/{blob.hex()}/{index:06d}"


@lru_cache(maxsize=IDS_MAX)
def _blob_id(size: int, chunk_size: int, digests: bytes) -> bytes:
    return digest("blob", size, chunk_size, digests)


@shared(16, LongKey)
def _chunk_digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
