"""A whole fleet as processes on this machine: broker, parties, coordinator, device hosts; killed and restarted at will."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from blindsum.backend.broker import EmbeddedBroker
from blindsum.backend.service import END_WITH_STDIN
from blindsum.protocol.errors import BlindsumError

__all__ = ["OnEvent", "Stack"]

STOP_TIMEOUT_S: Final = 3.0
TAIL_SIZE: Final = 4096
BROKER: Final = "broker"
"""Name of the embedded broker among the processes that died."""

OnEvent = Callable[[str, dict[str, Any]], None]
"""on_event(process name, event): called for every JSON line a process writes, one at a time."""


class Stack:
    """Starts roles as child processes and hears their events. A context manager: nothing outlives it."""

    def __init__(self, logs: Path, on_event: OnEvent) -> None:
        self._logs = logs
        self._on_event = on_event
        self._lock = threading.Lock()
        self._commands: dict[str, list[str]] = {}
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self._broker: EmbeddedBroker | None = None
        self._closing = False
        self.died: dict[str, int] = {}
        """Exit status of processes that ended without being asked."""

    def broker(self, port: int | None = None) -> str:
        """Start the embedded broker, on a free port if on none; its URL. Raises BlindsumError "port-busy"."""
        self._broker = EmbeddedBroker()
        return self._broker.start(port)

    def restart_broker(self) -> None:
        """Kill the embedded broker and start it again where it was: it remembers nothing."""
        assert self._broker is not None and self._broker.pid is not None
        port = int(self._broker.url.rsplit(":", 1)[1])
        os.kill(self._broker.pid, signal.SIGKILL)
        self._broker.stop()
        self._broker.start(port)

    def coordinator(self, kit: Path) -> None:
        self.run("coordinator", ["-m", "blindsum.backend.cli", "coordinator", str(kit)])

    def party(self, number: int, kit: Path) -> None:
        self.run(f"party-{number}", ["-m", "blindsum.backend.cli", "party", str(kit)])

    def host(self, number: int, spec: Path) -> None:
        self.run(f"host-{number}", ["-m", "blindsum.fleet.host", str(spec)])

    def kill(self, name: str) -> None:
        """SIGKILL: no farewell, nothing flushed."""
        process = self._processes.pop(name)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()

    def look_at_broker(self) -> None:
        """Note in `died` that the embedded broker has ended: it writes no events by whose end it would be known."""
        if self._broker is not None and self._broker.pid is None:
            self.died.setdefault(BROKER, -1)

    def restart(self, name: str) -> None:
        """Start a process that was killed, or ended, again on what its database holds. A broker whose port is taken stays dead."""
        self.died.pop(name, None)
        if name != BROKER:
            self.run(name, self._commands[name])
            return
        assert self._broker is not None
        port = int(self._broker.url.rsplit(":", 1)[1])
        self._broker.stop()
        with suppress(BlindsumError):
            self._broker.start(port)

    def pid(self, name: str) -> int:
        """The process of a role that runs."""
        return self._processes[name].pid

    def check(self) -> None:
        """Raises BlindsumError "process-died" where a process has ended by itself, with the end of its log."""
        if self.died:
            name, status = next(iter(self.died.items()))
            raise BlindsumError("process-died", f"{name}, status {status}: {self.tail(name)}")

    def tail(self, name: str) -> str:
        """The end of a process's log, on one line."""
        path = self._logs / f"{name}.log"
        if not path.exists():
            return "no word"
        with path.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - TAIL_SIZE))
            lines = log.read().decode("utf-8", "replace").strip().splitlines()[-3:]
        return " | ".join(lines) or "no word"

    def __enter__(self) -> Stack:
        self._logs.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_error: object) -> None:
        self._closing = True  # what ends from now on was asked to
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._broker is not None:
            self._broker.stop()

    def run(self, name: str, command: list[str]) -> None:
        """Start Python with these arguments; what it prints as lines of JSON are its events."""
        self._commands[name] = command
        with (self._logs / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, END_WITH_STDIN: "1"},
            )
        self._processes[name] = process
        threading.Thread(target=self._hear, args=(name, process), daemon=True).start()

    def _hear(self, name: str, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            with self._lock:
                self._on_event(name, event)
        process.wait()
        if not self._closing and self._processes.get(name) is process:
            self.died[name] = process.returncode
