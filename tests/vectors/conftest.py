"""The second implementation, `protocol/vectors/oracle`, for as long as a test lasts."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

VECTORS = Path(__file__).resolve().parents[2] / "protocol" / "vectors"


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """`oracle(name)` is its module of that name."""
    monkeypatch.syspath_prepend(str(VECTORS))
    yield lambda name: importlib.import_module(f"oracle.{name}")
    for name in [name for name in sys.modules if name.split(".")[0] == "oracle"]:
        del sys.modules[name]
