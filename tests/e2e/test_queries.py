"""Federated analytics and training of the app's own, against real parties: exact answers, and nothing of a device but its sum."""

from __future__ import annotations

import json
import queue
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from blindsum.backend.cli import app
from blindsum.backend.provision import create_fleet, enrol
from blindsum.backend.queries import answers, create_query
from blindsum.backend.stack import Stack
from blindsum.backend.tasks import Plan, create_task, save_task
from blindsum.protocol.params import ThreatModel
from blindsum.protocol.queries import Mean, Quantiles, Query, Top, VectorSum
from blindsum.protocol.transcript import read_records, verify
from blindsum.runtime.kit import load_trust
from blindsum.sdk import Context, Device, DeviceEvent, answer, update
from blindsum.training import build_artifact, models

WAIT_S = 60.0
RATES = {"anna": [61, 74], "ben": [58.5], "cleo": [], "dan": [80, 90, 100, 1000]}
RIDES = {"anna": ["bus", "walk"], "ben": ["bus"], "cleo": ["car", "rocket"], "dan": ["walk", "bus"]}
MEAN = Mean(low=30_0, high=220_0, digits=1, values_max=10)
MEDIAN = Quantiles(low=30, high=220, bins=191, values_max=10)
RIDE = Top(domain=["walk", "cycle", "bus", "car"], k=2, values_max=10)
VECTOR = VectorSum(low=-100, high=100, dimensions=3)
HEART_RATE = "mean low=30 high=220 digits=1 values-max=10 --devices-min 4 --devices-max 4"
QUERIES: dict[str, Query] = {"heart-rate": MEAN, "median": MEDIAN, "rides": RIDE, "vector": VECTOR}
OWN = "own-training"


