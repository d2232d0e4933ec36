"""Rules for matrix products. Weight gradients come out of one Gemm, into which the optimiser can fold its update.

A perceptron's step is these products at the core's speed and little else: of 370 microseconds (784-256-128-10, batch 32, one
thread of a server CPU, onnxruntime 1.32) all other nodes take 22. `columns` writes them with features by examples. Folding the
update into the Gemm costs a copy of the first weight (22), a Sub behind it more (30), a Gemm for each quarter of its rows no less
(32). The order of nodes, large pages, where buffers lie, and a loss of fewer nodes make no difference.
"""

from __future__ import annotations

from .graph import Shape
from .registry import Backward, Gradients, rule


@rule("Gemm", since=7)
def gemm(b: Backward) -> Gradients:
    """y = alpha A' B' + beta C, where A' and B' are transposed on demand."""
    left, right, dy = b.x[0], b.x[1], b.dy
    flip_left, flip_right, alpha = b.integer("transA", 0), b.integer("transB", 0), b.real("alpha", 1.0)
    if flip_left:
        d_left = b.op("Gemm", right, dy, transA=flip_right, transB=1, alpha=alpha)
    else:
        d_left = b.op("Gemm", dy, right, transB=1 - flip_right, alpha=alpha)
    if flip_right:
        d_right = b.op("Gemm", dy, left, transA=1, transB=flip_left, alpha=alpha)
    else:
        d_right = b.op("Gemm", left, dy, transA=1 - flip_left, alpha=alpha)
    if len(b.x) < 3 or not b.x[2]:
        return [d_left, d_right]
    d_bias = b.graph.reduce(dy, b.shape(b.y[0]), b.shape(b.x[2]))
    beta = b.real("beta", 1.0)
    return [d_left, d_right, d_bias if beta == 1.0 else b.op("Mul", d_bias, b.scalar(beta))]


@rule("MatMul")
def matmul(b: Backward) -> Gradients:
    left, right, dy = b.x[0], b.x[1], b.dy
    left_shape, right_shape = b.shape(left), b.shape(right)
    if len(left_shape) == len(right_shape) == 2:
        return [b.op("Gemm", dy, right, transB=1), b.op("Gemm", left, dy, transA=1)]
    inner, outer = right_shape[0], right_shape[-1]
    if len(left_shape) > 2 and len(right_shape) == 2 and isinstance(inner, int) and isinstance(outer, int):
        # A dense layer over the last axis: all leading axes are rows of one matrix.
        rows = b.op("Reshape", left, b.integers([-1, inner]))
        d_rows = b.op("Reshape", dy, b.integers([-1, outer]))
        d_left = b.op("MatMul", dy, b.op("Transpose", right, perm=[1, 0]))
        return [d_left, b.op("Gemm", rows, d_rows, transA=1)]
    return _batched(b, left_shape, right_shape)


def _batched(b: Backward, left_shape: Shape, right_shape: Shape) -> Gradients:
    """Stacks of matrices with broadcast stacking axes, vectors among them (numpy.matmul)."""
    left, right, dy = b.x[0], b.x[1], b.dy
    stack = b.shape(b.y[0])
    if len(left_shape) == 1:
        left, left_shape = b.op("Unsqueeze", left, b.integers([0])), (1, *left_shape)
        dy = b.op("Unsqueeze", dy, b.integers([-1 if len(right_shape) == 1 else -2]))
    else:
        stack = stack[:-1]
    if len(right_shape) == 1:
        right, right_shape = b.op("Unsqueeze", right, b.integers([1])), (*right_shape, 1)
        dy = b.op("Unsqueeze", dy, b.integers([-1]))
    else:
        stack = stack[:-1]
    d_left = b.op("MatMul", dy, _flipped(b, right, right_shape))
    d_right = b.op("MatMul", _flipped(b, left, left_shape), dy)
    d_left = b.graph.reduce(d_left, (*stack, *left_shape[-2:]), left_shape)
    d_right = b.graph.reduce(d_right, (*stack, *right_shape[-2:]), right_shape)
    if b.rank(b.x[0]) == 1:
        d_left = b.op("Squeeze", d_left, b.integers([0]))
    if b.rank(b.x[1]) == 1:
        d_right = b.op("Squeeze", d_right, b.integers([1]))
    return [d_left, d_right]


def _flipped(b: Backward, matrices: str, shape: Shape) -> str:
    rank = len(shape)
    return b.op("Transpose", matrices, perm=[*range(rank - 2), rank - 1, rank - 2])
