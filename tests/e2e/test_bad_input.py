"""Bad input at the command line: one clear error with code and remedy, exit status 2, no traceback, nothing lost."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from blindsum.protocol.errors import CATALOGUE


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "blindsum.backend.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def error_of(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """The error object that --json prints, after the checks that hold for every error."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    error = json.loads(done.stdout.strip().splitlines()[-1])["error"]
    assert error["code"] in CATALOGUE
    assert error["remedy"]
    assert error["code"] in done.stderr
    return dict(error)


def says(done: subprocess.CompletedProcess[str], code: str) -> None:
    """For the roles, which have no --json: the error on stderr."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert code in done.stderr
    assert "remedy" in done.stderr


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    done = run("init", tmp_path / "fleet", "--json")
    assert done.returncode == 0, done.stderr
    return tmp_path / "fleet"


def test_init_refuses_a_folder_with_files(fleet: Path) -> None:
    before = sorted(path.name for path in fleet.iterdir())
    assert error_of(run("init", fleet, "--json"))["code"] == "folder-not-empty"
    assert sorted(path.name for path in fleet.iterdir()) == before


def test_init_refuses_an_unusable_name(tmp_path: Path) -> None:
    assert error_of(run("init", tmp_path / "x", "--fleet", "A fleet!", "--json"))["code"] == "name-unusable"


def test_wrong_config_key_is_named_with_line_and_nearest_right_one(fleet: Path) -> None:
    settings = fleet / "party-1" / "party.toml"
    settings.write_text(settings.read_text().replace("cohort_min", "cohort_mim"))
    done = run("party", fleet / "party-1")
    says(done, "config-invalid")
    assert "line 3" in done.stderr
    assert "'cohort_min'" in done.stderr


def test_ill_typed_config_value_is_named(fleet: Path) -> None:
    settings = fleet / "party-1" / "party.toml"
    settings.write_text(settings.read_text().replace("cohort_min = 2", 'cohort_min = "many"'))
    done = run("party", fleet / "party-1")
    says(done, "config-invalid")
    assert "cohort_min" in done.stderr


def test_missing_config_key_is_named(fleet: Path) -> None:
    settings = fleet / "coordinator" / "coordinator.toml"
    settings.write_text('fleet = "fleet"\n')
    done = run("coordinator", fleet / "coordinator")
    says(done, "config-invalid")
    assert "'broker' is missing" in done.stderr


def test_broken_toml_is_named_with_its_line(fleet: Path) -> None:
    (fleet / "party-2" / "party.toml").write_text("fleet = \n")
    done = run("party", fleet / "party-2")
    says(done, "config-invalid")
    assert "line 1" in done.stderr


def test_missing_kit_is_named(tmp_path: Path) -> None:
    says(run("party", tmp_path / "nowhere"), "config-missing")


def test_key_of_another_party_is_refused(fleet: Path) -> None:
    (fleet / "party-1" / "key.pem").write_bytes((fleet / "party-2" / "key.pem").read_bytes())
    says(run("party", fleet / "party-1"), "kit-incomplete")


def test_corrupted_database_is_refused_and_kept(fleet: Path) -> None:
    database = fleet / "party-1" / "party.db"
    database.write_bytes(b"this is no database" * 1000)
    says(run("party", fleet / "party-1"), "database-corrupted")
    assert database.read_bytes() == b"this is no database" * 1000


def test_busy_port_is_refused() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = run("broker", "--port", str(taken.getsockname()[1]), "--json")
    assert error_of(done)["code"] == "port-busy"


def test_unreachable_broker_ends_the_demo_with_a_remedy(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    done = run("demo", "--transport", f"mqtt://127.0.0.1:{port}", "--out", tmp_path, "--json")
    assert error_of(done)["code"] == "broker-unreachable"


def test_wrong_file_type_for_a_model_is_refused(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_text("# not a model")
    error = error_of(run("model", "build", model, tmp_path / "plan.bsa", "--json"))
    assert error["code"].startswith("training-")
    assert not (tmp_path / "plan.bsa").exists()


def test_unsafe_parameters_are_refused_with_the_numbers(fleet: Path, tmp_path: Path) -> None:
    from blindsum.training import build_artifact, models

    (tmp_path / "plan.bsa").write_bytes(build_artifact(models.mlp([4, 2], seed=1), loss="cross-entropy"))
    arguments = ("task", "create", fleet, "wide", tmp_path / "plan.bsa", "--devices-max", "100000", "--json")
    error = error_of(run(*arguments, "--weight-max", "4096"))
    assert error["code"] == "parameters-unsafe"
    assert "100000" in error["detail"]
    assert not (fleet / "coordinator" / "tasks" / "wide").exists()


def test_too_few_devices_are_refused(fleet: Path, tmp_path: Path) -> None:
    from blindsum.training import build_artifact, models

    (tmp_path / "plan.bsa").write_bytes(build_artifact(models.mlp([4, 2], seed=1), loss="cross-entropy"))
    arguments = ("task", "create", fleet, "few", tmp_path / "plan.bsa", "--devices-max", "4", "--json")
    assert error_of(run(*arguments, "--devices-min", "4", "--cohort-min", "5"))["code"] == "parameters-unsafe"


def test_verify_refuses_what_is_no_transcript(tmp_path: Path) -> None:
    path = tmp_path / "x.blindsum"
    path.write_bytes(b"\x00" * 100)
    done = run("verify", path, "--json")
    assert done.returncode == 1
    answer = json.loads(done.stdout)
    assert answer["valid"] is False
    assert answer["faults"][0]["code"] == "transcript-malformed"
    assert error_of(run("verify", tmp_path / "missing", "--json"))["code"] == "kit-incomplete"


def test_enrolment_of_a_taken_name_changes_nothing(fleet: Path) -> None:
    assert run("enrol", fleet, "phone-1", "--json").returncode == 0
    key = (fleet / "devices" / "phone-1" / "key.pem").read_bytes()
    assert error_of(run("enrol", fleet, "phone-2", "phone-1", "--json"))["code"] == "folder-not-empty"
    assert (fleet / "devices" / "phone-1" / "key.pem").read_bytes() == key
    assert not (fleet / "devices" / "phone-2").exists()
