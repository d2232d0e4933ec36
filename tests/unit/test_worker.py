"""What a worker takes, and what its database lets it store: what the coordinator wants, while it does, and nothing else."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from blindsum.backend.lease import WORKERS
from blindsum.backend.postgres import PostgresStore
from blindsum.backend.worker import EARLY_MAX, EARLY_MS, RETRY_MS, Porter
from blindsum.backend.workerstore import STORED, WorkerStore
from blindsum.protocol.codec import encode, encode_chunk
from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.machines.bodies import WANT
from blindsum.protocol.machines.step import Write
from blindsum.protocol.messages import chunk_key, chunks_of

REF, CHUNKS = chunks_of(bytes(range(200)) * 20, 1024)
WANTED = Write(f"{WANT}{REF.id.hex()}", encode(REF))
FIRST = encode_chunk(REF.id, 0, CHUNKS[0])


@pytest.fixture
def stores(postgres: Any) -> Iterator[tuple[PostgresStore, WorkerStore]]:
    url = postgres.database()
    coordinator, worker = PostgresStore(url), WorkerStore(url, f"{WORKERS}01")
    yield coordinator, worker
    worker.close()
    coordinator.close()


def test_wanted_chunk_is_stored_and_the_coordinator_hears_of_it(stores: tuple[PostgresStore, WorkerStore]) -> None:
    coordinator, worker = stores
    coordinator.commit([WANTED])
    with psycopg.connect(coordinator.url, autocommit=True) as listener:
        listener.execute(f"LISTEN {STORED}")
        step = Porter(worker).receive(FIRST, 0)
        worker.stage(step.writes, step.messages)
        worker.commit()
        assert coordinator.get(chunk_key(REF.id, 0)) == CHUNKS[0]
        assert [word.payload for word in listener.notifies(timeout=30, stop_after=1)] == [REF.id.hex()]
    worker.commit(step.writes)  # once more
    assert list(coordinator.keys("blob/")) == [chunk_key(REF.id, 0)]


def test_chunk_that_comes_before_its_header_waits_a_moment(stores: tuple[PostgresStore, WorkerStore]) -> None:
    coordinator, worker = stores
    porter = Porter(worker)
    assert porter.receive(FIRST, 1000).writes == ()
    assert porter.deadline == 1000 + RETRY_MS
    assert porter.wake(1000 + RETRY_MS).writes == ()
    coordinator.commit([WANTED])
    assert porter.wake(1000 + 2 * RETRY_MS).writes == (Write(chunk_key(REF.id, 0), CHUNKS[0]),)
    assert porter.deadline is None
    porter = Porter(worker)
    stranger = encode_chunk(bytes(32), 0, b"junk")
    porter.receive(stranger, 0)
    assert porter.wake(EARLY_MS).writes == ()
    assert porter.deadline is None, "given up"
    held = [porter.receive(encode_chunk(bytes([part % 256] * 31 + [part >> 8]), 0, b"junk"), 0) for part in range(600)]
    assert [step.refused.code for step in held if step.refused is not None] == ["chunk-unexpected"] * (600 - EARLY_MAX)


def test_what_no_header_promised_is_refused(stores: tuple[PostgresStore, WorkerStore]) -> None:
    coordinator, worker = stores
    coordinator.commit([WANTED])
    porter = Porter(worker)
    for body, code in (
        (encode_chunk(REF.id, 1, CHUNKS[0]), "chunk-wrong"),
        (encode_chunk(REF.id, len(CHUNKS), CHUNKS[0]), "chunk-wrong"),
        (b"\x00", "message-malformed"),
        (b"\xd2\x84", "message-misplaced"),
    ):
        step = porter.receive(body, 0)
        assert step.refused is not None
        assert step.refused.code == code
        assert not step.writes


def test_nothing_is_stored_of_a_body_that_was_given_up(stores: tuple[PostgresStore, WorkerStore]) -> None:
    """Also where the coordinator gives it up while a worker is about to store."""
    coordinator, worker = stores
    coordinator.commit([WANTED])
    step = Porter(worker).receive(FIRST, 0)
    coordinator.stage([Write(WANTED.key, None)], [])
    storing = threading.Thread(target=worker.commit, args=(step.writes,))
    storing.start()
    storing.join(0.1)  # it waits for the coordinator
    coordinator.commit()
    storing.join(30)
    assert not storing.is_alive()
    assert list(coordinator.keys("blob/")) == []


def test_worker_whose_lease_another_has_taken_stores_nothing(stores: tuple[PostgresStore, WorkerStore]) -> None:
    coordinator, worker = stores
    coordinator.commit([WANTED])
    with pytest.raises(BlindsumError, match="database-in-use"):
        WorkerStore(coordinator.url, f"{WORKERS}01")
    with psycopg.connect(coordinator.url, autocommit=True) as admin:
        admin.execute("UPDATE blindsum.lease SET fence = fence + 1 WHERE name = 'worker/01'")
    with pytest.raises(BlindsumError, match="lease-lost"):
        worker.commit(Porter(worker).receive(FIRST, 0).writes)
    assert list(coordinator.keys("blob/")) == []
    assert worker.lease.lost.wait(30)
