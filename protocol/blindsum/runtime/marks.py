"""What shows that a database holds the rows that were written to it: all of them, whole, and no others.

Each row carries its mark, a digest of its key and value; the database carries the sum of digests of every key with its mark, modulo
2^256, written in the same transaction (an incremental hash of a set, as in Bellare and Micciancio 1997). So a changed row, one that
is missing, one too many and one brought back from an older copy all show. It is for faults of disks and for hands that repair
databases: who means to deceive writes the digests anew, and owns the host anyway.
"""

from __future__ import annotations

import hashlib
from typing import Final

__all__ = ["EMPTY", "mark", "with_row", "without_row"]

SIZE: Final = 32
EMPTY: Final = bytes(SIZE)
"""The sum over no rows."""


def mark(*fields: str | bytes | int | None) -> bytes:
    """The digest of a row with these fields."""
    digest = hashlib.sha256()
    for field in fields:
        data = field if isinstance(field, bytes) else str(field).encode()
        digest.update(b"%c%d:" % (type(field).__name__.encode()[0], len(data)))
        digest.update(data)
    return digest.digest()


def with_row(total: bytes, row: bytes) -> bytes:
    """The sum after a row with this mark came."""
    return _reduced(int.from_bytes(total, "big") + int.from_bytes(row, "big"))


def without_row(total: bytes, row: bytes) -> bytes:
    """The sum after a row with this mark went."""
    return _reduced(int.from_bytes(total, "big") - int.from_bytes(row, "big"))


def _reduced(total: int) -> bytes:
    return (total % (1 << 8 * SIZE)).to_bytes(SIZE, "big")
