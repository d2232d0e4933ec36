"""Learning-rate schedules: from the number of a step (0 is the first) to the factor on the optimiser's rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from blindsum.protocol.errors import BlindsumError

Schedule = Callable[[int], float]


@dataclass(frozen=True, slots=True)
class Constant:
    """One, at every step."""

    def __call__(self, step: int) -> float:
        return 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDecay:
    """`factor` to the power of how many times `every` steps have passed."""

    every: int
    factor: float = 0.1

    def __post_init__(self) -> None:
        _require(self.every >= 1 and 0.0 <= self.factor <= 1.0, f"every={self.every}, factor={self.factor}")

    def __call__(self, step: int) -> float:
        return float(self.factor ** (step // self.every))


@dataclass(frozen=True, slots=True, kw_only=True)
class Cosine:
    """Half a cosine from one down to `floor` over `steps` steps, then `floor` (Loshchilov and Hutter, arXiv 1608.03983)."""

    steps: int
    floor: float = 0.0

    def __post_init__(self) -> None:
        _require(self.steps >= 1 and 0.0 <= self.floor <= 1.0, f"steps={self.steps}, floor={self.floor}")

    def __call__(self, step: int) -> float:
        share = min(step / self.steps, 1.0)
        return self.floor + (1.0 - self.floor) * (1.0 + math.cos(math.pi * share)) / 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Warmup:
    """A straight line from 1 / `steps` to one over the first `steps` steps, then the schedule `then` from its start."""

    steps: int
    then: Schedule = Constant()

    def __post_init__(self) -> None:
        _require(self.steps >= 1, f"steps={self.steps}")

    def __call__(self, step: int) -> float:
        return (step + 1) / self.steps if step < self.steps else self.then(step - self.steps)


def _require(holds: bool, detail: str) -> None:
    if not holds:
        raise BlindsumError("training-request-invalid", f"schedule with {detail}")
