"""A round without masks, to see what masks cost. It protects nothing, and only a simulation can be told to do it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from blindsum.protocol import masks

__all__ = ["unmasked"]


@contextmanager
def unmasked() -> Iterator[None]:
    """In this process (and those it starts meanwhile) keystreams are zero and nobody agrees on pairwise keys."""
    with (
        patch.object(masks, "apply", lambda *_args, **_named: None),
        patch.object(masks, "edge_secret", lambda *_args: bytes(32)),
    ):
        yield