class Analysts:
    """Four devices that answer everything, and a coordinator that asks four queries and lets one model be trained."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.told: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.asked: list[object] = []
        self.failed: dict[str, DeviceEvent] = {}
        self.stack = Stack(root / "logs", lambda _name, event: self.told.put(event))

    def run(self, running: ExitStack) -> None:
        running.enter_context(self.stack)
        self.folder = create_fleet(self.root / "fleet", fleet="census", malicious_parties=1, broker=self.stack.broker())
        threat = ThreatModel(corrupt_permille=0, dropped_permille=0, cohort_min=4)
        cli = ["query", "ask", str(self.folder.root), "heart-rate", *HEART_RATE.split()]
        asked = CliRunner().invoke(app, [*cli, *["--dropped", "0", "--corrupt", "0", "--cohort-min", "4"]])
        assert asked.exit_code == 0, asked.output
        for name in QUERIES.keys() - {"heart-rate"}:
            query = QUERIES[name]
            plan = Plan(name=name, threat=threat, devices_min=4, devices_max=4, rounds=1, join_s=30.0, upload_s=30.0)
            save_task(create_query(self.folder.operator, query, plan)[0], self.folder.coordinator)
        artifact = build_artifact(models.logistic(3, 1), loss="binary-cross-entropy")
        plan = Plan(
            name=OWN, threat=threat, devices_min=4, devices_max=4, rounds=1, clip_norm=10.0, join_s=30.0, upload_s=30.0
        )
        save_task(create_task(self.folder.operator, artifact, plan)[0], self.folder.coordinator)
        for number, kit in enumerate(self.folder.parties, 1):
            self.stack.party(number, kit)
        for place, name in enumerate(RATES):
            running.enter_context(self._device(name, place))
        self.stack.coordinator(self.folder.coordinator)
        until, finished = time.monotonic() + WAIT_S, set()
        while finished < {*QUERIES, OWN}:
            self.stack.check()
            event = self.told.get(timeout=max(0.1, until - time.monotonic()))
            assert event["event"] != "round-failed", event
            if event["event"] == "transcript":
                finished.add(Path(event["path"]).name.rpartition("-")[0])

    def _device(self, name: str, place: int) -> Device:
        device = Device.open(enrol(self.folder, [name])[0])

        @device.task("heart-rate")
        @answer
        def rates(context: Context) -> Iterator[float]:
            self.asked.append(context.query)
            yield from RATES[name]

        device.task("median")(rates)

        @device.task("rides")
        @answer
        def rides(_context: Context) -> list[str]:
            return RIDES[name]

        @device.task("vector")
        @answer
        def vector(_context: Context) -> np.ndarray:
            return np.array([place, -place, 1000])

        @device.task(OWN)
        @update
        def own(_context: Context, parameters: np.ndarray) -> tuple[np.ndarray, int]:
            assert parameters.dtype == np.float32 and not parameters.any()
            return np.full(parameters.shape, place + 1.0), 3

        return device


@pytest.fixture(scope="module")
def analysts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Analysts]:
    made = Analysts(tmp_path_factory.mktemp("census"))
    with ExitStack() as running:
        made.run(running)
        yield made


def test_answers_are_exact_and_values_out_of_bounds_count_as_the_bound(analysts: Analysts) -> None:
    rates = [61, 74, Fraction(117, 2), 80, 90, 100, 220]
    kit = analysts.folder.coordinator
    found = {name: answers(kit, name)[1] for name in QUERIES}
    assert {answer.devices for answer in found.values()} == {4}
    assert found["heart-rate"].value == Fraction(sum(rates)) / len(rates)
    assert found["median"].value == [(80, 80)]
    assert found["rides"].value == [("bus", 3), ("walk", 2)]
    assert found["vector"].value == [6, -6, 400]


def test_command_line_reads_the_answers_to_people_and_to_programs(analysts: Analysts) -> None:
    def told(name: str, *more: str) -> str:
        return CliRunner().invoke(app, ["query", "answers", str(analysts.folder.root), name, *more]).stdout

    exact = Fraction(61 + 74 + 80 + 90 + 100 + 220) + Fraction(117, 2)
    [row] = json.loads(told("heart-rate", "--json"))["answers"]
    assert row == {"round": 1, "devices": 4, "value": float(exact / 7), "exact": str(exact / 7)}
    assert f"({exact / 7})" in told("heart-rate")
    [row] = json.loads(told("rides", "--json"))["answers"]
    assert row["value"] == row["exact"] == [["bus", 3], ["walk", 2]]
    assert re.search(r"50 % +│ 80 ", told("median"))


def test_app_sees_the_question_before_it_answers(analysts: Analysts) -> None:
    assert MEAN in analysts.asked and MEDIAN in analysts.asked


def test_rounds_of_queries_and_of_own_training_verify(analysts: Analysts) -> None:
    trust = load_trust(analysts.folder.operator)
    for path in (analysts.folder.coordinator / "transcripts").glob("*.blindsum"):
        report = verify(path.read_bytes(), trust=trust)
        assert report.valid, (path.name, report.faults)


def test_own_training_moves_the_model_by_the_mean_of_what_devices_returned(analysts: Analysts) -> None:
    [path] = (analysts.folder.coordinator / "transcripts").glob(f"{OWN}-*.blindsum")
    model = np.frombuffer(read_records(path.read_bytes())["next"][0], "<f4")
    np.testing.assert_allclose(model, 2.5, atol=0.01)


def test_blocks_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "ANALYTICS.md").read_text("utf-8")
    fleet = create_fleet(tmp_path / "fleet", fleet="page", malicious_parties=1, broker="mqtt://127.0.0.1:1")
    (tmp_path / "kit").symlink_to(enrol(fleet, ["phone"])[0])
    monkeypatch.chdir(tmp_path)
    world: dict[str, Any] = {"fleet": fleet, "my_heart_rates_of_today": lambda: [60, 70.5]}
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    for code in blocks:
        exec(compile(code, "docs/ANALYTICS.md", "exec"), world)
    assert answers(fleet.coordinator, "heart-rate") == {}
    assert list(world["rates"](Context("heart-rate", 1, 0, world["query"]))) == [60, 70.5]
    create_fleet(tmp_path / "clinics", fleet="clinics", malicious_parties=1, broker="mqtt://127.0.0.1:1")
    [shell] = re.findall(r"^```bash\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    for line in shell.splitlines():
        ran = CliRunner().invoke(app, line.split()[1:])
        assert ran.exit_code == 0, ran.output
    assert "mean values-max=24 low=30 high=220 digits=1" in ran.output
    kinds = re.findall(r"^\| `(\w+)\(", page, re.MULTILINE)
    assert kinds == ["Count", "Sum", "Mean", "Variance", "Histogram", "Top", "Quantiles", "VectorSum"]
