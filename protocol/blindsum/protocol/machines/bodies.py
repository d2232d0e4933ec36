"""Uploads as they arrive at the coordinator: headers, slots, and the running sum (SPEC.md sections 6 and 8.3).

Memory is one vector plus one header a device. A body is added to the sum when its last chunk is stored, and stays in the store
so that a device which the parties complain about can be taken out again, and the sum rebuilt after a restart. With helpers who
work on the same store (`Totals`) bodies are added when the set is known, wherever that is, and rows "want/<blob>" name the bodies
whose chunks others may store.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from msgspec.structs import replace

from blindsum.protocol.blobs import WINDOW, Fetch, Fetches, read_blob
from blindsum.protocol.codec import convert, encode
from blindsum.protocol.envelope import Signed
from blindsum.protocol.machines.deviceround import body_is_pushed
from blindsum.protocol.machines.journal import Journal
from blindsum.protocol.masks import Lanes, edge_streams, unmask_edges
from blindsum.protocol.messages import BlobRef, Header
from blindsum.protocol.prg import Stream
from blindsum.protocol.ring import Lane, PackedSum, Segment, zeros
from blindsum.protocol.roster import RosterView
from blindsum.protocol.view import RoundView, open_message

__all__ = ["SLOTS", "WANT", "Bodies", "HeldHeader", "Totals"]

SLOTS: Final = 64
"""Bodies on their way at once: with `WINDOW` chunks each, what the broker may have to hold."""
STALL_MS: Final = 10_000
"""A body that has not moved for this long gives its slot to the next, and waits for another one behind all that had none yet: the
dead among a crowd would else take the time of those who come late."""


WANT: Final = "want/"
"""Begins the rows that hold the encoded reference of a body on its way."""

Totals = Callable[[Sequence[Segment], str, Sequence[BlobRef], Sequence[Stream]], Sequence[Lane]]
"""(segments, suite, bodies, streams): the reduced ring sum of vectors that lie packed in the store, and of signed keystreams."""


@dataclass(frozen=True, slots=True)
class HeldHeader:
    """What stays in memory of a header; the boxes in it are for the parties, and the whole lies in the store."""

    digest: bytes
    body: BlobRef
    edges: bytes


class Bodies:
    """All uploads of one round."""

    def __init__(
        self, journal: Journal, fetches: Fetches, view: RoundView, roster: RosterView, totals: Totals | None = None
    ) -> None:
        self._journal = journal
        self._fetches = fetches
        self._view = view
        self._roster = roster
        self._prefix = f"round/{view.name}"
        self._waiting: deque[int] = deque()
        self._stalled: deque[int] = deque()
        self._moving: dict[int, int] = {}
        self._by_blob: dict[bytes, int] = {}
        self.headers: dict[int, HeldHeader] = {}
        self.complete: set[int] = set()
        self._totals = totals
        self._sum = PackedSum(view.base.segments if totals is None else ())

    def accept(self, signed: Signed, header: Header, now: int) -> None:
        """Keep a header that was found good, whose body is nobody else's (`owns`), and see to its body."""
        self._journal.put(f"{self._prefix}/header/{header.index:06d}", signed.raw)
        self._index(signed, header)
        self._announce(header.body)
        if body_is_pushed(self._view, self._roster):
            self._start(header.index, now, pushed=min(WINDOW, header.body.count))
        else:
            self._waiting.append(header.index)
            self.fill_slots(now)

    def add(self, fetch: Fetch, now: int) -> int:
        """A body is all there: add it to the sum. Returns its device's index."""
        index = self._by_blob[fetch.id]
        self._moving.pop(index, None)
        self._add(index)
        self._journal.put(f"{self._prefix}/complete/{index:06d}", b"")
        self._fetches.drop(fetch.id)
        self.fill_slots(now)
        return index

    def moved(self, fetch: Fetch, now: int) -> None:
        self._moving[self._by_blob[fetch.id]] = now

    def lanes(self) -> list[Lane]:
        """The ring sum of the complete bodies, masks and all, as far as `unmask` is not to add them."""
        return self._sum.lanes() if self._totals is None else zeros(self._view.base.segments)

    def unmask(
        self, view: RoundView, lanes: Lanes, secrets: Iterable[tuple[int, int, bytes]], *, threads: int = 1
    ) -> None:
        """`masks.unmask_edges` for `lanes`; with helpers the bodies are added, too."""
        if self._totals is None:
            unmask_edges(view, lanes, secrets, threads=threads)
            return
        bodies = [self.headers[index].body for index in sorted(self.complete)]
        total = self._totals(view.base.segments, view.task.suite, bodies, list(edge_streams(view, secrets)))
        for lane, part in zip(lanes, total, strict=True):
            np.add(lane, part, out=lane)

    def raw(self, index: int) -> bytes:
        """The signed header of a device."""
        raw = self._journal.get(f"{self._prefix}/header/{index:06d}")
        assert raw is not None
        return raw

    def owns(self, blob: bytes) -> bool:
        return blob in self._by_blob

    def exclude(self, index: int) -> None:
        """Take a device out of the sum."""
        if index in self.complete:
            self.complete.remove(index)
            if self._totals is None:
                self._sum.subtract(self._body(index))

    def forget(self, index: int) -> None:
        """Take a device out of the sum, also after a restart."""
        self.exclude(index)
        self._journal.delete(f"{self._prefix}/complete/{index:06d}")

    def fill_slots(self, now: int) -> None:
        """Ask for the next bodies while slots are free, and for no more than there is room for: what a device was not asked for it
        may upload in a later round."""
        for index, since in list(self._moving.items()) if self._waiting or self._stalled else ():
            if now - since >= STALL_MS:
                self._moving.pop(index)
                self._fetches.drop(self.headers[index].body.id)
                self._stalled.append(index)
        slots = min(SLOTS, self._roster.capacity - len(self.complete))
        while (self._waiting or self._stalled) and len(self._moving) < slots:
            self._start((self._waiting or self._stalled).popleft(), now, pushed=0)

    def close(self) -> None:
        """No more chunks are taken."""
        for blob in self._by_blob:
            self._fetches.drop(blob)
            if self._totals is not None:
                self._journal.delete(f"{WANT}{blob.hex()}")
        self._moving.clear()
        self._waiting.clear()
        self._stalled.clear()

    def restore(self, *, open_: bool, excluded: dict[int, str]) -> None:
        """Rebuild from the store. `open_`: bodies that are not complete are still awaited."""
        for key, raw in self._journal.scan(f"{self._prefix}/header/"):
            signed = open_message(self._view.trust, raw)
            assert isinstance(signed, Signed)
            self._index(signed, replace(convert(signed.payload, Header), index=int(key.rsplit("/", 1)[1])))
        for key in list(self._journal.keys(f"{self._prefix}/complete/")):
            index = int(key.rsplit("/", 1)[1])
            if index not in excluded:
                self._add(index)
        if open_:
            self._waiting.extend(sorted(set(self.headers) - self.complete))
            for index in self._waiting:
                self._announce(self.headers[index].body)  # a version without helpers may have begun the round
            self.fill_slots(0)

    def _index(self, signed: Signed, header: Header) -> None:
        self.headers[header.index] = HeldHeader(signed.digest, header.body, header.edges)
        self._by_blob[header.body.id] = header.index

    def _announce(self, body: BlobRef) -> None:
        if self._totals is not None:
            self._journal.put(f"{WANT}{body.id.hex()}", encode(body))

    def _start(self, index: int, now: int, *, pushed: int) -> None:
        self._moving[index] = now
        self._fetches.want(self.headers[index].body, f"device/{self._roster.devices[index]}", now, pushed=pushed)

    def _add(self, index: int) -> None:
        if self._totals is None:
            self._sum.add(self._body(index))
        self.complete.add(index)

    def _body(self, index: int) -> bytes:
        packed = read_blob(self._journal, self.headers[index].body)
        assert packed is not None
        return packed
