"""The activation functions that LSTM, GRU and RNN name in their attributes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .graph import Graph, attribute
from .registry import Backward

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
class Activation:
    """`alpha` and `beta` as ONNX defines them for the function of that name."""

    name: str
    alpha: float
    beta: float

    def value(self, b: Backward, x: str, graph: Graph | None = None) -> str:
        """The function of `x`, emitted into `graph` where that is the body of a loop; constants stay outside."""
        alpha, beta, op = self.alpha, self.beta, (graph or b.graph).op
        match self.name:
            case "affine":
                return op("Add", op("Mul", x, b.scalar(alpha)), b.scalar(beta))
            case "scaledtanh":
                return op("Mul", op("Tanh", op("Mul", x, b.scalar(beta))), b.scalar(alpha))
            case "hardsigmoid":
                return op("HardSigmoid", x, alpha=alpha, beta=beta)
            case "leakyrelu" | "thresholdedrelu" | "elu":
                return op(_OPERATORS[self.name], x, alpha=alpha)
            case _:
                return op(_OPERATORS[self.name], x)

    def slope_times(self, b: Backward, y: str, factor: str, product: str) -> str:
        """`slope` times a factor whose product with `y` is there already."""
        match self.name:
            case "sigmoid":
                return b.op("Sub", product, b.op("Mul", y, product))
            case "tanh":
                return b.op("Sub", factor, b.op("Mul", y, product))
            case _:
                return b.op("Mul", factor, self.slope(b, y))

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


def functions(b: Backward, defaults: Sequence[str]) -> list[Activation]:
    """Those of the node, as many as it has; `defaults` where it names none."""
    names = attribute(b.node, "activations", [name.encode() for name in defaults])
    alphas, betas = (list(attribute(b.node, f"activation_{key}", [])) for key in ("alpha", "beta"))  # type: ignore[call-overload]
    assert isinstance(names, list)
    found = []
    for name in (item.decode().lower() for item in names):
        if name not in _OPERATORS:
            raise b.refused(f"the activation {name}")
        # each takes from the lists what its definition has, as onnxruntime reads them
        alpha = alphas.pop(0) if name in _ALPHA and alphas else _ALPHA.get(name, 0.0)
        beta = betas.pop(0) if name in _BETA and betas else _BETA.get(name, 0.0)
        found.append(Activation(name=name, alpha=alpha, beta=beta))
    return found
