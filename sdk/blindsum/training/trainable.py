"""What of a model to train: values for `build_artifact(trainable=...)` beside names and patterns of weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from blindsum.protocol.errors import BlindsumError

RANK_MAX = 1024


@dataclass(frozen=True, slots=True)
class Head:
    """The last layer with weights: its matrix or kernel, and its bias. ("head" is short for it.)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapters:
    """Low-rank adapters (Hu et al., LoRA, arXiv 2106.09685) on the matrices of Gemm and MatMul nodes.

    y = x W becomes y = x W + (alpha / rank) x A B with W frozen, A (inputs, rank) normal with variance 1 / inputs from
    `seed`, B (rank, outputs) zero, so that nothing changes before training. Prediction, evaluation and export use
    W + (alpha / rank) A B. The trained tensors are called W + ".down" and W + ".up".

    `match`: patterns of weights or of the nodes that read them. `alpha`: None for `rank`, a factor of 1.
    """

    rank: int = 4
    alpha: float | None = None
    match: str | Sequence[str] = "*"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.rank <= RANK_MAX or not 0 < self.scale < math.inf or self.seed < 0:
            raise BlindsumError("training-request-invalid", f"{self}: rank is 1..{RANK_MAX}, alpha > 0, seed >= 0")

    @property
    def scale(self) -> float:
        return (self.rank if self.alpha is None else self.alpha) / self.rank


Trainable = str | Head | Adapters
