"""Rules for LSTM, GRU and RNN.

The forward pass stays the fused operator. The backward pass computes the gates of all steps again, in one product each
for inputs and states, as the states are known by then. Only the gradients of the states run from step to step; they
leave the gates' gradients, from which one product each gives those of the weights and the inputs.

The steps are written out: as the body of a Scan they are slower, and devices would have to check subgraphs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .graph import attribute
from .registry import Backward, Gradients, rule

STEPS_MAX = 1024  # each becomes about eight nodes, which onnxruntime takes a millisecond to load
_DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Activation:
    """`alpha` and `beta` as ONNX defines them for the function of that name."""

    name: str
    alpha: float
    beta: float

    def value(self, b: Backward, x: str) -> str:
        alpha, beta = self.alpha, self.beta
        match self.name:
            case "affine":
                return b.op("Add", b.op("Mul", x, b.scalar(alpha)), b.scalar(beta))
            case "scaledtanh":
                return b.op("Mul", b.op("Tanh", b.op("Mul", x, b.scalar(beta))), b.scalar(alpha))
            case "hardsigmoid":
                return b.op("HardSigmoid", x, alpha=alpha, beta=beta)
            case "leakyrelu" | "thresholdedrelu" | "elu":
                return b.op(_OPERATORS[self.name], x, alpha=alpha)
            case _:
                return b.op(_OPERATORS[self.name], x)

    def slope(self, b: Backward, y: str) -> str:
        """The derivative, from the function's value."""
        one = b.scalar(1.0)
        match self.name:
            case "sigmoid":
                return b.op("Mul", y, b.op("Sub", one, y))
            case "tanh":
                return b.op("Sub", one, b.op("Mul", y, y))
            case "scaledtanh":
                squared = b.op("Mul", b.op("Mul", y, y), b.scalar(self.beta / self.alpha))
                return b.op("Sub", b.scalar(self.alpha * self.beta), squared)
            case "affine":
                return b.op("Add", b.op("Mul", y, b.scalar(0.0)), b.scalar(self.alpha))
            case "softsign":
                rest = b.op("Sub", one, b.op("Abs", y))
                return b.op("Mul", rest, rest)
            case "softplus":
                return b.op("Sub", one, b.op("Exp", b.op("Neg", y)))
            case "hardsigmoid":
                inside = b.op("And", b.op("Greater", y, b.scalar(0.0)), b.op("Less", y, one))
                return b.op("Mul", b.mask(inside), b.scalar(self.alpha))
        positive = b.mask(b.op("Greater", y, b.scalar(0.0)))
        if self.name == "leakyrelu":
            rising = b.op("Mul", positive, b.scalar(1.0 - self.alpha))
            return b.op("Add", rising, b.scalar(self.alpha))
        if self.name == "elu":
            falling = b.op("Mul", b.op("Sub", one, positive), b.op("Add", y, b.scalar(self.alpha)))
            return b.op("Add", positive, falling)
        return positive


