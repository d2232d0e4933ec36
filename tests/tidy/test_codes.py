"""Every code that can reach a person stands in a table with a cause and a remedy, once, and every code there is real."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blindsum.protocol.errors import CATALOGUE
from blindsum.protocol.refusals import REFUSALS

TABLES = {"blindsum.protocol.errors", "blindsum.protocol.refusals"}
CODE_ARGUMENTS = {
    "BlindsumError": 0,
    "Refused": 0,
    "HeaderRow": 1,
    "blame": 1,
    "_stop": 1,
    "fail": 1,
    "caught": 1,
    "accuse": 2,
    "evidence": 1,
    "_erase": 1,
    "fault": 2,
    "receipt": 4,
}
"""Where calls take a code, by the name of what is called."""
CODE_NAMES = {"code", "hopeless"}
"""Variables, attributes and keywords that hold a code."""


def test_codes_are_unique_and_well_formed() -> None:
    assert not CATALOGUE.keys() & REFUSALS.keys()
    for code, entry in (CATALOGUE | REFUSALS).items():
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", code), code
        assert entry.cause and entry.remedy, code
        assert not entry.cause.endswith(".") and not entry.remedy.endswith("."), code


def test_every_code_in_the_source_is_in_a_table(modules: list[Any]) -> None:
    known = CATALOGUE.keys() | REFUSALS.keys()
    unknown = {
        f"{module.path}:{line}: {code}"
        for module in modules
        if module.name not in TABLES
        for code, line in _codes(module.tree)
        if code not in known
    }
    assert not unknown


def test_every_refusal_is_seen_in_a_test(root: Path) -> None:
    text = "\n".join(path.read_text("utf-8") for path in (root / "tests").rglob("*.py"))
    assert not [code for code in REFUSALS if f'"{code}"' not in text]


def test_every_code_in_a_table_is_used(modules: list[Any]) -> None:
    written = {
        node.value
        for module in modules
        if module.name not in TABLES
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert not sorted((CATALOGUE.keys() | REFUSALS.keys()) - written)


def test_code_check_sees_the_places_that_give_codes(modules: list[Any]) -> None:
    """Were a call renamed, the check above would look at less and still pass."""
    seen = {code for module in modules if module.name not in TABLES for code, _ in _codes(module.tree)}
    one_of_each_kind = {
        "parameters-unsafe",
        "examples-failed",
        "not-selected",
        "edge-share-differs",
        "opening-differs",
        "expired",
    }
    assert seen >= one_of_each_kind | {
        "second-vote",
        "second-header",
        "upload-late",
        "header-malformed",
        "certificate-expired",
    }
    assert len(seen) > 0.9 * len(CATALOGUE | REFUSALS)


def test_errors_document_is_up_to_date(root: Path) -> None:
    checked = subprocess.run(
        [sys.executable, str(root / "scripts" / "errors"), "--check"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_errors_check_notices_an_old_document(root: Path, tmp_path: Path) -> None:
    old = tmp_path / "ERRORS.md"
    old.write_text(
        (root / "docs" / "ERRORS.md").read_text("utf-8").replace("`votes-too-few`", "`votes-too-many`"), "utf-8"
    )
    checked = subprocess.run(
        [sys.executable, str(root / "scripts" / "errors"), "--check", str(old)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 1
    assert "scripts/errors" in checked.stderr


def _codes(tree: ast.Module) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        found: list[ast.expr] = []
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            place = CODE_ARGUMENTS.get(name)
            if place is not None and len(node.args) > place:
                found.append(node.args[place])
            found += [keyword.value for keyword in node.keywords if keyword.arg in CODE_NAMES]
        elif isinstance(node, ast.Assign):
            names = {getattr(target, "id", getattr(target, "attr", "")) for target in node.targets}
            found += [node.value] if names & CODE_NAMES else []
        elif isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            found += [value for key, value in pairs if isinstance(key, ast.Constant) and key.value in CODE_NAMES]
        elif isinstance(node, ast.Tuple) and len(node.elts) == 2 and isinstance(node.elts[0], ast.JoinedStr):
            found.append(node.elts[1])  # (f"party/{number}", code)
        elif isinstance(node, ast.FunctionDef) and (node.name in ("header_fault", "certificate_fault", "open_box")):
            returns = [
                inner.value for inner in ast.walk(node) if isinstance(inner, ast.Return) and inner.value is not None
            ]
            found += [value.elts[0] if isinstance(value, ast.Tuple) else value for value in returns]
        for expression in found:
            yield from ((code, expression.lineno) for code in _texts(expression) if code)


def _texts(expression: ast.expr) -> Iterator[str]:
    if isinstance(expression, ast.Constant) and isinstance(expression.value, str):
        yield expression.value
    elif isinstance(expression, ast.IfExp):
        yield from _texts(expression.body)
        yield from _texts(expression.orelse)
    elif isinstance(expression, ast.BoolOp):
        for value in expression.values:
            yield from _texts(value)
