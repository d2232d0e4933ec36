"""Rules for GRU and RNN, and what LSTM shares with them.

The forward pass stays the fused operator. The backward pass computes the gates of all steps again, in one product each
for inputs and states, as the states are known by then. Only the gradients of the states run from step to step, in a
Scan; they leave the gates' gradients, from which one product each gives those of the weights and the inputs. (Steps that
are written out instead are no faster, and take ten to sixty times as long to load: docs/adr/0015.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from .gates import Activation, functions
from .graph import Graph, attribute
from .loop import Body, scan
from .registry import Backward, Gradients, rule
from .shape import zero

_END = (1 << 63) - 1
_REPEATS = {"Cast", "Expand", "Identity", "Reshape", "Squeeze", "Tile", "Unsqueeze"}
DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Direction:
    """One direction of a node. A matrix has one row for each step and example, a sequence one matrix for each step."""

    backwards: bool
    lead: list[str]  # the names of a 1-D tensor that holds the number of steps, and of one that holds -1
    x: str  # matrix of inputs
    w: str
    r: str
    bias_w: str  # '' without biases
    bias_r: str
    y: str  # sequence of the states after each step
    initial_h: str  # (batch, hidden), as are all below; zeros where the node has none
    initial_c: str
    d_y: str  # sequence of gradients from outside; '' for none, as for the two below
    d_last_h: str
    d_last_c: str
    activations: list[Activation]

    def sequence(self, b: Backward, matrix: str, width: int) -> str:
        sizes = b.op("Concat", *self.lead, b.integers([width * hidden_size(b)]), axis=0)
        return b.op("Reshape", matrix, sizes)

    def before(self, b: Backward, initial: str, sequence: str) -> str:
        """The sequence of what each step found, where `sequence` is what each left."""
        first = b.op("Unsqueeze", initial, b.integers([0]))
        start, end = ([1], [_END]) if self.backwards else ([0], [-1])
        rest = b.op("Slice", sequence, b.integers(start), b.integers(end), b.integers([0]))
        return b.op("Concat", *((rest, first) if self.backwards else (first, rest)), axis=0)

    def last(self, b: Backward, sequence: str) -> str:
        return b.op("Gather", sequence, b.constant(np.array(0 if self.backwards else -1)), axis=0)

    def along(
        self, b: Backward, states: list[str], sequences: list[str], body: Body, results: int
    ) -> tuple[list[str], list[str]]:
        """Run a body in the order of the steps; returns the last states, and what it collects as sequences."""
        return scan(b.graph, states, sequences, body, results=results, backwards=self.backwards, dtype=b.dtype)

    def against(
        self, b: Backward, states: list[str], sequences: list[str], body: Body, results: int
    ) -> tuple[list[str], list[str]]:
        """Run a body from the last step to the first, on the gradient of the last state and `states`.

        Its rows end with the gradient that reaches the state before the step from outside, if any does. Returns the
        gradients of the first states, and what it collects as matrices.
        """
        parts = [part for part in (self.d_last_h, self.d_y and self.last(b, self.d_y)) if part]
        dh = b.op("Add", *parts) if len(parts) == 2 else parts[0] if parts else zeros(b, self.initial_h)
        if self.d_y:
            sequences = [*sequences, self.before(b, zeros(b, self.initial_h), self.d_y)]
        states, rows = scan(
            b.graph, [dh, *states], sequences, body, results=results, backwards=not self.backwards, dtype=b.dtype
        )
        return states, [matrix(b, row) for row in rows]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slopes:
    """Gradients of one direction."""

    gates_w: str  # matrices: of what the inputs and the states add to the gates
    gates_r: str
    r: str
    initial_h: str
    initial_c: str = ""


@rule("RNN", since=7)
def rnn(b: Backward) -> Gradients:
    return gradients(b, [(way, _rnn(b, way)) for way in directions(b, ["Tanh"])])


@rule("GRU", since=7)
def gru(b: Backward) -> Gradients:
    backward = _gru_reset_after if b.integer("linear_before_reset", 0) else _gru_reset_before
    return gradients(b, [(way, backward(b, way)) for way in directions(b, ["Sigmoid", "Tanh"])])


def _rnn(b: Backward, way: Direction) -> Slopes:
    (f,) = way.activations

    def step(g: Graph, states: list[str], rows: list[str]) -> tuple[list[str], list[str]]:
        gates = g.op("Mul", states[0], rows[0])
        return [g.op("Gemm", gates, way.r, *rows[1:])], [gates]

    (dh,), (gates,) = way.against(b, [], [f.slope(b, way.y)], step, 1)
    d_r = b.op("Gemm", gates, matrix(b, way.before(b, way.initial_h, way.y)), transA=1)
    return Slopes(gates_w=gates, gates_r=gates, r=d_r, initial_h=dh)


def _gru_reset_after(b: Backward, way: Direction) -> Slopes:
    """h' = (1 - z) n + z h with n = g(from x + r (from h)); gates lie in the order z, r, n."""
    f, g = way.activations
    before = matrix(b, way.before(b, way.initial_h, way.y))
    bias_w, bias_r = ([way.bias_w], [way.bias_r]) if way.bias_w else ([], [])
    x_zr, x_n = split(b, b.op("Gemm", way.x, way.w, *bias_w, transB=1), (2, 1))
    h_zr, h_n = split(b, b.op("Gemm", before, way.r, *bias_r, transB=1), (2, 1))
    zr = f.value(b, b.op("Add", x_zr, h_zr))
    z, r = split(b, zr, (1, 1))
    n = g.value(b, b.op("Add", x_n, b.op("Mul", r, h_n)))
    slope_n = b.op("Mul", b.op("Sub", b.scalar(1.0), z), g.slope(b, n))
    factors = b.op("Concat", b.op("Sub", before, n), b.op("Mul", slope_n, h_n), axis=1)
    slopes = b.op("Concat", b.op("Mul", f.slope(b, zr), factors), b.op("Mul", slope_n, r), axis=1)

    def step(g: Graph, states: list[str], rows: list[str]) -> tuple[list[str], list[str]]:
        (dh,) = states
        gates = g.op("Mul", g.op("Concat", dh, dh, dh, axis=1), rows[0])
        return [g.op("Gemm", gates, way.r, _total(g, g.op("Mul", dh, rows[1]), *rows[2:]))], [gates, dh]

    sequences = [way.sequence(b, slopes, 3), way.sequence(b, z, 1)]
    (dh,), (gates_r, states) = way.against(b, [], sequences, step, 2)
    d_zr, _ = split(b, gates_r, (2, 1))
    gates_w = b.op("Concat", d_zr, b.op("Mul", states, slope_n), axis=1)
    return Slopes(gates_w=gates_w, gates_r=gates_r, r=b.op("Gemm", gates_r, before, transA=1), initial_h=dh)


