"""The real world's clock and randomness, for the ports that the pure machines take as arguments."""

from __future__ import annotations

import os
import time

__all__ = ["now_ms", "random_bytes"]


def now_ms() -> int:
    """Milliseconds since the Unix epoch. Wall time, because deadlines are agreed between hosts; it may step."""
    return time.time_ns() // 1_000_000


def random_bytes(size: int) -> bytes:
    """`size` bytes from the operating system's generator: the only source of secrets."""
    return os.urandom(size)
