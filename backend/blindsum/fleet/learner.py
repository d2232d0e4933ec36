"""What a simulated device adds to a round: an update that it trains on its own examples, or that a function gives."""

from __future__ import annotations

import hashlib
import math
import operator
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from blindsum.fleet.data import Dataset
from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.ring import Lane
from blindsum.protocol.update import decode_lanes
from blindsum.protocol.view import RoundView
from blindsum.sdk.own import Context, Examples, update
from blindsum.sdk.trainer import Job, contribute

if TYPE_CHECKING:
    from blindsum.training import TrainingSession

__all__ = ["Floats", "FunctionLearner", "Learned", "Learner", "Local", "TrainingLearner", "personal_of"]

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Local:
    """What the function of a `FunctionLearner` is told: device (from 0), round (from 1) and the model's parameters of the round."""

    device: int
    round: int
    parameters: Floats = field(repr=False)


@dataclass(frozen=True, slots=True)
class Learned:
    """A device's part of the sum: `update` is new minus old parameters, `weight` how much it counts (in 1..weight_max), `examples`
    and the mean `loss` (of an evaluation: `metrics`) over them go into the exact sums, where less than 0 counts as 0."""

    update: Floats = field(repr=False)
    weight: int = 1
    examples: int = 1
    loss: float = 0.0
    metrics: tuple[float, ...] = ()


class Learner(Protocol):
    """Called in the process that plays the device. The same arguments must give the same answer, in whatever order devices come."""

    def learn(self, view: RoundView, device: int, plan: bytes, model: bytes) -> Learned: ...

    def uploading(self, device: int) -> None:
        """What was made of the answer leaves the device."""

    def uploaded(self, view: RoundView, device: int, weight: int, lanes: Sequence[Lane]) -> None:
        """The coordinator holds what was made of the answer."""

    def app(self, device: int) -> Examples:
        """The same for a real device: what its app registers."""

    def memories(self, devices: Sequence[int]) -> dict[int, bytes]:
        """What it has learnt of `devices` and later rounds depend on, for `remember` in another process."""

    def remember(self, memories: Mapping[int, bytes]) -> None: ...


def personal_of(memory: bytes) -> Floats:
    """The personal layers in what a `TrainingLearner` remembers of a device; empty where it has none."""
    return np.frombuffer(msgspec.msgpack.decode(memory)[1], np.float32)


class FunctionLearner:
    """A `Learner` from a function of `Local` that gives an update, or a `Learned`. What it raises ends the simulation."""

    def __init__(self, function: Callable[[Local], Floats | Learned]) -> None:
        self._function = function

    def learn(self, view: RoundView, device: int, plan: bytes, model: bytes) -> Learned:
        local = Local(device, view.number, np.frombuffer(model, "<f4").astype(np.float32))
        try:
            given = self._function(local)
        except BlindsumError:
            raise
        except Exception as error:
            at = traceback.extract_tb(error.__traceback__)[-1]
            told = f"{type(error).__name__}: {error} ({at.filename}, line {at.lineno})"
            raise BlindsumError("simulation-update-failed", told) from error
        return _checked(given if isinstance(given, Learned) else Learned(given))

    def uploading(self, device: int) -> None:
        pass

    def uploaded(self, view: RoundView, device: int, weight: int, lanes: Sequence[Lane]) -> None:
        pass

    def app(self, device: int) -> Examples:
        """Its weight counts as its number of examples, and its loss as zero."""

        def made(context: Context, parameters: Floats) -> tuple[Floats, int]:
            learned = self._function(Local(device, context.round, parameters))
            return (learned.update, learned.weight) if isinstance(learned, Learned) else (learned, 1)

        return update(made)

    def memories(self, devices: Sequence[int]) -> dict[int, bytes]:
        return {}

    def remember(self, memories: Mapping[int, bytes]) -> None:
        pass


def _checked(given: Learned) -> Learned:
    """What the function of a script gave, as what goes on. Raises BlindsumError "simulation-update-failed"."""
    try:
        # None is an array of one NaN to NumPy
        update = None if given.update is None else np.asarray(given.update, np.float32).reshape(-1)
        weight, examples = operator.index(given.weight), operator.index(given.examples)
        numbers = (float(given.loss), *(float(value) for value in given.metrics))
    except (TypeError, ValueError) as error:
        raise BlindsumError("simulation-update-failed", str(error)) from None
    if update is None:
        raise BlindsumError("simulation-update-failed", "it gave nothing")
    if examples < 0 or not all(map(math.isfinite, numbers)):
        told = f"{examples} examples, loss and metrics {', '.join(map(str, numbers))}"
        raise BlindsumError("simulation-update-failed", told)
    return Learned(update, weight, examples, numbers[0], numbers[1:])


class TrainingLearner:
    """A `Learner` that trains as the SDK does, on the examples of each device in an order that follows from the seed."""

    def __init__(self, parts: Sequence[Dataset], seed: int) -> None:
        self._parts = parts
        self._seed = seed
        self._session: tuple[bytes, TrainingSession] | None = None
        self._controls: dict[int, Floats] = {}
        self._personal: dict[int, Floats] = {}
        self._trained: dict[int, Floats] = {}

    def learn(self, view: RoundView, device: int, plan: bytes, model: bytes) -> Learned:
        job = Job(
            plan,
            model,
            lambda epoch: self._batches(device, view.number, epoch),
            session=self._opened(plan),
            personal=self._personal.get(device),
            control=self._controls.get(device),
        )
        trained = contribute(view.task, job)
        if trained.personal.size:
            self._trained[device] = trained.personal
        weight = min(trained.examples, view.task.codec.weight_max)
        return Learned(trained.update, weight, trained.examples, trained.loss, trained.metrics)

    def uploading(self, device: int) -> None:
        if device in self._trained:
            self._personal[device] = self._trained.pop(device)

    def uploaded(self, view: RoundView, device: int, weight: int, lanes: Sequence[Lane]) -> None:
        if view.task.algorithm.name == "scaffold":
            sent = decode_lanes(view.base, lanes, weight, view.manifest.rotation)
            change = sent[sent.size // 2 :]
            self._controls[device] = self._controls.get(device, np.zeros_like(change)) + change

    def app(self, device: int) -> Examples:
        return lambda context: self._batches(device, context.round, context.epoch)

    def _batches(self, device: int, number: int, epoch: int) -> Iterator[tuple[Floats, NDArray[np.int64]]]:
        part = self._parts[device]
        order = np.random.default_rng([self._seed, 3, device, number, epoch]).permutation(len(part))
        yield part.features[order], part.targets[order]

    def memories(self, devices: Sequence[int]) -> dict[int, bytes]:
        kept = {}
        for device in devices:
            vectors = [known.get(device) for known in (self._controls, self._personal)]
            if any(vector is not None for vector in vectors):
                kept[device] = msgspec.msgpack.encode([b"" if each is None else each.tobytes() for each in vectors])
        return kept

    def remember(self, memories: Mapping[int, bytes]) -> None:
        for device, raw in memories.items():
            for known, vector in zip((self._controls, self._personal), msgspec.msgpack.decode(raw), strict=True):
                if vector:
                    known[device] = np.frombuffer(vector, np.float32)

    def _opened(self, plan: bytes) -> TrainingSession:
        """One session serves all devices of a process: loading its graphs takes longer than a small model's epoch."""
        from blindsum.training import TrainingSession

        digest = hashlib.sha256(plan).digest()
        if self._session is None or self._session[0] != digest:
            self._session = (digest, TrainingSession(plan))
        return self._session[1]
