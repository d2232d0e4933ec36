"""A role as a process: its kit, its driver, a line of JSON on stdout for each event, and a clean end on SIGTERM."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Callable
from typing import Final

from blindsum.protocol.errors import Refused
from blindsum.protocol.machines.step import Event
from blindsum.runtime.driver import Driver
from blindsum.runtime.system import now_ms

__all__ = ["Reporter", "run_until_stopped"]

POLL_S: Final = 0.1


class Reporter:
    """Writes events and refusals as JSON lines; safe from any thread."""

    def __init__(self, role: str) -> None:
        self._role = role
        self._lock = threading.Lock()

    def event(self, event: Event) -> None:
        self.line(event.name, **event.data)

    def refused(self, refused: Refused) -> None:
        self.line("refused", code=refused.code, culprit=refused.culprit, detail=refused.detail)

    def line(self, name: str, **data: object) -> None:
        text = json.dumps({"at": now_ms(), **data, "role": self._role, "event": name}, default=str)
        with self._lock:
            try:
                sys.stdout.write(text + "\n")
                sys.stdout.flush()
            except (BrokenPipeError, ValueError):
                pass  # whoever watched is gone; the role goes on


def run_until_stopped(driver: Driver, turn: Callable[[], None] = lambda: None) -> int:
    """Start `driver`, call `turn` about ten times a second, and stop on SIGTERM or SIGINT. Returns the exit status."""
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    driver.start()
    while not stopped.wait(POLL_S):
        if not driver.running:
            break
        turn()
    driver.stop()
    return 1 if driver.failure is not None else 0
