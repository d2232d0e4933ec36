"""The blobs a party is waiting for, and for which task."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from blindsum.protocol.blobs import WINDOW, Fetch, Fetches
from blindsum.protocol.errors import Refused
from blindsum.protocol.machines.journal import Journal
from blindsum.protocol.messages import BlobRef

__all__ = ["BLOBS_MAX", "Inbox"]

BLOBS_MAX: Final = 16
"""Blobs of one task that are awaited or kept at a time. An honest coordinator names five: model, sum, joins, two survivor sets."""


class Inbox:
    """`Fetches` from the coordinator with the task each belongs to."""

    def __init__(self, journal: Journal, broadcast_key: bytes) -> None:
        self._journal = journal
        self._fetches = Fetches(journal, broadcast_key)
        self._tasks: dict[bytes, str] = {}

    def want(self, task: str, ref: BlobRef, now: int) -> bool:
        """Whether a blob is all here; if not, see to it that it comes."""
        fetch = self._fetches.want(ref, "coordinator", now, pushed=min(WINDOW, ref.count))
        self._tasks[fetch.id] = task
        if not fetch.complete:
            self._journal.listen(task, fetch.id)
        return fetch.complete

    def room(self, task: str, ref: BlobRef) -> bool:
        """Whether a blob may be wanted: it is already, or the task has fewer than `BLOBS_MAX`."""
        return ref.id in self._tasks or sum(1 for owner in self._tasks.values() if owner == task) < BLOBS_MAX

    def accept(self, raw: bytes) -> tuple[Fetch, str] | Refused | None:
        """Take a chunk: its fetch and task; None for one already held."""
        accepted = self._fetches.accept(raw)
        if isinstance(accepted, Refused):
            return accepted
        fetch, write = accepted
        if write is None:
            return None
        self._journal.write([write])
        task = self._tasks[fetch.id]
        if fetch.complete:
            self._journal.listen(task, fetch.id, on=False)
        return fetch, task

    def release(self, ref: BlobRef) -> None:
        """Forget a blob and erase its chunks."""
        self._drop(ref.id)

    def release_task(self, task: str, keep: set[bytes]) -> None:
        """Forget every blob of a task but `keep`."""
        for blob in [blob for blob, owner in self._tasks.items() if owner == task and blob not in keep]:
            self._drop(blob)

    @property
    def blobs(self) -> set[bytes]:
        """What is awaited or has come and is not released yet."""
        return set(self._tasks)

    def due(self, now: int) -> Iterator[tuple[Fetch, str]]:
        return ((fetch, self._tasks[fetch.id]) for fetch in list(self._fetches.due(now)))

    @property
    def deadline(self) -> int | None:
        return self._fetches.deadline

    def _drop(self, blob: bytes) -> None:
        self._fetches.drop(blob)
        self._tasks.pop(blob, None)
        self._journal.delete_all(f"blob/{blob.hex()}/")
