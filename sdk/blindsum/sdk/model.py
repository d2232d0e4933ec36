"""The models of a task on this device: versions that came with its rounds, the one in use, and what is personal in them."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from blindsum.protocol.codec import ready
from blindsum.protocol.eligibility import SHARE_MAX, place_of
from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.view import RoundView
from blindsum.runtime.system import now_ms
from blindsum.runtime.vault import Vault, unseal

if TYPE_CHECKING:
    from blindsum.training import TrainingSession

__all__ = ["MODELS_FOLDER", "Model", "Version"]

MODELS_FOLDER: Final = "models"
VERSIONS_MAX: Final = 4
"""Versions kept beside the active one and the one before it."""

Batch = tuple[ArrayLike | Mapping[str, ArrayLike] | tuple[ArrayLike, ...], ArrayLike]


@dataclass(frozen=True, slots=True)
class Version:
    """The model with which round `number` began; a quorum of parties had recomputed it. `at`: when it came, milliseconds."""

    number: int
    sha256: str
    at: int


@ready
class _Entry(msgspec.Struct, frozen=True):
    sha256: str
    plan: str
    at: int


@ready
class _Index(msgspec.Struct, frozen=True):
    versions: dict[int, _Entry] = {}
    active: int = 0
    previous: int = 0
    tuned: int = 0


class Model:
    """What the app does with the models of one task: look, activate, roll back, predict. Any thread; works while the device runs
    and while it does not. Methods raise BlindsumError "model-unknown" where there is no such version, "training-package-missing"
    without onnxruntime, "secret-wrong", and with a database code where the disk fails; nothing has changed then."""

    def __init__(self, place: Path, *, device: str, task: str, vault: Vault | None) -> None:
        self._place, self._device, self._task, self._vault = place, device, task, vault
        self._lock = threading.RLock()
        self._index = self._read_index()
        self._session: TrainingSession | None = None

    def __repr__(self) -> str:
        return f"Model({self._task!r}, active={self._index.active or None})"

    @property
    def versions(self) -> list[Version]:
        """Those that are here, newest first."""
        found = sorted(self._index.versions.items(), reverse=True)
        return [Version(number, entry.sha256, entry.at) for number, entry in found]

    @property
    def active(self) -> int | None:
        """The number of the version in use, None before the first `activate`."""
        return self._index.active or None

    @property
    def tuned(self) -> bool:
        """Whether the version in use has been fine-tuned here."""
        return bool(self._index.tuned) and self._index.tuned == self._index.active

    def activate(self, number: int | None = None, *, share: float = 1.0) -> bool:
        """Use version `number` from now on (None: the newest), as it came. With `share` only on that part of all devices, which
        follows from device and version; says whether this device is among them."""
        with self._lock:
            number = number if number is not None else max(self._index.versions, default=0)
            self._entry(number)
            if place_of(self._device, f"{self._task}/{number}") >= round(share * SHARE_MAX):
                return False
            if number != self._index.active:
                self._change(active=number, previous=self._index.active, tuned=0)
            elif self._index.tuned:
                self._change(tuned=0)
            return True

    def rollback(self) -> int:
        """Use the version before again. Returns its number."""
        with self._lock:
            self._entry(self._index.previous)
            self._change(active=self._index.previous, previous=self._index.active, tuned=0)
            return self._index.active

    def predict(self, features: ArrayLike | Mapping[str, ArrayLike] | tuple[ArrayLike, ...]) -> NDArray[np.float32]:
        """The output of the version in use for features of shape (batch, ...), with the personal layers of this device."""
        with self._lock:
            return self._loaded().predict(features)

    def evaluate(self, features: ArrayLike | Mapping[str, ArrayLike], targets: ArrayLike) -> dict[str, float]:
        """Loss and metrics of the version in use over local examples. Nothing of it leaves the device."""
        with self._lock:
            return self._loaded().evaluate(features, targets)

    def tune(self, batches: Iterable[Batch] | Callable[[int], Iterable[Batch]], *, epochs: int = 1) -> float:
        """Fine-tune the version in use on local examples, for this device alone, and use that from now on; `activate` takes it
        back. Returns the last epoch's loss. Raises what training raises, and changes nothing then."""
        with self._lock:
            session = self._loaded()
            before = session.parameters
            try:
                report = session.fit(batches, epochs=epochs)
                self._write("tuned", session.parameters.astype("<f4").tobytes())
                self._change(tuned=self._index.active)
                self._session = session
            except BaseException:
                session.parameters = before
                raise
            return report.epochs[-1].loss

    # -- for the device -------------------------------------------------------------------------------------------

    def keep(self, view: RoundView, plan: bytes, model: bytes) -> None:
        """Keep the model of a round, with the plan and the record it belongs to."""
        with self._lock:
            if view.number in self._index.versions:
                return
            if view.task.algorithm.name == "scaffold":
                model = model[: len(model) // 2]  # what follows the parameters is the server's control variate
            plan_digest = hashlib.sha256(plan).hexdigest()
            if plan_digest not in {entry.plan for entry in self._index.versions.values()}:
                self._write(f"plan-{plan_digest}", plan)
            self._write("task", view.base.raw)
            self._write(f"{view.number:08d}", model)
            entry = _Entry(hashlib.sha256(model).hexdigest(), plan_digest, now_ms())
            versions = {**self._index.versions, view.number: entry}
            in_use = {self._index.active, self._index.previous}
            kept = set(sorted(set(versions) - in_use)[-VERSIONS_MAX:]) | in_use
            self._change(versions={number: one for number, one in versions.items() if number in kept})
            self._tidy()

    def personal(self) -> NDArray[np.float32] | None:
        """This device's own layers, None before it has trained any."""
        data = self._read("personal")
        return None if data is None else np.frombuffer(data, "<f4").astype(np.float32)

    def keep_personal(self, values: NDArray[np.float32]) -> None:
        """Use these layers of its own from now on."""
        with self._lock:
            self._write("personal", values.astype("<f4").tobytes())
            self._session = None

    def newest(self) -> tuple[bytes, bytes, bytes, int]:
        """(signed task, plan, model, number) of the newest version."""
        with self._lock:
            number = max(self._index.versions, default=0)
            entry, record = self._entry(number), self._read("task")
            plan, model = self._read(f"plan-{entry.plan}"), self._read(f"{number:08d}")
            if record is None or plan is None or model is None:
                raise BlindsumError("model-unknown", f"{self._task}, version {number}: its files are gone")
            return record, plan, model, number

    # -- helpers --------------------------------------------------------------------------------------------------

    def _loaded(self) -> TrainingSession:
        if self._session is not None:
            return self._session
        from blindsum.training import TrainingSession
        from blindsum.training.personal import join, split

        number = self._index.active
        entry = self._entry(number)
        plan, model = self._read(f"plan-{entry.plan}"), self._read(f"{number:08d}")
        if plan is None or model is None or hashlib.sha256(model).hexdigest() != entry.sha256:
            raise BlindsumError("model-unknown", f"{self._task}, version {number}: its files are gone or damaged")
        session = TrainingSession(plan)
        tuned = self._read("tuned") if self.tuned else None
        if tuned is not None:
            session.parameters = np.frombuffer(tuned, "<f4").astype(np.float32)
        else:
            personal = self.personal()
            own = split(session.manifest, session.parameters)[1] if personal is None else personal
            session.parameters = join(session.manifest, np.frombuffer(model, "<f4").astype(np.float32), own)
        self._session = session
        return session

    def _entry(self, number: int) -> _Entry:
        entry = self._index.versions.get(number)
        if entry is None:
            known = ", ".join(map(str, sorted(self._index.versions))) or "none"
            raise BlindsumError("model-unknown", f"{self._task}, version {number or 'none'}; here: {known}")
        return entry

    def _change(self, **changes: object) -> None:
        index = msgspec.structs.replace(self._index, **changes)
        self._write("index", msgspec.json.encode(index))
        self._index = index
        if "active" in changes or "tuned" in changes:
            self._session = None

    def _tidy(self) -> None:
        named = {f"{number:08d}" for number in self._index.versions} | {"task", "index", "personal", "tuned"}
        named |= {f"plan-{entry.plan}" for entry in self._index.versions.values()}
        for path in self._place.iterdir():
            if path.name not in named:
                with suppress(OSError):  # the next one tries again
                    path.unlink()

    def _read_index(self) -> _Index:
        data = self._read("index")
        return _Index() if data is None else msgspec.json.decode(data, type=_Index)

    def _read(self, name: str) -> bytes | None:
        path = self._place / name
        try:
            return unseal(path, path.read_bytes(), self._vault)
        except FileNotFoundError:
            return None

    def _write(self, name: str, data: bytes) -> None:
        """Whole or not at all, also where the power fails."""
        path = self._place / name
        partial = path.with_suffix(".partial")
        try:
            self._place.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data if self._vault is None else self._vault.seal(name, data))
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError as error:
            with suppress(OSError):
                partial.unlink()  # where the disk is full it is in the way of everything
            code = "disk-full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "database-unwritable"
            raise BlindsumError(code, f"{path}: {error.strerror}") from error
