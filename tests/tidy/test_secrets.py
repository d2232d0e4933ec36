"""Secrets are compared in constant time, and what holds them says so."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

SECRET = re.compile(r"\b(?:seeds?|secrets?|private|box_private|pads?|broadcast_key|password)\b")
"""Names of what nobody may time a comparison of."""
HARMLESS = re.compile(r"\blen\(")
"""How long it is is no secret; nor is what stands in the source."""


def test_secrets_are_never_compared_byte_by_byte(modules: list[Any]) -> None:
    found = [
        f"{module.path}:{line}: {text}"
        for module in modules
        if module.package in ("protocol", "runtime", "sdk", "backend")
        for line, text in _comparisons(module.tree)
    ]
    assert not found, "compare with blindsum.protocol.keys.equal"


def test_comparison_check_finds_what_it_looks_for() -> None:
    source = "a = seed == other\nb = digest != derive(secret)\nc = len(seed) == 32\nd = private in known\ne = password == ''\n"
    assert [line for line, _ in _comparisons(ast.parse(source))] == [1, 2, 4]


def _comparisons(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Eq | ast.NotEq | ast.In | ast.NotIn):
            text = ast.unparse(node)
            constant = any(isinstance(side, ast.Constant) for side in (node.left, *node.comparators))
            if SECRET.search(text) and not constant and not HARMLESS.search(text):
                yield node.lineno, text
