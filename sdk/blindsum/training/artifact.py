"""The training artifact: one content-addressed file of bytes that holds all a device needs to train a model.

    magic (8) | SHA-256 of the rest (32) | header size (4, big endian) | header | graphs | parameters | constants

The header is canonical CBOR (RFC 8949 section 4.2.1) of `Header`. The graphs are serialised ONNX models without a single
weight: train, evaluate and predict, then gradient and update, which are the two halves of train and take a batch in
pieces (both are empty where train makes the gradient only). The parameters follow as one float32 vector, then the
frozen weights and constants that the graphs share. All numbers are little endian. `decode` checks everything (hash, sizes, types,
operators, wiring) before onnxruntime sees a byte of it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from blindsum.protocol.errors import BlindsumError

from .canonical import read_header, write_header
from .manifest import ELEMENTS_MAX, TENSORS_MAX, Manifest, Size, Weight
from .verify import check_graphs, check_manifest

MAGIC = b"bsTRAIN\x01"
DIGEST_SIZE = 32
ARTIFACT_SIZE_MAX = 1 << 30
HEADER_SIZE_MAX = 1 << 23
GRAPH_SIZE_MAX = 1 << 25
GRAPHS = ("train", "evaluate", "predict", "gradient", "update")


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    manifest: Manifest
    graphs: tuple[Size, Size, Size, Size, Size]  # bytes of each, in the order of GRAPHS
    constants: Annotated[tuple[Weight, ...], msgspec.Meta(max_length=TENSORS_MAX)]


msgspec.json.Decoder(
    Header
)  # describes it now: were it left to the first `convert`, two threads at once would crash msgspec


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A decoded artifact. Arrays are read-only views of the artifact's bytes."""

    manifest: Manifest
    train: bytes
    evaluate: bytes
    predict: bytes
    gradient: bytes
    update: bytes
    parameters: NDArray[np.float32] = field(repr=False)
    constants: Mapping[str, NDArray[np.generic]] = field(repr=False)

    def graphs(self) -> dict[str, bytes]:
        """The graphs by name, in the order of `GRAPHS`."""
        return {name: getattr(self, name) for name in GRAPHS}


def encode(artifact: Artifact) -> bytes:
    """Serialise; the same artifact always gives the same bytes."""
    header = Header(
        manifest=artifact.manifest,
        graphs=tuple(map(len, artifact.graphs().values())),  # type: ignore[arg-type]
        constants=tuple(Weight(name=n, shape=a.shape, dtype=a.dtype.name) for n, a in artifact.constants.items()),  # type: ignore[arg-type]
    )
    head = write_header(header)
    arrays = [artifact.parameters, *artifact.constants.values()]
    blobs = [np.ascontiguousarray(a, dtype=a.dtype.newbyteorder("<")).tobytes() for a in arrays]
    body = b"".join((len(head).to_bytes(4, "big"), head, *artifact.graphs().values(), *blobs))
    return MAGIC + hashlib.sha256(body).digest() + body


def decode(data: bytes) -> Artifact:
    """Parse and check an artifact.

    Raises `BlindsumError`: "training-request-invalid", "training-artifact-damaged", "training-artifact-malformed",
    "training-artifact-too-large", "training-operator-forbidden" or "training-external-data".
    """
    if not isinstance(data, bytes):
        raise BlindsumError(
            "training-request-invalid", f"an artifact is bytes, not {type(data).__name__}; read the file"
        )
    if len(data) > ARTIFACT_SIZE_MAX:
        raise BlindsumError("training-artifact-too-large", f"{len(data)} bytes, at most {ARTIFACT_SIZE_MAX}")
    start = len(MAGIC) + DIGEST_SIZE
    body = memoryview(data)[start:]
    if len(body) < 4 or not data.startswith(MAGIC):
        raise BlindsumError("training-artifact-damaged", "it does not begin like one")
    if hashlib.sha256(body).digest() != data[len(MAGIC) : start]:
        raise BlindsumError("training-artifact-damaged", "its SHA-256 is not the one it states")
    reader = _Reader(body)
    header = _header(bytes(reader.take(int.from_bytes(reader.take(4), "big"), HEADER_SIZE_MAX, "header")))
    graphs = [bytes(reader.take(size, GRAPH_SIZE_MAX, "graph")) for size in header.graphs]
    manifest = header.manifest
    parameters = reader.array("float32", (manifest.size,)).astype(np.float32, copy=False)
    constants = {weight.name: reader.array(weight.dtype, weight.shape) for weight in header.constants}
    reader.end()
    if len(constants) != len(header.constants):
        raise _malformed("two constants of one name")
    if not np.isfinite(parameters).all():
        raise _malformed("a parameter is NaN or infinite")
    check_manifest(manifest, constants)
    by_name = dict(zip(GRAPHS, graphs, strict=True))
    check_graphs(manifest, by_name, constants)
    return Artifact(manifest=manifest, parameters=parameters, constants=constants, **by_name)


def _header(head: bytes) -> Header:
    try:
        return read_header(head, Header)
    except ValueError as error:
        raise _malformed(str(error)) from None


class _Reader:
    """Takes parts off the front of a buffer."""

    def __init__(self, view: memoryview) -> None:
        self._view, self._at = view, 0

    def take(self, size: int, size_max: int = 4, what: str = "") -> memoryview:
        if size > size_max:
            raise BlindsumError("training-artifact-too-large", f"{what} of {size} bytes, at most {size_max}")
        if size > len(self._view) - self._at:
            raise _malformed("shorter than its header states")
        self._at += size
        return self._view[self._at - size : self._at]

    def array(self, dtype: str, shape: tuple[int, ...]) -> NDArray[np.generic]:
        kind = np.dtype(dtype).newbyteorder("<")
        count = math.prod(shape)
        if count > ELEMENTS_MAX:
            raise BlindsumError(
                "training-artifact-too-large", f"a tensor of shape {shape}, at most {ELEMENTS_MAX} elements"
            )
        return np.frombuffer(self.take(count * kind.itemsize, ARTIFACT_SIZE_MAX, "tensor"), dtype=kind).reshape(shape)

    def end(self) -> None:
        if self._at != len(self._view):
            raise _malformed("longer than its header states")


def _malformed(reason: str) -> BlindsumError:
    return BlindsumError("training-artifact-malformed", reason)
