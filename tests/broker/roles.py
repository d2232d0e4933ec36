"""Two tiny roles as processes, for tests that kill them: `python roles.py sender|receiver <url> <database> <total> [death]`.

The sender commits one number a step and never repeats one itself; the receiver writes down what it was told. So what is repeated
after a death is the driver's doing. `death` names the moment at which the process kills itself.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterable

from blindsum.protocol.machines.step import ChunkOut, Message, Outgoing, Step, Store, Write
from blindsum.protocol.messages import chunk_key
from blindsum.runtime.driver import Driver
from blindsum.runtime.mqtt import MqttLink
from blindsum.runtime.ports import Outcome, Token
from blindsum.runtime.sqlite import SqliteStore
from blindsum.runtime.topics import Principal, Topics

BLOB = bytes(32)


class Sender:
    """Device d1: numbers 0 to `total` - 1, every tenth as a chunk of 100 kB."""

    def __init__(self, store: Store, total: int) -> None:
        self.store, self.total = store, total

    @property
    def next(self) -> int:
        return int(self.store.get("next") or b"0")

    @property
    def deadline(self) -> int | None:
        return 0 if self.next < self.total else None

    def receive(self, body: bytes, now: int) -> Step:
        return Step()

    def wake(self, now: int) -> Step:
        number = self.next
        if number >= self.total:
            return Step()
        after = Write("next", b"%d" % (number + 1))
        if number % 10:
            return Step((after,), (Message("number", "coordinator", b"%d" % number),))
        data = b"%d" % number + b" " * 100_000
        return Step((after, Write(chunk_key(BLOB, number), data)), (ChunkOut("coordinator", BLOB, number),))


class Receiver:
    """The coordinator: one row for each body it was told."""

    deadline = None

    def receive(self, body: bytes, now: int) -> Step:
        return Step((Write(f"got/{body[:64].hex()}", b""),))

    def wake(self, now: int) -> Step:
        return Step()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class DyingLink(MqttLink):
    def publish(self, topic: str, body: bytes, *, retain: bool, done: Callable[[Outcome], None]) -> bool:
        if "publish" in sys.argv:
            die()
        if "sent" in sys.argv:
            return super().publish(topic, body, retain=retain, done=lambda _outcome: die())
        return super().publish(topic, body, retain=retain, done=done)

    def ack(self, *tokens: Token) -> None:
        if "ack" in sys.argv:
            die()
        super().ack(*tokens)


class DyingStore(SqliteStore):
    def commit(self, writes: Iterable[Write] = (), messages: Iterable[Outgoing] = ()) -> None:
        if "commit" in sys.argv:
            die()
        super().commit(writes, messages)


def main() -> None:
    role, url, path, total = *sys.argv[1:4], int(sys.argv[4])
    store = DyingStore(path)
    principal = Principal("device", "d1") if role == "sender" else Principal("coordinator", "coordinator")
    topics = Topics("f1", principal)
    driver = Driver(
        lambda: Sender(store, total) if role == "sender" else Receiver(), store, DyingLink(url, principal.user), topics
    )
    driver.start()
    while True:
        if role == "sender":
            done = int(store.get("next") or b"0") == total and not store.outbox(limit=1)
        else:
            done = sum(1 for _ in store.scan("got/")) == total
        if done:
            break
        time.sleep(0.01)
    driver.stop()
    store.close()


if __name__ == "__main__":
    main()
