"""From what a caller passes as a batch to what the graphs take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from blindsum.protocol.errors import BlindsumError

from .manifest import TARGETS, Batch, DType, Manifest, Targets, feature

Features = ArrayLike | Mapping[str, ArrayLike] | tuple[ArrayLike, ...]
"""An array where the model has one input, else one for each: by name, or as a tuple in the manifest's order."""
Feeds = dict[str, NDArray[Any]]
"""Arrays of equal length by graph input."""

FEW = 128  # class numbers that are looked up one by one, as numpy takes 6 us between two steps
CLASSES_MAX = 1024  # that are kept for it

_NATIVE = {name: np.dtype(name) for name in get_args(DType)}  # numpy has one object of each


class Feeder:
    """`feeds_of` for one manifest and many batches: one in all like the last costs a few microseconds.

    Between two steps the weights drive all else out of the core's cache, so a line less is worth more than it looks.
    """

    __slots__ = ("_classes", "_features", "_manifest", "_several", "_targets")

    def __init__(self, manifest: Manifest) -> None:
        self._manifest, self._several = manifest, len(manifest.features) > 1
        goal, high = manifest.targets, manifest.targets.high or 0.0
        few = goal.dtype == "int64" and not goal.shape and goal.low == 0 and 0 < high < CLASSES_MAX
        self._classes = frozenset(range(int(high) + 1 if few else 0))  # that targets must be of, where those are few
        # of the last batch, as the graph took it
        self._features: list[tuple[str, np.dtype[Any], tuple[int, ...]]] = []
        self._targets: tuple[np.dtype[Any], tuple[int, ...]] | None = None

    def __call__(self, features: Features, targets: ArrayLike) -> Feeds:
        """Raises what `feeds_of` raises."""
        given = features if self._several else (features,)
        if self._targets is not None and type(given) is tuple and type(targets) is np.ndarray:
            feeds: Feeds = {}
            for array, (name, dtype, shape) in zip(given, self._features, strict=False):
                if (
                    type(array) is np.ndarray
                    and array.dtype is dtype
                    and array.shape == shape
                    and array.flags.c_contiguous
                ):
                    feeds[name] = array
            dtype, shape = self._targets
            if (
                len(feeds) == len(given) == len(self._features)
                and targets.dtype is dtype
                and targets.shape == shape
                and targets.flags.c_contiguous
            ):
                few = self._classes and len(targets) <= FEW
                if not few or not self._classes.issuperset(targets.tolist()):
                    _require_range(targets, self._manifest.targets)
                feeds[TARGETS] = targets
                return feeds
        return self._look(features, targets)

    def _look(self, features: Features, targets: ArrayLike) -> Feeds:
        """`feeds_of`, and what to expect next."""
        feeds = feeds_of(self._manifest, features, targets)
        self._features = [(name, array.dtype, array.shape) for name, array in feeds.items() if name != TARGETS]
        self._targets = feeds[TARGETS].dtype, feeds[TARGETS].shape
        return feeds


def feeds_of(manifest: Manifest, features: Features, targets: ArrayLike) -> Feeds:
    """Raises "training-batch-invalid" where shapes, types, lengths or ranges are not those of the manifest."""
    feeds, wanted = features_of(manifest, features), _array("targets", targets, manifest.targets)
    if rows_of(feeds) != len(wanted):
        raise BlindsumError("training-batch-invalid", f"{rows_of(feeds)} features but {len(wanted)} targets")
    _require_range(wanted, manifest.targets)
    return {**feeds, TARGETS: wanted}


def features_of(manifest: Manifest, features: Features) -> Feeds:
    """As `feeds_of`, without targets."""
    wanted = manifest.features
    features = by_name(manifest, features)
    title = "features" if len(wanted) == 1 else "features {}"
    feeds = {feature(i.name): _array(title.format(i.name), features[i.name], i) for i in wanted}
    if len({len(array) for array in feeds.values()}) > 1:
        raise BlindsumError("training-batch-invalid", f"features of {[len(x) for x in feeds.values()]} rows")
    return feeds


