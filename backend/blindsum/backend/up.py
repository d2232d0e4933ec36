"""The whole stack of one fleet on one machine: for trying, for development, and for fleets that one organisation runs.

Every role is a process of its own, as it would be elsewhere; what ends by itself is started again. One machine that holds the
kits of all parties protects nobody from whoever runs it: `up` says so.
"""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from blindsum.backend.board import Board
from blindsum.backend.coordinator import CoordinatorSettings
from blindsum.backend.provision import FleetFolder
from blindsum.backend.stack import Stack
from blindsum.backend.watch import render
from blindsum.protocol.errors import BlindsumError
from blindsum.runtime.endpoint import Endpoint
from blindsum.runtime.settings import load_settings
from blindsum.runtime.system import now_ms

__all__ = ["run_up"]

LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
BACKOFF_S: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""How long a process that ended stays down: longer each time it ends within a minute."""
STEADY_S: Final = 60.0
POLL_S: Final = 0.25
WARNING: Final = (
    "All parties run on this machine: whoever controls it can open single updates. In production each runs elsewhere."
)


def run_up(root: Path, *, as_json: bool) -> int:
    """Run the fleet in `root` until SIGINT or SIGTERM. Raises BlindsumError "config-missing", "kit-incomplete" or "port-busy"."""
    folder = FleetFolder(root)
    settings = load_settings(folder.coordinator / "coordinator.toml", CoordinatorSettings)
    if not folder.parties:
        raise BlindsumError("kit-incomplete", f"{root} has no kit of a party")
    stopped = threading.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: stopped.set())
    board = Board("coordinator", now_ms())
    hear: Callable[[str, dict[str, Any]], None] = _printer if as_json else _teller(board)
    with Stack(root / "logs", hear) as stack:
        endpoint = Endpoint.parse(settings.broker.url)
        if not endpoint.secure and endpoint.host in LOOPBACK and not _answers(endpoint.host, endpoint.port):
            stack.broker(endpoint.port)
        for number, kit in enumerate(folder.parties, 1):
            stack.party(number, kit)
        stack.coordinator(folder.coordinator)
        keeper = _Keeper(stack)
        if as_json:
            while not stopped.wait(POLL_S):
                keeper.turn()
            return 0
        console = Console()
        page = f"  page: http://{settings.web.listen}" if settings.web.listen else ""
        foot = Group(Text(WARNING, "yellow"), Text(f"logs: {root / 'logs'}{page}  Ctrl-C ends it", "dim"))
        with Live(console=console, refresh_per_second=4) as live:
            while not stopped.wait(POLL_S):
                keeper.turn()
                live.update(Group(render(board.snapshot(rounds=8)), *keeper.notes(), foot))
    return 0


class _Keeper:
    """Starts again what ended by itself."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._ends: dict[str, list[float]] = {}
        self._due: dict[str, float] = {}

    def turn(self) -> None:
        now = time.monotonic()
        self._stack.look_at_broker()
        for name in list(self._stack.died):
            if name not in self._due:
                ends = [at for at in self._ends.get(name, []) if now - at < STEADY_S] + [now]
                self._ends[name] = ends[-len(BACKOFF_S) :]
                self._due[name] = now + BACKOFF_S[len(self._ends[name]) - 1]
            elif now >= self._due[name]:
                del self._due[name]
                self._stack.restart(name)

    def notes(self) -> list[Text]:
        """What is down, and since when it is to be back."""
        now = time.monotonic()
        told = []
        for name, due in self._due.items():
            end = f"{name} ended with status {self._stack.died.get(name)}, again in {max(0.0, due - now):.0f} s"
            told.append(Text(f"{end}: {self._stack.tail(name)}", style="red"))
        return told


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


def _printer(name: str, event: dict[str, Any]) -> None:
    print(json.dumps({"process": name, **event}), flush=True)


def _teller(board: Board) -> Callable[[str, dict[str, Any]], None]:
    def tell(name: str, event: dict[str, Any]) -> None:
        if name == "coordinator":
            at, kind = event.pop("at"), event.pop("event")
            event.pop("role")
            board.tell(at, kind, event)

    return tell
