"""Structured logs: one JSON object a line, on standard `logging`, without secrets.

Write `log.info("round closed", extra=fields(task="t1", round=7))`. A value of type bytes never appears: it shows as its
length, because keys, seeds and masked vectors are bytes and names and digests are text.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from typing import Final, TextIO

__all__ = ["JsonFormatter", "configure_logs", "fields"]

VALUE_SIZE_MAX: Final = 2048
"""Longer texts are cut: a log line is not a place for a message body."""


def fields(**values: object) -> dict[str, object]:
    """The `extra` argument of a log call."""
    return {"blindsum": values}


class JsonFormatter(logging.Formatter):
    """One line of JSON: ts (seconds), level, logger, event, then the fields; an exception as its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "ts": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": _plain(record.getMessage()),
        }
        extra = getattr(record, "blindsum", None)
        if isinstance(extra, Mapping):
            line.update((str(key), _plain(value)) for key, value in extra.items() if key not in line)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, separators=(",", ":"))


def configure_logs(level: str = "INFO", stream: TextIO | None = None) -> None:
    """Send every `blindsum` logger to `stream` (standard error) as JSON lines. Replaces what an earlier call set."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("blindsum")
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False


def _plain(value: object) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    text = str(value)
    return text if len(text) <= VALUE_SIZE_MAX else text[:VALUE_SIZE_MAX] + "…"
