"""A bell is heard however often and from wherever it is rung."""

from __future__ import annotations

import selectors
import threading

from blindsum.runtime.wake import Bell

RINGS = 20_000


def test_what_is_put_before_a_ring_is_seen_after_the_bell_was_heard() -> None:
    bell = Bell()
    put: list[int] = []
    done = threading.Event()

    def ring() -> None:
        for number in range(RINGS):
            put.append(number)
            bell.ring()
        done.set()

    thread = threading.Thread(target=ring)
    thread.start()
    taken = 0
    with selectors.DefaultSelector() as selector:
        selector.register(bell.socket, selectors.EVENT_READ)
        while taken < RINGS:
            assert selector.select(10.0), f"{len(put)} were put, {taken} seen, and nobody rings"
            bell.hush()
            taken = len(put)
    thread.join()
    assert done.is_set()
    bell.close()


def test_rings_that_nobody_heard_are_one_and_a_heard_bell_rings_again() -> None:
    bell = Bell()
    for _ in range(10):
        bell.ring()
    assert bell.socket.recv(100) == b"\0"
    bell.hush()
    bell.ring()
    assert bell.socket.recv(100) == b"\0"
    bell.close()
