"""Models of rounds in which a device takes no part: fetched from the broadcast, never asked for (SPEC.md section 8.1).

The coordinator answers the asks of devices that have joined only, so what the broker does not hand over is left for a later round.
"""

from __future__ import annotations

from collections.abc import Collection

from blindsum.protocol.blobs import Fetches
from blindsum.protocol.machines.journal import Journal
from blindsum.protocol.messages import BlobRef
from blindsum.protocol.view import RoundView

__all__ = ["Following"]


class Following:
    """At most one round a task, in memory: after a restart the next announcement begins again."""

    def __init__(self, journal: Journal, fetches: Fetches) -> None:
        self._journal, self._fetches = journal, fetches
        self._views: dict[str, RoundView] = {}

    def begin(self, view: RoundView, used: Collection[bytes], now: int) -> None:
        """Fetch the model of a round. `used`: blobs that rounds of this device need."""
        known = self._views.get(view.name)
        if known is not None and known.number >= view.number:
            return
        if known is not None:
            self._drop(known, {*used, view.manifest.model.id, view.task.plan.id})
        self._views[view.name] = view
        for ref in _refs(view):
            if not self._fetches.want(ref, "coordinator", now, pushed=ref.count).complete:
                self._journal.listen(view.name, ref.id)
        self.tell(b"")

    def tell(self, blob: bytes) -> None:
        """Say which models are whole, now that `blob` is (empty: whatever is here)."""
        for view in self._views.values():
            refs = _refs(view)
            if blob and blob not in [ref.id for ref in refs]:
                continue
            held = [fetch for ref in refs if (fetch := self._fetches.get(ref.id)) is not None and fetch.complete]
            if blob:
                self._journal.listen(view.name, blob, on=False)
            if len(held) == len(refs):
                self._journal.event("model", task=view.name, round=view.number)

    def wants(self, blob: bytes) -> bool:
        return any(blob == ref.id for view in self._views.values() for ref in _refs(view))

    def view(self, task: str) -> RoundView | None:
        """The round whose model was fetched last."""
        return self._views.get(task)

    def _drop(self, view: RoundView, used: Collection[bytes]) -> None:
        for ref in _refs(view):
            if ref.id not in used:
                self._fetches.drop(ref.id)
                self._journal.listen(view.name, ref.id, on=False)
                self._journal.delete_all(f"blob/{ref.id.hex()}/")


def _refs(view: RoundView) -> tuple[BlobRef, BlobRef]:
    return view.manifest.model, view.task.plan
