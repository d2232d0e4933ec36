"""Rules of quantisation: straight through where the value was in range, zero where it was cut off.

(Bengio et al., arXiv 1308.3432; Jacob et al., arXiv 1712.05877.) The scale itself gets no gradient.
"""

from __future__ import annotations

from onnx import TensorProto

from .registry import Backward, Gradients, rule

_HALF = 0.5001  # of a quantum, the most that rounding moves a value, with room for the rounding of that


@rule("QuantizeLinear", since=10)
def quantize(b: Backward) -> Gradients:
    scale = _scale(b)
    axis = {"axis": b.integer("axis", 1)} if b.rank(b.x[1]) else {}
    moved = b.op("Abs", b.op("Sub", b.x[0], b.op("DequantizeLinear", b.y[0], *b.x[1:], **axis)))
    inside = b.op("LessOrEqual", moved, b.op("Mul", scale, b.graph.scalar(_HALF)))
    return [b.op("Mul", b.op("Div", b.dy, scale), b.op("Cast", inside, to=TensorProto.FLOAT))]


@rule("DequantizeLinear", since=10)
def dequantize(b: Backward) -> Gradients:
    return [b.op("Mul", b.dy, _scale(b))]


def _scale(b: Backward) -> str:
    """The scale in a shape that broadcasts against the values."""
    if b.integer("block_size", 0):
        raise b.refused("blocked quantisation")
    if not b.rank(b.x[1]):
        return b.x[1]
    rank = b.rank(b.x[0])
    after = rank - 1 - b.integer("axis", 1) % rank
    return b.op("Reshape", b.x[1], b.integers([-1, *[1] * after]))
