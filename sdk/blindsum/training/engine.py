"""The graphs of an artifact in onnxruntime, with the buffers that they read and write."""

from __future__ import annotations

import contextlib
import math

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from blindsum.protocol.errors import BlindsumError

from .artifact import Artifact
from .bank import Bank, Floats
from .batch import Feeds, pieces, rows_of
from .budget import Budget
from .manifest import PREDICTION, gradient, noise, updated
from .opened import bound, failures, open_graph
from .shares import WORK_MIN, WORK_PER_WEIGHT_MIN, Run, Shares, diverged, slopes_of
from .verify import ROWS

EVALUATE_ROWS_MAX = 1024  # evaluate and predict take longer inputs in pieces of this many, or of fewer
PIECE_BYTES = 3 << 24  # of values that a step holds: beyond it, a batch in pieces is quicker than as a whole
PIECE_BYTES_SHARED = 1 << 26  # the same where threads share a piece, as they meet after each
PIECE_ROWS_MIN = 8  # in a piece that is not cut smaller for that
SHARE_ROWS_MIN = 4  # in what a thread gets of it
ALIVE_SHARE = 0.75  # of what onnxruntime's arena holds, at the least: gaps between buffers are the rest
UPDATE_MIN = 1 << 20  # parameters whose update threads share
SMALL_ROWS, SMALL_BYTES = 64, 1 << 23  # of a step whose memory is planned ahead
SESSION_BYTES = 1 << 24  # of constants up to which each share has a session, and so a copy of them, of its own
EVALUATE_BYTES = 1 << 28  # that take no more than this beside the weights


