"""What of a fleet's settings can be known before the run to be no setting at all, or to end in nothing but failed rounds."""

from __future__ import annotations

import operator
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from blindsum.backend.plan import Plan
from blindsum.fleet.conditions import DAY_S, LOOK_MS, Population
from blindsum.fleet.data import Dataset
from blindsum.fleet.links import HOP_MS
from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.params import Derived
from blindsum.protocol.ring import packed_size
from blindsum.protocol.view import TaskView
from blindsum.testing.behaviours import Behaviour
from blindsum.training.batch import feeds_of
from blindsum.training.manifest import Manifest

__all__ = [
    "DEVICES_MAX",
    "DEVICES_MIN",
    "SEED_MAX",
    "WORKERS_MAX",
    "check_function",
    "check_name",
    "check_parts",
    "check_place",
    "check_possible",
    "check_roles",
    "check_run",
    "check_step",
    "check_vector",
    "of_kind",
    "whole",
    "worded",
]

DEVICES_MAX: Final = 100_000
DEVICES_MIN: Final = 3
WORKERS_MAX: Final = 64
SEED_MAX: Final = (1 << 63) - 1
ANNOUNCEMENT_SIZE: Final = 8000
JOIN_SIZE: Final = 500
HEADER_SIZE: Final = 5000
"""Bytes of the least that these messages have."""
NAME_LENGTH_MAX: Final = 100

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
        if behaviour.role not in ("", kind):
            raise _impossible(
                f"byzantine {name}: {type(behaviour).__name__} is what a {behaviour.role} does, not a {kind}"
            )


def check_parts(manifest: Manifest, data: Sequence[Dataset], test: Dataset | None) -> None:
    """Raises BlindsumError "training-batch-invalid", or "simulation-impossible" for examples that are not there, with whose they
    are."""
    named = [(f"the data of device {number}", part) for number, part in enumerate(data)]
    for whose, part in named if test is None else [*named, ("test", test)]:
        if not isinstance(part, Dataset):
            raise _impossible(f"{whose} is of type {type(part).__name__}, not a Dataset")
        if not isinstance(part.features, np.ndarray) or not isinstance(part.targets, np.ndarray):
            raise _impossible(f"{whose}: features and targets are NumPy arrays, not {type(part.features).__name__}")
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


def check_name(name: object) -> str:
    """Raises BlindsumError "simulation-impossible"."""
    if not isinstance(name, str) or len(name) > NAME_LENGTH_MAX:
        raise _impossible(f"name is {str(name)[:NAME_LENGTH_MAX]!r}, not a text of up to {NAME_LENGTH_MAX} characters")
    return name


def check_step(base: TaskView, parameters: NDArray[np.float32]) -> None:
    """Raises BlindsumError "simulation-impossible" where a model would be trained in steps larger than itself."""
    codec = base.task.codec
    step, largest = codec.range_micros / 1e6 / ((1 << (codec.bits - 1)) - 1), float(np.abs(parameters).max())
    if step > max(largest, 1.0):
        raise _impossible(
            f"clip_norm is {codec.clip_micros / 1e6:g}: in {codec.bits} bits a value an update changes a parameter by {step:.3g} "
            f"or not at all, and the model's largest is {largest:.3g}: take a clip_norm near an update's norm, or a wider ring"
        )


def check_run(file: Path | None, *, resume: bool, real: bool, tracker: object) -> None:
    """Raises BlindsumError "simulation-impossible" where a run could not keep its checkpoint in `file` or tell its tracker,
    "simulation-unreadable" where there is nothing to resume."""
    if tracker is not None and not callable(getattr(tracker, "round", None)):
        raise _impossible(f"tracker is {tracker!r}, not one of blindsum.backend.tracking")
    if file is not None and real:
        raise _impossible("devices over MQTT keep their own state: no checkpoint holds it")
    if resume and file is None:
        raise BlindsumError("simulation-unreadable", "resume needs the checkpoint to go on from")
    if file is not None:
        check_place(file)


