"""What the tidy tests look at: the files of the tree, parsed modules, and the command line."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import typer.main

from blindsum.backend import cli

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("protocol", "sdk", "backend", "bench")
FOLDERS = (*SOURCES, "tests", "docs", "examples", "scripts", "deploy", ".ci")
IGNORED = frozenset({"__pycache__", ".pytest_cache", ".hypothesis", "blindsum-demo", "node_modules", "dist"})


@dataclass(frozen=True)
class Module:
    """One source file: `name` is what it is imported as ("blindsum.protocol.ring"), `path` is below the top of the tree."""

    name: str
    path: str
    text: str = field(repr=False)
    tree: ast.Module = field(repr=False)

    @property
    def package(self) -> str:
        """The part below `blindsum`: "protocol", "runtime", "sdk"…"""
        return self.name.split(".")[1]

    def imports(self) -> Iterator[tuple[str, int]]:
        """(dotted name, line) of everything that is imported anywhere in the module, relative imports resolved."""
        base = self.name.split(".") if self.path.endswith("__init__.py") else self.name.split(".")[:-1]
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield alias.name, node.lineno
            elif isinstance(node, ast.ImportFrom):
                above = base[: len(base) - node.level + 1] if node.level else []
                prefix = ".".join([*above, *(node.module or "").split(".")]).strip(".")
                for alias in node.names:
                    yield f"{prefix}.{alias.name}", node.lineno


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def files() -> list[Path]:
    """Every file of the repository, caches and other output left out."""
    found = [path for path in ROOT.iterdir() if path.is_file()]
    for folder in FOLDERS:
        found += [path for path in (ROOT / folder).rglob("*") if path.is_file() and not IGNORED & set(path.parts)]
    return sorted(found)


@pytest.fixture(scope="session")
def modules() -> list[Module]:
    """Every module of the distribution."""
    found = []
    for source in SOURCES:
        for path in sorted((ROOT / source / "blindsum").rglob("*.py")):
            parts = path.relative_to(ROOT / source).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            text = path.read_text("utf-8")
            found.append(Module(name, str(path.relative_to(ROOT)), text, ast.parse(text)))
    return found


@pytest.fixture(scope="session")
def commands() -> dict[str, Any]:
    """Every command of `blindsum` by its words ("task create"), as the entry point finds them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["blindsum", "--version"])
        with pytest.raises(SystemExit):
            cli.main()
    return dict(_leaves(typer.main.get_command(cli.app), ()))


def _leaves(command: Any, words: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    if hasattr(command, "commands"):
        for name, inner in command.commands.items():
            yield from _leaves(inner, (*words, name))
    else:
        yield " ".join(words), command


@pytest.fixture(scope="session")
def fences() -> Callable[[Path], list[tuple[str, str]]]:
    """fences(path) -> (language, code) of every fenced block of a document."""

    def find(path: Path) -> list[tuple[str, str]]:
        return re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text("utf-8"), re.MULTILINE | re.DOTALL)

    return find
