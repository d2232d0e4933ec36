"""Rules for activation functions. Where there is a kink, the slope at it is PyTorch's."""

from __future__ import annotations

import math

from .kernels import softplus_tanh
from .registry import Backward, Gradients, rule

STEEP = 1e30  # times what is positive and not below 1e-30, it is one or more
SELU_ALPHA, SELU_GAMMA = 1.67326319217681884765625, 1.05070102214813232421875


@rule("Relu", since=6)
def relu(b: Backward) -> Gradients:
    return [b.op("Mul", b.dy, _on(b, b.y[0]))]


@rule("LeakyRelu", since=6)
def leaky_relu(b: Backward) -> Gradients:
    alpha = b.real("alpha", 0.01)
    positive = b.mask(b.op("Greater", b.x[0], b.scalar(0.0)))
    if 0.0 <= alpha <= 1.0:
        return [b.op("Mul", b.dy, b.op("Max", positive, b.scalar(alpha)))]
    return [b.op("Mul", b.dy, _between(b, positive, b.scalar(alpha)))]


@rule("PRelu", since=7, broadcast=True)
def p_relu(b: Backward) -> Gradients:
    x, slope = b.x
    zero = b.scalar(0.0)
    positive = b.mask(b.op("Greater", x, zero))
    return [b.op("Mul", b.dy, _between(b, positive, slope)), b.op("Mul", b.dy, b.op("Min", x, zero))]


@rule("ThresholdedRelu", since=10)
def thresholded_relu(b: Backward) -> Gradients:
    return [b.op("Mul", b.dy, b.mask(b.op("Greater", b.x[0], b.scalar(b.real("alpha", 1.0)))))]


@rule("Elu", since=6)
def elu(b: Backward) -> Gradients:
    """1 for positive x, else alpha exp(x), which is y + alpha."""
    return [b.op("Mul", b.dy, _exponential(b, b.real("alpha", 1.0), 1.0))]


@rule("Selu", since=6)
def selu(b: Backward) -> Gradients:
    gamma = b.real("gamma", SELU_GAMMA)
    return [b.op("Mul", b.dy, _exponential(b, b.real("alpha", SELU_ALPHA) * gamma, gamma))]


@rule("Celu", since=12)
def celu(b: Backward) -> Gradients:
    """1 for positive x, else exp(x / alpha), which is y / alpha + 1."""
    inner = b.op("Add", b.op("Mul", b.y[0], b.scalar(1 / b.real("alpha", 1.0))), b.scalar(1.0))
    return [b.op("Mul", b.dy, b.op("Min", inner, b.scalar(1.0)))]


@rule("Softplus")
def softplus(b: Backward) -> Gradients:
    return [b.op("Mul", b.dy, b.op("Sigmoid", b.x[0]))]


@rule("Softsign")
def softsign(b: Backward) -> Gradients:
    """1 / (1 + |x|)^2"""
    root = b.op("Add", b.op("Abs", b.x[0]), b.scalar(1.0))
    return [b.op("Div", b.dy, b.op("Mul", root, root))]


@rule("Sigmoid", since=6)
def sigmoid(b: Backward) -> Gradients:
    return [b.op("Mul", b.dy, _logistic_slope(b, b.y[0]))]


@rule("HardSigmoid", since=6)
def hard_sigmoid(b: Backward) -> Gradients:
    inside = b.op("And", b.op("Greater", b.y[0], b.scalar(0.0)), b.op("Less", b.y[0], b.scalar(1.0)))
    return [b.op("Mul", b.op("Mul", b.dy, b.scalar(b.real("alpha", 0.2))), b.mask(inside))]


@rule("HardSwish", since=14)
def hard_swish(b: Backward) -> Gradients:
    """With c = clip(x, -3, 3): c / 6 + 1/2, and c / 6 more where nothing is clipped."""
    clipped = b.op("Clip", b.x[0], b.scalar(-3.0), b.scalar(3.0))
    share = b.op("Add", b.mask(b.op("Equal", b.x[0], clipped)), b.scalar(1.0))
    slope = b.op("Add", b.op("Mul", b.op("Mul", clipped, share), b.scalar(1 / 6)), b.scalar(0.5))
    return [b.op("Mul", b.dy, slope)]


@rule("Tanh", since=6)
def tanh(b: Backward) -> Gradients:
    slope = b.op("Sub", b.scalar(1.0), b.op("Mul", b.y[0], b.y[0]))
    return [b.op("Mul", b.dy, slope)]


