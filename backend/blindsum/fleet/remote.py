"""Islands of a simulated fleet in processes of their own."""

from __future__ import annotations

import gc
import multiprocessing
import selectors
import signal
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, Final

from blindsum.fleet.island import Island, Post
from blindsum.fleet.pairs import paired
from blindsum.fleet.setup import Setup
from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.memo import sharing

__all__ = ["Forked", "Remote", "answer_of", "collect_seldom"]

GARBAGE_MIN: Final = 100_000
"""New objects after which a process looks for cycles among them: machines make many objects and next to no cycles."""
STOP_S: Final = 30.0
"""How long a worker that is told to end may take, training included, before it is killed."""


def collect_seldom() -> None:
    """Have this process look for garbage among new objects only, and seldom."""
    gc.freeze()
    gc.set_threshold(GARBAGE_MIN)


class Remote:
    """An island elsewhere, as seen from here."""

    def __init__(self, devices: Sequence[int]) -> None:
        self.devices = devices
        self._posts: list[Post] = []
        self._first: int | None = None
        self._next: int | None = None

    @property
    def next_at(self) -> int | None:
        """When something happens there next, as far as it has been told."""
        return min((at for at in (self._next, self._first) if at is not None), default=None)

    def take(self, post: Post) -> None:
        self._posts.append(post)
        self._first = post.at if self._first is None else min(self._first, post.at)

    def begin(self, number: int, now: int) -> None:
        self._posts, self._first = [], None
        self.ask("begin", number, now)
        self._next = self.answer()

    def send(self, horizon: int) -> None:
        self.ask("advance", horizon, self._posts)
        self._posts, self._first = [], None

    def receive(self) -> list[Post]:
        posts, self._next = self.answer()
        return posts  # type: ignore[no-any-return]

    def ask(self, *what: object) -> None:
        """Put a question of `answer_of`; answers come in the same order."""
        raise NotImplementedError

    def answer(self) -> Any:
        """The answer to the oldest question. Raises what the island raised, and BlindsumError "simulation-worker-died"."""
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError


class Forked(Remote):
    """An island in a process of its own on this machine."""

    def __init__(self, setup: Setup, devices: Sequence[int], others: Sequence[Remote]) -> None:
        super().__init__(devices)
        forks = "fork" in multiprocessing.get_all_start_methods()
        context: Any = multiprocessing.get_context("fork" if forks else "spawn")
        self._pipe, theirs = context.Pipe()
        # a forked process holds our ends, too, and while anybody does nobody learns that we have gone
        ours = [other._pipe for other in others if isinstance(other, Forked)]
        inherited = [self._pipe, *ours] if forks else []
        self._process = context.Process(target=_serve, args=(theirs, setup, devices, inherited), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, *what: object) -> None:
        with suppress(OSError):  # whoever waits for the answer is told
            self._pipe.send(what)

    def answer(self) -> Any:
        try:
            good, value = self._pipe.recv()
        except (EOFError, OSError):  # with data unread in the pipe, the system says that it was reset
            self._process.join(STOP_S)
            raise BlindsumError("simulation-worker-died", f"exit status {self._process.exitcode}") from None
        if not good:
            raise value
        return value

    def stop(self) -> None:
        self._pipe.close()
        self._process.join(STOP_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join(STOP_S)


def _serve(pipe: Connection, setup: Setup, devices: Sequence[int], inherited: Sequence[Connection]) -> None:
    """The life of a worker process."""
    for theirs in inherited:
        theirs.close()
    collect_seldom()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent tells when to end
    with sharing(), paired(setup.pairs):
        _work(pipe, setup, devices)


def _work(pipe: Connection, setup: Setup, devices: Sequence[int]) -> None:
    """Answer. While nothing is asked, make uploads before their time."""
    island = setup.island(devices, backends=False)
    asked = selectors.DefaultSelector()  # `Connection.poll` makes one for each look
    asked.register(pipe, selectors.EVENT_READ)
    failed: Exception | None = None
    while True:
        try:
            while failed is None and not asked.select(0) and island.work():
                pass
        except Exception as error:  # told when the next question comes
            failed = error
        try:
            what, *arguments = pipe.recv()
        except (EOFError, OSError):
            return
        answer: tuple[bool, object]
        try:
            if failed is not None:
                raise failed
            answer = True, answer_of(island, what, arguments)
        except Exception as error:
            answer = False, error
        try:
            pipe.send(answer)
        except OSError:  # nobody is there any more
            return


def answer_of(island: Island, what: str, arguments: Sequence[Any]) -> object:
    """What an island says to a question."""
    if what == "begin":
        island.begin(*arguments)
        return island.next_at
    if what == "advance":
        horizon, posts = arguments
        island.take(posts)
        return island.advance(horizon), island.next_at
    if what == "state":
        return island.state()
    if what == "memories":
        return island.memories(*arguments)
    if what == "resume":
        island.resume(*arguments)
        return None
    assert what == "close"
    return island.close(*arguments)