class Engine:
    """Runs one artifact.

    The parameters live in two banks: a step reads one and writes the other, then they change places. (onnxruntime may
    write an output before the last read of an input, so one buffer bound as both gives silently wrong results.) Where
    the step hands out the gradient, the second bank receives it and they never change places.
    """

    def __init__(self, artifact: Artifact, threads: int, seed: int, budget: Budget) -> None:
        self.artifact, self.manifest = artifact, artifact.manifest
        manifest = self.manifest
        self._threads, self.budget = threads, budget
        budget.require("train", ROWS)
        self._thrift = 2 if budget.recomputes() else 1  # pieces are half as large then: no batch may take more for it
        self.noise = (seed, 0)  # the seed, and how many batches have been given noise
        self.numbers = {name: np.array(value, np.float32) for name, value in manifest.hyperparameters.items()}
        self.updates = manifest.optimiser != "gradient"
        self._slopes = "gradient" if self.updates else "train"  # the graph that gives the gradient
        self._banks = [Bank((*manifest.parameters, *manifest.states)) for _ in range(2)]
        self._at = 0  # the bank that holds the current parameters
        self.anchors, self.controls = Bank(manifest.anchors), Bank(manifest.controls)
        self._evaluate: ort.InferenceSession | None = None
        self._predict: ort.InferenceSession | None = None
        self._halves: _Halves | None = None
        self._whole = (0, 0)  # rows and the most at a time of the last batch that was taken as a whole
        self._weights_bytes = sum(array.nbytes for array in artifact.constants.values()) + 4 * manifest.size
        self._work_min = max(WORK_MIN, WORK_PER_WEIGHT_MIN * manifest.size)  # of a share
        small = budget.fits("train", SMALL_ROWS, SMALL_BYTES)
        self._train = open_graph(artifact.train, artifact.constants, self._threads_inside(), small=small)
        self._steps = [self._step(at) for at in range(2)]
        self.place(artifact.parameters)

    def parameters(self) -> Floats:
        return self._banks[self._at].flat(len(self.manifest.parameters))

    def place(self, vector: Floats) -> None:
        """Set the parameters, begin the optimiser afresh, measure the proximal term from here."""
        self._banks[self._at].fill(vector)
        self.anchors.fill(vector)
        self.forget()

    def replace(self, vector: Floats) -> None:
        """Set the parameters and leave everything else."""
        self._banks[self._at].overwrite(vector)
        self.forget()

    def everything(self) -> Floats:
        """Parameters, states, anchors and control variate as one new vector."""
        banks = (self._banks[self._at], self.anchors, self.controls)
        return np.concatenate([bank.flat(len(bank.arrays)) for bank in banks])

    def restore(self, vector: Floats) -> None:
        """Set what `everything` gave."""
        for bank in (self._banks[self._at], self.anchors, self.controls):
            size = sum(array.size for array in bank.arrays.values())
            bank.fill(vector[:size])
            vector = vector[size:]
        self.forget()

    def step(self, feeds: Feeds, rows_max: int = 0) -> tuple[float, float]:
        """Train on one batch, `rows_max` rows at a time (0: all at once); returns the loss and its weight.

        Raises "training-diverged" where the loss is not finite; the parameters then stay as they were.
        """
        rows = rows_of(feeds)
        if self.manifest.noise:
            feeds = self._with_noise(feeds)
            self.noise = (self.noise[0], self.noise[1] + 1)
        if self._whole != (rows, rows_max):
            at_once = self._piece(min(rows, rows_max or rows))
            shares = self._shares(at_once)
            if at_once < rows or shares > 1:
                return self._step_in_pieces(feeds, at_once, shares)
            self.budget.require("train", rows)
            self._whole = rows, rows_max
        loss, weight = self._steps[self._at](feeds)
        if self.updates:
            self._swap()
        return loss, weight

    def gradient(self) -> Floats:
        """What the last step of an artifact that does not update gave."""
        return self._banks[1].flat(len(self.manifest.parameters))

    def undo_if_infinite(self) -> None:
        """Go back to before the last step where it made a parameter NaN or infinite, and raise "training-diverged"."""
        if not all(np.isfinite(self._banks[self._at].arrays[item.name]).all() for item in self.manifest.parameters):
            self._swap()
            raise BlindsumError("training-diverged", "the last step made a parameter NaN or infinite")

    def evaluate(self, feeds: Feeds) -> list[float]:
        """Each metric of the manifest."""
        self._evaluate = self._evaluate or open_graph(self.artifact.evaluate, self._weights(), self._threads)
        totals = np.zeros((len(self.manifest.metrics), 2))
        for piece in pieces(feeds, self._rows_at_once("evaluate", feeds)):
            with failures():
                values = self._evaluate.run(None, piece)
            means, weights = np.array(values, np.float64).T
            totals += np.stack([means * weights, weights], axis=1)
        metrics: list[float] = (totals[:, 0] / np.where(totals[:, 1] == 0.0, 1.0, totals[:, 1])).tolist()
        if not math.isfinite(metrics[0]):
            raise diverged(metrics[0], feeds)
        return metrics

    def predict(self, feeds: Feeds) -> Floats:
        self._predict = self._predict or open_graph(self.artifact.predict, self._weights(), self._threads)
        rows = self._rows_at_once("predict", feeds)
        with failures():
            parts = [self._predict.run([PREDICTION], piece)[0] for piece in pieces(feeds, rows)]
        return np.concatenate(parts)

    def shrink(self, feeds: Feeds) -> None:
        """Give memory that runs have taken back to the system; `feeds` is a batch to run once more for that."""
        options = ort.RunOptions()
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        one = self._with_noise(next(pieces(feeds, 1)))
        with contextlib.suppress(BlindsumError):  # a model may take no single row: the memory stays then
            if self._halves is not None:
                self._halves.shares.shrink(self._at, one, options)
            self._steps[self._at](one, options)

    def forget(self) -> None:
        """Drop the sessions that hold older parameters as constants."""
        self._evaluate = self._predict = None

    def _with_noise(self, feeds: Feeds) -> Feeds:
        """`feeds` and the random numbers by which Dropout drops."""
        generator, rows = np.random.default_rng(self.noise), rows_of(feeds)
        drawn = {noise(i.name): generator.random((rows, *i.shape), np.float32) for i in self.manifest.noise}
        return {**feeds, **drawn}

    def rows_within(self, rows: int, memory: int) -> int:
        """How many of `rows` rows to take at a time so that a step takes no more than `memory` bytes.

        Raises "training-limit-exceeded" where not even one fits.
        """
        memory = int(memory * ALIVE_SHARE)
        if self.budget.fits("train", rows, memory):
            return rows
        # the second bank, the sum, the states, a gradient for each share but the first
        beside = 2 * self._banks[0].buffer.nbytes + 4 * self.manifest.size * self._shares_max
        fitting = self.budget.rows("gradient", rows, memory - beside)
        if not fitting:
            least = int((self.budget.cost("gradient", ROWS).memory + beside) / ALIVE_SHARE)
            raise BlindsumError("training-limit-exceeded", f"{ROWS} rows may take {least} bytes, above memory_cap")
        return fitting

    def _rows_at_once(self, graph: str, feeds: Feeds) -> int:
        """Takes memory for a few rows where rows are large, and is quick where they are small."""
        rows = min(rows_of(feeds), EVALUATE_ROWS_MAX)
        fixed = 2 * self.budget.cost(graph, ROWS).memory
        rows = max(self.budget.rows(graph, rows, min(fixed + EVALUATE_BYTES, self.budget.memory_max)), 1)
        self.budget.require(graph, rows)
        return rows

    @property
    def _shares_max(self) -> int:
        """In how many shares a batch can be worked out at the same time."""
        return self._threads if self.manifest.separable else 1

    def _piece(self, rows: int) -> int:
        """How many of `rows` rows to take at a time: as many as stay in the cache, if that leaves a few.

        Nothing else than time and memory depends on it, where each row counts for itself.
        """
        least = max(PIECE_ROWS_MIN, SHARE_ROWS_MIN * self._threads)
        most = PIECE_BYTES if self._threads == 1 else PIECE_BYTES_SHARED
        if not self.manifest.separable or rows < 2 * least or self._weights_bytes > most // 3:
            return rows
        size = self.budget.cost(self._slopes, rows).memory - self.budget.cost(self._slopes, ROWS).memory
        pieces_max = min(rows // least, self.budget.cost(self._slopes, rows).work // self._work_min)
        return -(-rows // max(1, min(-(-size * self._thrift // most), pieces_max)))

    def _shares(self, rows: int) -> int:
        """In how many shares `rows` rows are worked out at the same time: in one, where they are not worth threads."""
        shares = min(self._shares_max, rows)
        if shares == 1:
            return 1
        cost = self.budget.cost(self._slopes, -(-rows // shares))
        worth = cost.work >= self._work_min and shares * cost.memory <= self.budget.memory_max
        return shares if worth else 1

    def _threads_inside(self) -> int:
        """How many threads share the operators of a step whose batch is not shared out.

        Below some work they take longer than one, 3 to 6 % for steps of 0.1 to 0.6 ms. Where batches can be shared out,
        only small ones get here, and single rows.
        """
        if self._threads == 1:
            return 1
        try:
            most = self.budget.cost("train", SMALL_ROWS).work
            if self.manifest.separable:
                most = max(min(most, 2 * self._work_min), self.budget.cost("train", ROWS).work)
        except BlindsumError:  # a graph that takes no such number of rows
            return self._threads
        return self._threads if most > 2 * WORK_MIN else 1

    def _step_in_pieces(self, feeds: Feeds, rows_max: int, shares: int) -> tuple[float, float]:
        self._halves = self._halves or _Halves(self)
        self.budget.require(self._slopes, rows_max)
        found = self._halves.shares.work_out(self._at, feeds, rows_max, shares)
        if self._halves.update is not None:
            with failures():
                self._halves.update.run_with_iobinding(self._halves.updates[self._at])
            self._swap()
        return found

    def _swap(self) -> None:
        self._at = 1 - self._at
        self.forget()

    def _weights(self) -> dict[str, NDArray[np.generic]]:
        arrays = self._banks[self._at].arrays
        trained = {weight.name: arrays[weight.name] for weight in self.manifest.parameters}
        return {**self.artifact.constants, **trained}

    def _step(self, at: int) -> Run:
        """The train graph from bank `at` to the other."""
        result = updated if self.updates else gradient
        written = {result(name): array for name, array in self._banks[1 - at].arrays.items()}
        return Run(self._train, self._read(at), written)

    def _read(self, at: int) -> dict[str, Floats]:
        """What an update reads beside gradients."""
        numbers = {f"@{name}": value for name, value in self.numbers.items()}
        return {**numbers, **self._banks[at].arrays, **self.anchors.arrays, **self.controls.arrays}


class _Halves:
    """The two halves of a step, for batches that are taken in pieces: gradient, then update (none where there is none)."""

    def __init__(self, engine: Engine) -> None:
        manifest, artifact, count = engine.manifest, engine.artifact, engine._shares_max
        threads = 1 if count > 1 else engine._threads
        graph = artifact.graphs()[engine._slopes]
        total = Bank(slopes_of(manifest))
        self.update: ort.InferenceSession | None = None
        if engine.updates:
            inside = engine._threads if manifest.size >= UPDATE_MIN else 1
            self.update = open_graph(artifact.update, artifact.constants, inside)
            self.updates = [
                bound(
                    self.update,
                    {**engine._read(at), **total.arrays},
                    {updated(name): array for name, array in engine._banks[1 - at].arrays.items()},
                )
                for at in range(2)
            ]
        else:
            total = engine._banks[1]  # which nothing else writes
        own = sum(array.nbytes for array in artifact.constants.values()) <= SESSION_BYTES
        sessions = [open_graph(graph, artifact.constants, threads) for _ in range(count if own else 1)]
        self.shares = Shares(sessions if own else sessions * count, manifest, engine._banks, total)
