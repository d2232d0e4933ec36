"""Headers of our files: canonical CBOR (RFC 8949 section 4.2.1) of one typed struct, and nothing else is accepted."""

from __future__ import annotations

from typing import TypeVar

import cbor2
import msgspec

from blindsum.protocol.codec import NO_TAGS

DEPTH_MAX = 8

S = TypeVar("S", bound=msgspec.Struct)


def write_header(header: msgspec.Struct) -> bytes:
    """The same header always gives the same bytes."""
    return cbor2.dumps(msgspec.to_builtins(header), canonical=True)


def read_header(head: bytes, kind: type[S]) -> S:
    """Raises ValueError for bytes that `write_header` would not have written for a `kind`."""
    try:
        raw = cbor2.loads(
            head,
            max_depth=DEPTH_MAX,
            allow_indefinite=False,
            allow_duplicate_keys=False,
            strict_hashable_types=True,
            semantic_decoders=NO_TAGS,
        )
        header = msgspec.convert(raw, kind, strict=True)
    except (cbor2.CBORDecodeError, msgspec.ValidationError, ValueError) as error:
        raise ValueError(f"header: {error}") from None
    if write_header(header) != head:
        raise ValueError("header: not in canonical form")
    return header
