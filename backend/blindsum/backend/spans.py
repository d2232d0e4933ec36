"""A round's sum, cut into spans of coordinates that any process with the database can add up (docs/adr/0026-workers.md).

    total = sum of bodies + sum of sign * keystream          mod 2^w, for the coordinates of one span

Bodies lie in the database by chunk, keystreams are seekable by page, and sums mod 2^w know no order: so each span's total depends
on nothing but the job, whoever computes it and however often. A span begins at a page of the keystream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from blindsum.backend.database import Connection, connect, told
from blindsum.backend.lease import LIVING, Fence, fenced
from blindsum.protocol.messages import BlobRef, chunk_key
from blindsum.protocol.prg import PAGE_SIZE, Stream, apply
from blindsum.protocol.ring import Lane, PackedSum, Segment, lane_dtype, pack, reduce, unpack, zeros

__all__ = ["Job", "SharedSums", "Span", "add_up", "cut", "work"]

SPANS_MAX: Final = 64
GROUP: Final = 32
"""Bodies whose part of a span is read at a time."""
POLL_S: Final = 0.05

_CLAIM: Final = f"""
UPDATE blindsum.span SET holder = %s, fence = %s WHERE (job, number) = (
  SELECT job, number FROM blindsum.span WHERE total IS NULL AND NOT EXISTS (
    SELECT FROM blindsum.lease WHERE lease.name = span.holder AND lease.fence = span.fence AND {LIVING}
  ) ORDER BY job, number LIMIT 1 FOR UPDATE SKIP LOCKED
) RETURNING job, number
"""
_DONE: Final = """
UPDATE blindsum.span SET total = %s WHERE job = %s AND number = %s AND holder = %s AND fence = %s
"""


class Job(msgspec.Struct, frozen=True):
    """What is to be added up. `bodies` are ids of blobs whose chunks have `chunk_size` bytes."""

    suite: str
    segments: list[tuple[str, int, int]]
    chunk_size: int
    bodies: list[bytes]
    streams: list[tuple[bytes, int]]

    @property
    def shape(self) -> list[Segment]:
        return [Segment(*segment) for segment in self.segments]


@dataclass(frozen=True, slots=True)
class Span:
    """Coordinates `start` to `stop` of segment number `segment`; `page` is that of the first."""

    segment: int
    start: int
    stop: int
    page: int


def cut(segments: Sequence[Segment]) -> list[Span]:
    """The spans of a vector: about `SPANS_MAX`, and never less than a page but at the end of a segment."""
    steps = [PAGE_SIZE // lane_dtype(segment.width).itemsize for segment in segments]
    pages = [-(-segment.length // step) for segment, step in zip(segments, steps, strict=True)]
    most = -(-sum(pages) // SPANS_MAX)
    out = []
    for number, segment in enumerate(segments):
        before, step = sum(pages[:number]), steps[number]
        for page in range(0, pages[number], most):
            out.append(Span(number, page * step, min((page + most) * step, segment.length), before + page))
    return out


def add_up(db: Connection, job: Job, span: Span, *, threads: int = 1) -> bytes:
    """The span's total, packed."""
    whole = job.shape[span.segment]
    part = Segment(whole.name, span.stop - span.start, whole.width)
    total = PackedSum([part])
    for at in range(0, len(job.bodies), GROUP):
        for data in _parts(db, job, span, job.bodies[at : at + GROUP]):
            total.add(data)
    lanes = total.lanes()
    apply([part], lanes, job.streams, suite=job.suite, threads=threads, page=span.page)
    reduce([part], lanes)
    return pack([part], lanes)


def work(db: Connection, fence: Fence, *, threads: int = 1) -> tuple[int, int] | None:
    """Take a span that nobody who lives has taken, of any job, and store its total; which it was, or None where there is none.
    Raises BlindsumError "lease-lost"."""
    with told():
        with db.transaction():
            fenced(db, fence)
            claimed = db.execute(_CLAIM, fence).fetchone()
        if claimed is None:
            return None
        number, span = claimed
        row = db.execute("SELECT spec FROM blindsum.job WHERE id = %s", (number,), binary=True).fetchone()
        if row is None:
            return None
        job = msgspec.msgpack.decode(row[0], type=Job)
        total = add_up(db, job, cut(job.shape)[span], threads=threads)
        with db.transaction():
            fenced(db, fence)
            db.execute(_DONE, (total, number, span, *fence))
    return number, span


