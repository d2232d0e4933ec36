"""Layers that stay where they are trained: the parameters of an artifact, cut into those that are shared and those that are not.

Of a device's parameters only the shared ones enter a federated update; the personal ones never leave it (FedPer, Arivazhagan et
al. 2019). Both keep the order of the flat vector.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from .manifest import Manifest

Floats = NDArray[np.float32]


def split(manifest: Manifest, flat: Floats) -> tuple[Floats, Floats]:
    """(shared, personal) of one flat vector of `manifest.size`."""
    chosen = _mask(manifest)
    return flat[~chosen], flat[chosen]


def join(manifest: Manifest, shared: Floats, personal: Floats) -> Floats:
    """The flat vector that `split` cut. Raises ValueError where the lengths are not those of the manifest."""
    chosen = _mask(manifest)
    if (shared.size, personal.size) != (int((~chosen).sum()), int(chosen.sum())):
        raise ValueError(f"{shared.size} shared and {personal.size} personal parameters do not fit the artifact")
    flat = np.empty(chosen.size, np.float32)
    flat[~chosen], flat[chosen] = shared, personal
    return flat


def _mask(manifest: Manifest) -> NDArray[np.bool_]:
    return np.concatenate(list(_masks(manifest)))


def _masks(manifest: Manifest) -> Iterator[NDArray[np.bool_]]:
    for weight in manifest.parameters:
        yield np.full(math.prod(weight.shape), weight.name in manifest.personal)
