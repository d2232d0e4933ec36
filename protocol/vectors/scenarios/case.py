"""A vector file and its cases, before anything is computed; and fixed "secrets" for them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Case", "File", "secret"]


@dataclass(frozen=True, slots=True)
class Case:
    """One input. `error`: the code it must be refused with, or "" where it must succeed."""

    name: str
    given: dict[str, Any]
    error: str = ""


@dataclass(slots=True)
class File:
    """One scenario. `kind` says which function turns inputs into outcomes; `shared` is added to every input."""

    path: str
    about: str
    section: str
    kind: str
    shared: dict[str, Any] = field(default_factory=dict)
    cases: list[Case] = field(default_factory=list)

    def ok(self, name: str, **given: Any) -> None:
        self.cases.append(Case(name, given))

    def bad(self, error: str, name: str, **given: Any) -> None:
        self.cases.append(Case(name, given, error))


def secret(name: str, size: int = 32) -> bytes:
    """Bytes that look random and are the same everywhere: SHAKE-256 of the name."""
    return hashlib.shake_256(f"blindsum vectors: {name}".encode()).digest(size)
