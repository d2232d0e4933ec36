"""Data sets for simulated fleets."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from blindsum.fleet.data import digits
from blindsum.protocol.errors import BlindsumError


def test_digits_are_split_into_train_and_held_out_once_and_for_all() -> None:
    train, held = digits()
    assert (len(train), len(held)) == (1347, 450)
    for data in (train, held):
        assert data.features.shape == (len(data), 64) and data.features.dtype == np.float32
        assert data.targets.shape == (len(data),) and data.targets.dtype == np.int64
        assert data.features.min() == 0.0 and data.features.max() == 1.0
        assert set(data.targets.tolist()) == set(range(data.classes))
    again, _ = digits()
    assert (again.features == train.features).all() and (again.targets == train.targets).all()


def test_no_held_out_digit_is_trained_on_and_each_class_keeps_its_share() -> None:
    from sklearn.datasets import load_digits

    train, held = digits()
    pixels, labels = load_digits(return_X_y=True)
    rows = sorted(map(bytes, (pixels / 16).astype(np.float32)))
    assert sorted(map(bytes, [*train.features, *held.features])) == rows
    shares = np.bincount(held.targets) / np.bincount(labels)
    assert np.abs(shares - 0.25).max() < 0.01


def test_take_and_shuffled_keep_features_and_targets_together() -> None:
    train, _ = digits()
    part = train.take(np.array([5, 3]))
    assert (part.features == train.features[[5, 3]]).all() and part.targets.tolist() == train.targets[[5, 3]].tolist()
    one, same, other = train.shuffled(1, 2), train.shuffled(1, 2), train.shuffled(1, 3)
    assert (one.features == same.features).all() and (one.features != other.features).any()
    pairs = {(bytes(x), int(y)) for x, y in zip(train.features, train.targets, strict=True)}
    assert {(bytes(x), int(y)) for x, y in zip(one.features, one.targets, strict=True)} == pairs


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(BlindsumError, match="pip install") as caught:
        digits()
    assert caught.value.code == "fleet-package-missing"
