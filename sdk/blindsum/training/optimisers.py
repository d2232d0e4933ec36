"""Optimisers that `build_artifact` can write into a train graph.

The numbers become graph inputs; those stated here are the defaults.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import ClassVar

from blindsum.protocol.errors import BlindsumError


@dataclass(frozen=True, slots=True, kw_only=True)
class SGD:
    """v <- momentum v + g; p <- p - lr v (PyTorch's SGD with dampening 0). With momentum 0 no velocity is kept."""

    name: ClassVar[str] = "sgd"
    lr: float = 0.01
    momentum: float = 0.0

    def __post_init__(self) -> None:
        _require(self, {"lr": (0.0, math.inf), "momentum": (0.0, 1.0)})

    @property
    def hyperparameters(self) -> dict[str, float]:
        return {"lr": self.lr, "momentum": self.momentum} if self.momentum else {"lr": self.lr}


@dataclass(frozen=True, slots=True, kw_only=True)
class Adam:
    """Adam with bias correction, as PyTorch computes it (Kingma and Ba, arXiv 1412.6980, algorithm 1)."""

    name: ClassVar[str] = "adam"
    lr: float = 0.001
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        _require(self, {"lr": (0.0, math.inf), "beta1": (0.0, 1.0), "beta2": (0.0, 1.0), "epsilon": (0.0, math.inf)})

    @property
    def hyperparameters(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Gradient:
    """No update: the step hands out the gradient of the mean loss (for accumulation, clipping or privacy)."""

    name: ClassVar[str] = "gradient"

    @property
    def hyperparameters(self) -> dict[str, float]:
        return {}


Optimiser = SGD | Adam | Gradient

OPTIMISERS: dict[str, type[SGD] | type[Adam] | type[Gradient]] = {kind.name: kind for kind in (SGD, Adam, Gradient)}


def as_optimiser(optimiser: str | Optimiser) -> Optimiser:
    """`optimiser` itself, or the one of that name with its default numbers."""
    if not isinstance(optimiser, str):
        return optimiser
    if optimiser not in OPTIMISERS:
        raise BlindsumError("training-request-invalid", f"optimizer {optimiser!r} is none of {', '.join(OPTIMISERS)}")
    return OPTIMISERS[optimiser]()


def _require(optimiser: SGD | Adam, ranges: dict[str, tuple[float, float]]) -> None:
    for name, (low, high) in ranges.items():
        value = getattr(optimiser, name)
        if not low <= value < high:
            raise BlindsumError(
                "training-request-invalid", f"{type(optimiser).__name__}: {name}={value} is not in [{low}, {high})"
            )
