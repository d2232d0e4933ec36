"""The command line: every command shows an example, answers in JSON when asked, and ends with a stable status."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from blindsum.backend import cli, console
from blindsum.backend.provision import create_fleet
from blindsum.backend.service import Reporter
from blindsum.backend.tasks import transcript_path
from blindsum.backend.witness import Witness
from blindsum.protocol.errors import CATALOGUE, BlindsumError
from blindsum.runtime.audit import AuditLog
from blindsum.runtime.kit import load_trust
from blindsum.testing.forgery import vote
from blindsum.testing.world import World
from blindsum.training import TrainingSession, build_artifact, models

COMMANDS = (
    ("bench",), ("broker",), ("coordinator",), ("demo",), ("enrol",), ("init",), ("model", "build"), ("model", "export"),
    ("model", "show"), ("party",), ("query", "answers"), ("query", "ask"), ("task", "create"), ("verify",),
)  # fmt: skip
STREAMS = {("coordinator",), ("party",)}
"""Roles write a line of JSON for each event whether asked or not."""

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """run(*arguments) -> (exit status, stdout, stderr) of `blindsum` in this process."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["blindsum", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture
def answer(run: Run) -> Callable[..., Any]:
    """answer(*arguments): the one JSON object that a successful command with --json prints."""

    def call(*arguments: object) -> Any:
        status, out, err = run(*arguments, "--json")
        assert status == 0, out + err
        assert len(out.strip().splitlines()) == 1
        return json.loads(out)

    return call


# -- help -------------------------------------------------------------------------------------------------------------


def test_these_are_all_the_commands(run: Run) -> None:
    status, out, _ = run("--help")
    assert status == 0
    for command in COMMANDS:
        assert f" {command[0]} " in out, command
    for group in ("model", "query", "task"):
        assert {command[1] for command in COMMANDS if command[0] == group} <= set(run(group, "--help")[1].split())


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_shows_an_example_and_every_option_is_explained(run: Run, command: tuple[str, ...]) -> None:
    status, out, err = run(*command, "--help")
    assert (status, err) == (0, "")
    assert f"Example: blindsum {' '.join(command)}" in out
    assert run(*command, "-h") == (status, out, err)
    assert ("--json" in out) is (command not in STREAMS)


@pytest.mark.parametrize("arguments", [(), ("model",), ("query",), ("task",)], ids=" ".join)
def test_command_without_a_job_shows_help(run: Run, arguments: tuple[str, ...]) -> None:
    status, out, err = run(*arguments)
    assert status in (0, 2)
    assert "Usage" in out + err and "--help" in out + err


def test_version_is_the_packages(run: Run) -> None:
    assert run("--version") == (0, version("blindsum") + "\n", "")


