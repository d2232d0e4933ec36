"""A role as a process: its driver, a line of JSON on stdout for each event, its board, and a clean end on SIGTERM."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from typing import Final, TypeVar

from blindsum.backend.board import Board
from blindsum.protocol.errors import BlindsumError, Refused
from blindsum.protocol.machines.step import Event
from blindsum.runtime.audit import AuditLog
from blindsum.runtime.driver import Driver
from blindsum.runtime.settings import Settings
from blindsum.runtime.system import now_ms

__all__ = ["END_WITH_STDIN", "Reporter", "WebSettings", "run_until_stopped", "stand_by", "stop_signal"]

T = TypeVar("T")

POLL_S: Final = 0.1
STANDBY_S: Final = 0.5
"""How often who stands by looks whether it is its turn."""
END_WITH_STDIN: Final = "BLINDSUM_END_WITH_STDIN"
"""Set in the environment by whoever started this process and holds the other end of its stdin: no orphans."""
PORT_MAX: Final = 65535
AUDITED: Final = frozenset(
    {
        "started", "stopped", "offered", "voted", "opened", "followed", "round-over", "round-finished", "round-failed", "fault",
        "evidence", "left-out", "phase", "memory-lost", "revocations", "revocations-refused", "task", "task-refused", "transcript",
        "failed-transcript", "rolled-back", "rollback-refused", "party-key", "party-keys-refused",
    }
)  # fmt: skip
"""What goes into the audit log: what a role answered for, and nothing that every device can cause at will."""


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
    """Writes events and refusals as JSON lines, on the role's board and, those that are `AUDITED`, to its audit log; safe from any
    thread."""

    def __init__(self, role: str, audit: AuditLog | None = None) -> None:
        self._audit = audit
        self._refusals: Counter[str] = Counter()
        self.board = Board(role, now_ms())
        self._role = role
        self._lock = threading.Lock()
        for at, event, data in audit.recent() if audit is not None else ():
            self.board.recall(at, event, data)

    def event(self, event: Event) -> None:
        self.line(event.name, **event.data)

    def started(self) -> None:
        """Say that the role runs, and how its audit log stands."""
        self.line("started", version=version("blindsum"), audit=self._audit.head if self._audit is not None else "")

    def refused(self, refused: Refused) -> None:
        """Every one is on the board; in the log and the audit log are the 1st, 2nd, 4th, 8th… of a code: a peer must not be able to
        fill them, nor to keep the role busy with writing."""
        at, data = now_ms(), {"code": refused.code, "culprit": refused.culprit, "detail": refused.detail}
        self.board.tell(at, "refused", data)
        self._refusals[refused.code] = count = self._refusals[refused.code] + 1
        if count & (count - 1) == 0:
            self._print(at, "refused", {**data, "count": count})
            self._keep(at, "refusals", {"code": refused.code, "count": count, "culprit": refused.culprit})

    def line(self, name: str, **data: object) -> None:
        at = now_ms()
        self.board.tell(at, name, data)
        if name in AUDITED:
            self._keep(at, name, data)
        self._print(at, name, data)

    def _keep(self, at: int, name: str, data: Mapping[str, object]) -> None:
        if self._audit is None:
            return
        try:
            self._audit.add(at, name, data)
        except BlindsumError as error:  # rounds go on: what counts is in the database
            self._print(at, "audit-failed", {"code": error.code, "detail": error.detail})

    def _print(self, at: int, name: str, data: Mapping[str, object]) -> None:
        text = json.dumps({"at": at, **data, "role": self._role, "event": name}, default=str)
        with self._lock:
            try:
                sys.stdout.write(text + "\n")
                sys.stdout.flush()
            except (BrokenPipeError, ValueError):
                pass  # whoever watched is gone; the role goes on


def stop_signal() -> threading.Event:
    """Set once this process is to end: on SIGTERM or SIGINT, or with whoever started it."""
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    if END_WITH_STDIN in os.environ:
        threading.Thread(target=_until_stdin_ends, args=(stopped,), daemon=True).start()
    return stopped


def stand_by(take: Callable[[], T], reporter: Reporter, stopped: threading.Event) -> T | None:
    """What `take` gives, once it is this process's turn: whoever shares a database by leases waits for who has the same one. None
    where `stopped` comes first."""
    told = False
    while not stopped.is_set():
        try:
            return take()
        except BlindsumError as error:
            if error.code != "database-in-use":
                raise
            if not told:
                reporter.line("standby", detail=error.detail)
                told = True
        stopped.wait(STANDBY_S)
    return None


def run_until_stopped(
    driver: Driver,
    reporter: Reporter,
    web: WebSettings,
    turn: Callable[[], None] = lambda: None,
    *,
    stopped: threading.Event | None = None,
) -> int:
    """Start `driver`, and the web server where `web` names a place; call `turn` about ten times a second, and stop on `stopped`
    (`stop_signal`). Returns the exit status. Raises BlindsumError "config-invalid"."""
    stopped = stopped or stop_signal()
    reporter.started()
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