_OPERATORS = {
    "affine": "",
    "elu": "Elu",
    "hardsigmoid": "HardSigmoid",
    "leakyrelu": "LeakyRelu",
    "relu": "Relu",
    "scaledtanh": "",
    "sigmoid": "Sigmoid",
    "softplus": "Softplus",
    "softsign": "Softsign",
    "tanh": "Tanh",
    "thresholdedrelu": "ThresholdedRelu",
}
_ALPHA = {"affine": 1.0, "elu": 1.0, "hardsigmoid": 0.2, "leakyrelu": 0.01, "scaledtanh": 1.0, "thresholdedrelu": 1.0}
_BETA = {"affine": 0.0, "hardsigmoid": 0.5, "scaledtanh": 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Direction:
    """One direction of a node. A matrix has one row for each step and example, steps in the order of the input."""

    steps: int
    backwards: bool
    x: str  # matrix of inputs
    w: str
    r: str
    bias_w: str  # '' without biases
    bias_r: str
    y: str  # matrix of the states after each step
    initial_h: str  # (batch, hidden), as are all below; zeros where the node has none
    initial_c: str
    d_y: str  # matrix of gradients from outside; '' for none, as for the two below
    d_last_h: str
    d_last_c: str
    activations: list[_Activation]

    @property
    def order(self) -> list[int]:
        """The steps as they are run."""
        steps = list(range(self.steps))
        return steps[::-1] if self.backwards else steps

    def rows(self, b: Backward, matrix: str) -> list[str]:
        """One (batch, ...) matrix for each step."""
        if self.steps == 1:
            return [matrix]
        return b.ops("Split", matrix, outputs=self.steps, axis=0, num_outputs=self.steps)

    def matrix(self, b: Backward, rows: Sequence[str]) -> str:
        return b.op("Concat", *rows, axis=0) if len(rows) > 1 else rows[0]

    def before(self, b: Backward, initial: str, rows: Sequence[str]) -> str:
        """The matrix of what each step found, where `rows` is what each left."""
        found = {self.order[0]: initial}
        found.update({step: rows[last] for last, step in zip(self.order, self.order[1:], strict=False)})
        return self.matrix(b, [found[step] for step in range(self.steps)])

    def d_states(self, b: Backward) -> list[list[str]]:
        """What reaches the state after each step from outside, as terms of a sum; then what the first step started from."""
        terms = [[row] for row in self.rows(b, self.d_y)] if self.d_y else [[] for _ in range(self.steps)]
        last = terms[self.order[-1]]
        last += [self.d_last_h] if self.d_last_h else []
        last += [] if last else [b.op("ConstantOfShape", b.op("Shape", self.initial_h))]
        return [*terms, []]

    @property
    def back(self) -> list[tuple[int, int]]:
        """(step, the one before it), from the last to the first, which has -1 before it."""
        return list(zip(self.order[::-1], [*self.order[-2::-1], -1], strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Slopes:
    """Gradients of one direction."""

    gates_w: str  # matrices: of what the inputs and the states add to the gates
    gates_r: str
    r: str
    initial_h: str
    initial_c: str = ""


@rule("RNN", since=7)
def rnn(b: Backward) -> Gradients:
    return _gradients(b, [_rnn(b, way) for way in _directions(b, ["Tanh"])])


@rule("GRU", since=7)
def gru(b: Backward) -> Gradients:
    backward = _gru_reset_after if b.integer("linear_before_reset", 0) else _gru_reset_before
    return _gradients(b, [backward(b, way) for way in _directions(b, ["Sigmoid", "Tanh"])])


@rule("LSTM", since=7)
def lstm(b: Backward) -> Gradients:
    if len(b.x) > 7 and b.x[7]:
        raise b.refused("peephole weights (input P)")
    if b.integer("input_forget", 0):
        raise b.refused("input_forget=1")
    return _gradients(b, [_lstm(b, way) for way in _directions(b, ["Sigmoid", "Tanh", "Tanh"])])


def _rnn(b: Backward, way: _Direction) -> tuple[_Direction, _Slopes]:
    (f,) = way.activations
    slopes, gates = way.rows(b, f.slope(b, way.y)), [""] * way.steps
    outside = way.d_states(b)
    dh = _sum(b, outside[way.order[-1]])
    for step, earlier in way.back:
        gates[step] = b.op("Mul", dh, slopes[step])
        dh = _product(b, gates[step], way.r, *outside[earlier])
    d_gates = way.matrix(b, gates)
    d_r = b.op("Gemm", d_gates, way.before(b, way.initial_h, way.rows(b, way.y)), transA=1)
    return way, _Slopes(gates_w=d_gates, gates_r=d_gates, r=d_r, initial_h=dh)


def _lstm(b: Backward, way: _Direction) -> tuple[_Direction, _Slopes]:
    """c' = f c + i g, h' = o act(c'); gates lie in the order i, o, f, g."""
    f, g, h = way.activations
    before = way.before(b, way.initial_h, way.rows(b, way.y))
    bias = [b.op("Add", way.bias_w, way.bias_r)] if way.bias_w else []
    raw = b.op("Gemm", before, way.r, b.op("Gemm", way.x, way.w, *bias, transB=1), transB=1)
    raw_iof, raw_g = _split(b, raw, (3, 1))
    iof, gate_g = f.value(b, raw_iof), g.value(b, raw_g)
    gate_i, gate_o, gate_f = _split(b, iof, (1, 1, 1))
    kept, added = way.rows(b, gate_f), way.rows(b, b.op("Mul", gate_i, gate_g))
    cells, cell = [""] * way.steps, way.initial_c
    for step in way.order:
        cell = cells[step] = b.op("Add", b.op("Mul", kept[step], cell), added[step])
    out = h.value(b, way.matrix(b, cells))
    factors = b.op("Concat", gate_g, out, way.before(b, way.initial_c, cells), axis=1)
    slopes_iof, slopes_g = b.op("Mul", f.slope(b, iof), factors), b.op("Mul", gate_i, g.slope(b, gate_g))
    slopes = way.rows(b, b.op("Concat", slopes_iof, slopes_g, axis=1))  # of the gates; dh comes in at o, dc elsewhere
    cell_slopes = way.rows(b, b.op("Mul", gate_o, h.slope(b, out)))
    gates, outside = [""] * way.steps, way.d_states(b)
    dh, dc = _sum(b, outside[way.order[-1]]), way.d_last_c
    for step, earlier in way.back:
        through = b.op("Mul", dh, cell_slopes[step])
        dc = b.op("Add", dc, through) if dc else through
        gates[step] = b.op("Mul", b.op("Concat", dc, dh, dc, dc, axis=1), slopes[step])
        dh = _product(b, gates[step], way.r, *outside[earlier])
        dc = b.op("Mul", dc, kept[step])
    d_gates = way.matrix(b, gates)
    d_r = b.op("Gemm", d_gates, before, transA=1)
    return way, _Slopes(gates_w=d_gates, gates_r=d_gates, r=d_r, initial_h=dh, initial_c=dc)


def _gru_reset_after(b: Backward, way: _Direction) -> tuple[_Direction, _Slopes]:
    """h' = (1 - z) n + z h with n = g(from x + r (from h)); gates lie in the order z, r, n."""
    f, g = way.activations
    before = way.before(b, way.initial_h, way.rows(b, way.y))
    bias_w, bias_r = ([way.bias_w], [way.bias_r]) if way.bias_w else ([], [])
    x_zr, x_n = _split(b, b.op("Gemm", way.x, way.w, *bias_w, transB=1), (2, 1))
    h_zr, h_n = _split(b, b.op("Gemm", before, way.r, *bias_r, transB=1), (2, 1))
    zr = f.value(b, b.op("Add", x_zr, h_zr))
    z, r = _split(b, zr, (1, 1))
    n = g.value(b, b.op("Add", x_n, b.op("Mul", r, h_n)))
    slope_n = b.op("Mul", b.op("Sub", b.scalar(1.0), z), g.slope(b, n))
    factors = b.op("Concat", b.op("Sub", before, n), b.op("Mul", slope_n, h_n), axis=1)
    slopes_zr = b.op("Mul", f.slope(b, zr), factors)
    slopes = way.rows(b, b.op("Concat", slopes_zr, b.op("Mul", slope_n, r), axis=1))
    gates, states, kept = [""] * way.steps, [""] * way.steps, way.rows(b, z)
    outside = way.d_states(b)
    dh = _sum(b, outside[way.order[-1]])
    for step, earlier in way.back:
        states[step] = dh
        gates[step] = b.op("Mul", b.op("Concat", dh, dh, dh, axis=1), slopes[step])
        dh = _product(b, gates[step], way.r, b.op("Mul", dh, kept[step]), *outside[earlier])
    gates_r = way.matrix(b, gates)
    d_zr, _ = _split(b, gates_r, (2, 1))
    gates_w = b.op("Concat", d_zr, b.op("Mul", way.matrix(b, states), slope_n), axis=1)
    d_r = b.op("Gemm", gates_r, before, transA=1)
    return way, _Slopes(gates_w=gates_w, gates_r=gates_r, r=d_r, initial_h=dh)


def _gru_reset_before(b: Backward, way: _Direction) -> tuple[_Direction, _Slopes]:
    """h' = (1 - z) n + z h with n = g(from x + from (r h)); gates lie in the order z, r, n."""
    f, g = way.activations
    before = way.before(b, way.initial_h, way.rows(b, way.y))
    r_zr, r_n = _split(b, way.r, (2, 1), axis=0)
    bias = [b.op("Add", way.bias_w, way.bias_r)] if way.bias_w else []
    x_zr, x_n = _split(b, b.op("Gemm", way.x, way.w, *bias, transB=1), (2, 1))
    zr = f.value(b, b.op("Gemm", before, r_zr, x_zr, transB=1))
    z, r = _split(b, zr, (1, 1))
    reset = b.op("Mul", r, before)
    n = g.value(b, b.op("Gemm", reset, r_n, x_n, transB=1))
    slopes_zr = b.op("Mul", f.slope(b, zr), b.op("Concat", b.op("Sub", before, n), before, axis=1))
    slopes_z, slopes_r = (way.rows(b, part) for part in _split(b, slopes_zr, (1, 1)))
    slopes_n = way.rows(b, b.op("Mul", b.op("Sub", b.scalar(1.0), z), g.slope(b, n)))
    gates_zr, gates_n, kept, resets = [""] * way.steps, [""] * way.steps, way.rows(b, z), way.rows(b, r)
    outside = way.d_states(b)
    dh = _sum(b, outside[way.order[-1]])
    for step, earlier in way.back:
        gates_n[step] = b.op("Mul", dh, slopes_n[step])
        d_reset = b.op("Gemm", gates_n[step], r_n)
        d_z, d_r = b.op("Mul", dh, slopes_z[step]), b.op("Mul", d_reset, slopes_r[step])
        gates_zr[step] = b.op("Concat", d_z, d_r, axis=1)
        rest = b.op("Mul", dh, kept[step]), b.op("Mul", d_reset, resets[step])
        dh = _product(b, gates_zr[step], r_zr, *rest, *outside[earlier])
    d_zr, d_n = way.matrix(b, gates_zr), way.matrix(b, gates_n)
    d_gates = b.op("Concat", d_zr, d_n, axis=1)
    weights = b.op("Gemm", d_zr, before, transA=1), b.op("Gemm", d_n, reset, transA=1)
    return way, _Slopes(gates_w=d_gates, gates_r=d_gates, r=b.op("Concat", *weights, axis=0), initial_h=dh)


def _split(b: Backward, value: str, parts: Sequence[int], axis: int = 1) -> list[str]:
    """`value` cut into so many times the hidden size each."""
    sizes = b.integers([part * _hidden(b) for part in parts])
    return b.ops("Split", value, sizes, outputs=len(parts), axis=axis)


def _sum(b: Backward, terms: Sequence[str]) -> str:
    return b.op("Sum", *terms) if len(terms) > 2 else b.op("Add", *terms) if len(terms) == 2 else terms[0]


def _product(b: Backward, rows: str, weights: str, *terms: str) -> str:
    """rows @ weights + terms."""
    return b.op("Gemm", rows, weights, *([_sum(b, terms)] if terms else []))


def _directions(b: Backward, activations: list[str]) -> list[_Direction]:
    """The node taken apart. Raises where a rule does not hold for it."""
    ways, hidden = _DIRECTIONS[b.text("direction", "forward")], _hidden(b)
    steps, _, features = b.shape(b.x[0])
    optional = [*b.x[3:], "", "", "", ""]
    bias, lengths, initial_h, initial_c = optional[:4]
    if b.integer("layout", 0):
        raise b.refused("layout=1 (which onnxruntime does not run either)")
    if attribute(b.node, "clip") is not None:
        raise b.refused("a clip threshold")
    if not isinstance(steps, int) or not isinstance(features, int) or not 1 <= steps <= STEPS_MAX:
        raise b.refused(f"{steps} steps; it takes a fixed number of at most {STEPS_MAX}")
    known = b.known(lengths) if lengths else None
    if lengths and (known is None or min(known.tolist()) < steps):
        raise b.refused("sequences of unequal lengths (input sequence_lens); pad them and leave that input away")
    if not b.y[0]:
        b.node.output[0] = b.graph.fresh("Y")
    d_y, d_last_h, d_last_c = [*b.dys, None, None][:3]
    x = b.op("Reshape", b.x[0], b.integers([-1, features]))
    empty = b.op("Concat", b.op("Shape", b.x[0], start=1, end=2), b.integers([hidden]), axis=0)
    functions = _functions(b, activations * len(ways))

    def direction(at: int, backwards: bool) -> _Direction:
        def mine(value: str, axis: int = 0) -> str:
            """What this direction has of a value."""
            if len(ways) == 1:
                return b.op("Squeeze", value, b.integers([axis]))
            return b.op("Gather", value, b.constant(np.array(at)), axis=axis)

        def matrix(value: str) -> str:
            return b.op("Reshape", mine(value, axis=1), b.integers([-1, hidden]))

        biases = b.ops("Split", mine(bias), outputs=2, axis=0, num_outputs=2) if bias else ["", ""]
        return _Direction(
            steps=steps,
            backwards=backwards,
            x=x,
            w=mine(b.x[1]),
            r=mine(b.x[2]),
            bias_w=biases[0],
            bias_r=biases[1],
            y=matrix(b.y[0]),
            initial_h=mine(initial_h) if initial_h else b.op("ConstantOfShape", empty),
            initial_c=mine(initial_c) if initial_c else b.op("ConstantOfShape", empty),
            d_y=matrix(d_y) if d_y else "",
            d_last_h=mine(d_last_h) if d_last_h else "",
            d_last_c=mine(d_last_c) if d_last_c else "",
            activations=functions[at * len(activations) : (at + 1) * len(activations)],
        )

    return [direction(at, backwards) for at, backwards in enumerate(ways)]


def _gradients(b: Backward, found: Sequence[tuple[_Direction, _Slopes]]) -> Gradients:
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


def _functions(b: Backward, defaults: Sequence[str]) -> list[_Activation]:
    names = attribute(b.node, "activations", [name.encode() for name in defaults])
    alphas, betas = (list(attribute(b.node, f"activation_{key}", [])) for key in ("alpha", "beta"))  # type: ignore[call-overload]
    assert isinstance(names, list)
    functions = []
    for name in (item.decode().lower() for item in names):
        if name not in _OPERATORS:
            raise b.refused(f"the activation {name}")
        # each takes from the lists what its definition has, as onnxruntime reads them
        alpha = alphas.pop(0) if name in _ALPHA and alphas else _ALPHA.get(name, 0.0)
        beta = betas.pop(0) if name in _BETA and betas else _BETA.get(name, 0.0)
        functions.append(_Activation(name=name, alpha=alpha, beta=beta))
    return functions


def _hidden(b: Backward) -> int:
    return b.integer("hidden_size", 0)
