"""`blindsum simulate`: a fleet from a TOML file or a Python script, with progress and a report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from blindsum.backend.tracking import Tracker
    from blindsum.fleet.results import FleetReport

__all__ = ["simulate"]

CHECKPOINT: Final = "checkpoint"
EXPERIMENT: Final = "blindsum simulate"
"""The MLflow experiment in which simulations are runs, by name."""


def simulate(
    file: Annotated[Path, typer.Argument(help="A TOML file, or a Python script that leaves a `fleet`.")],
    rounds: Annotated[int, typer.Option(help="How many rounds; 0: as the file says.", min=0)] = 0,
    workers: Annotated[int, typer.Option(help="Processes for the devices; -1: one a core.", min=-1, max=64)] = -1,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after the last round that --out keeps.")] = False,
    no_masks: Annotated[bool, typer.Option("--no-masks", help="Leave masks out, to see what they cost.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for the report and the final model.")] = Path("blindsum-simulation"),
    cluster: Annotated[
        str, typer.Option(help="Run the processes on the Ray cluster at this address; 'local' starts one here.")
    ] = "",
    track: Annotated[
        str, typer.Option(help="Folder for TensorBoard's event files, or the URL of an MLflow server: told each round.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object last on stdout.")] = False,
) -> None:
    """Simulate a fleet with the production protocol in virtual time. Example: blindsum simulate fleet.toml"""
    console = Console(stderr=True, highlight=False)
    console.print(f"reading {file}", soft_wrap=True)
    from blindsum.fleet.possible import check_place
    from blindsum.fleet.simfile import load_fleet

    fleet, planned = load_fleet(
        file, workers=None if workers < 0 else workers, masks="off" if no_masks else "on", cluster=cluster
    )
    check_place(out / "report.json")
    count = rounds or planned
    tracker = _tracker(track) if track else None
    console.print(f"{fleet.devices} devices, {count} rounds, to {out}", soft_wrap=True)
    with Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.1f}/{task.total:.0f} rounds"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    ) as progress:
        bar = progress.add_task(f"{fleet.devices} devices", total=count)
        report = fleet.run(
            count,
            on_progress=lambda done, text: progress.update(bar, completed=done, description=text),
            checkpoint=None if fleet.transport else out / CHECKPOINT,
            resume=resume,
            tracker=tracker,
        )
    if tracker is not None:
        tracker.close()
    report.save(out)
    page = report.plot(out / "report.html") if report.rounds else None
    if as_json:
        print(json.dumps(report.as_json()))
    else:
        _show(report, page)
    if report.interrupted:
        raise typer.Exit(130)


def _tracker(place: str) -> Tracker:
    from blindsum.backend.tracking import MlFlow, TensorBoard

    return MlFlow(place, EXPERIMENT) if "://" in place else TensorBoard(place)


def _show(report: FleetReport, page: Path | None) -> None:
    out = Console(highlight=False)
    table = Table(title=f"{report.name}: {report.devices} devices, seed {report.seed}, {report.wall_s:.1f} s")
    for column in (
        "round",
        "joined",
        "in the sum",
        "secure sum == plain sum",
        "loss",
        "accuracy",
        "sent",
        "virtual time",
    ):
        table.add_column(column, justify="right")
    for each in report.rounds:
        table.add_row(
            str(each.round),
            str(each.joined),
            str(each.survivors),
            f"[bold red]{each.code}[/]" if each.code else "exact" if each.exact else "[bold red]NOT exact[/]",
            f"{each.loss:.4f}",
            "–" if each.accuracy is None else f"{100 * each.accuracy:.1f} %",
            f"{each.bytes_up.median / 1000:.1f} kB",
            f"{each.seconds:.0f} s",
        )
    out.print(table)
    if report.interrupted:
        out.print("interrupted: what was finished is kept; --resume goes on from there")
    out.print(f"model   {report.digest}", soft_wrap=True)
    if page is not None:
        out.print(f"report  {page}", soft_wrap=True)
