"""Products of matrices, recurrent layers, attention."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence

from .call import Call, Shape, broadcast, rule, wanted

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@rule("MatMul", "MatMulInteger", "QLinearMatMul")
def matmul(c: Call) -> Sequence[Shape]:
    left, right = c.shape(), c.shape(3 if c.node.operator == "QLinearMatMul" else 1)
    wanted(left and right, "a scalar")
    rows, columns = left[-2:-1], right[-1:] if len(right) > 1 else ()
    inner = right[-2] if len(right) > 1 else right[0]
    wanted(left[-1] == inner, f"{left} times {right}")
    result = (*broadcast(left[:-2], right[:-2]), *rows, *columns)
    c.work = math.prod(result) * inner
    return [result]


@rule("Gemm")
def gemm(c: Call) -> Sequence[Shape]:
    (rows, inner), (other, columns) = c.shape(), c.shape(1)
    if c.integer("transA", 0):
        rows, inner = inner, rows
    if c.integer("transB", 0):
        other, columns = columns, other
    wanted(inner == other, "shapes")
    wanted(not c.given(2) or broadcast(c.shape(2), (rows, columns)) == (rows, columns), "bias")
    c.work = rows * columns * inner
    return [(rows, columns)]


@rule("Einsum")
def einsum(c: Call) -> Sequence[Shape]:
    equation = c.text("equation", "").replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    wanted(len(terms) == len(c.inputs) and equation, "equation")
    sizes: dict[str, int] = {}
    rest: Shape = ()
    for term, shape in zip(terms, c.shapes(), strict=True):
        head, dots, tail = term.partition("...")
        hidden = len(shape) - len(head) - len(tail)
        wanted(hidden == 0 if not dots else hidden >= 0, "equation")
        rest = broadcast(rest, shape[len(head) : len(head) + hidden])
        labelled = [*zip(head, shape, strict=False), *zip(reversed(tail), reversed(shape), strict=False)]
        for label, size in labelled:
            wanted((label in string.ascii_letters and sizes.get(label, 1) in (1, size)) or size == 1, "sizes")
            sizes[label] = max(size, sizes.get(label, 1)) if size else 0
    if not arrow:
        counts = "".join(terms)
        right = ("..." if "..." in counts else "") + "".join(
            sorted(label for label in sizes if counts.count(label) == 1)
        )
    head, dots, tail = right.partition("...")
    wanted(len(set(head + tail)) == len(head + tail), "equation")
    c.work = math.prod(sizes.values()) * math.prod(rest)
    return [(*(sizes[label] for label in head), *(rest if dots else ()), *(sizes[label] for label in tail))]


@rule("LSTM", "GRU", "RNN")
def recurrent(c: Call) -> Sequence[Shape]:
    first, second, size = c.shape()
    layout, (directions, gates, inner) = c.integer("layout", 0), c.shape(1)
    steps, rows = (second, first) if layout else (first, second)
    wanted(inner == size and steps >= 1, "weights")
    hidden = c.integer("hidden_size", c.shape(2)[-1])
    number = _GATES[c.node.operator]
    wanted(directions == (2 if c.text("direction", "forward") == "bidirectional" else 1), "direction")
    wanted(hidden >= 1 and gates == number * hidden and c.shape(2) == (directions, gates, hidden), "hidden_size")
    wanted(not c.given(3) or c.shape(3) == (directions, 2 * gates), "bias")
    state = (rows, directions, hidden) if layout else (directions, rows, hidden)
    wanted(not c.given(4) or c.shape(4) == (rows,), "lengths")
    wanted(all(not c.given(at) or c.shape(at) == state for at in (5, 6)), "initial state")
    c.work = steps * rows * directions * gates * (size + hidden)
    every = (rows, steps, directions, hidden) if layout else (steps, directions, rows, hidden)
    return [every, state, state][: 3 if c.node.operator == "LSTM" else 2]


@rule("Attention")
def attention(c: Call) -> Sequence[Shape]:
    """query, key, value of shape (batch, heads, length, size), or (batch, length, heads times size)."""
    flat = c.rank() == 3
    queries, keys = c.integer("q_num_heads", 0), c.integer("kv_num_heads", 0)
    if flat:
        wanted(queries >= 1 and keys >= 1, "heads")
        rows, length, width = c.shape()
        _, reach, key_width = c.shape(1)
        value_width = c.shape(2)[2]
        wanted(width % queries == 0 and key_width % keys == 0 and value_width % keys == 0, "heads")
        size, depth = width // queries, value_width // keys
        wanted(key_width // keys == size, "sizes")
    else:
        rows, queries, length, size = c.shape()
        _, keys, reach, inner = c.shape(1)
        depth = c.shape(2)[3]
        wanted(inner == size, "sizes")
    wanted(keys >= 1 and queries % keys == 0 and c.shape(1)[0] == c.shape(2)[0] == rows, "heads")
    past = c.shape(4)[2] if c.given(4) else 0
    wanted(c.given(4) == c.given(5), "past")
    total = past + reach
    c.work = rows * queries * length * total * (size + depth + 4)
    result = (rows, length, queries * depth) if flat else (rows, queries, length, depth)
    scores = (rows, queries, length, total)
    return [result, (rows, keys, total, size), (rows, keys, total, depth), scores]


@rule("RotaryEmbedding")
def rotary(c: Call) -> Sequence[Shape]:
    heads, size = c.integer("num_heads", 0), c.integer("rotary_embedding_dim", 0)
    wanted(c.rank() == 4 or (c.rank() == 3 and heads >= 1 and c.shape()[2] % heads == 0), "heads")
    whole = c.shape()[3] if c.rank() == 4 else c.shape()[2] // heads
    wanted(0 <= size <= whole and whole % 2 == 0 and size % 2 == 0, "rotary_embedding_dim")
    return [c.shape()]
