"""Figures of rounds for experiment trackers: TensorBoard's event files (tensorboardX), and MLflow where it is installed."""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from blindsum.protocol.errors import BlindsumError
from blindsum.runtime.settings import Settings

if TYPE_CHECKING:
    from blindsum.backend.board import Board
    from blindsum.protocol.machines.step import Event

__all__ = ["MlFlow", "TensorBoard", "Tracker", "Tracking", "TrackingSettings"]

WAITING_MAX: Final = 1000
"""Rounds that wait for a tracker that is slow or away; of further ones it is told nothing."""
CLOSE_S: Final = 5.0
TASK_TAG: Final = "blindsum.task"


class TrackingSettings(Settings, frozen=True):
    """`[tracking]` of a coordinator. `tensorboard`: the folder for event files, below the kit unless absolute; `mlflow`: URI of a
    tracking server. "": neither."""

    tensorboard: str = ""
    mlflow: str = ""


class Tracker(Protocol):
    """Is told the figures of each round, by whoever runs it: a coordinator, or a script that simulates a fleet."""

    def round(self, task: str, number: int, figures: Mapping[str, object]) -> None:
        """`figures` by name; what is no finite number is passed over."""
        ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in `folder`, a folder in it for each task. Raises BlindsumError "tracking-unusable"."""

    def __init__(self, folder: str | Path) -> None:
        try:
            from tensorboardX import SummaryWriter  # here: who tracks nothing does not need it
        except ModuleNotFoundError:
            raise BlindsumError("tracking-unusable", "pip install 'blindsum[tracking]'") from None
        self._make, self._folder = SummaryWriter, Path(folder)
        self._writers: dict[str, Any] = {}  # as many as the coordinator has tasks

    def round(self, task: str, number: int, figures: Mapping[str, object]) -> None:
        if task not in self._writers:
            self._writers[task] = self._make(str(self._folder / task))
        for name, value in _numbers(figures).items():
            self._writers[task].add_scalar(name, value, number)
        self._writers[task].flush()

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


class MlFlow:
    """An experiment of the MLflow server at `uri`, with a run for each task that is found again after a restart. Raises
    BlindsumError "tracking-unusable"."""

    def __init__(self, uri: str, experiment: str) -> None:
        try:
            from mlflow.entities import Metric
            from mlflow.tracking import MlflowClient
        except ModuleNotFoundError:
            raise BlindsumError("tracking-unusable", "pip install mlflow-skinny, or mlflow") from None
        self._client, self._metric, self._experiment = MlflowClient(uri), Metric, experiment
        self._runs: dict[str, str] = {}

    def round(self, task: str, number: int, figures: Mapping[str, object]) -> None:
        from blindsum.runtime.system import now_ms

        run, at = self._run(task), now_ms()
        metrics = [self._metric(name, value, at, number) for name, value in _numbers(figures).items()]
        self._client.log_batch(run, metrics=metrics)

    def close(self) -> None:
        for run in self._runs.values():
            self._client.set_terminated(run)

    def _run(self, task: str) -> str:
        if task not in self._runs:
            known = self._client.get_experiment_by_name(self._experiment)
            place = known.experiment_id if known else self._client.create_experiment(self._experiment)
            found = self._client.search_runs([place], f"tags.`{TASK_TAG}` = '{task}'", max_results=1)
            made = found[0] if found else self._client.create_run(place, tags={TASK_TAG: task}, run_name=task)
            self._runs[task] = made.info.run_id
        return self._runs[task]


class Tracking:
    """Tells trackers of the rounds on a coordinator's board, on a thread of its own: rounds wait for no tracker. `report` hears of
    failures, the 1st, 2nd, 4th, 8th…"""

    def __init__(self, trackers: list[Tracker], board: Board, report: Callable[[str], None]) -> None:
        self._trackers, self._board, self._report = trackers, board, report
        self._waiting: queue.Queue[tuple[str, int, dict[str, object]] | None] = queue.Queue(WAITING_MAX)
        self._failures = 0
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
        self._thread.start()

    def event(self, event: Event) -> None:
        """Take note of a round that is over; to be called when the board knows of it."""
        if event.name not in ("round-finished", "round-failed"):
            return
        task, number = str(event.data["task"]), int(str(event.data["round"]))
        figures = self._board.figures(task, number)
        try:
            self._waiting.put_nowait((task, number, figures))
        except queue.Full:
            self._failed(f"{WAITING_MAX} rounds wait for a tracker")

    def close(self) -> None:
        """Tell what waits, for a few seconds at most."""
        try:
            self._waiting.put(None, timeout=CLOSE_S)
        except queue.Full:
            return
        self._thread.join(CLOSE_S)

    def _run(self) -> None:
        while (waiting := self._waiting.get()) is not None:
            for tracker in self._trackers:
                self._try(lambda tracker=tracker: tracker.round(*waiting))  # type: ignore[misc]
        for tracker in self._trackers:
            self._try(tracker.close)

    def _try(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # whatever a tracker's client raises: rounds go on
            self._failed(f"{type(error).__name__}: {error}")

    def _failed(self, detail: str) -> None:
        self._failures += 1
        if self._failures & (self._failures - 1) == 0:
            self._report(detail)


def _numbers(figures: Mapping[str, object]) -> dict[str, float]:
    return {
        name: float(value) for name, value in figures.items() if isinstance(value, int | float) and math.isfinite(value)
    }
