"""Read and complete serialised ONNX models without the `onnx` package, strictly (onnx.proto, IR version 10).

Devices carry onnxruntime and numpy only, so what must be checked before onnxruntime sees a graph is read here. The
reader knows exactly the fields that `build_artifact` writes. Everything else (another field, a second copy of a single
field, another wire type, a subgraph but for the body of a Scan, an initialiser, external data) is an error, so no other
parser can see something in the bytes that this one did not.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from blindsum.protocol.errors import BlindsumError

NAME_SIZE_MAX = 1024
NODES_MAX = 100_000
RANK_MAX = 32

DTYPES: dict[int, str] = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
}  # TensorProto.DataType -> numpy
_CODES = {dtype: code for code, dtype in DTYPES.items()}

_VARINT, _CHUNK, _FIXED32 = 0, 2, 5  # protobuf wire types that ONNX needs
_VARINT_SIZE_MAX = 10
_FIELDS = {1: 2, 2: 3, 3: 4, 4: 5, 5: 6, 6: 7, 7: 8, 8: 9}
"""AttributeProto.AttributeType (float, int, string, tensor, graph, floats, ints, strings) -> field that keeps its value."""


Attribute = int | float | bytes | tuple[int, ...] | tuple[float, ...] | tuple[bytes, ...] | NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class Tensor:
    """A declared graph input or output. A symbolic dimension is a str."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Graph:
    """Nodes in the order in which they run."""

    nodes: tuple[Node, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    def every_node(self) -> Iterator[Node]:
        """The nodes, and after each that has a body those of the body."""
        for node in self.nodes:
            yield node
            if node.body is not None:
                yield from node.body.nodes


@dataclass(frozen=True, slots=True)
class Node:
    """One operator call. An absent optional input or output is ''. A Scan has a body, whose nodes have none."""

    operator: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute]
    body: Graph | None = None


@dataclass(frozen=True, slots=True)
class Model(Graph):
    """What a serialised ModelProto says, weights excepted (an artifact keeps those outside its graphs)."""

    ir_version: int
    opsets: tuple[tuple[str, int], ...]


def read_model(data: bytes | memoryview) -> Model:
    """Parse a serialised ModelProto.

    Raises `BlindsumError` "training-artifact-malformed" or "training-external-data".
    """
    model = _Message(data, "model", single={1: _VARINT, 2: _CHUNK, 7: _CHUNK}, repeated={8: _CHUNK})
    opsets = tuple(_opset(item) for item in model.chunks(8))
    graph = _graph(model.chunk(7), "graph", body=False)
    if sum(1 for _ in graph.every_node()) > NODES_MAX:
        raise _too_many_nodes()
    return Model(
        ir_version=model.number(1), opsets=opsets, nodes=graph.nodes, inputs=graph.inputs, outputs=graph.outputs
    )


def with_initialisers(model: bytes | memoryview, tensors: Mapping[str, NDArray[np.generic]]) -> bytes:
    """The serialised `model` with `tensors` as constant weights.

    Protobuf defines the concatenation of two messages as their merge, so this appends a ModelProto that holds nothing
    but graph.initializer. (`SessionOptions.add_initializer` is no substitute: onnxruntime folds constants from the
    bytes of the file first and then silently ignores the replaced value behind e.g. a Transpose.)
    """
    parts: list[bytes] = []
    for name, array in tensors.items():
        data = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes()
        dims = b"".join(_field(1, _VARINT) + _varint(size) for size in array.shape)
        head = dims + _field(2, _VARINT) + _varint(_CODES[array.dtype.name]) + _chunk_field(8, name.encode())
        head += _field(9, _CHUNK) + _varint(len(data))
        parts += (_field(5, _CHUNK) + _varint(len(head) + len(data)) + head, data)
    size = sum(map(len, parts))
    return b"".join((bytes(model), _field(7, _CHUNK) + _varint(size), *parts))


