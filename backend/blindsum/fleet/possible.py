"""What of a fleet's settings can be known before the run to be no setting at all, or to end in nothing but failed rounds."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from blindsum.backend.tasks import Plan
from blindsum.fleet.conditions import Population
from blindsum.fleet.data import Dataset
from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.params import Derived
from blindsum.testing.behaviours import Behaviour
from blindsum.training.batch import feeds_of
from blindsum.training.manifest import Manifest

__all__ = [
    "DEVICES_MAX",
    "DEVICES_MIN",
    "SEED_MAX",
    "WORKERS_MAX",
    "check_function",
    "check_parts",
    "check_possible",
    "check_roles",
    "check_vector",
    "of_kind",
    "whole",
    "worded",
]

DEVICES_MAX: Final = 100_000
DEVICES_MIN: Final = 3
WORKERS_MAX: Final = 64
SEED_MAX: Final = (1 << 63) - 1

T = TypeVar("T")


def whole(name: str, value: object, least: int, most: int) -> int:
    """A whole number, Python's or NumPy's. Raises BlindsumError "simulation-impossible"."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise _impossible(f"{name} is {value!r}, not a whole number") from None
    if isinstance(value, bool) or not least <= number <= most:
        raise _impossible(f"{name} is {value}, not in {least}..{most}")
    return number


def of_kind(name: str, value: T | None, kind: type[T]) -> T:
    """`value`, or all defaults. Raises BlindsumError "simulation-impossible"."""
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise _impossible(f"{name} is {value!r}, not a {kind.__name__}")
    return value


def worded(name: str, value: object, words: Sequence[str]) -> None:
    """Raises BlindsumError "simulation-impossible" where `value` is none of `words`."""
    if value not in words:
        raise _impossible(f"{name} is {value!r}; known: {', '.join(words)}")


def check_roles(byzantine: Mapping[str, Behaviour], devices: int, parties: int) -> None:
    """Raises BlindsumError "simulation-impossible" where a behaviour is none, or nobody's."""
    for name, behaviour in byzantine.items():
        kind, _, number = name.partition("/")
        first, last = (1, parties) if kind == "party" else (0, devices - 1)
        if kind not in ("party", "device") or not number.isdecimal() or not first <= int(number) <= last:
            known = f"party/1 to party/{parties}, device/0 to device/{devices - 1}"
            raise _impossible(f"byzantine {name!r} is no role of this fleet; known: {known}")
        if not isinstance(behaviour, Behaviour):
            raise _impossible(f"byzantine {name}: {behaviour!r} is no Behaviour")


def check_parts(manifest: Manifest, data: Sequence[Dataset], test: Dataset | None) -> None:
    """Raises BlindsumError "training-batch-invalid", or "simulation-impossible" for examples that are not there, with whose they
    are."""
    named = [(f"the data of device {number}", part) for number, part in enumerate(data)]
    for whose, part in named if test is None else [*named, ("test", test)]:
        if not isinstance(part, Dataset):
            raise _impossible(f"{whose} is of type {type(part).__name__}, not a Dataset")
        if not len(part):
            raise _impossible(f"{whose}: no examples (parts of `blindsum.fleet.partition` have at least `minimum`)")
        try:
            feeds = feeds_of(manifest, part.features, part.targets)
        except BlindsumError as error:
            raise BlindsumError(error.code, f"{whose}: {error.detail}") from None
        for array in feeds.values():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise BlindsumError("training-batch-invalid", f"{whose} holds NaN or infinity")


def check_function(plan: Plan, *, artifact: bool) -> None:
    """Raises BlindsumError "simulation-impossible" where a plan asks for what a function that gives updates cannot do."""
    if plan.algorithm == "scaffold":
        raise _impossible("scaffold's control variates come from training: give an artifact and data, not a function")
    if plan.algorithm == "evaluate" and not artifact:
        raise _impossible("evaluate sums an artifact's metrics, and leaves parameters as they are: bare ones have none")
    if plan.proximal:
        raise _impossible("proximal pulls at the steps of a training: give an artifact and data, not a function")


def check_vector(name: str, vector: object) -> NDArray[np.float32]:
    """One number or more as flat float32. Raises BlindsumError "simulation-impossible"."""
    try:
        flat: NDArray[np.float32] = np.asarray(vector, np.float32).reshape(-1)
    except (TypeError, ValueError):
        raise _impossible(
            f"{name} is of type {type(vector).__name__}: neither an artifact's bytes nor parameters"
        ) from None
    if vector is None or not flat.size or not np.isfinite(flat).all():
        raise _impossible(f"{name}: {flat.size} numbers to start from, not one or more that are all finite")
    return flat


def check_possible(
    plan: Plan,
    derived: Derived,
    population: Population,
    byzantine: Mapping[str, Any],
) -> None:
    """Raises BlindsumError "simulation-impossible" where nothing but failed rounds can come of it, or what is promised cannot be
    kept."""
    threat, size, dropout = plan.threat, population.size, population.dropout
    slow = 0.0 if plan.staleness else float((population.train_ms >= 1000 * plan.upload_s).mean())
    lost = dropout.after_joining + (1 - dropout.after_joining) * slow
    if plan.profile == "roster" and round(1000 * lost, 6) > threat.dropped_permille:
        late = (
            f", {1000 * slow:.0f} permille of the devices train longer than the {plan.upload_s:g} s of a round"
            if slow
            else ""
        )
        raise _impossible(
            f"{1000 * lost:.0f} permille of a roster drop out{late}; the threat model allows {threat.dropped_permille}: "
            "rounds would fail with survivors-too-few"
        )
    hours = population.conditions.availability
    joining = size * (1 - dropout.before_join) * max(hours.day, hours.night)
    if joining < derived.n_min:
        raise _impossible(
            f"{joining:.0f} devices join at best, a round takes {derived.n_min}: rounds would fail with cohort-too-small"
        )
    parties = sum(name.startswith("party/") for name in byzantine)
    if parties > threat.malicious_parties:
        raise _impossible(f"{parties} byzantine parties, the threat model allows {threat.malicious_parties}")
    bad, most = len(byzantine) - parties, threat.corrupt(size)
    if bad > most:
        raise _impossible(f"{bad} byzantine devices, the threat model allows {most} of {size}")


def _impossible(detail: str) -> BlindsumError:
    return BlindsumError("simulation-impossible", detail)
