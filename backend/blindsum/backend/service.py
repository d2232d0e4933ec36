"""A role as a process: its driver, a line of JSON on stdout for each event, its board, and a clean end on SIGTERM."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Final

from blindsum.backend.board import Board
from blindsum.protocol.errors import BlindsumError, Refused
from blindsum.protocol.machines.step import Event
from blindsum.runtime.driver import Driver
from blindsum.runtime.settings import Settings
from blindsum.runtime.system import now_ms

__all__ = ["END_WITH_STDIN", "Reporter", "WebSettings", "run_until_stopped"]

POLL_S: Final = 0.1
END_WITH_STDIN: Final = "BLINDSUM_END_WITH_STDIN"
"""Set in the environment by whoever started this process and holds the other end of its stdin: no orphans."""
PORT_MAX: Final = 65535


class WebSettings(Settings, frozen=True):
    """`[web]`: where the role shows what it does, as "host:port"; "" for nowhere. There are no accounts: whoever reaches it may
    read it."""

    listen: str = ""

    def address(self) -> tuple[str, int]:
        """Raises BlindsumError "config-invalid"."""
        host, _, port = self.listen.rpartition(":")
        if not host or not port.isdecimal() or int(port) > PORT_MAX:
            raise BlindsumError(
                "config-invalid", f"[web] listen = {self.listen!r}; right is host:port, such as 127.0.0.1:8480"
            )
        return host.strip("[]"), int(port)


class Reporter:
    """Writes events and refusals as JSON lines and on the role's board; safe from any thread."""

    def __init__(self, role: str) -> None:
        self.board = Board(role, now_ms())
        self._role = role
        self._lock = threading.Lock()

    def event(self, event: Event) -> None:
        self.line(event.name, **event.data)

    def refused(self, refused: Refused) -> None:
        self.line("refused", code=refused.code, culprit=refused.culprit, detail=refused.detail)

    def line(self, name: str, **data: object) -> None:
        at = now_ms()
        self.board.tell(at, name, data)
        text = json.dumps({"at": at, **data, "role": self._role, "event": name}, default=str)
        with self._lock:
            try:
                sys.stdout.write(text + "\n")
                sys.stdout.flush()
            except (BrokenPipeError, ValueError):
                pass  # whoever watched is gone; the role goes on


def run_until_stopped(
    driver: Driver, reporter: Reporter, web: WebSettings, turn: Callable[[], None] = lambda: None
) -> int:
    """Start `driver`, and the web server where `web` names a place; call `turn` about ten times a second, and stop on SIGTERM or
    SIGINT. Returns the exit status. Raises BlindsumError "config-invalid"."""
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    if END_WITH_STDIN in os.environ:
        threading.Thread(target=_until_stdin_ends, args=(stopped,), daemon=True).start()
    with _web(reporter, web):
        driver.start()
        try:
            while not stopped.wait(POLL_S):
                if not driver.running:
                    break
                turn()
        finally:
            driver.stop()
    return 1 if driver.failure is not None else 0


def _until_stdin_ends(stopped: threading.Event) -> None:
    with contextlib.suppress(OSError, ValueError):
        while sys.stdin.buffer.read(1 << 16):
            pass
    stopped.set()


def _web(reporter: Reporter, web: WebSettings) -> AbstractContextManager[object]:
    if not web.listen:
        return nullcontext()
    from blindsum.backend.web import WebServer  # here: a role without a web server starts without one

    host, port = web.address()
    try:
        server = WebServer(reporter.board, host, port)
    except BlindsumError as error:
        reporter.line("web", code=error.code, detail=error.detail)  # rounds do not need a page
        return nullcontext()
    reporter.line("web", url=server.url)
    return server