@rule("Gelu", since=20)
def gelu(b: Backward) -> Gradients:
    """x Phi(x), Phi exact or by a tanh."""
    x, half, one = b.x[0], b.scalar(0.5), b.scalar(1.0)
    square = b.op("Mul", x, x)
    if b.text("approximate", "none") == "none":
        normal = b.op("Add", b.op("Erf", b.op("Mul", x, b.scalar(math.sqrt(0.5)))), one)
        bell = b.op("Exp", b.op("Mul", square, b.scalar(-0.5)))
        density = b.op("Mul", b.op("Mul", x, b.scalar(1 / math.sqrt(2 * math.pi))), bell)
        return [b.op("Mul", b.dy, b.op("Add", b.op("Mul", normal, half), density))]
    scale, cubic = math.sqrt(2 / math.pi), 0.044715
    inner = b.op("Add", b.op("Mul", square, b.scalar(scale * cubic)), b.scalar(scale))
    bend = b.op("Tanh", b.op("Mul", x, inner))
    steepness = b.op("Mul", x, b.op("Add", b.op("Mul", square, b.scalar(3 * scale * cubic)), b.scalar(scale)))
    rest = b.op("Add", b.op("Mul", b.op("Sub", one, bend), steepness), one)
    return [b.op("Mul", b.dy, b.op("Mul", b.op("Mul", b.op("Add", one, bend), half), rest))]


@rule("Mish", since=18)
def mish(b: Backward) -> Gradients:
    """x t with t = tanh(softplus(x)): the slope is t + x (1 - t^2) sigmoid(x)."""
    x = b.x[0]
    bend = softplus_tanh(b.graph, x, b.scalar)
    rest = b.op("Sub", b.scalar(1.0), b.op("Mul", bend, bend))
    more = b.op("Mul", b.op("Mul", x, rest), b.op("Sigmoid", x))
    return [b.op("Mul", b.dy, b.op("Add", bend, more))]


@rule("Swish", since=24)
def swish(b: Backward) -> Gradients:
    """x s with s = sigmoid(alpha x): the slope is s + alpha y (1 - s)."""
    alpha = b.real("alpha", 1.0)
    x, y = b.x[0], b.y[0]
    gate = b.op("Sigmoid", x if alpha == 1.0 else b.op("Mul", x, b.scalar(alpha)))
    more = b.op("Mul", y if alpha == 1.0 else b.op("Mul", y, b.scalar(alpha)), b.op("Sub", b.scalar(1.0), gate))
    return [b.op("Mul", b.dy, b.op("Add", gate, more))]


@rule("Softmax", since=13)
def softmax(b: Backward) -> Gradients:
    axis = b.integers([b.integer("axis", -1)])
    weighted = b.op("Mul", b.dy, b.y[0])
    mean = b.op("ReduceSum", weighted, axis, keepdims=1)
    return [b.op("Sub", weighted, b.op("Mul", b.y[0], mean))]


@rule("LogSoftmax", since=13)
def log_softmax(b: Backward) -> Gradients:
    total = b.op("ReduceSum", b.dy, b.integers([b.integer("axis", -1)]), keepdims=1)
    return [b.op("Sub", b.dy, b.op("Mul", b.op("Exp", b.y[0]), total))]


@rule("Clip", since=11)
def clip(b: Backward) -> Gradients:
    """What lies on a bound passes its gradient on; what lies beyond passes it to the bound."""
    x, y = b.x[0], b.y[0]
    low, high = (*b.x[1:], "", "")[:2]
    gradients = [b.op("Mul", b.dy, b.mask(b.op("Equal", x, y)))]
    for bound, beyond in ((low, "Less"), (high, "Greater")):
        cut = b.op("Mul", b.dy, b.mask(b.op(beyond, x, bound))) if bound else ""
        gradients.append(cut and b.op("Reshape", b.op("ReduceSum", cut, keepdims=0), b.op("Shape", bound)))
    return [gradient or None for gradient in gradients]


def _on(b: Backward, y: str) -> str:
    """1.0 where y is positive and 0.0 elsewhere, for a y that is not negative."""
    if b.dtype == "float32":  # one pass instead of two; onnxruntime has it for no other type
        return b.op("HardSigmoid", y, alpha=STEEP, beta=0.0)
    return b.mask(b.op("Greater", y, b.scalar(0.0)))


def _exponential(b: Backward, weight: float, slope: float) -> str:
    """`slope` for positive x; else `weight` exp(x), where y = `weight` (exp(x) - 1)."""
    if weight >= 0.0 and slope >= 0.0:  # y has the sign of x
        below = b.op("Add", b.op("Min", b.y[0], b.scalar(0.0)), b.scalar(weight))
    else:
        below = b.op("Mul", b.op("Exp", b.op("Min", b.x[0], b.scalar(0.0))), b.scalar(weight))
    if weight == slope:
        return below
    positive = b.mask(b.op("Greater", b.x[0], b.scalar(0.0)))
    return b.op("Add", below, b.op("Mul", positive, b.scalar(slope - weight)))


def _between(b: Backward, positive: str, otherwise: str) -> str:
    """1 where the mask `positive` is 1, else `otherwise`."""
    return b.op("Add", otherwise, b.op("Mul", positive, b.op("Sub", b.scalar(1.0), otherwise)))


def _logistic_slope(b: Backward, gate: str) -> str:
    return b.op("Mul", gate, b.op("Sub", b.scalar(1.0), gate))
