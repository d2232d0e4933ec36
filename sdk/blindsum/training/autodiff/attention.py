"""Rules of Attention and RotaryEmbedding (operator set 23)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx

from .graph import attribute
from .registry import Backward, Gradients, rule

_AFTER_SOFTMAX = 3  # of qk_matmul_output_mode


def _is_plain(node: onnx.NodeProto) -> bool:
    """No key-value cache, no scores as an output, no soft cap."""
    return not any(node.input[4:6]) and not any(node.output[1:]) and not attribute(node, "softcap", 0.0)


@rule("Attention", since=23, covers=_is_plain)
def attention(b: Backward) -> Gradients:
    """y = p v with p = softmax(scale q k' + mask), for each head; the forward node hands out p.

    Several query heads may share one of keys and values: to the products they are further rows of it.
    """
    mask = b.x[3] if len(b.x) > 3 else ""
    heads = _heads(b)
    q, k, v, dy = heads.query(b, b.x[0]), heads.pair(b, b.x[1]), heads.pair(b, b.x[2]), heads.query(b, b.dys[0] or "")
    p = heads.rows(b, _probabilities(b))
    weighted = b.op("Mul", b.op("MatMul", dy, _flipped(b, v)), p)
    ds = b.op("Sub", weighted, b.op("Mul", p, b.op("ReduceSum", weighted, b.integers([-1]), keepdims=1)))
    scaled = b.op("Mul", ds, b.scalar(_scale(b, heads)))
    dq, dk, dv = b.op("MatMul", scaled, k), b.op("MatMul", _flipped(b, scaled), q), b.op("MatMul", _flipped(b, p), dy)
    d_mask = b.graph.reduce(heads.apart(b, ds), (None,) * 4, b.shape(mask), mask) if mask else None
    return [heads.flat(b, heads.apart(b, dq)), heads.flat(b, dk), heads.flat(b, dv), d_mask]


@rule("RotaryEmbedding", since=23)
def rotary_embedding(b: Backward) -> Gradients:
    """A rotation: its transpose turns the other way."""
    same = {name: b.integer(name, 0) for name in ("interleaved", "num_heads", "rotary_embedding_dim")}
    return [b.op("RotaryEmbedding", b.dy, b.x[1], b.op("Neg", b.x[2]), *b.x[3:], **same)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Heads:
    """How inputs and outputs lie in memory: (batch, heads, length, size), or (batch, length, heads x size) if `packed`."""

    packed: bool
    queries: int
    pairs: int  # of key and value

    def query(self, b: Backward, value: str) -> str:
        return self.rows(b, self._unpacked(b, value, self.queries))

    def pair(self, b: Backward, value: str) -> str:
        return self._unpacked(b, value, self.pairs)

    def rows(self, b: Backward, value: str) -> str:
        """The query heads of one pair below each other: (batch, pairs, rows, ...)."""
        if self.queries == self.pairs:
            return value
        return self._regrouped(b, value, self.pairs)

    def apart(self, b: Backward, value: str) -> str:
        """The inverse of `rows`."""
        if self.queries == self.pairs:
            return value
        return self._regrouped(b, value, self.queries)

    def flat(self, b: Backward, value: str) -> str:
        """As the node's inputs lie."""
        if not self.packed:
            return value
        return b.op("Reshape", b.op("Transpose", value, perm=[0, 2, 1, 3]), b.integers([0, 0, -1]))

    def _unpacked(self, b: Backward, value: str, heads: int) -> str:
        if not self.packed:
            return value
        return b.op("Transpose", b.op("Reshape", value, b.integers([0, 0, heads, -1])), perm=[0, 2, 1, 3])

    def _regrouped(self, b: Backward, value: str, heads: int) -> str:
        last = b.op("Shape", value, start=3)
        return b.op("Reshape", value, b.op("Concat", b.integers([0, heads, -1]), last, axis=0))


def _heads(b: Backward) -> _Heads:
    q, k = b.shape(b.x[0]), b.shape(b.x[1])
    if len(q) == 3:
        return _Heads(packed=True, queries=b.integer("q_num_heads", 1), pairs=b.integer("kv_num_heads", 1))
    if not isinstance(q[1], int) or not isinstance(k[1], int):
        raise b.refused("an unknown number of heads")
    return _Heads(packed=False, queries=q[1], pairs=k[1])


def _scale(b: Backward, heads: _Heads) -> float:
    size = b.shape(b.x[0])[-1]
    if not isinstance(size, int):
        raise b.refused("an unknown head size")
    return b.real("scale", 1.0 / math.sqrt(size // heads.queries if heads.packed else size))


def _probabilities(b: Backward) -> str:
    """The forward node's last output, asked for after the softmax."""
    name = b.graph.fresh("Attention")
    b.node.output[1:] = ["", "", name]
    kept = [item for item in b.node.attribute if item.name != "qk_matmul_output_mode"]
    del b.node.attribute[:]
    b.node.attribute.extend([*kept, onnx.helper.make_attribute("qk_matmul_output_mode", _AFTER_SOFTMAX)])
    return name


def _flipped(b: Backward, matrices: str) -> str:
    return b.op("Transpose", matrices, perm=[0, 1, 3, 2])