def _gru_reset_before(b: Backward, way: Direction) -> Slopes:
    """h' = (1 - z) n + z h with n = g(from x + from (r h)); gates lie in the order z, r, n."""
    f, g = way.activations
    before = matrix(b, way.before(b, way.initial_h, way.y))
    r_zr, r_n = split(b, way.r, (2, 1), axis=0)
    bias = [b.op("Add", way.bias_w, way.bias_r)] if way.bias_w else []
    x_zr, x_n = split(b, b.op("Gemm", way.x, way.w, *bias, transB=1), (2, 1))
    zr = f.value(b, b.op("Gemm", before, r_zr, x_zr, transB=1))
    z, r = split(b, zr, (1, 1))
    reset = b.op("Mul", r, before)
    n = g.value(b, b.op("Gemm", reset, r_n, x_n, transB=1))
    slopes_zr = b.op("Mul", f.slope(b, zr), b.op("Concat", b.op("Sub", before, n), before, axis=1))
    slopes_n = b.op("Mul", b.op("Sub", b.scalar(1.0), z), g.slope(b, n))

    def step(g: Graph, states: list[str], rows: list[str]) -> tuple[list[str], list[str]]:
        (dh,) = states
        gate_n = g.op("Mul", dh, rows[1])
        d_reset = g.op("Gemm", gate_n, r_n)
        gates_zr = g.op("Mul", g.op("Concat", dh, d_reset, axis=1), rows[0])
        rest = g.op("Mul", dh, rows[2]), g.op("Mul", d_reset, rows[3])
        return [g.op("Gemm", gates_zr, r_zr, _total(g, *rest, *rows[4:]))], [gates_zr, gate_n]

    widths = {slopes_zr: 2, slopes_n: 1, z: 1, r: 1}
    sequences = [way.sequence(b, matrix, width) for matrix, width in widths.items()]
    (dh,), (d_zr, d_n) = way.against(b, [], sequences, step, 2)
    gates = b.op("Concat", d_zr, d_n, axis=1)
    weights = b.op("Gemm", d_zr, before, transA=1), b.op("Gemm", d_n, reset, transA=1)
    return Slopes(gates_w=gates, gates_r=gates, r=b.op("Concat", *weights, axis=0), initial_h=dh)


def split(b: Backward, value: str, parts: Sequence[int], axis: int = 1) -> list[str]:
    """`value` cut into so many times the hidden size each."""
    sizes = b.integers([part * hidden_size(b) for part in parts])
    return b.ops("Split", value, sizes, outputs=len(parts), axis=axis)


def _total(graph: Graph, *terms: str) -> str:
    return graph.op("Sum", *terms) if len(terms) > 2 else graph.op("Add", *terms) if len(terms) == 2 else terms[0]


