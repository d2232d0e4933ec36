"""Optimisers that `build_artifact` can write into a train graph, each as PyTorch computes it.

The numbers become graph inputs; those stated here are the defaults. What is zero here is left out of the graph, so it
cannot be changed on the device. The gradient g that an optimiser takes is made in this order: the gradient of the loss,
plus the control variate of SCAFFOLD (Karimireddy et al., arXiv 1910.06378), plus `proximal` (p - p at the start of the
round) of FedProx (Li et al., arXiv 1812.06127), scaled so that its global L2 norm is at most `clip_norm`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import ClassVar

from blindsum.protocol.errors import BlindsumError

RANGES: Mapping[str, tuple[float, float]] = {
    "lr": (0.0, math.inf),
    "momentum": (0.0, 1.0),
    "weight_decay": (0.0, math.inf),
    "clip_norm": (0.0, math.inf),
    "proximal": (0.0, math.inf),
    "alpha": (0.0, 1.0),
    "beta1": (0.0, 1.0),
    "beta2": (0.0, 1.0),
    "epsilon": (0.0, math.inf),
}
"""Each hyperparameter is at least the first number and below the second."""

_OPTIONAL = frozenset({"momentum", "weight_decay", "clip_norm", "proximal"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimiser:
    """What all optimisers have in common.

    `weight_decay` w: g <- g + w p (for AdamW p <- p - lr w p). `clip_norm`: none where zero. `control`: the session
    takes a control variate.
    """

    name: ClassVar[str]
    lr: float
    weight_decay: float = 0.0
    clip_norm: float = 0.0
    proximal: float = 0.0
    control: bool = False

    def __post_init__(self) -> None:
        for name, value in self._numbers().items():
            if not in_range(name, value):
                low, high = RANGES[name]
                detail = f"{type(self).__name__}: {name}={value} is not in [{low}, {high})"
                raise BlindsumError("training-request-invalid", detail)

    @property
    def hyperparameters(self) -> dict[str, float]:
        return {name: float(value) for name, value in self._numbers().items() if value or name not in _OPTIONAL}

    def _numbers(self) -> dict[str, float]:
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name in RANGES}


@dataclass(frozen=True, slots=True, kw_only=True)
class SGD(Optimiser):
    """v <- momentum v + g; p <- p - lr v, or with `nesterov` p <- p - lr (g + momentum v). Without momentum v is g."""

    name: ClassVar[str] = "sgd"
    lr: float = 0.01
    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        super(SGD, self).__post_init__()
        if self.nesterov and not self.momentum:
            raise BlindsumError("training-request-invalid", "SGD: nesterov needs momentum")


@dataclass(frozen=True, slots=True, kw_only=True)
class Adam(Optimiser):
    """Adam with bias correction (Kingma and Ba, arXiv 1412.6980, algorithm 1)."""

    name: ClassVar[str] = "adam"
    lr: float = 0.001
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamW(Adam):
    """Adam whose weight decay does not pass through its averages (Loshchilov and Hutter, arXiv 1711.05101)."""

    name: ClassVar[str] = "adamw"
    weight_decay: float = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Adagrad(Optimiser):
    """s <- s + g^2; p <- p - lr g / (sqrt(s) + epsilon) (Duchi et al., JMLR 12, 2011)."""

    name: ClassVar[str] = "adagrad"
    lr: float = 0.01
    epsilon: float = 1e-10


@dataclass(frozen=True, slots=True, kw_only=True)
class RMSprop(Optimiser):
    """s <- alpha s + (1 - alpha) g^2; v <- momentum v + g / (sqrt(s) + epsilon); p <- p - lr v (Hinton, 2012)."""

    name: ClassVar[str] = "rmsprop"
    lr: float = 0.01
    alpha: float = 0.99
    epsilon: float = 1e-8
    momentum: float = 0.0


@dataclass(frozen=True, slots=True)
class Gradient:
    """No update: the step hands out the gradient of the loss (for clipping, privacy or an optimiser elsewhere)."""

    name: ClassVar[str] = "gradient"

    @property
    def hyperparameters(self) -> dict[str, float]:
        return {}


OPTIMISERS: dict[str, type[SGD | Adam | AdamW | Adagrad | RMSprop | Gradient]] = {
    kind.name: kind for kind in (SGD, Adam, AdamW, Adagrad, RMSprop, Gradient)
}


def as_optimiser(optimiser: str | Optimiser | Gradient) -> Optimiser | Gradient:
    """`optimiser` itself, or the one of that name with its default numbers."""
    if isinstance(optimiser, Optimiser | Gradient):
        return optimiser
    if optimiser not in OPTIMISERS:
        raise BlindsumError("training-request-invalid", f"optimizer {optimiser!r} is none of {', '.join(OPTIMISERS)}")
    return OPTIMISERS[optimiser]()


def in_range(name: str, value: float) -> bool:
    """True where the hyperparameter `name` may have that value."""
    low, high = RANGES[name]
    return low <= value < high