def by_name(manifest: Manifest, features: Features) -> Mapping[str, ArrayLike]:
    """The arrays of `features` by the name of the model's input."""
    names = [item.name for item in manifest.features]
    if not isinstance(features, Mapping):
        given = features if isinstance(features, tuple) and len(names) > 1 else (features,)
        if len(given) != len(names):
            raise BlindsumError("training-batch-invalid", f"{len(given)} arrays for the inputs {', '.join(names)}")
        features = dict(zip(names, given, strict=True))
    if set(features) != set(names):
        raise BlindsumError(
            "training-batch-invalid", f"features {', '.join(map(str, features))}, not {', '.join(names)}"
        )
    return features


def rows_of(feeds: Feeds) -> int:
    return len(next(iter(feeds.values())))


def pieces(feeds: Feeds, rows_max: int) -> Iterator[Feeds]:
    """The batch in pieces of at most `rows_max` rows."""
    for start in range(0, rows_of(feeds), rows_max):
        yield {name: array[start : start + rows_max] for name, array in feeds.items()}


def infinite(feeds: Feeds) -> str:
    """Names the first array that holds NaN or infinity; '' where none does."""
    wrong = (name for name, array in feeds.items() if array.dtype.kind == "f" and not np.isfinite(array).all())
    return next(wrong, "")


def _array(title: str, values: ArrayLike, wanted: Batch) -> NDArray[Any]:
    """`values` as a contiguous array of the wanted type, where that loses nothing but float precision."""
    dtype = np.dtype(wanted.dtype)
    if type(values) is np.ndarray and _is_ready(values, wanted):
        return values
    try:
        array = np.asarray(values)
    except ValueError as error:  # rows of different lengths
        raise BlindsumError("training-batch-invalid", f"{title}: {error}") from None
    if not (np.can_cast(array.dtype, dtype, "same_kind") or (dtype.kind == "f" and array.dtype.kind in "iub")):
        raise BlindsumError("training-batch-invalid", f"{title} of type {array.dtype}, not {dtype}")
    if array.ndim == 0 or not len(array) or array.shape[1:] not in (wanted.shape, _without_last_one(wanted.shape)):
        raise BlindsumError(
            "training-batch-invalid",
            f"{title} of shape {array.shape}, not (batch, {', '.join(map(str, wanted.shape))})",
        )
    with np.errstate(over="ignore"):  # an infinity shows in the loss
        return np.ascontiguousarray(array.reshape(len(array), *wanted.shape), dtype=dtype)


def _is_ready(array: NDArray[Any], wanted: Batch) -> bool:
    """True for what the graph takes as it is."""
    shape = array.shape
    return (
        array.dtype is _NATIVE[wanted.dtype]
        and shape[1:] == wanted.shape
        and array.flags.c_contiguous
        and shape[:1] > (0,)
    )


def _without_last_one(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(batch,) stands for (batch, 1): one number for each example."""
    return shape[:-1] if shape and shape[-1] == 1 else shape


def _require_range(targets: NDArray[Any], wanted: Targets) -> None:
    if wanted.low is None or wanted.high is None:
        return
    if wanted.low == 0 and wanted.dtype == "int64" and int(targets.view(np.uint64).max()) <= wanted.high:
        return  # read as unsigned, what is negative is above every class: one pass for both bounds
    low, high = targets.min(), targets.max()  # NaN fails too
    if low >= wanted.low and high <= wanted.high:
        return
    right = (targets >= wanted.low) & (targets <= wanted.high)
    if wanted.ignored is None or not np.all(right | (targets == wanted.ignored)):
        raise BlindsumError(
            "training-batch-invalid", f"targets from {low} to {high}, not in {wanted.low:g}..{wanted.high:g}"
        )
