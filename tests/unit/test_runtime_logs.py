"""Logs are JSON lines, and no value of type bytes shows in one."""

from __future__ import annotations

import io
import json
import logging

from blindsum.runtime.logs import configure_logs, fields


def lines(level: str = "INFO") -> tuple[io.StringIO, logging.Logger]:
    stream = io.StringIO()
    configure_logs(level, stream)
    return stream, logging.getLogger("blindsum.test")


def test_line_has_time_level_event_and_fields() -> None:
    stream, log = lines()
    log.warning("round closed", extra=fields(task="t1", round=7, ok=True, why=None))
    line = json.loads(stream.getvalue())
    assert line.pop("ts") > 1.7e9
    assert line == {
        "level": "warning", "logger": "blindsum.test", "event": "round closed",
        "task": "t1", "round": 7, "ok": True, "why": None,
    }  # fmt: skip


def test_bytes_show_as_their_length() -> None:
    stream, log = lines()
    log.info("sealed", extra=fields(seed=b"\x01secret", view=memoryview(b"secret"), array=bytearray(b"secret")))
    assert "secret" not in stream.getvalue()
    assert json.loads(stream.getvalue())["seed"] == "<7 bytes>"


def test_text_of_a_peer_cannot_forge_a_line_or_a_field() -> None:
    stream, log = lines()
    log.info("refused", extra=fields(detail='x"\n{"event":"forged"}', level="none", long="y" * 5000))
    assert stream.getvalue().count("\n") == 1
    line = json.loads(stream.getvalue())
    assert line["event"] == "refused"
    assert line["level"] == "info"
    assert len(line["long"]) < 2100


def test_exception_is_told_and_level_is_obeyed() -> None:
    stream, log = lines("ERROR")
    log.info("unseen")
    try:
        raise ValueError("wrong")
    except ValueError:
        log.exception("failed")
    (line,) = [json.loads(text) for text in stream.getvalue().splitlines()]
    assert "ValueError: wrong" in line["exception"]
