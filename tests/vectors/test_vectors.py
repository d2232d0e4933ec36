"""The vectors are what the product computes, a second implementation agrees, and nothing in them can rot unseen."""

from __future__ import annotations

import ast
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from blindsum.protocol.errors import CATALOGUE
from blindsum.protocol.messages import MESSAGES
from blindsum.protocol.refusals import REFUSALS

VECTORS = Path(__file__).resolve().parents[2] / "protocol" / "vectors"
FILES = sorted(VECTORS.rglob("*.json"))


def load(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


@pytest.fixture(scope="module")
def verifier() -> ModuleType:
    """`verify.py` as a module."""
    spec = importlib.util.spec_from_file_location("vectors_verify", VECTORS / "verify.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=240, check=False)


def test_vectors_are_what_the_product_computes() -> None:
    done = run(str(VECTORS / "generate.py"), "--check")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == f"{len(FILES)} files, 0 not up to date\n"


def test_generator_names_a_stale_and_a_superfluous_file(tmp_path: Path) -> None:
    copy = shutil.copytree(VECTORS, tmp_path / "vectors", ignore=shutil.ignore_patterns("__pycache__"))
    path = copy / "bits.json"
    path.write_text(path.read_text(encoding="utf-8").replace("bits a value", "bit a value"), encoding="utf-8")
    (copy / "old.json").write_text("{}", encoding="utf-8")
    done = run(str(copy / "generate.py"), "--check")
    assert done.returncode == 1
    assert done.stdout.splitlines()[:2] == ["bits.json is not up to date", "old.json is not up to date"]


def test_second_implementation_agrees_without_any_package() -> None:
    done = run("-I", "-S", str(VECTORS / "verify.py"))
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(FILES) + 1 and all(line.startswith("ok ") for line in lines[:-1])
    cases = sum(len(load(path)["cases"]) for path in FILES)
    assert lines[-1] == f"{len(FILES)} files, {cases} cases, 0 mismatches"


def test_second_implementation_imports_the_standard_library_and_itself_only() -> None:
    for path in (VECTORS / "verify.py", *(VECTORS / "oracle").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.split(".")[0] in {"oracle", "__future__", *sys.stdlib_module_names}, (path.name, name)


def spoilt(value: Any) -> Any:
    """`value` with its first bit of content changed, or None where it has none."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, list):
        return value[1:] if value else [0]
    if isinstance(value, dict) and "$hex" in value:
        text = value["$hex"]
        return {**value, "$hex": (f"{int(text[0], 16) ^ 1:x}" + text[1:]) if text else "00"}
    return {**value, "more": 0} if isinstance(value, dict) else 0


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(VECTORS)))
def test_corrupted_vector_is_noticed(path: Path, verifier: ModuleType) -> None:
    document = load(path)
    right = next((case for case in document["cases"] if "out" in case), None)
    refused = next((case for case in document["cases"] if "error" in case), None)
    assert right is not None or refused is not None
    if right is not None:
        for name in right["out"]:
            case = {**right, "out": {**right["out"], name: spoilt(right["out"][name])}}
            assert verifier.wrong(document, case) == f"other {name}"
        assert verifier.wrong(document, {"name": "", "in": right["in"], "error": "finished"})
    if refused is not None:
        assert verifier.wrong(document, {**refused, "error": "finished"})
        assert verifier.wrong(document, {"name": "", "in": refused["in"], "out": {}})


def test_corrupted_input_is_noticed(verifier: ModuleType) -> None:
    for name, field in (
        ("round.json", "random"),
        ("upload.json", "private"),
        ("keystream.json", "key"),
        ("graph.json", "seed"),
    ):
        document = load(VECTORS / name)
        case = document["cases"][-1]
        changed = {**case, "in": {**case["in"], field: spoilt(case["in"][field])}}
        assert verifier.wrong(document, case) == "" and verifier.wrong(document, changed)


@pytest.mark.parametrize("text", ["", "{}", '{"cases": []}', '{"kind": "cbor", "cases": [{"name": "x", "in": {}}]}'])
def test_verifier_fails_where_a_file_is_broken_or_nothing_is_checked(text: str, tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text(text, encoding="utf-8")
    assert run("-I", "-S", str(VECTORS / "verify.py"), str(tmp_path)).returncode == 1


def test_verifier_fails_where_one_byte_of_a_file_is_wrong(tmp_path: Path) -> None:
    document = load(VECTORS / "derive.json")
    case = document["cases"][2]
    case["out"]["key"] = spoilt(case["out"]["key"])
    (tmp_path / "derive.json").write_text(json.dumps(document), encoding="utf-8")
    done = run("-I", "-S", str(VECTORS / "verify.py"), str(tmp_path))
    assert done.returncode == 1
    assert done.stdout.splitlines()[:2] == [
        f"FAIL derive.json: {len(document['cases'])} cases",
        f"     {case['name']}: other key",
    ]


@pytest.mark.parametrize("kind", MESSAGES)
def test_every_message_type_has_a_vector_and_faults(kind: str) -> None:
    document = load(VECTORS / "messages" / f"{kind}.json")
    heads = {case["in"]["head"]["type"] for case in document["cases"]}
    assert heads == {kind}
    assert sum("out" in case for case in document["cases"]) >= 1
    assert sum("error" in case for case in document["cases"]) >= 4


def test_every_case_is_named_and_fails_with_a_known_code_or_has_an_outcome() -> None:
    for path in FILES:
        document = load(path)
        names = [case["name"] for case in document["cases"]]
        assert len(set(names)) == len(names) and all(names), path.name
        assert document["about"] and document["section"], path.name
        for case in document["cases"]:
            assert ("out" in case) != ("error" in case), (path.name, case["name"])
            assert case.get("error", "signature-invalid") in REFUSALS.keys() | CATALOGUE.keys(), (
                path.name,
                case["name"],
            )
