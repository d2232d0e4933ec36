"""How the tree must look, whoever adds to it."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

LINES_MAX = 450
FILE_SIZE_MAX = 1 << 20
MACHINE = re.compile(r"/(?:wor[k]|far[m]|roo[t]|hom[e]/[a-z]+|User[s]/[a-z]+|tm[p]|bash_job[s])/")
"""Paths that exist on one machine only."""


def test_no_root_has_an_init_file_for_the_namespace(root: Path) -> None:
    """One stray file makes the other roots' packages vanish, while mypy still says all is well."""
    stray = [str(path) for path in root.glob("*/blindsum/__init__.py")]
    assert not stray


def test_every_package_is_typed_and_has_an_init_file(root: Path) -> None:
    packages = [path for path in root.glob("*/blindsum/*") if path.is_dir() and any(path.glob("*.py"))]
    assert {path.name for path in packages} >= {"protocol", "runtime", "testing", "sdk", "training", "backend", "fleet"}
    for package in packages:
        assert (package / "__init__.py").is_file(), package
        assert (package / "py.typed").is_file(), package


def test_every_module_says_what_it_is_for(modules: list[Any]) -> None:
    silent = [module.path for module in modules if not ast.get_docstring(module.tree)]
    assert not silent


def test_no_module_is_longer_than_one_noun_needs(modules: list[Any]) -> None:
    lengths = {module.path: module.text.count("\n") for module in modules}
    long = {path: lines for path, lines in lengths.items() if lines > LINES_MAX}
    assert not long, f"over {LINES_MAX} lines; find the second noun: {long}"


def test_no_file_names_a_path_of_one_machine(files: list[Path], root: Path) -> None:
    found = []
    for path in files:
        for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), 1):
            if MACHINE.search(line):
                found.append(f"{path.relative_to(root)}:{number}: {line.strip()[:80]}")
    assert not found


def test_no_file_is_large(files: list[Path], root: Path) -> None:
    large = {str(path.relative_to(root)): path.stat().st_size for path in files if path.stat().st_size > FILE_SIZE_MAX}
    assert not large


def test_nothing_is_left_to_do_later(files: list[Path], root: Path) -> None:
    marks = re.compile(r"\b(?:TOD[O]|FIXM[E]|XX[X]|HAC[K])\b")
    found = [
        f"{path.relative_to(root)}:{number}"
        for path in files
        if path.suffix in (".py", ".md", ".toml", "")
        for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), 1)
        if marks.search(line)
    ]
    assert not found


def test_no_test_is_left_out(files: list[Path], root: Path) -> None:
    """What a test needs and does not find is a failure. A test that may not run proves nothing."""
    soft = re.compile(r"pytest\.(?:ski[p]|mark\.(?:ski[p]|xfai[l])|importorski[p])|unittest\.ski[p]")
    found = [
        f"{path.relative_to(root)}:{number}"
        for path in files
        if path.is_relative_to(root / "tests") and path.suffix == ".py"
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if soft.search(line)
    ]
    assert not found
