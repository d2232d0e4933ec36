"""The graphs of an artifact in onnxruntime, with the buffers that they read and write."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from blindsum.protocol.errors import BlindsumError

from .artifact import Artifact
from .bank import Bank, Floats
from .batch import Feeds, infinite, pieces, rows_of
from .budget import Budget
from .manifest import LOSS, PREDICTION, WEIGHT, Manifest, Weight, gradient, noise, updated
from .protobuf import with_initialisers
from .verify import ROWS

EVALUATE_ROWS_MAX = 1024  # evaluate and predict take longer inputs in pieces of this many, or of fewer
ALIVE_SHARE = 0.75  # of what onnxruntime's arena holds, at the least: gaps between buffers are the rest
EVALUATE_BYTES = 1 << 28  # that take no more than this beside the weights

Arrays = Mapping[str, NDArray[np.generic]]


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
        self.noise = (seed, 0)  # the seed, and how many batches have been given noise
        self._loss, self._weight = np.zeros((), np.float32), np.zeros((), np.float32)
        self.numbers = {name: np.array(value, np.float32) for name, value in manifest.hyperparameters.items()}
        self.updates = manifest.optimiser != "gradient"
        self._banks = [Bank((*manifest.parameters, *manifest.states)) for _ in range(2)]
        self._at = 0  # the bank that holds the current parameters
        self.anchors, self.controls = Bank(manifest.anchors), Bank(manifest.controls)
        self._train = self._open(artifact.train, artifact.constants)
        self._steps = [self._bind(at) for at in range(2)]
        self._evaluate: ort.InferenceSession | None = None
        self._predict: ort.InferenceSession | None = None
        self._halves: _Halves | None = None
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
        feeds, rows = self._with_noise(feeds), rows_of(feeds)
        self.noise = (self.noise[0], self.noise[1] + 1)
        if 0 < rows_max < rows:
            return self._step_in_pieces(feeds, rows_max)
        self.budget.require("train", rows)
        loss, weight = self._run(self._train, self._steps[self._at], feeds)
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
        self._evaluate = self._evaluate or self._open(self.artifact.evaluate, self._weights())
        totals = np.zeros((len(self.manifest.metrics), 2))
        for piece in pieces(feeds, self._rows_at_once("evaluate", feeds)):
            with _failures():
                values = self._evaluate.run(None, piece)
            means, weights = np.array(values, np.float64).T
            totals += np.stack([means * weights, weights], axis=1)
        metrics: list[float] = (totals[:, 0] / np.where(totals[:, 1] == 0.0, 1.0, totals[:, 1])).tolist()
        _require_finite(metrics[0], feeds)
        return metrics

    def predict(self, feeds: Feeds) -> Floats:
        self._predict = self._predict or self._open(self.artifact.predict, self._weights())
        rows = self._rows_at_once("predict", feeds)
        with _failures():
            parts = [self._predict.run([PREDICTION], piece)[0] for piece in pieces(feeds, rows)]
        return np.concatenate(parts)

    def shrink(self, feeds: Feeds) -> None:
        """Give memory that runs have taken back to the system; `feeds` is a batch to run once more for that."""
        options = ort.RunOptions()
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        one = self._with_noise(next(pieces(feeds, 1)))
        with contextlib.suppress(BlindsumError):  # a model may take no single row: the memory stays then
            if self._halves is not None:
                self._run(self._halves.gradient, self._halves.slopes[self._at], one, options)
            self._run(self._train, self._steps[self._at], one, options)

    def forget(self) -> None:
        """Drop the sessions that hold older parameters as constants."""
        self._evaluate = self._predict = None

    def _with_noise(self, feeds: Feeds) -> Feeds:
        """`feeds` and the random numbers by which Dropout drops."""
        if not self.manifest.noise:
            return feeds
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
        beside = 2 * self._banks[0].buffer.nbytes + 4 * self.manifest.size  # the second bank, the sum, the states
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

    def _step_in_pieces(self, feeds: Feeds, rows_max: int) -> tuple[float, float]:
        """The gradient is the mean of the pieces' gradients, by weight: that of the whole batch."""
        self._halves = self._halves or _Halves(self)
        halves, loss, weight = self._halves, 0.0, 0.0
        self.budget.require("gradient", min(rows_max, rows_of(feeds)))
        halves.total.buffer.fill(0.0)
        for piece in pieces(feeds, rows_max):
            part, share = self._run(halves.gradient, halves.slopes[self._at], piece)
            loss += part * share
            weight += share
            halves.slope.buffer *= np.float32(share)
            halves.total.buffer += halves.slope.buffer
        halves.total.buffer /= np.float32(weight or 1.0)
        if halves.update is None:
            self._banks[1].buffer[...] = halves.total.buffer
        else:
            with _failures():
                halves.update.run_with_iobinding(halves.updates[self._at])
            self._swap()
        return loss / (weight or 1.0), weight

    def _run(
        self, session: ort.InferenceSession, binding: ort.IOBinding, feeds: Feeds, options: ort.RunOptions | None = None
    ) -> tuple[float, float]:
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array)
        with _failures():
            session.run_with_iobinding(binding, options)
        loss = float(self._loss)
        _require_finite(loss, feeds)
        return loss, float(self._weight)

    def _swap(self) -> None:
        self._at = 1 - self._at
        self.forget()

    def _weights(self) -> dict[str, NDArray[np.generic]]:
        arrays = self._banks[self._at].arrays
        trained = {weight.name: arrays[weight.name] for weight in self.manifest.parameters}
        return {**self.artifact.constants, **trained}

    def _bind(self, at: int) -> ort.IOBinding:
        """The train graph from bank `at` to the other."""
        result = updated if self.updates else gradient
        written = {result(name): array for name, array in self._banks[1 - at].arrays.items()}
        return _bound(self._train, self._read(at), {LOSS: self._loss, WEIGHT: self._weight, **written})

    def _read(self, at: int) -> dict[str, Floats]:
        """What an update reads beside gradients."""
        numbers = {f"@{name}": value for name, value in self.numbers.items()}
        return {**numbers, **self._banks[at].arrays, **self.anchors.arrays, **self.controls.arrays}

    def _open(self, graph: bytes, constants: Arrays) -> ort.InferenceSession:
        """Weights go in as constants, so that onnxruntime folds and prepacks them."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # errors come back as exceptions
        options.enable_mem_pattern = (
            False  # planning memory ahead leaves the first step's unused beside it: twice the peak
        )
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # waiting threads sleep: battery
        # int8 weights meet float32 activations, as the graph says; onnxruntime would round those to int8 as well
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        with _failures():
            return ort.InferenceSession(
                with_initialisers(graph, constants), options, providers=["CPUExecutionProvider"]
            )


class _Halves:
    """The two halves of a step, for batches that are taken in pieces: gradient, then update (none where there is none)."""

    def __init__(self, engine: Engine) -> None:
        manifest, artifact = engine.manifest, engine.artifact
        self.slope, self.total = Bank(_slopes(manifest)), Bank(_slopes(manifest))
        scalars = {LOSS: engine._loss, WEIGHT: engine._weight}
        self.gradient = engine._train if not engine.updates else engine._open(artifact.gradient, artifact.constants)
        self.slopes = [_bound(self.gradient, bank.arrays, {**scalars, **self.slope.arrays}) for bank in engine._banks]
        self.update: ort.InferenceSession | None = None
        if engine.updates:
            self.update = engine._open(artifact.update, artifact.constants)
            self.updates = [
                _bound(
                    self.update,
                    {**engine._read(at), **self.total.arrays},
                    {updated(name): array for name, array in engine._banks[1 - at].arrays.items()},
                )
                for at in range(2)
            ]


def _slopes(manifest: Manifest) -> list[Weight]:
    return [Weight(name=gradient(weight.name), shape=weight.shape) for weight in manifest.parameters]


def _bound(session: ort.InferenceSession, given: Mapping[str, Floats], results: Mapping[str, Floats]) -> ort.IOBinding:
    """A binding of those arrays that the graph has."""
    binding = session.io_binding()
    wanted = {item.name for item in session.get_inputs()}
    for name, array in given.items():
        if name in wanted:
            binding.bind_cpu_input(name, array)
    for name, array in results.items():
        binding.bind_output(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
    return binding


@contextlib.contextmanager
def _failures() -> Iterator[None]:
    """onnxruntime has a dozen exception types of its own; ours names the cause and the remedy."""
    try:
        yield
    except Exception as error:
        raise BlindsumError("training-runtime-failed", str(error)) from error


def _require_finite(loss: float, feeds: Feeds) -> None:
    if math.isfinite(loss):
        return
    name = infinite(feeds)
    cause = f", because {name.removeprefix('@').partition('/')[0]} hold NaN or infinity" if name else ""
    raise BlindsumError("training-diverged", f"loss {loss}{cause}")
