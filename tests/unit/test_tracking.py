"""Trackers are told what rounds were; their files are read back."""

from __future__ import annotations

import struct
import threading
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event as Record

from blindsum.backend.board import Board
from blindsum.backend.tracking import MlFlow, TensorBoard, Tracker, Tracking
from blindsum.fleet import Fleet
from blindsum.protocol.machines.step import Event

_ZEROS = np.zeros(5, np.float32)
FIGURES: Mapping[str, object] = {"loss": 0.5, "survivors": 7, "code": "", "accuracy": None, "worst": float("nan")}


def scalars(folder: Path) -> dict[tuple[str, int], float]:
    """All scalars in the event files of a folder, by name and step."""
    found = {}
    for path in folder.glob("events.*"):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            record = Record.FromString(data[at + 12 : at + 12 + size])
            for value in record.summary.value:
                found[value.tag, record.step] = value.simple_value
            at += 16 + size
    return found


def logged(folder: Path) -> dict[tuple[str, int], float]:
    """The same of MLflow's store."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(folder.as_uri())
    [run] = client.search_runs([client.get_experiment_by_name("fleet").experiment_id])
    names = run.data.metrics
    return {
        (name, each.step): each.value for name in names for each in client.get_metric_history(run.info.run_id, name)
    }


def test_tensorboard_reads_the_numbers_of_each_round_and_nothing_else(tmp_path: Path) -> None:
    tracker = TensorBoard(tmp_path)
    tracker.round("fraud", 1, FIGURES)
    tracker.round("fraud", 2, {"loss": 0.25})
    tracker.close()
    assert scalars(tmp_path / "fraud") == {("loss", 1): 0.5, ("survivors", 1): 7.0, ("loss", 2): 0.25}


def test_simulated_rounds_are_tracked(tmp_path: Path) -> None:
    tracker = TensorBoard(tmp_path)
    fleet = Fleet(_ZEROS, devices=6, update=lambda local: local.parameters + 0.1, workers=0, name="six")
    report = fleet.run(2, tracker=tracker)
    tracker.close()
    found = scalars(tmp_path / "six")
    assert [found["survivors", each.round] for each in report.rounds] == [each.survivors for each in report.rounds]


class Failing:
    def __init__(self) -> None:
        self.told = threading.Semaphore(0)

    def round(self, task: str, number: int, figures: Mapping[str, object]) -> None:
        self.told.release()
        raise ConnectionError("no route")

    def close(self) -> None:
        raise ConnectionError("no route")


def test_tracker_that_fails_stops_neither_rounds_nor_other_trackers(tmp_path: Path) -> None:
    board, failing, reports = Board("coordinator", 0), Failing(), []
    trackers: list[Tracker] = [failing, TensorBoard(tmp_path)]
    tracking = Tracking(trackers, board, reports.append)
    for number in range(1, 6):
        data: dict[str, object] = {"task": "fraud", "round": number}
        board.tell(1000 * number, "phase", {**data, "phase": "offer"})
        event = Event("round-finished", {**data, "count": 4, "weight": 40, "statistics": [40, 10_000_000]})
        board.tell(1000 * number + 500, event.name, dict(event.data))
        tracking.event(Event("phase", {**data, "phase": "done"}))
        tracking.event(event)
    tracking.close()
    found = scalars(tmp_path / "fraud")
    assert {found["loss", number] for number in range(1, 6)} == {0.25}
    assert {found["seconds", number] for number in range(1, 6)} == {0.5}
    assert len([name for name, _ in found if name == "failed"]) == 5
    assert reports == ["ConnectionError: no route"] * 3  # the first, second and fourth of six


if find_spec("mlflow"):  # no dependency: whoever has it may use it

    def test_mlflow_has_one_run_of_a_task_also_after_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        for number in (1, 2):
            tracker = MlFlow(tmp_path.as_uri(), "fleet")
            tracker.round("fraud", number, FIGURES)
            tracker.close()
        steps = {("loss", 1): 0.5, ("survivors", 1): 7.0, ("loss", 2): 0.5, ("survivors", 2): 7.0}
        assert logged(tmp_path) == steps
