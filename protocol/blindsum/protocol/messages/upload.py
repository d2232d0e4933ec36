"""The one upload and how blobs travel (SPEC.md sections 5.4 and 6)."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, UnsetType

from blindsum.protocol.keys import CERTIFICATE_SIZE_MAX
from blindsum.protocol.messages.common import (
    BLOB_CHUNKS_MAX,
    DEVICES_MAX,
    PARTIES_MAX,
    BlobRef,
    Bytes32,
    Payload,
)

__all__ = ["EDGE_SIZE", "NEIGHBOURS_MAX", "Ask", "Header", "Receipt"]

EDGE_SIZE = 48
"""One capped edge: cap (32) and check (16)."""
NEIGHBOURS_MAX = 512
"""A threat model that needs more neighbours a device is refused."""


class Header(Payload, frozen=True):
    """What a device publishes beside the masked body. `commitments`: one SHA-256 a self subset, then one a cap subset; `boxes`:
    one a member party, in the order of the manifest's offers; `edges`: cap and check a neighbour, in index order. Where the task
    has no roster, and only there, the device's `certificate` is in it, `index` is 0, and there are no caps and no edges."""

    manifest: Bytes32
    roster: Bytes32
    index: Annotated[int, Meta(ge=0, lt=DEVICES_MAX)]
    body: BlobRef
    commitments: Annotated[bytes, Meta(max_length=32 * 512)]
    boxes: Annotated[list[Annotated[bytes, Meta(max_length=32_768)]], Meta(max_length=PARTIES_MAX)]
    edges: Annotated[bytes, Meta(max_length=EDGE_SIZE * NEIGHBOURS_MAX)]
    certificate: Annotated[bytes, Meta(min_length=1, max_length=CERTIFICATE_SIZE_MAX)] | UnsetType = UNSET


class Ask(Payload, frozen=True):
    """The receiver of a blob asks for what it lacks: `have` is a bitmap (bit i of byte i // 8, low bit first), `window` how many
    chunks it can take now."""

    blob: Bytes32
    have: Annotated[bytes, Meta(max_length=BLOB_CHUNKS_MAX // 8)]
    window: Annotated[int, Meta(ge=1, le=64)]


class Receipt(Payload, frozen=True):
    """The end-to-end answer to a join or upload: `subject` is its digest. "held": stored; "complete": the body too; "refused":
    it will not count, for the reason `code`."""

    subject: Bytes32
    status: Literal["held", "complete", "refused"]
    code: Annotated[str, Meta(max_length=64)]
