"""Trainings that a device has finished too late for their rounds, kept for later ones: at most one a task (SPEC.md section 5.8)."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from blindsum.protocol.codec import convert, decode, encode, ready
from blindsum.protocol.machines.journal import Journal
from blindsum.protocol.messages import Payload
from blindsum.protocol.messages.common import Bytes32
from blindsum.protocol.secret import Secret
from blindsum.protocol.staleness import discounted, staleness
from blindsum.protocol.view import RoundView

__all__ = ["LateUpdate", "LateUpdates"]

TOO_LATE: Final = frozenset({"upload-late", "cohort-full"})
"""Refusals of an upload that say of its training only that there was no place for it any more."""


@ready
class LateUpdate(Secret, Payload, frozen=True):
    """What was trained for round `began` of the task with digest `task` on the model with this blob id: the update (float32,
    little-endian, not discounted), its weight and statistics, and the number of examples behind it."""

    task: Bytes32
    began: int
    model: Bytes32
    weight: int
    examples: int
    statistics: list[int]
    update: bytes

    @classmethod
    def of(
        cls, view: RoundView, update: NDArray[np.float32], *, weight: int, examples: int, statistics: list[int]
    ) -> LateUpdate:
        """What was trained for the round of `view`."""
        vector, model = update.astype("<f4").tobytes(), view.manifest.model.id
        return cls(view.base.digest, view.number, model, weight, examples, statistics, vector)

    def staleness(self, view: RoundView) -> int | None:
        """τ in the round of `view`, None where it has no place there."""
        if self.task != view.base.digest:
            return None
        same = self.model == view.manifest.model.id
        return staleness(view.number, began=self.began, same_model=same, most=view.base.staleness_max)

    def discounted(self, tau: int) -> NDArray[np.float32]:
        """The update as it goes into a round τ later."""
        return discounted(np.frombuffer(self.update, "<f4"), tau)


class LateUpdates:
    """Their rows in a device's journal. One that an upload was made of waits for the coordinator's word, and may go into a later
    round where that is that it came too late. It is dropped before any of the upload's body leaves: a coordinator that has that
    could take it and say that it came too late, and two sums that differ in one training show it."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def keep(self, task: str, late: LateUpdate) -> None:
        """In the place of an older one."""
        self.drop(task)
        self._journal.put(_row(task), encode(late))

    def fit(self, view: RoundView) -> LateUpdate | None:
        """The one that may go into the round of `view`. One that no later round could take either is dropped."""
        raw = self._journal.get(_row(view.name))
        if raw is None or self._journal.get(_sent(view.name)) is not None:
            return None
        late = convert(decode(raw), LateUpdate)
        if late.staleness(view) is not None:
            return late
        if late.task != view.base.digest or view.number > late.began:
            self.drop(view.name)
        return None

    def sent(self, task: str, late: LateUpdate | None) -> None:
        """An upload is made: of `late`, else of the one that is kept here."""
        if late is not None:
            self.keep(task, late)
        if self._journal.get(_row(task)) is not None:
            self._journal.put(_sent(task), b"")

    def left(self, task: str, code: str) -> None:
        """The device leaves a round with this code, "" where it is not the coordinator's refusal."""
        if self._journal.get(_sent(task)) is not None:
            if code in TOO_LATE:
                self._journal.delete(_sent(task))
            else:
                self.drop(task)

    def drop(self, task: str) -> None:
        for key in (_row(task), _sent(task)):
            if self._journal.get(key) is not None:
                self._journal.delete(key)

    def drop_all(self) -> None:
        self._journal.delete_all("late/")


def _row(task: str) -> str:
    return f"late/{task}/update"


def _sent(task: str) -> str:
    return f"late/{task}/sent"
