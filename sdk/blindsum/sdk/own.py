"""The app's functions for a task: examples to train on, or all of a round's work: answers to queries, training of the app's own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.queries import Query, read_query
from blindsum.protocol.view import TaskView
from blindsum.sdk.trainer import Batch, Trained

__all__ = ["Answer", "Context", "Examples", "Own", "Update", "answer", "update"]

_NOTHING = np.zeros(0, np.float32)


@dataclass(frozen=True, slots=True)
class Context:
    """What an examples function is told: which task, round and epoch (from 0) it is asked for; with `evaluate`, the model is
    evaluated on what it yields and not trained; `query` is the question where it answers one."""

    task: str
    round: int
    epoch: int
    evaluate: bool = False
    query: Query | None = None


Examples = Callable[[Context], Iterable[Batch]]


@dataclass(frozen=True, slots=True)
class Answered(Trained):
    """What a function of the app gave; `integers` go into the exact segment after the weight."""

    integers: tuple[int, ...] = ()

    @property
    def statistics(self) -> list[int]:
        return list(self.integers)


class Own:
    """Work of the app's own for a round."""

    def perform(self, base: TaskView, plan: bytes, model: bytes, number: int) -> Trained:
        """`contribute` to round `number`."""
        return self.contribute(base, plan, model, Context(base.name, number, 0, query=self.query(plan)))

    def contribute(self, base: TaskView, plan: bytes, model: bytes, context: Context) -> Trained:
        """Raises BlindsumError "task-mismatch" where the task asks for something else, or what the app's function raises."""
        raise NotImplementedError

    def query(self, plan: bytes) -> Query | None:
        """The query in a task's plan, where this work answers one. Raises BlindsumError "query-invalid"."""
        return None


class Answer(Own):
    """Answers queries with the values that `function(context)` yields; `context.query` is the question."""

    def __init__(self, function: Callable[[Context], Iterable[Any]]) -> None:
        self._function = function

    def __call__(self, context: Context) -> Iterable[Any]:
        return self._function(context)

    def query(self, plan: bytes) -> Query:
        return read_query(plan)

    def contribute(self, base: TaskView, plan: bytes, model: bytes, context: Context) -> Trained:
        if model or any(spec.codec == "quantised" for spec in base.task.segments):
            raise BlindsumError("task-mismatch", f"{base.name} trains a model and asks no query")
        query = read_query(plan)
        values = list(itertools.islice(self._function(context), max(query.values_max, query.size)))
        return Answered(_NOTHING, max(1, len(values)), 0.0, _NOTHING, integers=tuple(query.encode(values)))


class Update(Own):
    """Makes updates by `function(context, parameters)`: their change, or that and the number of examples behind it."""

    def __init__(self, function: Callable[[Context, NDArray[np.float32]], ArrayLike | tuple[ArrayLike, int]]) -> None:
        self._function = function

    def __call__(self, context: Context) -> Iterable[Any]:
        raise BlindsumError("task-mismatch", "this function makes updates and yields no examples")

    def contribute(self, base: TaskView, plan: bytes, model: bytes, context: Context) -> Trained:
        quantised = [spec for spec in base.task.segments if spec.codec == "quantised"]
        [exact] = [spec for spec in base.task.segments if spec.codec == "exact"]
        if len(quantised) != 1 or exact.length > 3:
            raise BlindsumError("task-mismatch", f"{base.name} does not sum one update of each device")
        made = self._function(context, np.frombuffer(model, dtype="<f4").astype(np.float32))
        vector, examples = made if isinstance(made, tuple) else (made, 1)
        update = np.asarray(vector, dtype=np.float32).reshape(-1)
        whole = (int(examples), *(0 for _ in range(exact.length - 2)))
        return Answered(update, int(examples), 0.0, _NOTHING, integers=whole[: exact.length - 1])


def answer(function: Callable[[Context], Iterable[Any]]) -> Answer:
    """Decorator below `Device.task`: the function yields the values with which this device answers the task's query."""
    return Answer(function)


def update(function: Callable[[Context, NDArray[np.float32]], ArrayLike | tuple[ArrayLike, int]]) -> Update:
    """Decorator below `Device.task`: the function trains by itself and returns the change of the parameters, or (change, number
    of examples). It sees the parameters as one float32 vector."""
    return Update(function)
