"""The pytest plugin: `blindsum_backend(work, …)` opens a `FakeBackend` for the length of a test. By itself it imports nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from blindsum.protocol.queries import Query
    from blindsum.testing.backend import FakeBackend

__all__ = ["blindsum_backend"]


@pytest.fixture
def blindsum_backend() -> Iterator[Callable[..., FakeBackend]]:
    """Makes a running `blindsum.testing.backend.FakeBackend` from a training artifact or a query and its other arguments."""
    with ExitStack() as running:

        def make(work: bytes | Query, **settings: Any) -> FakeBackend:
            from blindsum.testing.backend import FakeBackend

            return running.enter_context(FakeBackend(work, **settings))

        yield make
