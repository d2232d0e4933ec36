"""The gradient of a batch out of the gradients of its pieces, and of the shares of a piece that threads take at once.

Threads inside an operator meet after each of hundreds of operators, and sleep and wake for that; threads that have rows
of their own meet once. So that is how a step uses them wherever the rows of a batch count each for itself.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from queue import SimpleQueue
from threading import Thread
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from blindsum.protocol.errors import BlindsumError

from .bank import Bank, Floats
from .batch import Feeds, infinite, pieces, rows_of
from .manifest import LOSS, WEIGHT, Manifest, Weight, gradient
from .opened import bound, failure

COPY_MAX = 1 << 13  # bytes that are copied sooner than bound
WORK_MIN = 1 << 23  # multiplications of a share that are worth a thread: it saves 0.3 ms and takes 0.15 to be set off
WORK_PER_WEIGHT_MIN = 256  # and that are worth a gradient of its own, to be added to the others


class Run:
    """One binding of a graph that gives loss, its weight and more.

    To bind an array takes 2 us. So small ones have a buffer that stays bound while batches are of one size.
    """

    def __init__(self, session: ort.InferenceSession, given: dict[str, Floats], results: dict[str, Floats]) -> None:
        self._session = session
        self._loss, self._weight = np.zeros((), np.float32), np.zeros((), np.float32)
        self._binding = bound(session, given, {LOSS: self._loss, WEIGHT: self._weight, **results})
        self._small: Feeds = {}

    def __call__(self, feeds: Feeds, options: ort.RunOptions | None = None) -> tuple[float, float]:
        """Raises "training-diverged" where the loss is not finite."""
        try:
            for name, array in feeds.items():
                small = self._small.get(name)
                if small is not None and small.shape == array.shape:
                    small[...] = array
                else:
                    self._bind(name, array)
            self._session.run_with_iobinding(self._binding, options)
        except Exception as error:
            raise failure(error) from error
        loss = self._loss.item()
        if not math.isfinite(loss):
            raise diverged(loss, feeds)
        return loss, self._weight.item()

    def _bind(self, name: str, array: NDArray[Any]) -> None:
        if array.nbytes <= COPY_MAX:
            array = self._small[name] = array.copy()
        else:
            self._small.pop(name, None)
        self._binding.bind_cpu_input(name, array)


_Reply = SimpleQueue[tuple[float, float] | BaseException]
_Task = tuple[Run, Feeds, _Reply]


class Shares:
    """Gradients of as many shares at once as there are sessions of the gradient graph with one thread each.

    One session may stand there several times. Runs of it then wait for each other whenever they take or give back memory,
    which is in every operator: an LSTM's two shares of 16 rows took 2.6 ms in one session, 1.65 in two, one alone 1.3.
    """

    def __init__(
        self, sessions: Sequence[ort.InferenceSession], manifest: Manifest, banks: Sequence[Bank], total: Bank
    ) -> None:
        count, self.total = len(sessions), total
        self._sessions = len({id(session) for session in sessions})
        self._slopes = [Bank(slopes_of(manifest)) for _ in sessions]
        pairs = list(zip(sessions, self._slopes, strict=True))
        self._runs = [[Run(session, bank.arrays, slope.arrays) for session, slope in pairs] for bank in banks]
        self._tasks = _workers(self, count - 1)

    def work_out(self, at: int, feeds: Feeds, rows_max: int, count: int) -> tuple[float, float]:
        """Leave in `total` the gradient of the batch by the parameters of bank `at`; returns the loss and its weight.

        `rows_max` rows are taken at a time, in `count` shares. The gradient is the mean of the pieces' gradients, by
        weight: that of the whole batch.
        """
        loss, weight, unit = 0.0, 0.0, 0.0
        for piece in pieces(feeds, rows_max):
            shares = list(pieces(piece, -(-rows_of(piece) // count)))
            found = self._together(at, shares)
            for slope, (part, share) in zip(self._slopes, found, strict=False):
                loss += part * share
                weight += share
                first, unit = not unit, unit or share or 1.0
                if share != unit:  # of the first, which shares mostly weigh: a pass less over their gradients
                    slope.buffer *= np.float32(share / unit)
                if first:
                    self.total.buffer[...] = slope.buffer
                else:
                    self.total.buffer += slope.buffer
        self.total.buffer *= np.float32(unit / (weight or 1.0))
        return loss / (weight or 1.0), weight

    def shrink(self, at: int, feeds: Feeds, options: ort.RunOptions) -> None:
        for run in self._runs[at][: self._sessions]:
            run(feeds, options)

    def _together(self, at: int, shares: Sequence[Feeds]) -> list[tuple[float, float]]:
        runs, waiting = self._runs[at], list[_Reply]()
        for run, share in zip(runs[1:], shares[1:], strict=False):
            waiting.append(SimpleQueue())
            self._tasks.put((run, share, waiting[-1]))
        try:
            first = runs[0](shares[0])
        finally:  # nobody writes a gradient any more when this is over
            found = [one.get() for one in waiting]
        for one in found:
            if isinstance(one, BaseException):
                raise one
        return [first, *(one for one in found if not isinstance(one, BaseException))]


def slopes_of(manifest: Manifest) -> list[Weight]:
    """The gradients as a bank holds them."""
    return [Weight(name=gradient(weight.name), shape=weight.shape) for weight in manifest.parameters]


def diverged(loss: float, feeds: Feeds) -> BlindsumError:
    """What a loss that is not finite raises."""
    name = infinite(feeds)
    cause = f", because {name.removeprefix('@').partition('/')[0]} hold NaN or infinity" if name else ""
    return BlindsumError("training-diverged", f"loss {loss}{cause}")


def _workers(owner: Shares, count: int) -> SimpleQueue[_Task | None]:
    """Threads that take what is put here, until `owner` is gone. (Futures of an executor take 0.05 ms a step more.)"""
    tasks: SimpleQueue[_Task | None] = SimpleQueue()
    for _ in range(count):
        Thread(target=_work, args=(tasks,), name="blindsum-training", daemon=True).start()
        weakref.finalize(owner, tasks.put, None)
    return tasks


def _work(tasks: SimpleQueue[_Task | None]) -> None:
    while (task := tasks.get()) is not None:
        run, share, reply = task
        try:
            reply.put(run(share))
        except BaseException as error:
            reply.put(error)
        del task, run, share, reply  # what waits for work keeps no batch and no session