class _Message:
    """The fields of one message, by number.

    `single` and `repeated` map the allowed field numbers to their wire type.
    """

    __slots__ = ("_chunks", "_numbers", "_where")

    def __init__(
        self,
        data: bytes | memoryview,
        where: str,
        *,
        single: Mapping[int, int],
        repeated: Mapping[int, int],
        forbidden: Mapping[int, str] | None = None,
    ) -> None:
        self._where = where
        self._numbers: dict[int, list[int]] = {}
        self._chunks: dict[int, list[memoryview]] = {}
        view, at = memoryview(data), 0
        while at < len(view):
            key, at = self._varint(view, at)
            number, wire = key >> 3, key & 7
            allowed = single.get(number, repeated.get(number))
            if allowed is None or wire != allowed:
                raise _malformed(
                    where, (forbidden or {}).get(number, f"field {number} of wire type {wire}") + " is not allowed"
                )
            if number in single and (number in self._numbers or number in self._chunks):
                raise _malformed(where, f"field {number} twice")
            if wire == _VARINT:
                value, at = self._varint(view, at)
                self._numbers.setdefault(number, []).append(value - (1 << 64) if value >> 63 else value)
            else:
                size = 4
                if wire == _CHUNK:
                    size, at = self._varint(view, at)
                if size > len(view) - at:
                    raise _malformed(where, "it is cut short")
                self._chunks.setdefault(number, []).append(view[at : at + size])
                at += size

    def fields(self) -> set[int]:
        return {*self._numbers, *self._chunks}

    def number(self, field: int, default: int | None = None) -> int:
        found = self._numbers.get(field)
        if found:
            return found[0]
        if default is None:
            raise _malformed(self._where, f"field {field} is missing")
        return default

    def numbers(self, field: int) -> list[int]:
        return self._numbers.get(field, [])

    def chunk(self, field: int) -> memoryview:
        found = self._chunks.get(field)
        if not found:
            raise _malformed(self._where, f"field {field} is missing")
        return found[0]

    def chunks(self, field: int) -> list[memoryview]:
        return self._chunks.get(field, [])

    def text(self, field: int, default: str | None = None) -> str:
        if default is not None and field not in self._chunks:
            return default
        return self._text(self.chunk(field))

    def texts(self, field: int) -> tuple[str, ...]:
        return tuple(self._text(item) for item in self.chunks(field))

    def _text(self, chunk: memoryview) -> str:
        if len(chunk) > NAME_SIZE_MAX:
            raise _malformed(self._where, f"a name of more than {NAME_SIZE_MAX} bytes")
        try:
            return str(chunk, "utf-8")
        except UnicodeDecodeError:
            raise _malformed(self._where, "a name that is not UTF-8") from None

    def _varint(self, view: memoryview, at: int) -> tuple[int, int]:
        value = 0
        for shift, byte in enumerate(view[at : at + _VARINT_SIZE_MAX]):
            value |= (byte & 0x7F) << (7 * shift)
            if byte < 0x80:
                if value >> 64 or (byte == 0 and shift):
                    break
                return value, at + shift + 1
        raise _malformed(self._where, "a bad integer")


def _opset(data: memoryview) -> tuple[str, int]:
    message = _Message(data, "opset import", single={1: _CHUNK, 2: _VARINT}, repeated={})
    return message.text(1, ""), message.number(2)


def _graph(data: memoryview, where: str, *, body: bool) -> Graph:
    message = _Message(
        data,
        where,
        single={2: _CHUNK},
        repeated={1: _CHUNK, 11: _CHUNK, 12: _CHUNK},
        forbidden={5: "an initialiser"},
    )
    message.text(2, "")  # the graph's name, read only for its bounds
    if len(message.chunks(1)) > NODES_MAX:
        raise _too_many_nodes()
    return Graph(
        nodes=tuple(_node(item, body=body) for item in message.chunks(1)),
        inputs=tuple(_tensor(item) for item in message.chunks(11)),
        outputs=tuple(_tensor(item) for item in message.chunks(12)),
    )


def _node(data: memoryview, *, body: bool) -> Node:
    """`body`: the node stands in a body, and must have none itself."""
    single, repeated = {3: _CHUNK, 4: _CHUNK, 7: _CHUNK}, {1: _CHUNK, 2: _CHUNK, 5: _CHUNK}
    message = _Message(data, "node", single=single, repeated=repeated)
    message.text(3, "")  # the node's name, read only for its bounds
    operator = message.text(4)
    loop = operator == "Scan" and not body
    attributes: dict[str, Attribute] = {}
    graphs: list[Graph] = []
    for item in message.chunks(5):
        name, value = _attribute(item, f"node {operator}", loop=loop)
        if name in attributes or (isinstance(value, Graph) and graphs):
            raise _malformed(f"node {operator}", f"attribute {name} twice")
        if isinstance(value, Graph):
            graphs.append(value)
        else:
            attributes[name] = value
    if len(graphs) != loop:
        raise _malformed(f"node {operator}", f"{len(graphs)} subgraphs")
    inner = graphs[0] if graphs else None
    return Node(operator, message.text(7, ""), message.texts(1), message.texts(2), attributes, inner)


