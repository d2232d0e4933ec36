"""LSTM, GRU and RNN, step by step from the equations in the specification."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from .interpreter import Node, Tensor, operator

ACTIVATIONS: dict[str, tuple[int, Callable[..., Tensor]]] = {  # name -> how many of alpha, beta it takes; function
    "Sigmoid": (0, torch.sigmoid),
    "Tanh": (0, torch.tanh),
    "Relu": (0, torch.relu),
    "Softsign": (0, F.softsign),
    "Softplus": (0, F.softplus),
    "LeakyRelu": (1, lambda x, alpha=0.01: torch.where(x > 0, x, alpha * x)),
    "ThresholdedRelu": (1, lambda x, alpha=1.0: torch.where(x > alpha, x, 0 * x)),
    "Elu": (1, lambda x, alpha=1.0: torch.where(x > 0, x, alpha * torch.expm1(x))),
    "Affine": (2, lambda x, alpha=1.0, beta=0.0: alpha * x + beta),
    "ScaledTanh": (2, lambda x, alpha=1.0, beta=1.0: alpha * torch.tanh(beta * x)),
    "HardSigmoid": (2, lambda x, alpha=0.2, beta=0.5: (alpha * x + beta).clamp(0, 1)),
}


def _functions(node: Node, defaults: list[str], directions: int) -> list[list[Callable[[Tensor], Tensor]]]:
    names = [name.decode() for name in node.get("activations", [])] or defaults * directions
    values = [list(node.get(f"activation_{key}", [])) for key in ("alpha", "beta")]
    functions = []
    for name in names:
        count, function = ACTIVATIONS[name]
        given = {key: rest.pop(0) for key, rest in list(zip(("alpha", "beta"), values, strict=True))[:count] if rest}
        functions.append(lambda x, f=function, given=given: f(x, **given))
    size = len(defaults)
    return [functions[at : at + size] for at in range(0, len(functions), size)]


def _run(node: Node, defaults: list[str], gates: int, step: Callable[..., tuple[Tensor, ...]], inputs: tuple) -> list:
    """`step(functions, x, w, r, wb, rb, *states) -> states` over time, for each direction."""
    x, w, r, bias, lengths, h0, c0 = (*inputs, None, None, None, None)[:7]
    if node.get("layout", 0):  # batch first
        x, h0, c0 = (value if value is None else value.transpose(0, 1) for value in (x, h0, c0))
    hidden, way = r.shape[2], node.get("direction", b"forward").decode()
    count = 2 if node.operator == "LSTM" else 1
    outputs, lasts = [], []
    for at, functions in enumerate(_functions(node, defaults, w.shape[0])):
        backwards = way == "reverse" or at == 1
        zero = x.new_zeros(x.shape[1], hidden)
        states = [zero if given is None else given[at] for given in (h0, c0)[:count]]
        biases = (x.new_zeros(2 * gates * hidden) if bias is None else bias[at]).chunk(2)
        rows = []
        for place in range(len(x))[::-1] if backwards else range(len(x)):
            made = step(functions, x[place], w[at], r[at], *biases, *states)
            inside = torch.ones(x.shape[1], 1) if lengths is None else (lengths > place)[:, None]
            states = [torch.where(inside > 0, new, old) for new, old in zip(made, states, strict=True)]
            rows.append(torch.where(inside > 0, made[0], 0 * made[0]))
        outputs.append(torch.stack(rows[::-1] if backwards else rows))
        lasts.append(states)
    y, ends = torch.stack(outputs, 1), [torch.stack(last) for last in zip(*lasts, strict=True)]
    if node.get("layout", 0):
        return [y.permute(2, 0, 1, 3), *(end.transpose(0, 1) for end in ends)]
    return [y, *ends]


@operator("RNN")
def rnn(node: Node, *inputs: Tensor | None) -> list[Tensor]:
    def step(functions, x, w, r, wb, rb, h):  # type: ignore[no-untyped-def]
        return (functions[0](x @ w.T + h @ r.T + wb + rb),)

    return _run(node, ["Tanh"], 1, step, inputs)


@operator("GRU")
def gru(node: Node, *inputs: Tensor | None) -> list[Tensor]:
    def step(functions, x, w, r, wb, rb, h):  # type: ignore[no-untyped-def]
        f, g = functions
        (wz, wr, wn), (rz, rr, rn), (bz, br, bn), (cz, cr, cn) = (value.chunk(3) for value in (w, r, wb, rb))
        z, reset = f(x @ wz.T + h @ rz.T + bz + cz), f(x @ wr.T + h @ rr.T + br + cr)
        if node.get("linear_before_reset", 0):
            n = g(x @ wn.T + reset * (h @ rn.T + cn) + bn)
        else:
            n = g(x @ wn.T + (reset * h) @ rn.T + cn + bn)
        return ((1 - z) * n + z * h,)

    return _run(node, ["Sigmoid", "Tanh"], 3, step, inputs)


@operator("LSTM")
def lstm(node: Node, *inputs: Tensor | None) -> list[Tensor]:
    def step(functions, x, w, r, wb, rb, h, c):  # type: ignore[no-untyped-def]
        f, g, last = functions
        i, o, forget, cell = (x @ w.T + h @ r.T + wb + rb).chunk(4, 1)
        c = f(forget) * c + f(i) * g(cell)
        return f(o) * last(c), c

    return _run(node, ["Sigmoid", "Tanh", "Tanh"], 4, step, inputs)