@pytest.mark.parametrize(
    "arguments",
    [("ini",), ("init",), ("init", "x", "--broken"), ("demo", "--devices", "3"), ("demo", "--parties", "5"), ("bench", "nothing"),
     ("demo", "--rounds", "0"), ("demo", "--dropout", "0.9"), ("task", "create", "a", "b", "c")],
    ids=" ".join,
)  # fmt: skip
def test_wrong_usage_ends_with_status_2_and_says_what_is_wrong(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = run(*arguments)
    assert status == 2 and not out
    assert "Error" in err and "Traceback" not in err
    assert not os.listdir(tmp_path)


# -- jobs -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "fleet"
    create_fleet(folder, fleet="clinics", malicious_parties=1, broker="mqtt://127.0.0.1:1883")
    return folder


@pytest.fixture(scope="module")
def artifact(fleet: Path) -> Path:
    path = fleet.parent / "net.bsa"
    path.write_bytes(build_artifact(models.mlp([4, 8, 3], seed=1), loss="cross-entropy"))
    return path


def test_init_says_which_folder_goes_where(answer: Callable[..., Any], tmp_path: Path) -> None:
    made = answer("init", tmp_path / "fleet", "--malicious-parties", 1)
    assert made["operator"] == str(tmp_path / "fleet" / "operator")
    assert made["coordinator"] == str(tmp_path / "fleet" / "coordinator")
    assert made["parties"] == [str(tmp_path / "fleet" / f"party-{number}") for number in range(1, 5)]
    assert all(Path(kit).is_dir() for kit in made["parties"])


def test_enrol_takes_names_or_a_count(answer: Callable[..., Any], fleet: Path) -> None:
    assert answer("enrol", fleet, "tablet", "phone")["enrolled"] == 2
    assert answer("enrol", fleet, "--count", 3, "--prefix", "watch")["kits"] == str(fleet / "devices")
    names = sorted(path.name for path in (fleet / "devices").iterdir())
    assert names == ["phone", "tablet", "watch-00001", "watch-00002", "watch-00003"]


def test_model_build_tells_what_it_trains(answer: Callable[..., Any], tmp_path: Path) -> None:
    onnx.save(models.mlp([4, 8, 3], seed=1), tmp_path / "net.onnx")
    told = answer("model", "build", tmp_path / "net.onnx", tmp_path / "net.bsa", "--optimizer", "adam")
    data = (tmp_path / "net.bsa").read_bytes()
    session = TrainingSession(data)
    assert told["bytes"] == len(data)
    assert told["parameters"] == session.parameters.size == 4 * 8 + 8 + 8 * 3 + 3
    assert told["tensors"] == [name for name, _ in session.layout]
    assert session.manifest.optimiser == "adam"


def test_model_is_shown_trained_and_exported(answer: Callable[..., Any], run: Run, tmp_path: Path) -> None:
    net, artifact, vector, out = (tmp_path / name for name in ("net.onnx", "net.bsa", "vector.npy", "trained.onnx"))
    onnx.save(models.mlp([4, 8, 3], seed=1), net)
    assert [item["name"] for item in answer("model", "show", net)["weights"]][:2] == ["layer1.weight", "layer1.bias"]
    assert "layer2.bias" in run("model", "show", net)[1]
    answer("model", "build", net, artifact, "--trainable", "head", "--adapters", 2)
    assert answer("model", "show", artifact)["adapters"] == ["layer1.weight", "layer2.weight"]
    session = TrainingSession(artifact.read_bytes())
    np.save(vector, session.parameters + 1)
    assert answer("model", "export", net, artifact, vector, out)["model"] == str(out)
    assert onnx.load(out).graph.node == onnx.load(net).graph.node
    vector.write_bytes(b"no numbers")
    assert run("model", "export", net, artifact, vector, out)[0] == console.EXIT_ERROR
    assert "write NAME=NUMBER" in run("model", "build", net, artifact, "--dimension", "T")[2]
    assert re.search(r"at least \d+ bytes", run("model", "build", net, artifact, "--recompute", 0)[2])


def test_task_create_puts_a_signed_task_where_the_coordinator_looks(
    answer: Callable[..., Any], run: Run, fleet: Path, artifact: Path
) -> None:
    made = answer("task", "create", fleet, "fraud", artifact, "--devices-max", 100)
    place = fleet / "coordinator" / "tasks" / "fraud"
    assert made["folder"] == str(place) and (place / "task.cose").is_file()
    assert made["bits"] >= 4 and made["degree"] > 0
    status, out, _ = run("task", "create", fleet, "wear", artifact, "--devices-max", 100)
    assert status == 0 and "4: 1 may be malicious" in out  # for people: every number with what it follows from


def test_task_create_without_a_roster_says_what_is_lost(run: Run, fleet: Path, artifact: Path) -> None:
    options = ("--devices-max", 100, "--profile", "no-roster")
    status, out, _ = run("task", "create", fleet, "alone", artifact, *options)
    assert status == 0 and "one mask layer: 2 parties" in out and "read every upload (with a roster: 3)" in out
    status, _, said = run("task", "create", fleet, "no", artifact, "--devices-max", 100, "--profile", "none")
    assert status != 0 and "known: roster, no-roster" in said


def test_task_create_makes_rounds_buffers_of_late_updates_where_there_is_no_roster(
    answer: Callable[..., Any], run: Run, fleet: Path, artifact: Path
) -> None:
    options = ("--devices-max", 100, "--staleness")
    answer("task", "create", fleet, "late", artifact, *options, 10, "--profile", "no-roster")
    shown = answer("task", "show", fleet, "late")
    assert (shown["profile"], shown["staleness"]) == ("no-roster", 10)
    for wrong in ((10,), (101, "--profile", "no-roster")):
        status, _, said = run("task", "create", fleet, "no", artifact, *options, *wrong)
        assert status != 0 and "task-invalid" in said and "up to 100 rounds" in said
    status, _, said = run("task", "create", fleet, "no", artifact, *options, -1, "--profile", "no-roster")
    assert status != 0 and "parameters-unsafe" in said and "staleness is -1" in said


def test_task_create_takes_an_algorithm_that_the_artifact_can_do(
    answer: Callable[..., Any], run: Run, fleet: Path, tmp_path: Path
) -> None:
    net, plain, terms = tmp_path / "net.onnx", tmp_path / "plain.bsa", tmp_path / "terms.bsa"
    onnx.save(models.mlp([4, 8, 3], seed=1), net)
    answer("model", "build", net, plain)
    answer("model", "build", net, terms, "--proximal", 0.1, "--control")
    model = tmp_path / "model.f32"
    model.write_bytes(np.arange(67, dtype="<f4").tobytes())
    for name, artifact, options in (
        ("fedyogi", plain, ("--server-rate", 0.02)),
        ("scaffold", terms, ("--population", 5000)),
        ("fedavg", terms, ("--proximal", 0.5)),
        ("evaluate", plain, ("--parameters", model)),
    ):
        answer("task", "create", fleet, name, artifact, "--devices-max", 50, "--algorithm", name, *options)
        assert answer("task", "show", fleet, name)["algorithm"] == name
    for artifact, options in (
        (plain, ("--proximal", 1)),
        (plain, ("--algorithm", "scaffold")),
        (terms, ("--algorithm", "sgd")),
    ):
        status, _, said = run("task", "create", fleet, "no", artifact, "--devices-max", 50, *options)
        assert status == console.EXIT_ERROR and "task-invalid" in said


def test_query_is_asked_and_its_answers_are_told(answer: Callable[..., Any], run: Run, fleet: Path) -> None:
    words = ["mean", "low=30", "high=220.5", "digits=1", "--devices-max", 100, "--rounds", 3]
    made = answer("query", "ask", fleet, "rate", *words)
    assert made["question"] == "mean values-max=1 low=30 high=220.5 digits=1" and made["integers"] == 2
    assert answer("task", "show", fleet, "rate")["rounds"] == 3
    told = answer("query", "answers", fleet, "rate")
    assert told == {"task": "rate", "question": made["question"], "answers": []}
    assert "no round has finished yet" in run("query", "answers", fleet / "coordinator", "rate")[1]
    assert "may be malicious" in run("query", "ask", fleet, "how-many", "count", "--devices-max", 100)[1]
    assert refusal(run, "query", "ask", fleet, "no", "median", "--devices-max", 100, "--json") == "query-invalid"
    assert refusal(run, "query", "answers", fleet, "nothing", "--json") == "task-not-here"


def test_task_is_made_and_listed_where_the_coordinator_is_elsewhere_and_controlled_only_there(
    answer: Callable[..., Any], run: Run, tmp_path: Path, artifact: Path
) -> None:
    made = create_fleet(tmp_path / "fleet", fleet="away", malicious_parties=1, broker="mqtt://127.0.0.1:1883")
    kit = made.coordinator.rename(tmp_path / "kit")
    said = run("task", "create", made.root, "life", artifact, "--devices-max", 100)[1]
    assert "copy it into tasks of the coordinator's kit" in said
    (listed,) = answer("task", "list", made.root)["tasks"]
    assert refusal(run, "task", "pause", made.root, "life", "--json") == "config-missing"
    shutil.copytree(made.coordinator / "tasks", kit / "tasks")
    assert answer("task", "pause", kit, "life") == listed | {"state": "paused"}


def test_task_is_listed_shown_and_controlled(answer: Callable[..., Any], run: Run, fleet: Path, artifact: Path) -> None:
    answer("task", "create", fleet, "life", artifact, "--devices-max", 100, "--rounds", 7)
    listed = {task["task"]: task for task in answer("task", "list", fleet)["tasks"]}
    assert (listed["life"]["state"], listed["life"]["rounds"], listed["life"]["last_round"]) == ("running", 7, 0)
    assert listed["life"]["parameters"] == 4 * 8 + 8 + 8 * 3 + 3
    assert answer("task", "list", fleet / "coordinator") == answer("task", "list", fleet)
    assert answer("task", "pause", fleet, "life")["state"] == "paused"
    assert answer("task", "schedule", fleet, "life", "--pause-s", 90)["pause_s"] == 90.0
    assert answer("task", "resume", fleet, "life") == answer("task", "show", fleet, "life") | {"state": "running"}
    ended = transcript_path(fleet / "coordinator", "life", 7, failed=True)
    ended.parent.mkdir()
    ended.touch()
    assert answer("task", "show", fleet, "life")["state"] == "finished"
    ended.unlink()
    assert answer("task", "stop", fleet, "life")["pause_s"] == 90.0
    assert refusal(run, "task", "resume", fleet, "life", "--json") == "task-stopped"
    assert refusal(run, "task", "pause", fleet, "nothing", "--json") == "task-not-here"
    assert refusal(run, "task", "pause", fleet, "../operator", "--json") == "task-not-here"
    assert refusal(run, "task", "create", fleet, "life", artifact, "--devices-max", 100, "--json") == "task-invalid"
    assert refusal(run, "task", "schedule", fleet, "fraud", "--pause-s", -1, "--json") == "parameters-unsafe"
    assert "may be malicious" in run("task", "show", fleet, "life")[1]


def refusal(run: Run, *arguments: object) -> str:
    status, out, _ = run(*arguments)
    assert status == console.EXIT_ERROR
    return str(json.loads(out)["error"]["code"])


@pytest.mark.parametrize(
    "option", ["--corrupt", "--dropped", "--rate", "--clip-norm", "--join-s", "--upload-s", "--decide-s"]
)
@pytest.mark.parametrize("value", ["nan", "-1"])
def test_task_create_refuses_numbers_that_mean_nothing(
    run: Run, fleet: Path, artifact: Path, option: str, value: str
) -> None:
    status, out, err = run("task", "create", fleet, "odd", artifact, "--devices-max", 100, option, value, "--json")
    assert status == console.EXIT_ERROR
    assert json.loads(out)["error"]["code"] == "parameters-unsafe"
    assert "Traceback" not in err
    assert not (fleet / "coordinator" / "tasks" / "odd").exists()


def test_output_for_people_is_a_table_and_not_json(run: Run, tmp_path: Path) -> None:
    status, out, err = run("init", tmp_path / "fleet")
    assert status == 0 and not err
    assert str(tmp_path / "fleet" / "operator") in out
    with pytest.raises(json.JSONDecodeError):
        json.loads(out)


# -- errors -----------------------------------------------------------------------------------------------------------


def test_error_has_code_cause_and_remedy_on_both_outputs(run: Run, tmp_path: Path) -> None:
    status, out, err = run("enrol", tmp_path, "phone", "--json")
    entry = CATALOGUE["config-missing"]
    assert status == console.EXIT_ERROR == 2
    error = json.loads(out)["error"]
    assert error["code"] == "config-missing" and "operator.toml" in error["detail"]
    assert (error["cause"], error["remedy"]) == (entry.cause, entry.remedy)
    for part in ("config-missing", entry.cause, entry.remedy):
        assert part in err
    assert run("enrol", tmp_path, "phone")[:2] == (2, "")  # without --json stdout stays free for results


def test_answer_no_has_a_status_of_its_own(run: Run, tmp_path: Path) -> None:
    (tmp_path / "x.blindsum").write_bytes(b"no transcript")
    status, out, _ = run("verify", tmp_path / "x.blindsum", "--json")
    assert status == console.EXIT_INVALID == 1
    assert json.loads(out)["valid"] is False
    assert run("verify", tmp_path / "x.blindsum")[0] == 1


def test_every_error_of_the_catalogue_can_be_printed(capsys: pytest.CaptureFixture[str]) -> None:
    for code in CATALOGUE:
        console.fail(BlindsumError(code, "[/folder] [b]100%"), as_json=True)
        captured = capsys.readouterr()
        assert json.loads(captured.out)["error"]["detail"] == "[/folder] [b]100%"
        for part in (
            code,
            "[/folder] [b]100%",
            CATALOGUE[code].cause,
            CATALOGUE[code].remedy,
        ):  # brackets are no styles here
            assert part in captured.err


def test_trust_bundle_of_a_kit_pins_verify(run: Run, fleet: Path, tmp_path: Path) -> None:
    (tmp_path / "x.blindsum").write_bytes(b"blindsum transcript 1\n")
    _, out, _ = run("verify", tmp_path / "x.blindsum", "--trust", fleet / "operator" / "trust.cbor", "--json")
    assert json.loads(out)["trust_pinned"] is True
    assert load_trust(fleet / "operator").fleet == "clinics"
    status, out, _ = run("verify", tmp_path / "x.blindsum", "--trust", fleet / "operator" / "operator.toml", "--json")
    assert (status, json.loads(out)["error"]["code"]) == (2, "kit-incomplete")


def test_verify_names_who_signed_both_messages_of_what_a_role_kept(run: Run, tmp_path: Path) -> None:
    world = World(4, devices=3, faulty=["party/2"], checkers=())
    world.start()
    world.until(lambda: 2 in world.round.state.set_votes)
    world.give("coordinator", vote(world, 2, "set", bytes(32)))
    store, trust = world.actors["coordinator"].store, world.fleet.trust
    witness = Witness(Reporter("coordinator"), tmp_path, trust, store)
    witness.event(world.happened("evidence", "coordinator")[0])
    (tmp_path / "trust.cbor").write_bytes(trust.encode())
    (path,) = (tmp_path / "evidence").iterdir()
    assert path.name == "sum-000001-second-vote-party-2.blindsum"
    status, out, _ = run("verify", path, "--trust", tmp_path / "trust.cbor", "--json")
    assert status == console.EXIT_INVALID
    assert [(fault["role"], fault["id"], fault["code"]) for fault in json.loads(out)["faults"]] == [
        ("party", "2", "second-vote")
    ]
    path.write_bytes(path.read_bytes()[:-1])
    status, out, _ = run("verify", path, "--json")
    assert (status, json.loads(out)["error"]["code"]) == (console.EXIT_ERROR, "evidence-unproven")


def test_commands_run_as_a_module_too() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "blindsum.backend.cli", "--version"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == version("blindsum")


def test_help_loads_neither_onnxruntime_nor_cryptography_heavy_parts() -> None:
    """`blindsum --help` is what people type first."""
    script = (
        "import sys; sys.argv = ['blindsum', '--help']\n"
        "from blindsum.backend import cli\n"
        "try: cli.main()\nexcept SystemExit: pass\n"
        "print([name for name in ('onnxruntime', 'onnx', 'sklearn', 'matplotlib', 'paho') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_verify_says_where_an_audit_log_was_altered(run: Run, answer: Callable[..., Any], tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit", "party/1")
    for number in range(3):
        log.add(number, "voted", {"round": number})
    assert answer("verify", tmp_path / "audit")["head"] == log.head
    path = tmp_path / "audit" / "audit-00000001.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"round": 1', b'"round": 7'))
    status, out, _ = run("verify", tmp_path / "audit", "--json")
    (fault,) = json.loads(out)["faults"]
    assert (status, fault["role"], fault["id"], fault["code"]) == (1, "party", "1", "audit-altered")
    assert "line 3" in fault["detail"]
