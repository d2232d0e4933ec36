"""What `deploy/` holds: files that others' tools take, locked down as they promise, naming only what exists."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from blindsum.backend.board import Board
from blindsum.backend.metrics import Exposition
from blindsum.backend.provision import create_fleet
from blindsum.runtime.topics import Principal

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
EXPOSURE_MAX = 20
"""Of 100, as `systemd-analyze security` counts; 20 is its "OK"."""


@pytest.fixture(scope="module")
def series() -> dict[str, list[dict[str, str]]]:
    """Metric -> labels of its series, of a coordinator that has seen everything once."""
    board = Board("coordinator", 0)
    board.tell(1, "connected", {})
    board.tell(2, "presence", {"who": Principal("party", "1").user, "kind": "party", "online": True})
    board.tell(3, "refused", {"code": "late", "culprit": "device/a", "detail": ""})
    for at, phase in enumerate(("join", "upload", "done"), 4):
        board.tell(at, "phase", {"task": "fraud", "round": 1, "phase": phase, "devices": 5})
    board.tell(9, "round-finished", {"task": "fraud", "round": 1, "count": 5, "statistics": [50, 1]})
    found: dict[str, list[dict[str, str]]] = {"up": [{"job": "blindsum"}]}
    for family in text_string_to_metric_families(Exposition(board).text().decode()):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(dict(sample.labels))
    return found


def absent(expression: str, series: dict[str, list[dict[str, str]]]) -> list[str]:
    """The selectors of a PromQL expression that no series answers. What a dashboard's variable chooses answers itself."""
    missing = []
    for name, selector in re.findall(r"\b((?:blindsum|process)_\w+|up)\b(?:\{([^}]*)\})?", expression):
        wanted = {
            label: value for label, value in re.findall(r'(\w+)=~?"([^"]*)"', selector) if not value.startswith("$")
        }
        wanted.pop("instance", None)
        if not any(
            all(re.fullmatch(value, labels.get(label, "")) for label, value in wanted.items())
            for labels in series.get(name, [])
        ):
            missing.append(f"{name}{{{selector}}}")
    return missing


# -- seeing -----------------------------------------------------------------------------------------------------------