def _attribute(data: memoryview, where: str, *, loop: bool) -> tuple[str, Attribute | Graph]:
    """Scalars, strings, lists of them and tensors, each in the place of its type; a graph where `loop` allows one."""
    single = {1: _CHUNK, 2: _FIXED32, 3: _VARINT, 4: _CHUNK, 5: _CHUNK, 20: _VARINT} | ({6: _CHUNK} if loop else {})
    repeated = {7: _FIXED32, 8: _VARINT, 9: _CHUNK}
    where = f"attribute of {where}"
    message = _Message(data, where, single=single, repeated=repeated, forbidden={6: "a subgraph", 11: "a subgraph"})
    name, kind = message.text(1), message.number(20)
    field = _FIELDS.get(kind)
    if field is None or message.fields() - {1, 20, field}:
        raise _malformed(where, f"{name} of type {kind} with another value")
    match field:
        case 2:
            return name, _float(message.chunk(field))
        case 3:
            return name, message.number(field)
        case 4:
            return name, bytes(message.chunk(field))
        case 5:
            return name, _array(message.chunk(field), f"tensor of {where}")
        case 6:
            if name != "body":
                raise _malformed(where, "a subgraph is not allowed")
            return name, _graph(message.chunk(field), f"subgraph of {where}", body=True)
        case 7:
            return name, tuple(map(_float, message.chunks(field)))
        case 8:
            return name, tuple(message.numbers(field))
        case _:
            return name, tuple(map(bytes, message.chunks(field)))


def _float(chunk: memoryview) -> float:
    value: float = struct.unpack("<f", chunk)[0]
    return value


def _array(data: memoryview, where: str) -> NDArray[np.generic]:
    # 13 external_data and 14 data_location are read only to be refused by their own name.
    message = _Message(
        data, where, single={2: _VARINT, 8: _CHUNK, 9: _CHUNK, 14: _VARINT}, repeated={1: _VARINT, 13: _CHUNK}
    )
    if message.chunks(13) or message.numbers(14):
        raise BlindsumError("training-external-data", where)
    dtype, dims = DTYPES.get(message.number(2)), message.numbers(1)
    if dtype is None or len(dims) > RANK_MAX or any(size < 0 for size in dims):
        raise _malformed(where, "a type or shape that is not allowed")
    count = 1
    for size in dims:  # Python integers: the product cannot wrap round
        count *= size
    if count * np.dtype(dtype).itemsize != len(message.chunk(9)):
        raise _malformed(where, f"its data do not fill its shape {tuple(dims)}")
    return np.frombuffer(message.chunk(9), np.dtype(dtype).newbyteorder("<")).reshape(dims)


def _tensor(data: memoryview) -> Tensor:
    value = _Message(data, "graph input or output", single={1: _CHUNK, 2: _CHUNK}, repeated={})
    name = value.text(1)
    kind = _Message(value.chunk(2), f"type of {name}", single={1: _CHUNK}, repeated={})
    tensor = _Message(kind.chunk(1), f"type of {name}", single={1: _VARINT, 2: _CHUNK}, repeated={})
    dtype = DTYPES.get(tensor.number(1))
    shape = _Message(tensor.chunk(2), f"shape of {name}", single={}, repeated={1: _CHUNK})
    if dtype is None or len(shape.chunks(1)) > RANK_MAX:
        raise _malformed(f"type of {name}", "a type or rank that is not allowed")
    return Tensor(name, dtype, tuple(_dimension(item, name) for item in shape.chunks(1)))


def _dimension(data: memoryview, name: str) -> int | str:
    message = _Message(data, f"shape of {name}", single={1: _VARINT, 2: _CHUNK}, repeated={})
    if message.numbers(1) and not message.chunks(2):
        return message.number(1)
    return message.text(2)


def _too_many_nodes() -> BlindsumError:
    return BlindsumError("training-artifact-too-large", f"a graph of more than {NODES_MAX} nodes")


def _malformed(where: str, reason: str) -> BlindsumError:
    return BlindsumError("training-artifact-malformed", f"{where}: {reason}")


def _varint(value: int) -> bytes:
    assert value >= 0
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, wire: int) -> bytes:
    return _varint(number << 3 | wire)


def _chunk_field(number: int, data: bytes) -> bytes:
    return _field(number, _CHUNK) + _varint(len(data)) + data
