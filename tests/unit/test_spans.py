"""Sums that several processes add up over one PostgreSQL: the same bytes as one process gives, whoever dies or sleeps meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import psycopg
import pytest

from blindsum.backend import spans
from blindsum.backend.database import connect
from blindsum.backend.lease import Lease
from blindsum.backend.postgres import PostgresStore
from blindsum.backend.spans import Job, Span, add_up, cut, work
from blindsum.protocol.blobs import write_blob
from blindsum.protocol.messages import BlobRef, chunks_of
from blindsum.protocol.prg import PAGE_SIZE, apply
from blindsum.protocol.ring import Lane, PackedSum, Segment, pack, packed_size, reduce

SEGMENTS = [Segment("model", 3 * PAGE_SIZE // 4 + 1001, 24), Segment("extra", 77, 16), Segment("exact", 70_001, 64)]
STREAMS = [(bytes([number]) * 24, 1 if number % 3 else -1) for number in range(1, 6)]
BODIES = 9
WORKER = """
import sys, time
from blindsum.backend.database import connect
from blindsum.backend.lease import Lease
from blindsum.backend.spans import work
lease, db = Lease(sys.argv[1], sys.argv[2]), connect(sys.argv[1])
print("ready", flush=True)
while True:
    work(db, lease.fence) or time.sleep(0.01)
"""


@pytest.fixture
def bodies() -> list[tuple[BlobRef, list[bytes]]]:
    rng = np.random.default_rng(1)
    return [chunks_of(rng.bytes(packed_size(SEGMENTS)), 40_000) for _ in range(BODIES)]


@pytest.fixture
def expected(bodies: list[tuple[BlobRef, list[bytes]]]) -> bytes:
    """The sum as one process adds it up."""
    total = PackedSum(SEGMENTS)
    for _, chunks in bodies:
        total.add(b"".join(chunks))
    lanes = total.lanes()
    apply(SEGMENTS, lanes, STREAMS, suite="aes128-ctr")
    reduce(SEGMENTS, lanes)
    return pack(SEGMENTS, lanes)


@pytest.fixture
def store(postgres: Any, bodies: list[tuple[BlobRef, list[bytes]]]) -> Any:
    made = PostgresStore(postgres.database())
    for ref, chunks in bodies:
        made.commit(write_blob(ref, chunks))
    yield made
    made.close()


def summed(store: PostgresStore, bodies: list[tuple[BlobRef, list[bytes]]]) -> Callable[[], bytes]:
    totals = store.shared_sums(1)
    refs = [ref for ref, _ in bodies]

    def run() -> bytes:
        lanes: list[Lane] = list(totals(SEGMENTS, "aes128-ctr", refs, STREAMS))
        return pack(SEGMENTS, lanes)

    return run


def test_spans_cover_every_coordinate_once_and_begin_at_pages() -> None:
    for shape in (SEGMENTS, [Segment("one", 1, 24)], [Segment("large", 100_000_000, 24), Segment("exact", 2, 64)]):
        found = cut(shape)
        assert len(found) <= spans.SPANS_MAX + len(shape)
        for number, segment in enumerate(shape):
            mine = [span for span in found if span.segment == number]
            assert mine[0].start == 0
            assert mine[-1].stop == segment.length
            assert all(one.stop == other.start for one, other in pairwise(mine))
            width = 2 if segment.width == 16 else 8 if segment.width == 64 else 4
            assert all(span.start * width % PAGE_SIZE == 0 for span in mine)


def test_coordinator_alone_adds_up_the_same_bytes(
    store: PostgresStore, bodies: list[tuple[BlobRef, list[bytes]]], expected: bytes
) -> None:
    run = summed(store, bodies)
    assert run() == expected
    assert run() == expected


def test_workers_that_are_killed_or_paused_change_nothing(
    store: PostgresStore, bodies: list[tuple[BlobRef, list[bytes]]], expected: bytes
) -> None:
    run = summed(store, bodies)
    url = store.url
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, url, f"worker/{name}"], stdout=subprocess.PIPE)
        for name in "abc"
    ]
    try:
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == b"ready\n"
        assert run() == expected
        with psycopg.connect(url, autocommit=True) as admin:
            # what one in the middle of its work leaves: a span that is taken and has no total
            admin.execute(
                "CREATE FUNCTION blindsum.keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
                "IF NEW.total IS NOT NULL AND NEW.holder <> 'coordinator' THEN PERFORM pg_sleep(0.5); END IF; "
                "RETURN NEW; END $$; "
                "CREATE TRIGGER keep BEFORE UPDATE ON blindsum.span FOR EACH ROW EXECUTE FUNCTION blindsum.keep()"
            )

        def disturb() -> None:
            workers[0].kill()
            os.kill(workers[1].pid, signal.SIGSTOP)

        timer = threading.Timer(0.3, disturb)
        timer.start()
        assert run() == expected
        timer.join()
        os.kill(workers[1].pid, signal.SIGCONT)
        assert run() == expected
        assert workers[2].poll() is None
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def test_late_total_of_a_worker_that_was_taken_for_dead_counts_for_nothing(
    store: PostgresStore, bodies: list[tuple[BlobRef, list[bytes]]], expected: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, url = summed(store, bodies), store.url
    late, db = Lease(url, "worker/late"), connect(url)
    late._closing.set()  # it renews no more, as one that is paused
    late._thread.join()
    slept: list[int] = []

    def sleepy(connection: Any, job: Job, span: Span, *, threads: int = 1) -> bytes:
        if connection is not db:
            if not slept:  # the coordinator has just begun: the worker takes a span, too
                slept.append(1)
                work(db, late.fence)
            return add_up(connection, job, span, threads=threads)
        connection.execute("UPDATE blindsum.lease SET expires = clock_timestamp() WHERE name = 'worker/late'")
        other = Lease(url, "worker/other")
        with connect(url) as others:
            assert work(others, other.fence) is not None
        other.close()
        return b"too late"

    monkeypatch.setattr(spans, "add_up", sleepy)
    assert run() == expected
    assert slept
    db.close()
    late.close()
