"""A board on the terminal: what `up` and `watch` show."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from typing import Any, Final
from urllib.parse import urlsplit

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from blindsum.protocol.errors import BlindsumError

__all__ = ["fetch_board", "render"]

TIMEOUT_S: Final = 5.0
BOARD_SIZE_MAX: Final = 64 << 20
ROUNDS_SHOWN: Final = 8
NOTES_SHOWN: Final = 6
PHASES: Final = ("offer", "manifest", "join", "roster", "upload", "check", "vote", "open")


def fetch_board(url: str, *, rounds: int = ROUNDS_SHOWN) -> dict[str, Any]:
    """The board of the role whose page is at `url`. Raises BlindsumError "board-unreachable"."""
    if urlsplit(url).scheme not in ("http", "https"):
        raise BlindsumError("board-unreachable", f"{url!r} is no http address")
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/api/board?rounds={rounds}", timeout=TIMEOUT_S) as answer:
            board = json.loads(answer.read(BOARD_SIZE_MAX))
    except (OSError, ValueError, urllib.error.URLError) as error:
        raise BlindsumError("board-unreachable", f"{url}: {error}") from None
    if not isinstance(board, dict) or "tasks" not in board:
        raise BlindsumError("board-unreachable", f"{url} answers, but is no role of blindsum")
    return board


def render(board: dict[str, Any]) -> RenderableType:
    """One screen."""
    link = "[green]connected[/]" if board["connected"] else f"[red]not connected[/] {escape(board['link'])}"
    roles = "  ".join(f"[{'green' if up else 'red'}]{escape(who)}[/]" for who, up in board["online"].items())
    head = Text.from_markup(
        f"[bold]{escape(board['role'])}[/]  {link}  {roles}  {board['devices_online']} devices here"
    )
    parts: list[RenderableType] = [head]
    parts += [_task(task) for task in board["tasks"]] or [Text("no round yet", style="dim")]
    if board["refusals"]:
        told = ", ".join(f"{escape(code)} {count}" for code, count in list(board["refusals"].items())[:NOTES_SHOWN])
        parts.append(Text.from_markup(f"[yellow]refused[/]  {told}"))
    parts += [_note(note) for note in board["notes"][-NOTES_SHOWN:]]
    return Group(*parts)


def _task(task: dict[str, Any]) -> RenderableType:
    rounds = task["rounds"][-ROUNDS_SHOWN:]
    title = f"{escape(task['name'])}: {task['state']}, {task['finished']} rounds done, {task['failed']} failed"
    table = Table(box=None, pad_edge=False)
    for name in ("round", "phase", "", "joined", "uploaded", "in the sum", "loss", "s"):
        table.add_column(name, justify="left" if name in ("phase", "") else "right")
    for line in rounds:
        table.add_row(
            str(line["number"]),
            _phase(line),
            ProgressBar(total=len(PHASES), completed=_place(line), width=16),
            str(line["joined"]),
            str(line["uploaded"]),
            str(line["survivors"] or ""),
            "" if line["loss"] is None else f"{line['loss']:.4g}",
            f"{sum(line['seconds'].values()):.1f}",
        )
    return Panel(table, title=title, title_align="left", border_style="blue")


def _phase(line: dict[str, Any]) -> str:
    if line["phase"] == "failed":
        return f"[red]failed: {escape(line['code'])}[/]"
    return "[green]done[/]" if line["phase"] == "done" else f"[yellow]{escape(line['phase'])}[/]"


def _place(line: dict[str, Any]) -> int:
    return PHASES.index(line["phase"]) if line["phase"] in PHASES else len(PHASES)


def _note(note: dict[str, Any]) -> Text:
    facts = ", ".join(f"{name} {value}" for name, value in note.items() if name not in ("at", "event") and value != "")
    clock = time.strftime("%H:%M:%S", time.localtime(note["at"] / 1000))
    return Text.assemble((clock, "dim"), "  ", note["event"], "  ", (facts, "dim"))
