"""`blindsum demo`: the product's main job on one machine, with live progress and a table at the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from blindsum.fleet.figures import DemoFigures

__all__ = ["demo"]


def demo(
    devices: Annotated[int, typer.Option(help="How many devices.", min=4, max=160)] = 24,
    parties: Annotated[int, typer.Option(help="How many MPC parties: 4, 7 or 10 (3f + 1).")] = 4,
    rounds: Annotated[int, typer.Option(help="How many rounds.", min=1, max=100)] = 8,
    dropout: Annotated[float, typer.Option(help="Share of devices that drop out of a round.", min=0.0, max=0.4)] = 0.15,
    seed: Annotated[int, typer.Option(help="Seed of the data split, the dropouts and the model.")] = 7,
    transport: Annotated[str, typer.Option(help="'embedded', or the URL of a running MQTT broker.")] = "embedded",
    out: Annotated[Path, typer.Option(help="Folder for the report, the transcript and the kits.")] = Path(
        "blindsum-demo"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object last on stdout.")] = False,
) -> None:
    """Train a real model on 24 devices' own data over MQTT; four party processes unmask only the sum. Example: blindsum demo"""
    from blindsum.fleet.demo import DemoSettings, run_demo
    from blindsum.protocol.params import Committee

    if parties not in (4, 7, 10):
        raise typer.BadParameter("4, 7 or 10 parties (3f + 1 for f = 1, 2, 3)", param_hint="--parties")
    settings = DemoSettings(
        devices=devices,
        malicious_parties=(parties - 1) // 3,
        rounds=rounds,
        dropout=dropout,
        seed=seed,
        transport=transport,
        out=out,
    )
    assert Committee.for_f(settings.malicious_parties).parties == parties
    console = Console(stderr=True)
    with Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f} rounds"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    ) as progress:
        bar = progress.add_task("starting broker, parties, coordinator, devices", total=rounds)
        figures = run_demo(
            settings,
            on_progress=lambda done, text: progress.update(bar, completed=done, description=text),
            on_line=lambda text: progress.console.print(text, highlight=False),
        )
    if as_json:
        print(json.dumps(figures.as_json()))
        return
    _show(figures)


def _show(figures: DemoFigures) -> None:
    """The rounds one by one, then the whole, then where to look further."""
    out = Console(highlight=False)
    rounds = Table(title="accuracy on held-out data, round by round")
    for column in ("round", "joined", "in the sum", "secure sum == plain sum", "secure", "plain FedAvg"):
        rounds.add_column(column, justify="right")
    for each in figures.rounds:
        exact = "exact" if each.exact else "[bold red]NOT exact[/]"
        accuracy = (f"{100 * value:.1f} %" for value in (each.accuracy_secure, each.accuracy_plain))
        rounds.add_row(str(each.round), str(each.joined), str(each.survivors), exact, *accuracy)
    out.print(rounds)
    table = Table(title="the whole run", show_header=False)
    for name, value in figures.as_table():
        table.add_row(name, value)
    out.print(table)
    out.print(f"report      {figures.report}", soft_wrap=True)
    out.print(f"transcript  {figures.transcript}  (blindsum verify {figures.transcript})", soft_wrap=True)
