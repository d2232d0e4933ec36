"""Simulations from files: the command, the report, the document's own examples, and what is wrong in a file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from blindsum.fleet import (
    Conditions,
    Dataset,
    Dropout,
    Fleet,
    FleetReport,
    compare,
    island,
    plan_for,
    simcli,
    simfile,
    simulation,
)
from blindsum.fleet.partition import by_owner, quantity
from blindsum.fleet.simcli import simulate
from blindsum.fleet.simfile import load_fleet
from blindsum.protocol.errors import BlindsumError
from blindsum.training import SGD, build_artifact, models

DOCUMENT = Path(__file__).parents[2] / "docs" / "SIMULATION.md"


def block(language: str, *, number: int = 0) -> str:
    found: list[str] = re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return found[number]


def run(*arguments: str) -> tuple[int, str]:
    import typer

    app = typer.Typer()
    app.command()(simulate)
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout


@pytest.mark.parametrize("number", [0, 1])
def test_scripts_of_the_document_run(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block("python", number=number), str(DOCUMENT), "exec"), {"__name__": "document"})
    assert [path.name for path in tmp_path.glob("*.html")] == ["three.html"] * number


def test_file_of_the_document_gives_a_report_and_a_model(tmp_path: Path) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text(block("toml"), "utf-8")
    status, said = run(str(file), "--workers", "0", "--out", str(tmp_path / "out"), "--json")
    assert status == 0
    told = json.loads(said.splitlines()[-1])
    assert told["sum_exact"] and told["rounds"] == 1 and not told["failed"]
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "digits on phones" in page and 'src="http' not in page and "<script" not in page
    assert (tmp_path / "out" / "report.png").read_bytes().startswith(b"\x89PNG")
    kept = FleetReport.load(tmp_path / "out")
    assert kept.digest == told["model"]
    assert kept.rounds[0].accuracy == told["per_round"][0]["accuracy"]


def test_crowd_of_the_document_is_played_at_a_thousandth_of_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, text = tmp_path / "crowd.toml", block("toml", number=1)
    assert "devices = 100_000\n" in text and "train_s = 240.0\n" in text
    file.write_text(text.replace("100_000", "100").replace("240.0", "6.0"), "utf-8")
    monkeypatch.setattr(island, "RESTING_FROM", 1)
    status, said = run(str(file), "--workers", "1", "--out", str(tmp_path / "out"), "--json")
    told = json.loads(said.splitlines()[-1])
    assert status == 0 and told["sum_exact"] and told["rounds"] == 1 and not told["failed"]
    assert sum(told["per_round"][0]["dropped"].values()) + told["per_round"][0]["survivors"] == 100


def test_file_of_late_updates_is_played_and_a_tracker_is_told_of_each_round(tmp_path: Path) -> None:
    file, runs = tmp_path / "fleet.toml", tmp_path / "runs"
    file.write_text(
        'devices = 12\nrounds = 3\n[task]\nprofile = "no-roster"\nstaleness = 5\nbuffer = 4\n'
        '[data]\nset = "none"\nlength = 50\n',
        "utf-8",
    )
    status, said = run(str(file), "--workers", "0", "--out", str(tmp_path / "out"), "--track", str(runs), "--json")
    assert status == 0
    told = json.loads(said.splitlines()[-1])["per_round"]
    assert [each["survivors"] for each in told] == [4, 4, 4] and any(each["stale"] for each in told)
    assert [{str(tau): n for tau, n in each.stale.items()} for each in FleetReport.load(tmp_path / "out").rounds] == [
        each["stale"] for each in told
    ]
    (events,) = (runs / "fleet").iterdir()
    written = events.read_bytes()
    assert written.count(b"staleness") == written.count(b"survivors") == 3


def test_what_is_read_and_what_is_played_are_said_before_they_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading a script or data may take long, and so do the processes of a large fleet."""
    order: list[str] = []

    class Heard(Console):
        def print(self, *objects: object, **named: object) -> None:
            order.extend(f"said {each}" for each in objects)

    def noting(name: str, function: Callable[..., object]) -> Callable[..., object]:
        return lambda *given, **named: (order.append(name), function(*given, **named))[1]

    file, out = tmp_path / "fleet.toml", tmp_path / "out"
    file.write_text('devices = 8\nrounds = 1\n[data]\nset = "none"\nlength = 10\n', "utf-8")
    monkeypatch.setattr(simcli, "Console", Heard)
    monkeypatch.setattr(simfile, "load_fleet", noting("read", load_fleet))
    monkeypatch.setattr(simulation, "Engine", noting("played", simulation.Engine))
    assert run(str(file), "--workers", "0", "--out", str(out), "--json")[0] == 0
    assert order[:4] == [f"said reading {file}", "read", f"said 8 devices, 1 rounds, to {out}", "played"]


def test_script_that_leaves_a_fleet_is_run(tmp_path: Path) -> None:
    file = tmp_path / "fleet.py"
    file.write_text(
        "import numpy as np\nfrom blindsum.fleet import Fleet\nrounds = 2\n"
        "fleet = Fleet(np.zeros(9, np.float32), devices=5, update=lambda local: np.ones(9, np.float32) / 9)\n"
    )
    fleet, rounds = load_fleet(file)
    assert (fleet.devices, rounds) == (5, 2)
    file.write_text("fleet = 5\n")
    with pytest.raises(BlindsumError, match="leaves no `fleet`"):
        load_fleet(file)


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("device = 5\n", "config-invalid", "did you mean 'devices'"),
        ("devices = 20\n[dropout]\nslow = 0.9\n", "simulation-impossible", "900 permille"),
        ('devices = 20\n[data]\npartition = "sorted"\n', "config-invalid", "line 3"),
        ("devices = 0\n", "simulation-impossible", "devices is 0"),
        ("devices = 20\n[conditions]\nloss = 2.0\n", "simulation-impossible", "loss is 2.0, not in 0..0.5"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path: Path, text: str, code: str, said: str) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text(text)
    with pytest.raises(BlindsumError) as caught:
        load_fleet(file)
    assert caught.value.code == code
    assert said in caught.value.detail


