"""Data sets for simulated fleets: real ones that come inside packages, so that nothing is downloaded at run time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from blindsum.protocol.errors import BlindsumError

__all__ = ["Dataset", "digits"]

HELD_OUT_SHARE: Final = 0.25
SPLIT_SEED: Final = 1998  # which examples are held out is part of the data set, not of an experiment


@dataclass(frozen=True, slots=True)
class Dataset:
    """Labelled examples: `features` float32 (n, d), `targets` int64 (n,) in 0..classes - 1."""

    name: str
    features: NDArray[np.float32] = field(repr=False)
    targets: NDArray[np.int64] = field(repr=False)
    classes: int

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, indices: NDArray[np.int64]) -> Dataset:
        """The examples at `indices`, in that order: what one owner holds."""
        return Dataset(self.name, self.features[indices], self.targets[indices], self.classes)

    def shuffled(self, *seed: int) -> Dataset:
        """All examples in an order that follows from `seed` (numbers >= 0, for example run, device, round, epoch)."""
        return self.take(np.random.default_rng(seed).permutation(len(self)))


def digits() -> tuple[Dataset, Dataset]:
    """1797 handwritten digits of 43 people, 8x8 pixels scaled to 0..1: (1347 to train, 450 held out).

    The split keeps each class's share and is always the same. Source: E. Alpaydin and C. Kaynak, "Optical Recognition of
    Handwritten Digits" (the test set of it), UCI Machine Learning Repository 1998, doi 10.24432/C50P49, licence
    CC BY 4.0; the copy is the one inside scikit-learn (BSD 3-clause). Raises "fleet-package-missing".
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ModuleNotFoundError as error:
        raise BlindsumError("fleet-package-missing", f"digits needs scikit-learn ({error})") from error
    pixels, labels = load_digits(return_X_y=True)
    parts = train_test_split(
        (pixels / 16).astype(np.float32),
        labels.astype(np.int64),
        test_size=HELD_OUT_SHARE,
        stratify=labels,
        random_state=SPLIT_SEED,
    )
    train_features, held_features, train_targets, held_targets = parts
    return (
        Dataset("digits", train_features, train_targets, 10),
        Dataset("digits, held out", held_features, held_targets, 10),
    )
