"""How every command prints: results, errors, and the exit status."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from blindsum.protocol.errors import BlindsumError

__all__ = [
    "EXIT_ERROR",
    "EXIT_INVALID",
    "CohortMin",
    "Corrupt",
    "DecideS",
    "DevicesMax",
    "DevicesMin",
    "Dropped",
    "JoinS",
    "Json",
    "UploadS",
    "coordinator_of",
    "fail",
    "show",
    "whereto",
]

EXIT_INVALID = 1
"""The answer is no: a transcript that does not verify, a kit that is not fit."""
EXIT_ERROR = 2
"""The job could not be done; the error says why and what to do."""

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object last on stdout.")]

# How a round goes, for whatever begins rounds.
DevicesMax = Annotated[int, typer.Option(help="Most devices in a round.")]
DevicesMin = Annotated[int, typer.Option(help="Fewest devices in a round.")]
CohortMin = Annotated[int, typer.Option(help="Fewest honest devices a sum may hide an update or answer among.")]
Corrupt = Annotated[float, typer.Option(help="Largest share of devices that collude.")]
Dropped = Annotated[float, typer.Option(help="Largest share of devices that drop out after the roster.")]
JoinS = Annotated[float, typer.Option(help="Seconds to join.")]
UploadS = Annotated[float, typer.Option(help="Seconds to train or answer, and to upload.")]
DecideS = Annotated[float, typer.Option(help="Seconds for each decision of the parties.")]


def coordinator_of(folder: Path) -> Path:
    """The coordinator's kit: in the folder that `init` made, or the folder itself."""
    return folder if (folder / "coordinator.toml").exists() else folder / "coordinator"


def whereto(kit: Path) -> str:
    """What is left to do with a task that was put into the coordinator's kit `kit`, or into a copy of nothing but its tasks."""
    here = (kit / "coordinator.toml").exists()
    return (
        "a coordinator that is running takes it up by itself" if here else "copy it into tasks of the coordinator's kit"
    )


def show(figures: dict[str, Any], *, as_json: bool, title: str = "") -> None:
    """Print figures as one JSON object or as a table."""
    if as_json:
        print(json.dumps(figures, default=str))
        return
    table = Table(title=title or None, show_header=False)
    for name, value in figures.items():
        lines = value if isinstance(value, list) else [value]
        table.add_row(name.replace("_", " "), escape("\n".join(map(_text, lines))))
    Console().print(table)


def _text(value: Any) -> str:
    """A figure as people write it."""
    if value is None or value == {}:
        return "none"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(item)}".replace("_", " ") for name, item in value.items())
    return " × ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def fail(error: BlindsumError, *, as_json: bool) -> None:
    """Print an error the way every command does."""
    if as_json:
        print(
            json.dumps(
                {"error": {"code": error.code, "detail": error.detail, "cause": error.cause, "remedy": error.remedy}}
            )
        )
    console = Console(stderr=True, highlight=False)
    console.print(f"[bold red]error[/] {error.code}: {escape(error.detail or error.cause)}", soft_wrap=True)
    if error.detail:
        console.print(f"  cause:  {escape(error.cause)}", soft_wrap=True)
    console.print(f"  remedy: {escape(error.remedy)}", soft_wrap=True)
