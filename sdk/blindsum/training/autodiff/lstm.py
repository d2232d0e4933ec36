"""Rule for LSTM.

The operator keeps its gates to itself, and the gradient needs them. Where it is trained, a Scan takes its place: each
step is slower there, but hands out the gates, which else take as many multiplications again as the forward pass.
Milliseconds of CPU time of the forward pass and the gates, one thread of a shared x86-64 server, onnxruntime 1.32, least
of 25 runs (steps x batch x inputs x hidden):

                             operator    and gates again    Scan
    32 x 32 x 16 x 64            0.64               1.45    0.89
    32 x 16 x 64 x 64            0.45               1.0     0.64
    100 x 8 x 128 x 128          2.8                5.4     3.7
    100 x 1 x 128 x 128          0.46               0.95    0.96
    512 x 8 x 16 x 64            3.6                7.5     6.7

With examples as columns the gates of a step lie in one piece each: a training step of the first two takes 2 to 4 % less
then, and one of a single example 10 % more.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

import onnx

from .graph import Graph
from .recurrent import Direction, Slopes, directions, gradients, hidden_size, matrix, zeros
from .registry import Backward, Gradients, rule

DEFAULTS = ("Sigmoid", "Tanh", "Tanh")
OUTPUTS = 3  # of the operator: states, last state, last cell


@dataclass(frozen=True, slots=True)
class _Gates:
    """What one direction of a trained node computes, c' = f c + i g and h' = o act(c'), as sequences.

    They are outputs of the node behind those that the operator has, until `write_out`.
    """

    i: str
    o: str
    f: str
    g: str
    added: str  # i g
    kept: str  # f c
    out: str  # act(c')


@rule("LSTM", since=7)
def lstm(b: Backward) -> Gradients:
    if len(b.x) > 7 and b.x[7]:
        raise b.refused("peephole weights (input P)")
    if b.integer("input_forget", 0):
        raise b.refused("input_forget=1")
    ways = directions(b, DEFAULTS)
    found = [_Gates(*(b.graph.fresh("LSTM") for _ in range(len(_Gates.__slots__)))) for _ in ways]
    b.node.output.extend([""] * (OUTPUTS - len(b.node.output)))
    steps, batch, _ = b.shape(b.x[0])
    for name in (name for gates in found for name in astuple(gates)):
        b.graph.shapes[name] = (steps, batch, hidden_size(b))
        b.node.output.append(name)
    return gradients(b, [(way, _slopes(b, way, gates)) for way, gates in zip(ways, found, strict=True)])


def write_out(graph: Graph, node: onnx.NodeProto) -> bool:
    """Put the loop in the place of a node whose gates are asked for."""
    if len(node.output) <= OUTPUTS:
        return False
    b = Backward(graph=graph, node=node, dys=(None,))
    names, rest = node.output[:OUTPUTS], list(node.output[OUTPUTS:])
    found: list[tuple[str, str, str]] = []
    for way in directions(b, DEFAULTS, forward=True):
        at = len(found) * len(_Gates.__slots__)
        found.append(_forward(b, way, _Gates(*rest[at : at + len(_Gates.__slots__)])))
    for name, axis, parts in zip(names, (1, 0, 0), zip(*found, strict=True), strict=True):
        axes = graph.integers([axis])
        if name and len(parts) == 1:
            graph.op("Unsqueeze", *parts, axes, output=name)
        elif name:
            graph.op("Concat", *(graph.op("Unsqueeze", part, axes) for part in parts), axis=axis, output=name)
    return True


def _forward(b: Backward, way: Direction, gates: _Gates) -> tuple[str, str, str]:
    """Computes the gates; returns the sequence of states, the last state and the last cell."""
    f, g, h = way.activations
    widths = [b.integers([part * hidden_size(b) for part in parts]) for parts in ((3, 1), (1, 1, 1))]
    turned = b.op("Transpose", way.r, perm=[1, 0])
    bias = [b.op("Add", way.bias_w, way.bias_r)] if way.bias_w else []
    from_x = way.sequence(b, b.op("Gemm", way.x, way.w, *bias, transB=1), 4)

    def step(inner: Graph, states: list[str], rows: list[str]) -> tuple[list[str], list[str]]:
        raw = inner.op("Gemm", states[0], turned, rows[0])
        raw_iof, raw_g = inner.ops("Split", raw, widths[0], outputs=2, axis=1)
        gate_i, gate_o, gate_f = inner.ops("Split", f.value(b, raw_iof, inner), widths[1], outputs=3, axis=1)
        gate_g = g.value(b, raw_g, inner)
        added, kept = inner.op("Mul", gate_i, gate_g), inner.op("Mul", gate_f, states[1])
        cell = inner.op("Add", kept, added)
        out = h.value(b, cell, inner)
        state = inner.op("Mul", gate_o, out)
        return [state, cell], [gate_i, gate_o, gate_f, gate_g, added, kept, out, state]

    results = len(_Gates.__slots__) + 1
    (last_h, last_c), made = way.along(b, [way.initial_h, way.initial_c], [from_x], step, results)
    b.graph.rename_all(dict(zip(made, astuple(gates), strict=False)))
    return made[-1], last_h, last_c


def _slopes(b: Backward, way: Direction, gates: _Gates) -> Slopes:
    """Each gate's derivative times what it is multiplied with is known for all steps before the loop over them."""
    f, g, h = way.activations
    i, o, forget, new, added, kept, out = (matrix(b, name) for name in astuple(gates))
    states, initial = matrix(b, way.y), way.initial_c
    cells = matrix(b, way.before(b, initial, way.sequence(b, b.op("Add", kept, added), 1)))
    parts = [f.slope_times(b, i, new, added), f.slope_times(b, o, out, states), f.slope_times(b, forget, cells, kept)]
    slopes = b.op("Concat", *parts, g.slope_times(b, new, i, added), axis=1)
    cell_slopes = h.slope_times(b, out, o, states)

    def step(inner: Graph, states: list[str], rows: list[str]) -> tuple[list[str], list[str]]:
        dh, dc = states
        dc = inner.op("Add", dc, inner.op("Mul", dh, rows[1]))
        d_gates = inner.op("Mul", inner.op("Concat", dc, dh, dc, dc, axis=1), rows[0])
        return [inner.op("Gemm", d_gates, way.r, *rows[3:]), inner.op("Mul", dc, rows[2])], [d_gates]

    sequences = [way.sequence(b, slopes, 4), way.sequence(b, cell_slopes, 1), gates.f]
    (dh, dc), (d_gates,) = way.against(b, [way.d_last_c or zeros(b, initial)], sequences, step, 1)
    d_r = b.op("Gemm", d_gates, matrix(b, way.before(b, way.initial_h, way.y)), transA=1)
    return Slopes(gates_w=d_gates, gates_r=d_gates, r=d_r, initial_h=dh, initial_c=dc)
