"""The documents say what the code does: commands, codes, messages, tests, links."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from blindsum.protocol.codec import DecodeError
from blindsum.protocol.envelope import open_envelope
from blindsum.protocol.errors import CATALOGUE
from blindsum.protocol.messages import MESSAGES
from blindsum.protocol.refusals import REFUSALS

README_TEST = 'pip install -e ".[dev]" && pytest'
README_DEMO = 'pip install -e ".[all]" && blindsum demo'
SCREEN_LINES = 60


@pytest.fixture(scope="module")
def pages(root: Path) -> dict[str, str]:
    """Every document for people, by its path."""
    found = [*root.glob("*.md"), *(root / "docs").rglob("*.md"), root / "protocol" / "SPEC.md"]
    return {str(path.relative_to(root)): path.read_text("utf-8") for path in sorted(found)}


# -- commands ---------------------------------------------------------------------------------------------------------


def test_every_command_shows_an_example_that_it_would_take(commands: dict[str, Any]) -> None:
    assert {
        "demo",
        "init",
        "enrol",
        "model build",
        "task create",
        "coordinator",
        "party",
        "broker",
        "verify",
    } <= commands.keys()
    for words, command in commands.items():
        example = re.search(rf"Example: (blindsum {words}\b.*)", f"{command.help}\n{command.epilog or ''}")
        assert example, f"{words}: no example in its help"
        options = {name for parameter in command.params for name in parameter.opts}
        unknown = set(re.findall(r"\s(--?[a-z][a-z-]*)", example.group(1))) - options
        assert not unknown, f"{words}: its example uses {unknown}"


def test_every_command_has_json_unless_it_streams_json_anyway(commands: dict[str, Any]) -> None:
    without = {
        words for words, command in commands.items() if "--json" not in {o for p in command.params for o in p.opts}
    }
    assert without == {"coordinator", "party", "worker"}


def test_every_command_is_in_the_documents(commands: dict[str, Any], pages: dict[str, str]) -> None:
    text = "\n".join(text for path, text in pages.items() if path == "README.md" or path.startswith("docs/"))
    missing = [words for words in commands if f"blindsum {words}" not in text]
    assert not missing


def test_no_document_and_no_remedy_names_a_command_that_is_not_there(
    commands: dict[str, Any], pages: dict[str, str]
) -> None:
    texts = {path: "\n".join(_code(text)) for path, text in pages.items() if path != "protocol/SPEC.md"}
    for code, entry in (CATALOGUE | REFUSALS).items():
        texts[code] = entry.cause + "\n" + entry.remedy
    known = {words.split()[0] for words in commands} | set(commands)
    for place, text in texts.items():
        for first, second in re.findall(r"(?<![\w.-])blindsum ([a-z]+)(?: ([a-z]+))?", text):
            named = f"{first} {second}".strip()
            assert first in known and (named in known or first in commands), f"{place} names `blindsum {named}`"


# -- the README -------------------------------------------------------------------------------------------------------


def test_first_screen_has_the_two_commands(pages: dict[str, str]) -> None:
    screen = pages["README.md"].splitlines()[:SCREEN_LINES]
    assert README_DEMO in screen
    assert README_TEST in screen


def test_continuous_integration_runs_the_readme_command(root: Path) -> None:
    script = root / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    lines = script.read_text("utf-8").splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert "set -euo pipefail" in lines
    assert README_TEST in script.read_text("utf-8")


def test_links_between_documents_lead_somewhere(root: Path, pages: dict[str, str]) -> None:
    broken = []
    for path, text in pages.items():
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if re.match(r"[a-z]+:", target):
                continue
            file, _, anchor = target.partition("#")
            place = (root / path).parent / file if file else root / path
            if not place.exists() or (anchor and anchor not in _anchors(place)):
                broken.append(f"{path}: {target}")
    assert not broken


# -- threat model, codes, decisions -----------------------------------------------------------------------------------


def test_every_test_that_the_threat_model_names_exists(root: Path, pages: dict[str, str]) -> None:
    there = {
        node.name
        for path in (root / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    named = set(re.findall(r"`(test_[a-z0-9_]+)`", pages["docs/THREAT-MODEL.md"]))
    assert len(named) >= 30
    assert not sorted(named - there)


def test_every_attack_has_a_test(pages: dict[str, str]) -> None:
    rows = re.findall(r"^\| (A\d+) \|(.*)\|$", pages["docs/THREAT-MODEL.md"], re.MULTILINE)
    assert [name for name, _ in rows] == [f"A{number}" for number in range(1, len(rows) + 1)]
    assert len(rows) >= 14
    assert not [name for name, row in rows if "`test_" not in row]


def test_every_bound_that_the_threat_model_names_is_there(pages: dict[str, str]) -> None:
    """Constant, code and test of each row; every bound that a machine of the protocol has stands in the table."""
    table = pages["docs/THREAT-MODEL.md"].partition("\n## Bounds\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| [^|]+ \| (`[^|]+`) \| (`[^|]+`|–) \| (`test_[^|]+`) \|$", table, re.MULTILINE)
    assert len(rows) >= 12
    named = {bound for bounds, _, _ in rows for bound in re.findall(r"`([^`]+)`", bounds)}
    for bound in named:
        module, _, name = bound.rpartition(".")
        assert hasattr(importlib.import_module(f"blindsum.{module}"), name), bound
    codes = {code for _, told, _ in rows for code in re.findall(r"`([^`]+)`", told)}
    assert codes <= CATALOGUE.keys() | REFUSALS.keys()
    machines = (f"protocol.machines.{name}" for name in ("allowance", "chain", "intake", "inbox", "party", "journal"))
    for module in (*machines, "runtime.gate"):
        place = importlib.import_module(f"blindsum.{module}")
        limits = {name for name in vars(place) if re.search(r"_MAX$|_PER_S$", name)}
        own = {
            name
            for name in limits
            if re.search(rf"^{name}: Final = ", Path(str(place.__file__)).read_text("utf-8"), re.M)
        }
        assert not sorted(name for name in own if f"{module}.{name}" not in named)


def test_every_code_that_the_documents_name_is_in_a_table(pages: dict[str, str]) -> None:
    known = CATALOGUE.keys() | REFUSALS.keys() | MESSAGES.keys()
    for path in ("docs/THREAT-MODEL.md", "docs/ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md"):
        text = re.sub(r"^```.*?^```$", "", pages[path], flags=re.MULTILINE | re.DOTALL)
        named = set(re.findall(r"`([a-z]+(?:-[a-z]+)+)`", text))
        assert not sorted(named - known), path


def test_decisions_are_numbered_without_gaps_and_have_three_parts(pages: dict[str, str]) -> None:
    records = {path: text for path, text in pages.items() if path.startswith("docs/adr/")}
    numbers = [int(Path(path).name[:4]) for path in records]
    assert numbers == list(range(1, len(numbers) + 1))
    for path, text in records.items():
        assert text.startswith(f"# {int(Path(path).name[:4])}. "), path
        positions = [text.find(f"\n## {part}") for part in ("Context", "Decision", "Consequences")]
        assert -1 not in positions and positions == sorted(positions), path


# -- operators --------------------------------------------------------------------------------------------------------


def test_operators_document_is_up_to_date(root: Path) -> None:
    checked = _check_operators(root)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_operators_check_notices_an_old_document(root: Path, tmp_path: Path) -> None:
    old = tmp_path / "OPERATORS.md"
    old.write_text((root / "docs" / "OPERATORS.md").read_text("utf-8").replace("| Relu |", "| Rectifier |"), "utf-8")
    checked = _check_operators(root, old)
    assert checked.returncode == 1
    assert "scripts/operators" in checked.stderr


def test_readme_counts_the_operators_that_have_gradients(root: Path, pages: dict[str, str]) -> None:
    rows = re.findall(r"^\| [A-Z]\w+ \| [0-9, ]+ \| \w+ \|$", pages["docs/OPERATORS.md"], re.MULTILINE)
    assert f"[{len(rows)} operators](docs/OPERATORS.md)" in pages["README.md"]


def _check_operators(root: Path, *files: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / "scripts" / "operators"), "--check", *map(str, files)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


# -- the specification ------------------------------------------------------------------------------------------------


def test_every_message_and_every_field_of_it_is_in_the_specification(pages: dict[str, str]) -> None:
    text = pages["protocol/SPEC.md"]
    words = set(re.findall(r"[a-z_]+", text))
    for kind, (body, signer, size_max) in MESSAGES.items():
        assert re.search(rf"[`\"| ]{kind}[`\" |]", text), kind
        missing = [field.name for field in msgspec.structs.fields(body) if field.name not in words]
        assert not missing, f"{kind}: {missing}"
        assert signer and size_max


def test_every_message_is_in_a_vector(root: Path) -> None:
    found = set()
    for path in sorted((root / "protocol" / "vectors").rglob("*.json")):
        for text in _strings(json.loads(path.read_text("utf-8"))):
            if len(text) % 2 == 0 and re.fullmatch(r"(?:[0-9a-f]{2})+", text):
                found |= set(_kinds(bytes.fromhex(text)))
    assert not sorted(MESSAGES.keys() - found)


# -- helpers ----------------------------------------------------------------------------------------------------------


def _code(text: str) -> Iterator[str]:
    """What a document shows as code: fenced blocks and spans."""
    yield from re.findall(r"^```\w*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    yield from re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))


def _anchors(path: Path) -> set[str]:
    """The anchors that the headings of a document have on the usual forges."""
    headings = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


def _kinds(data: bytes) -> Iterator[str]:
    """The type of a signed message, and of every signed message inside it."""
    try:
        signed = open_envelope(data)
    except DecodeError:
        return
    yield signed.head.type
    yield from _inner(signed.payload)


def _inner(value: Any) -> Iterator[str]:
    if isinstance(value, bytes):
        yield from _kinds(value)
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _inner(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _inner(inner)
