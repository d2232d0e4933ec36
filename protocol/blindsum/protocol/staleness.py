"""What an update counts that was trained on an earlier model than the one it is added to (SPEC.md section 5.8).

The discount 1/√(1 + τ) is FedBuff's (Nguyen et al., AISTATS 2022, arXiv 2106.06639), after Xie et al., arXiv 1903.03934.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["discounted", "staleness"]


def staleness(number: int, *, began: int, same_model: bool, most: int) -> int | None:
    """τ, in rounds, of what was trained for round `began` and goes into round `number`: 0 where both start from one model. None
    where it may not: it is of no earlier round, or over `most` rounds old."""
    age = number - began
    if not 0 < age <= most:
        return None
    return 0 if same_model else age


def discounted(update: NDArray[np.float32], tau: int) -> NDArray[np.float32]:
    """`update` / √(1 + τ): quotients in binary64, rounded to binary32."""
    return (update.astype(np.float64) / math.sqrt(1.0 + tau)).astype(np.float32)