def test_runs_stand_side_by_side(tmp_path: Path) -> None:
    reports = [
        Fleet(
            np.zeros(9, np.float32),
            devices=12,
            update=lambda local: np.ones(9, np.float32) / 9,
            workers=0,
            dropout=Dropout(before_join=share),
            name=name,
        ).run(1)
        for name, share in (("calm", 0.0), ("rough", 0.3))
    ]
    page = compare(reports, tmp_path / "both.html").read_text("utf-8")
    assert "calm, round by round" in page and "rough, round by round" in page
    assert page.count("<figure>") == 5 and "lied" in page, "a chart each, as wide as a phone"
    assert len(reports[0].frame()) == 1


def test_a_finished_part_is_kept_when_it_is_interrupted() -> None:
    def progress(done: float, _: str) -> None:
        if done >= 1:
            raise KeyboardInterrupt

    fleet = Fleet(np.zeros(9, np.float32), devices=5, update=lambda local: np.ones(9, np.float32) / 9, workers=1)
    report = fleet.run(5, on_progress=progress)
    assert report.interrupted
    assert [each.round for each in report.rounds] == [1]
    assert report.parameters.any()


def drifting(workers: int, seed: int = 7, **changes: object) -> Fleet:
    """A fleet all of whose state matters: devices keep control variates, the server its own, messages are lost, devices die."""
    dice, drops = np.random.default_rng(1), Dropout.spread(0.3)
    features = dice.normal(0, 1, (12, 8, 3)).astype(np.float32)
    parts = [Dataset("planes", each, each[:, :1] + number % 3, 1) for number, each in enumerate(features)]
    artifact = build_artifact(models.mlp((3, 1), seed=1), loss="mse", optimizer=SGD(lr=0.05, control=True))
    plan = plan_for(12, drops, algorithm="scaffold", batch_size=8, rate=0.05)
    settings = {"dropout": drops, "conditions": Conditions(loss=0.03, duplicate=0.03), **changes}
    return Fleet(artifact, data=parts, plan=plan, workers=workers, seed=seed, **settings)  # type: ignore[arg-type]


def test_resumed_run_ends_in_the_same_bytes(tmp_path: Path) -> None:
    def progress(done: float, _: str) -> None:
        if done >= 1:
            raise KeyboardInterrupt

    file = tmp_path / "kept" / "checkpoint"
    whole = drifting(0).run(2)
    part = drifting(1).run(2, checkpoint=file, on_progress=progress)
    assert part.interrupted and [each.survivors for each in part.rounds] == [8]
    rest = drifting(0).run(2, checkpoint=file, resume=True)
    assert rest.digest == whole.digest != part.digest
    seen = [[(r.survivors, r.seconds, r.bytes_up, r.bytes_down, r.model) for r in run.rounds] for run in (whole, rest)]
    assert seen[0] == seen[1]
    assert drifting(0).run(1, checkpoint=file, resume=True).digest == whole.digest, "all of it is there already"


def test_what_is_resumed_must_be_the_same_run(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint"
    drifting(0).run(1, checkpoint=file)
    for fleet, place in ((drifting(0, seed=8), file), (drifting(0), tmp_path / "none"), (drifting(0), None)):
        with pytest.raises(BlindsumError, match="simulation-unreadable"):
            fleet.run(2, checkpoint=place, resume=True)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(BlindsumError, match="simulation-unreadable"):
        drifting(0).run(2, checkpoint=file, resume=True)


def test_run_of_a_file_goes_on_for_more_rounds_than_the_file_says(tmp_path: Path) -> None:
    file, kept = tmp_path / "fleet.toml", tmp_path / "checkpoint"
    file.write_text('devices = 4\nrounds = 1\n[data]\nset = "none"\nlength = 10\n', "utf-8")
    fleet, rounds = load_fleet(file, workers=0)
    assert len(fleet.run(rounds, checkpoint=kept).rounds) == 1
    file.write_text(file.read_text("utf-8").replace("rounds = 1", "rounds = 2"), "utf-8")
    again, more = load_fleet(file, workers=0)
    assert len(again.run(more + 1, checkpoint=kept, resume=True).rounds) == 3


def test_damaged_report_is_refused(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("{")
    with pytest.raises(BlindsumError, match="simulation-unreadable"):
        FleetReport.load(tmp_path)


def test_quantity_skew_gives_every_index_once_and_unequal_parts() -> None:
    parts = quantity(np.zeros(1000, np.int64), 10, 0.5, seed=3)
    assert sorted(np.concatenate(parts).tolist()) == list(range(1000))
    sizes = [len(part) for part in parts]
    assert min(sizes) >= 8 and max(sizes) > 3 * min(sizes)


def test_parts_by_owner_are_those_of_the_owners() -> None:
    parts = by_owner(np.asarray([3, 1, 3, 2, 1]))
    assert [part.tolist() for part in parts] == [[1, 4], [3], [0, 2]]