def check_place(file: Path) -> None:
    """Raises BlindsumError "simulation-impossible" where `file` cannot be written."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=file.parent):
            pass
        if file.is_dir():
            raise IsADirectoryError("it is a folder")
    except OSError as error:
        raise _impossible(f"{file} cannot be written: {error}") from None


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
    base: TaskView,
    population: Population,
    byzantine: Mapping[str, Any],
) -> None:
    """Raises BlindsumError "simulation-impossible" where nothing but failed rounds can come of it, or what is promised cannot be
    kept."""
    threat, size, dropout = plan.threat, population.size, population.dropout
    joins, ends, slowest = _reach(plan, base, population)
    lost = dropout.after_joining + (1 - dropout.after_joining) * (1 - ends)
    late = (
        f"; {1000 * (1 - ends):.0f} permille of the devices cannot train and upload in time, {slowest}"
        if ends < 1
        else ""
    )
    if plan.profile == "roster" and round(1000 * lost, 6) > threat.dropped_permille:
        raise _impossible(
            f"{1000 * lost:.0f} permille of a roster drop out; the threat model allows {threat.dropped_permille}: "
            f"rounds would fail with survivors-too-few{late}"
        )
    joining = joins * max(map(population.expected, range(0, int(1000 * DAY_S), LOOK_MS)))
    if joining < derived.n_min:
        far = (
            f"; {1000 * (1 - joins):.0f} permille of the links cannot carry a join in {plan.join_s:g} s"
            if joins < 1
            else ""
        )
        raise _impossible(
            f"{joining:.0f} devices join at best, a round takes {derived.n_min}: rounds would fail with cohort-too-small{far}"
        )
    if plan.profile == "no-roster" and joining * (1 - lost) < derived.survivors_min:
        raise _impossible(
            f"{joining * (1 - lost):.0f} of {size} devices upload in a round at best, which takes {derived.survivors_min}: "
            f"rounds would fail with survivors-too-few{late}"
        )
    parties = sum(name.startswith("party/") for name in byzantine)
    if parties > threat.malicious_parties:
        raise _impossible(f"{parties} byzantine parties, the threat model allows {threat.malicious_parties}")
    bad, most = len(byzantine) - parties, threat.corrupt(size)
    if bad > most:
        raise _impossible(f"{bad} byzantine devices, the threat model allows {most} of {size}")


def _reach(plan: Plan, base: TaskView, population: Population) -> tuple[float, float, str]:
    """(share of the devices whose links can carry a join in time, share of these that can have uploaded in time, what the slowest
    takes), at best: no message is late, nothing is sent twice."""
    down, up, way = population.down, population.up, HOP_MS + population.latency_ms
    told = way + ANNOUNCEMENT_SIZE / down
    inputs, sent = base.task.plan.size + base.task.model.size, HEADER_SIZE + packed_size(base.segments)
    fetch, upload = inputs / down, way + sent / up
    took = told + fetch + population.train_ms + upload
    if plan.profile == "roster":
        joins = told + way + JOIN_SIZE / up < 1000 * plan.join_s
        ends = (took < 1000 * (plan.join_s + plan.upload_s)) & (population.train_ms < 1000 * plan.upload_s)
    else:
        joins = np.ones(population.size, bool)
        rounds, pause_s = plan.staleness + 1, population.conditions.pause_s
        ends = took < 1000 * (rounds * (plan.join_s + plan.upload_s) + plan.staleness * pause_s)
    worst = int(np.argmax(np.where(joins, took, -1)))
    told_of = (
        f"the slowest takes {fetch[worst] / 1000:.3g} s to fetch {inputs} bytes, {population.train_ms[worst] / 1000:.3g} s to "
        f"train, {upload[worst] / 1000:.3g} s to upload {sent} bytes; a round has {plan.join_s:g} s + {plan.upload_s:g} s"
    )
    return float(joins.mean()), float(ends[joins].mean()) if joins.any() else 1.0, told_of


def _impossible(detail: str) -> BlindsumError:
    return BlindsumError("simulation-impossible", detail)