def matrix(b: Backward, sequence: str) -> str:
    """A sequence as one matrix."""
    return b.op("Flatten", sequence, axis=2)


def zeros(b: Backward, like: str) -> str:
    return b.op("ConstantOfShape", b.op("Shape", like), value=zero(b))


def directions(b: Backward, activations: Sequence[str], *, forward: bool = False) -> list[Direction]:
    """The node taken apart; in the forward pass without its states. Raises where a rule does not hold for it."""
    ways, hidden = DIRECTIONS[b.text("direction", "forward")], hidden_size(b)
    steps, _, features = b.shape(b.x[0])
    bias, lengths, initial_h, initial_c = [*b.x[3:], "", "", "", ""][:4]
    if attribute(b.node, "clip") is not None:
        raise b.refused("a clip threshold")
    if lengths and not (isinstance(steps, int) and shortest(b, lengths) >= steps):
        raise b.refused("sequences of unequal lengths (input sequence_lens) here; pad them and leave that input away")
    if not isinstance(features, int):
        raise b.refused("an unknown number of features")
    if not b.y[0]:
        b.node.output[0] = b.graph.fresh("Y")
    d_y, d_last_h, d_last_c = [*b.dys, None, None][:3]
    x = b.op("Reshape", b.x[0], b.integers([-1, features]))
    empty = b.op("Concat", b.op("Shape", b.x[0], start=1, end=2), b.integers([hidden]), axis=0)
    given = functions(b, [*activations] * len(ways))

    def direction(at: int, backwards: bool) -> Direction:
        def mine(value: str, axis: int = 0) -> str:
            """What this direction has of a value."""
            if len(ways) == 1:
                return b.op("Squeeze", value, b.integers([axis]))
            return b.op("Gather", value, b.constant(np.array(at)), axis=axis)

        biases = b.ops("Split", mine(bias), outputs=2, axis=0, num_outputs=2) if bias else ["", ""]
        blank = b.op("ConstantOfShape", empty, value=zero(b))
        return Direction(
            backwards=backwards,
            lead=[b.op("Shape", b.x[0], end=1), b.integers([-1])],
            x=x,
            w=mine(b.x[1]),
            r=mine(b.x[2]),
            bias_w=biases[0],
            bias_r=biases[1],
            y="" if forward else mine(b.y[0], 1),
            initial_h=mine(initial_h) if initial_h else blank,
            initial_c=mine(initial_c) if initial_c else blank,
            d_y=mine(d_y, 1) if d_y else "",
            d_last_h=mine(d_last_h) if d_last_h else "",
            d_last_c=mine(d_last_c) if d_last_c else "",
            activations=given[at * len(activations) : (at + 1) * len(activations)],
        )

    return [direction(at, backwards) for at, backwards in enumerate(ways)]


def shortest(b: Backward, lengths: str) -> int:
    """The least of the lengths, where one constant is repeated for each example; else 0."""
    makers = {name: node for node in b.graph.nodes for name in node.output}
    while b.known(lengths) is None and lengths in makers and makers[lengths].op_type in _REPEATS:
        lengths = makers[lengths].input[0]
    known, maker = b.known(lengths), makers.get(lengths)
    if known is None and maker is not None and maker.op_type == "ConstantOfShape":
        value = attribute(maker, "value")
        known = onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else None
    return 0 if known is None else min(map(int, known.ravel().tolist()))


def gradients(b: Backward, found: Sequence[tuple[Direction, Slopes]]) -> Gradients:
    """For X, W, R, B, the lengths, and the initial states."""

    def stacked(values: Iterable[str]) -> str:
        parts = [b.op("Unsqueeze", value, b.integers([0])) for value in values]
        return b.op("Concat", *parts, axis=0) if len(parts) > 1 else parts[0]

    def total(matrix: str) -> str:
        return b.op("ReduceSum", matrix, b.integers([0]), keepdims=0)

    dxs = [b.op("Gemm", slopes.gates_w, way.w) for way, slopes in found]
    dx = b.graph.reshape_like(b.op("Add", *dxs) if len(dxs) > 1 else dxs[0], b.x[0])
    d_w = stacked(b.op("Gemm", slopes.gates_w, way.x, transA=1) for way, slopes in found)
    d_r = stacked(slopes.r for _, slopes in found)
    d_bias = stacked(b.op("Concat", total(slopes.gates_w), total(slopes.gates_r), axis=0) for _, slopes in found)
    d_h = stacked(slopes.initial_h for _, slopes in found)
    d_c = stacked(slopes.initial_c for _, slopes in found) if b.node.op_type == "LSTM" else None
    return [dx, d_w, d_r, d_bias, None, d_h, d_c]


def hidden_size(b: Backward) -> int:
    return b.integer("hidden_size", 0)
