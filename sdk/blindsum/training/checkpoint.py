"""A training session as bytes.

    magic (8) | SHA-256 of the rest (32) | header size (4, big endian) | header | numbers

The header is canonical CBOR of `Header`; the numbers are float32, little endian: parameters, optimiser states, anchors
and control variate, then the parameters of the best epoch where the fit keeps them.
"""

from __future__ import annotations

import hashlib
from typing import Annotated

import msgspec
import numpy as np

from blindsum.protocol.errors import BlindsumError

from .bank import Floats
from .canonical import read_header, write_header
from .fit import Count, Progress
from .manifest import HYPERPARAMETERS_MAX, Digest, Name
from .optimisers import RANGES, in_range

MAGIC = b"bsCHECK\x01"
DIGEST_SIZE = 32
HEADER_SIZE_MAX = 1 << 26


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    artifact: Digest
    hyperparameters: Annotated[dict[Name, float], msgspec.Meta(max_length=HYPERPARAMETERS_MAX)]
    progress: Progress | None
    noise: tuple[Count, Count]  # seed, and how many batches have been given noise
    sizes: tuple[int, int]  # of the session's numbers and of the best parameters


msgspec.json.Decoder(
    Header
)  # describes it now: were it left to the first `convert`, two threads at once would crash msgspec


def encode(header: Header, everything: Floats, best: Floats) -> bytes:
    """Serialise; the same state always gives the same bytes."""
    head = write_header(header)
    blobs = (array.astype("<f4").tobytes() for array in (everything, best))
    body = b"".join((len(head).to_bytes(4, "big"), head, *blobs))
    return MAGIC + hashlib.sha256(body).digest() + body


def decode(data: bytes, *, artifact: str, sizes: tuple[int, int]) -> tuple[Header, Floats, Floats]:
    """Header, the session's numbers and the best parameters (empty where there are none).

    `sizes`: of both, as the artifact with this digest has them. Raises "training-checkpoint-damaged" or, where it is of
    another artifact, "training-checkpoint-foreign".
    """
    start = len(MAGIC) + DIGEST_SIZE
    body = data[start:]
    if len(body) < 4 or not data.startswith(MAGIC) or hashlib.sha256(body).digest() != data[len(MAGIC) : start]:
        raise _damaged("it is not a whole checkpoint")
    size = int.from_bytes(body[:4], "big")
    if size > min(HEADER_SIZE_MAX, len(body) - 4):
        raise _damaged(f"a header of {size} bytes")
    header = _header(body[4 : 4 + size])
    if header.artifact != artifact:
        raise BlindsumError("training-checkpoint-foreign", f"of the artifact {header.artifact}, not {artifact}")
    if header.sizes not in (sizes, (sizes[0], 0)) or len(body) - 4 - size != 4 * sum(header.sizes):
        raise _damaged("its numbers are not as many as the artifact asks for")
    numbers = np.frombuffer(body, "<f4", offset=4 + size).astype(np.float32)
    whole = header.progress is None or (header.progress.best is not None) == (header.sizes[1] > 0)
    if not whole or not np.isfinite(numbers[: sizes[1]]).all():
        raise _damaged("a parameter is NaN or infinite, or the best ones are missing")
    if not all(name in RANGES and in_range(name, value) for name, value in header.hyperparameters.items()):
        raise _damaged("a hyperparameter is unknown or out of range")
    return header, numbers[: header.sizes[0]], numbers[header.sizes[0] :]


def _header(head: bytes) -> Header:
    try:
        return read_header(head, Header)
    except ValueError as error:
        raise _damaged(str(error)) from None


def _damaged(reason: str) -> BlindsumError:
    return BlindsumError("training-checkpoint-damaged", reason)
