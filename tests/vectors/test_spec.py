"""SPEC.md says what the code does: message table, fields, labels, topics, codes, constants and section numbers."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from blindsum.protocol import blobs, codec, envelope, graph, keys, messages, params, prg, quantize, ring, view
from blindsum.protocol.messages import MESSAGES, Payload, common
from blindsum.protocol.refusals import REFUSALS
from blindsum.runtime.topics import SHARDS, TABLE

ROOT = Path(__file__).resolve().parents[2]
SPEC = (ROOT / "protocol" / "SPEC.md").read_text(encoding="utf-8")
CODE = ROOT / "protocol" / "blindsum"


def section(number: str) -> str:
    """The text from the heading of a section to the next heading of its level or above."""
    level = "#" * (2 + number.count("."))
    found = re.search(rf"^{level} {re.escape(number)} .*?(?=^#{{2,{len(level)}}} |\Z)", SPEC, re.MULTILINE | re.DOTALL)
    assert found, number
    return found[0]


def rows(text: str) -> list[list[str]]:
    """The cells of every table row, headings left out."""
    lines = re.findall(r"^\|(.*)\|$", text, re.MULTILINE)
    cells = [[cell.strip() for cell in line.split("|")] for line in lines]
    rules = [i for i, row in enumerate(cells) if set("".join(row)) <= {"-"}]
    return [row for i, row in enumerate(cells) if i not in rules and i + 1 not in rules]


def cddl() -> dict[str, set[str]]:
    """The field names of every map that the CDDL defines."""
    text = re.sub(r";.*", "", "\n".join(re.findall(r"```cddl\n(.*?)```", SPEC, re.DOTALL)))
    maps = re.findall(r"^(\w+) = \{(.*?)\}", text, re.MULTILINE | re.DOTALL)
    return {name: set(re.findall(r"(\w+):", body)) for name, body in maps}


def structs(kind: type[Payload]) -> Iterator[type[Payload]]:
    """A message body and every map inside it."""
    yield kind
    for field in msgspec.structs.fields(kind):
        for inner in re.findall(r"\b[A-Z]\w+", str(field.type)):
            found = getattr(messages, inner, None)
            if isinstance(found, type) and issubclass(found, Payload):
                yield from structs(found)


def test_message_table_names_type_body_sender_and_limit() -> None:
    table = {row[0].strip("`"): (row[1], row[2], int(row[4])) for row in rows(section("5").split("```")[0])}
    assert table == {name: (kind.__name__, role, limit) for name, (kind, role, limit) in MESSAGES.items()}


@pytest.mark.parametrize("name", MESSAGES)
def test_cddl_has_exactly_the_fields_of_the_message(name: str) -> None:
    defined = cddl()
    for kind in structs(MESSAGES[name][0]):
        assert defined[kind.__name__] == set(kind.__struct_fields__), kind.__name__


def test_cddl_has_the_maps_inside_blobs_and_messages() -> None:
    defined = cddl()
    for kind in (messages.BlobRef, messages.OpeningContent):
        assert defined[kind.__name__] == set(kind.__struct_fields__)
    bodies = {kind.__name__ for outer, _, _ in MESSAGES.values() for kind in structs(outer)}
    assert set(defined) == bodies | {"head", "BlobRef", "OpeningContent", "query"}


LABELLED = {
    "digest": ("digest", 0),
    "digester": ("digest", 0),
    "derive": ("HKDF", 1),
    "deriver": ("HKDF", 1),
    "xor_deriver": ("HKDF", 1),
    "expander": ("HKDF", 0),
}
"""What names a label, as which function of the table, and where among its arguments."""


def test_label_table_is_complete() -> None:
    used = set()
    for path in (CODE / "protocol").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in LABELLED:
                function, place = LABELLED[node.func.id]
                label = node.args[place] if len(node.args) > place else None
                if isinstance(label, ast.Constant) and isinstance(label.value, str):
                    used.add((function, label.value))
    stated = {(row[0], row[1].strip("`")) for row in rows(section("4").split("### 4.1")[0])}
    assert stated == used


def test_access_table_is_the_one_of_the_broker() -> None:
    stated = [
        tuple(cell.strip("`") for cell in row)
        for row in rows(section("12"))
        if row[0] in ("device", "party", "coordinator", "worker")
    ]
    assert stated == [(rule.role, rule.action, rule.pattern) for rule in TABLE]
    assert f"mod {SHARDS}" in section("12")


def test_every_refusal_is_explained() -> None:
    assert [code for code in REFUSALS if f"`{code}`" not in SPEC] == []


@pytest.mark.parametrize(
    ("number", "words"),
    [
        ("2.2", f"{prg.PAGE_SIZE:_}".replace("_", " ")),
        ("2.4", f"after {graph.EXTRA_CYCLES_MAX - 1} added cycles"),
        ("3.1", f"more than {codec.DEPTH_MAX} arrays"),
        ("3.2", f"0..{envelope.ROUND_MAX}"),
        ("3.3", f"at most {messages.MESSAGE_SIZE_MAX:_} bytes".replace("_", " ")),
        ("4.2", f"at most {keys.CERTIFICATE_SIZE_MAX} bytes"),
        ("4.3", f"{keys.BOX_OVERHEAD} bytes longer"),
        ("5", f"chunk_size: 1024..{common.CHUNK_SIZE_MAX}"),
        ("5", f"size: 0..{common.BYTES_MAX}"),
        ("5.1", f"dropped_permille ≤ {view.LOST_PERMILLE_MAX}"),
        ("5.2", f"{view.DECISIONS_MAX} · `decide_ms`"),
        ("5.2", f"within {view.CLOCK_SKEW_MAX_MS // 60_000} minutes"),
        ("6", f"at most {messages.CHUNK_MESSAGE_SIZE_MAX} bytes"),
        ("6", f"at most {common.BLOB_CHUNKS_MAX} of them"),
        ("6", f"lets {blobs.WINDOW} chunks of a blob"),
        ("6", f"{blobs.RESEND_MS / 1000} s, doubled at each repetition up to {blobs.RESEND_MAX_MS // 1000} s"),
        ("9.1", f"2^{quantize.PRODUCT_BITS_MAX}"),
        ("11", f"at most {params.PARTIES_MAX}"),
        ("11", f"< 2^−{graph.SIGMA_BITS}"),
        ("11", f"at least {quantize.BITS_MIN}"),
    ],
)
def test_constants_are_those_of_the_code(number: str, words: str) -> None:
    assert words in " ".join(section(number).split())


def test_ring_widths_are_those_of_the_code() -> None:
    assert "16, 24, 32 or 64 bits" in section("2.1") and ring.WIDTHS == (16, 24, 32, 64)


def test_degree_table_is_computed_by_the_formula() -> None:
    for row in rows(section("11")):
        corrupt, dropped = map(int, row[0].split(","))
        for cell, devices in zip(row[1:], (100, 1000, 10_000, 100_000), strict=True):
            assert graph.degree_for(devices, corrupt, dropped) == int(cell)


def test_sections_that_the_code_cites_exist() -> None:
    headings = set(re.findall(r"^#{2,3} ([\d.]+) ", SPEC, re.MULTILINE))
    cited = {}
    for path in [*CODE.rglob("*.py"), *(ROOT / "tests").rglob("*.py"), *(ROOT / "protocol" / "vectors").rglob("*.py")]:
        for found in re.findall(r"SPEC\.md sections? ([\d., and]*\d)", path.read_text(encoding="utf-8")):
            for number in re.findall(r"\d+(?:\.\d+)?", found):
                cited[number] = path.name
    assert len(cited) > 20
    assert {number: name for number, name in cited.items() if number not in headings} == {}


def test_sections_that_the_specification_refers_to_exist() -> None:
    headings = set(re.findall(r"^#{2,3} ([\d.]+) ", SPEC, re.MULTILINE))
    referred = set(re.findall(r"\bsections? (\d+(?:\.\d+)?)(?!\.?\d)", SPEC))  # RFCs are cited three numbers deep
    assert len(referred) > 20 and referred <= headings
