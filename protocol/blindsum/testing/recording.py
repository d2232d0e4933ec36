"""Recorded rounds: what a round gave to a device and what the app's function made of it, kept in a file to be made again.

A recording is a vector of an app's own: its function for a task, whatever the app does before it yields, must still add the same.
Nothing is needed to play it, neither backend nor network nor keys.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from blindsum.protocol.codec import DecodeError, decode, encode
from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.trust import Trust
from blindsum.sdk.device import Device
from blindsum.sdk.own import Examples
from blindsum.sdk.rehearsal import perform, task_of
from blindsum.sdk.trainer import Trained

__all__ = ["Recording", "Replay", "record"]

KIND = "blindsum recording 1"
CLOSE_RELATIVE, CLOSE_ABSOLUTE = 1e-3, 1e-5
"""How near floats of two machines must be: each has its own order of sums."""


@dataclass(frozen=True, slots=True)
class Replay:
    """What a function adds now. `differences`: from what it added when it was recorded, for people; empty where it is the same."""

    update: NDArray[np.float32] = field(repr=False)
    statistics: tuple[int, ...]
    differences: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Recording:
    """Round `round` of task `task` on one device. `update`: the change of the shared parameters, before it was clipped and masked
    (of a query: empty); `statistics`: the integers beside it, the number of examples first (of a query: its answer).

    The signed task, the plan and the round's model are in it; the app's data are not."""

    task: str
    round: int
    update: NDArray[np.float32] = field(repr=False)
    statistics: tuple[int, ...]
    _trust: bytes = field(repr=False)
    _record: bytes = field(repr=False)
    _plan: bytes = field(repr=False)
    _model: bytes = field(repr=False)

    def save(self, path: str | Path) -> None:
        """Write it to a file, for the repository of the app's tests."""
        vectors = [self._trust, self._record, self._plan, self._model, self.update.astype("<f4").tobytes()]
        Path(path).write_bytes(encode([KIND, self.task, self.round, list(self.statistics), *vectors]))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Raises OSError, or BlindsumError "recording-invalid"."""
        try:
            kind, task, number, statistics, trust, record, plan, model, update = decode(Path(path).read_bytes())
            if kind != KIND:
                raise ValueError(kind)
            vector = np.frombuffer(update, "<f4").astype(np.float32)
            return cls(task, number, vector, tuple(statistics), trust, record, plan, model)
        except (DecodeError, ValueError, TypeError) as error:
            raise BlindsumError("recording-invalid", f"{path}: {error}") from None

    def replay(self, function: Examples | Device) -> Replay:
        """Let the app's function for the task, or the one that it has registered with a device, do the round's work again.
        Raises what training or the function raises."""
        if isinstance(function, Device):
            function = function._function(self.task)
        base = task_of(Trust.decode(self._trust), self._record)
        trained = perform(base, self._plan, self._model, function, self.round)
        return Replay(trained.update, tuple(trained.statistics), tuple(self._differences(trained, bool(self._model))))

    def _differences(self, now: Trained, trains: bool) -> list[str]:
        told = []
        for place, (before, after) in enumerate(zip(self.statistics, now.statistics, strict=True)):
            close = trains and place and math.isclose(before, after, rel_tol=CLOSE_RELATIVE, abs_tol=10.0)
            if before != after and not close:
                told.append(f"statistic {place}: {after}, recorded {before}")
        if self.update.shape != now.update.shape:
            told.append(f"update: {now.update.size} parameters, recorded {self.update.size}")
        elif not np.allclose(now.update, self.update, rtol=CLOSE_RELATIVE, atol=CLOSE_ABSOLUTE):
            furthest = float(np.abs(now.update - self.update).max())
            told.append(f"update: up to {furthest:.3g} from the recorded one, whose length is {self._length():.3g}")
        return told

    def _length(self) -> float:
        return float(np.linalg.norm(self.update))


def record(device: Device, task: str) -> Recording:
    """Record the newest round of `task` that came to `device`, with what its function makes of it now. Nothing leaves. Raises
    BlindsumError "task-not-registered" or "model-unknown", and what training or the function raises."""
    function = device._function(task)
    raw, plan, model, number = device.model(task).newest()
    trained = perform(task_of(device._trust, raw), plan, model, function, number)
    return Recording(task, number, trained.update, tuple(trained.statistics), device._trust.encode(), raw, plan, model)