class SharedSums:
    """`Totals` for a coordinator: posts each sum as a job, takes part in the work, and waits for the spans of others. `meanwhile`
    is called between spans. Makes one connection; belongs to one thread."""

    def __init__(self, url: str, fence: Fence, *, threads: int, meanwhile: Callable[[], None]) -> None:
        self._fence, self._threads, self._meanwhile = fence, threads, meanwhile
        self._db = connect(url)
        with told(), self._db.transaction():
            fenced(self._db, fence)
            self._db.execute("DELETE FROM blindsum.job")  # of whoever led before

    def __call__(
        self, segments: Sequence[Segment], suite: str, bodies: Sequence[BlobRef], streams: Sequence[Stream]
    ) -> list[Lane]:
        job = Job(
            suite,
            [(segment.name, segment.length, segment.width) for segment in segments],
            bodies[0].chunk_size,
            [body.id for body in bodies],
            list(streams),
        )
        spans = cut(segments)
        number = self._post(job, len(spans))
        while True:
            if work(self._db, self._fence, threads=self._threads) is None:
                if self._left(number) == 0:
                    break
                self._await()
            self._meanwhile()
        lanes = zeros(segments)
        for span, data in zip(spans, self._take(number), strict=True):
            part = Segment("", span.stop - span.start, segments[span.segment].width)
            lanes[span.segment][span.start : span.stop] = unpack([part], data)[0]
        return lanes

    def close(self) -> None:
        self._db.close()

    def _post(self, job: Job, spans: int) -> int:
        with told(), self._db.transaction():
            fenced(self._db, self._fence)
            row: Any = self._db.execute(
                "INSERT INTO blindsum.job (spec) VALUES (%s) RETURNING id", (msgspec.msgpack.encode(job),)
            ).fetchone()
            self._db.execute(
                "INSERT INTO blindsum.span (job, number) SELECT %s, generate_series(0, %s)", (row[0], spans - 1)
            )
        return int(row[0])

    def _left(self, job: int) -> int:
        with told():
            return self._db.execute("SELECT FROM blindsum.span WHERE job = %s AND total IS NULL", (job,)).rowcount

    def _await(self) -> None:
        with told():
            self._db.execute("SELECT pg_sleep(%s)", (POLL_S,))

    def _take(self, job: int) -> list[bytes]:
        with told(), self._db.transaction():
            fenced(self._db, self._fence)
            query = "SELECT total FROM blindsum.span WHERE job = %s ORDER BY number"
            totals = [bytes(total) for (total,) in self._db.execute(query, (job,), binary=True).fetchall()]
            self._db.execute("DELETE FROM blindsum.job WHERE id = %s", (job,))
        return totals


def _parts(db: Connection, job: Job, span: Span, bodies: Sequence[bytes]) -> Iterator[bytes]:
    """The span of each body, packed."""
    parts = {body: bytearray() for body in bodies}
    for chunk, start, size in _pieces(job, span):
        keys = {chunk_key(body, chunk): body for body in bodies}
        rows = db.execute(
            "SELECT key, substring(value FROM %s FOR %s) FROM blindsum.kv WHERE key = ANY(%s)",
            (start + 1, size, list(keys)),
            binary=True,
        ).fetchall()
        for key, data in rows:
            parts[keys[key]] += data
    return (bytes(parts[body]) for body in bodies)


def _pieces(job: Job, span: Span) -> Iterator[tuple[int, int, int]]:
    """(chunk, first byte in it, bytes) of a span in a packed vector: one run of values, or two planes of a 24-bit segment."""
    shape = job.shape
    base = sum(segment.packed_size for segment in shape[: span.segment])
    segment, count = shape[span.segment], span.stop - span.start
    if segment.width == 24:
        runs = [(base + 2 * span.start, 2 * count), (base + 2 * segment.length + span.start, count)]
    else:
        size = segment.width // 8
        runs = [(base + size * span.start, size * count)]
    for start, length in runs:
        end = start + length
        while start < end:
            chunk, offset = divmod(start, job.chunk_size)
            size = min(job.chunk_size - offset, end - start)
            yield chunk, offset, size
            start += size