def test_alerts_fire_when_they_should_and_only_then(promtool: str) -> None:
    """The rules' own tests, by Prometheus."""
    ran = subprocess.run(
        [promtool, "test", "rules", "rules.test.yaml"],
        cwd=DEPLOY / "prometheus",
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_every_alert_is_tested_says_what_to_do_and_reads_metrics_that_exist(
    series: dict[str, list[dict[str, str]]],
) -> None:
    (group,) = yaml.safe_load((DEPLOY / "prometheus" / "rules.yaml").read_text())["groups"]
    tests = yaml.safe_load((DEPLOY / "prometheus" / "rules.test.yaml").read_text())["tests"]
    tested = {case["alertname"] for test in tests for case in test["alert_rule_test"] if case["exp_alerts"]}
    assert {rule["alert"] for rule in group["rules"]} == tested
    for rule in group["rules"]:
        assert rule["annotations"]["action"]
        assert not absent(
            rule["expr"], series | {"blindsum_rounds_total": [{"outcome": "failed"}, {"outcome": "finished"}]}
        )


def test_dashboard_reads_metrics_that_exist(series: dict[str, list[dict[str, str]]]) -> None:
    dashboard = json.loads((DEPLOY / "grafana" / "blindsum.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    expressions += [
        variable["definition"].split("(")[1] for variable in dashboard["templating"]["list"] if "definition" in variable
    ]
    assert len(expressions) > 10
    assert not [line for expression in expressions for line in absent(expression, series)]


def test_a_metric_that_is_not_there_would_be_found(series: dict[str, list[dict[str, str]]]) -> None:
    assert absent('rate(blindsum_nonsense_total[5m]) + blindsum_role_online{who=~"party/.+"}', series) == [
        "blindsum_nonsense_total{}",
        'blindsum_role_online{who=~"party/.+"}',
    ]


# -- running ----------------------------------------------------------------------------------------------------------


def test_unit_of_systemd_is_valid_and_locked_down(systemd_analyze: str, tmp_path: Path) -> None:
    text = (DEPLOY / "systemd" / "blindsum@.service").read_text()
    assert "ExecStart=/opt/blindsum/bin/blindsum %i /var/lib/blindsum/%i\n" in text
    unit = tmp_path / "blindsum@.service"
    unit.write_text(text.replace("/opt/blindsum/bin/blindsum", sys.executable))
    ran = subprocess.run(
        [systemd_analyze, "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    one = shutil.copy(unit, tmp_path / "blindsum-party.service")
    ran = subprocess.run(
        [systemd_analyze, "security", "--offline=true", "--no-pager", f"--threshold={EXPOSURE_MAX}", str(one)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout


def test_containers_run_as_nobody_from_a_read_only_file_system_within_limits(commands: dict[str, Any]) -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    assert set(compose["services"]) == {"broker", "coordinator", "worker-1", *(f"party-{n}" for n in range(1, 5))}
    kits = set()
    for name, service in compose["services"].items():
        assert service["user"] == "10001:10001"
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["mem_limit"] and service["pids_limit"]
        (volume,) = service["volumes"]
        kits.add(volume)
        assert volume.endswith(f"/{name}:/kit")
        if name != "broker":
            assert service["command"] == [name.partition("-")[0], "/kit"]
            assert service["command"][0] in commands
    assert len(kits) == len(compose["services"]), "no two roles share a kit"


def test_image_holds_every_package_of_the_wheel_and_ends_as_nobody(root: Path) -> None:
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    packages = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"][
        "packages"
    ]
    assert {f"COPY {package} {package}" for package in packages} <= set(lines)
    assert [line for line in lines if line.startswith("USER")] == ["USER 10001:10001"]
    copied = {word for line in lines if line.startswith("COPY") and "--from" not in line for word in line.split()[1:-1]}
    assert all(Path(root, word).exists() for word in copied)
    ignore = (root / ".dockerignore").read_text().splitlines()
    assert "*" in ignore and {line[1:] for line in ignore if line.startswith("!")} == copied


@pytest.mark.parametrize("role", ["party/party", "coordinator/coordinator", "coordinator/worker"])
def test_pods_of_kubernetes_are_restricted(role: str, commands: dict[str, Any]) -> None:
    """The "restricted" Pod Security Standard; what runs is a command, and a policy says whom its pods may reach."""
    found = yaml.safe_load((DEPLOY / "kubernetes" / f"{role}.yaml").read_text())
    folder, _, name = role.partition("/")
    assert (found["kind"], found["metadata"]["name"]) == ("StatefulSet", name)
    pod = found["spec"]["template"]["spec"]
    assert pod["containers"][0]["args"] == [name, "/kit"] and name in commands
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in (*pod["initContainers"], *pod["containers"]):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"]["memory"]
    assert not any("livenessProbe" in container for container in pod["containers"]), "an absent broker is no reason"
    place = DEPLOY / "kubernetes" / folder
    files = yaml.safe_load((place / "kustomization.yaml").read_text())["resources"]
    assert {*files, "kustomization.yaml"} == {path.name for path in place.iterdir()}
    policy = yaml.safe_load((place / "network.yaml").read_text())["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    (wanted,) = policy["podSelector"].get("matchExpressions") or [
        {"values": [policy["podSelector"]["matchLabels"]["app.kubernetes.io/component"]]}
    ]
    assert found["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/component"] in wanted["values"]


def test_one_pod_has_a_partys_key_and_each_worker_a_kit_of_its_own(tmp_path: Path) -> None:
    """A party that runs twice could vote twice. Two workers of one name would be one."""
    party, worker = (
        yaml.safe_load((DEPLOY / "kubernetes" / name).read_text())["spec"]
        for name in ("party/party.yaml", "coordinator/worker.yaml")
    )
    assert party["replicas"] == 1
    made = create_fleet(
        tmp_path / "fleet", fleet="f", malicious_parties=1, broker="mqtts://b:8883", workers=worker["replicas"]
    )
    (secret,) = (volume for volume in worker["template"]["spec"]["volumes"] if volume["name"] == "secret")
    kits = {
        source["secret"]["name"].removesuffix("-kit"): {item["path"] for item in source["secret"]["items"]}
        for source in secret["projected"]["sources"]
    }
    first = worker["ordinals"]["start"]
    assert kits == {
        f"worker-{number}": {f"worker-{number}/{path.name}" for path in made.worker(number).iterdir()}
        for number in range(first, first + worker["replicas"])
    }


# -- releases ---------------------------------------------------------------------------------------------------------


def test_release_is_checked_by_the_documented_commands_and_an_altered_one_is_found(root: Path, tmp_path: Path) -> None:
    loader = SourceFileLoader("release", str(root / "scripts" / "release"))
    release = module_from_spec(spec_from_loader("release", loader))  # type: ignore[arg-type]
    loader.exec_module(release)
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    folder = tmp_path / "dist"
    folder.mkdir()
    (folder / "blindsum-0.1.0-py3-none-any.whl").write_bytes(b"wheel")
    release.sign(folder, key)
    (folder / "allowed_signers").write_text(f"release@blindsum {key.with_suffix('.pub').read_text()}")
    block = re.search(r"```bash\n(ssh-keygen -Y verify.*?)```", (root / "docs" / "UPGRADING.md").read_text(), re.DOTALL)
    assert block

    def check() -> int:
        return subprocess.run(["bash", "-ec", block.group(1)], cwd=folder, capture_output=True, check=False).returncode

    assert check() == 0
    (folder / "blindsum-0.1.0-py3-none-any.whl").write_bytes(b"Wheel")
    assert check() != 0
    (folder / "blindsum-0.1.0-py3-none-any.whl").write_bytes(b"wheel")
    with (folder / "SHA256SUMS").open("a") as sums:
        sums.write("\n")
    assert check() != 0
