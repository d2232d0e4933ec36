"""`blindsum task …`: create a task, see what became of it, let it rest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from blindsum.backend.console import (
    CohortMin,
    Corrupt,
    DecideS,
    DevicesMax,
    DevicesMin,
    Dropped,
    JoinS,
    Json,
    UploadS,
    coordinator_of,
    show,
    whereto,
)
from blindsum.protocol.errors import BlindsumError

__all__ = ["task_app"]

task_app = typer.Typer(help="Tasks of a fleet.", no_args_is_help=True)

Fleet = Annotated[Path, typer.Argument(help="Folder that 'blindsum init' made, or the coordinator's kit alone.")]
Name = Annotated[str, typer.Argument(help="Name of the task.")]


@task_app.command(
    "create", epilog="Example: blindsum task create my-fleet fraud plan.bsa --devices-max 100 --rounds 20"
)
def task_create(
    folder: Annotated[Path, typer.Argument(help="Folder that 'blindsum init' made.")],
    name: Name,
    artifact: Annotated[Path, typer.Argument(help="Training artifact ('blindsum model build').")],
    devices_max: DevicesMax,
    devices_min: DevicesMin = 10,
    cohort_min: CohortMin = 5,
    corrupt: Corrupt = 0.05,
    dropped: Dropped = 0.3,
    rounds: Annotated[int, typer.Option(help="How many rounds.")] = 10,
    epochs: Annotated[int, typer.Option(help="Local epochs a round.")] = 1,
    batch_size: Annotated[int, typer.Option(help="Examples a step.")] = 32,
    rate: Annotated[float, typer.Option(help="Learning rate on the device.")] = 0.1,
    clip_norm: Annotated[float, typer.Option(help="Largest L2 norm of an update.")] = 1.0,
    weight_max: Annotated[int, typer.Option(help="Largest weight of one device, in examples.")] = 64,
    join_s: JoinS = 30.0,
    upload_s: UploadS = 300.0,
    decide_s: DecideS = 30.0,
    chunk_size: Annotated[
        int, typer.Option(help="Bytes that travel at once; fewer for very bad lines. 0: 120 KiB where that is enough.")
    ] = 0,
    algorithm: Annotated[
        str,
        typer.Option(help="fedavg, fedavgm, fedadam, fedyogi, scaffold, or evaluate (sums metrics, trains nothing)."),
    ] = "fedavg",
    server_rate: Annotated[
        float | None, typer.Option(help="Rate of the server's step; default 0.01 for fedadam and fedyogi, else 1.")
    ] = None,
    momentum: Annotated[float, typer.Option(help="Of fedavgm; beta 1 of fedadam and fedyogi.")] = 0.9,
    proximal: Annotated[float, typer.Option(help="FedProx: mu; the artifact's optimiser must have the term.")] = 0.0,
    population: Annotated[int, typer.Option(help="SCAFFOLD: weight of all devices together, in a round or not.")] = 0,
    parameters: Annotated[
        Path | None, typer.Option(help="Model (flat float32) to start from instead of the artifact's own.")
    ] = None,
    eligible: Annotated[
        list[str] | None,
        typer.Option(help="KIND=VALUES, such as examples-min=100 or share=10,5 (docs/SDK.md); may be given again."),
    ] = None,
    profile: Annotated[
        str,
        typer.Option(
            help="roster, or no-roster: one upload a device when it is ready, under one mask layer instead of two."
        ),
    ] = "roster",
    staleness: Annotated[
        int, typer.Option(help="no-roster: a training may go, discounted, into one of so many rounds after its own.")
    ] = 0,
    as_json: Json = False,
) -> None:
    """Sign a task and put it into the coordinator's kit. Crypto parameters are derived from the threat model, and printed."""
    from blindsum.backend.provision import FleetFolder
    from blindsum.backend.tasks import Plan, create_task, criterion, save_task, threat_of
    from blindsum.runtime.kit import read_file

    made = FleetFolder(folder)
    threat = threat_of(made.operator, corrupt=corrupt, dropped=dropped, cohort_min=cohort_min)
    plan = Plan(
        name=name,
        threat=threat,
        devices_min=devices_min,
        devices_max=devices_max,
        rounds=rounds,
        epochs=epochs,
        batch_size=batch_size,
        rate=rate,
        clip_norm=clip_norm,
        weight_max=weight_max,
        join_s=join_s,
        upload_s=upload_s,
        decide_s=decide_s,
        chunk_size=chunk_size,
        eligibility=tuple(map(criterion, eligible or ())),
        algorithm=algorithm,
        server_rate=server_rate,
        momentum=momentum,
        proximal=proximal,
        population=population,
        profile=profile,  # type: ignore[arg-type]
        staleness=staleness,
    )
    model = None if parameters is None else read_file(parameters)
    files, derived = create_task(made.operator, read_file(artifact), plan, model)
    place = save_task(files, made.coordinator)
    if as_json:
        show({"task": name, "folder": str(place), "bits": derived.bits, "degree": derived.degree}, as_json=True)
    else:
        print(derived.describe())
        print(f"task {name} is in {place}; {whereto(made.coordinator)}")


@task_app.command("list", epilog="Example: blindsum task list my-fleet")
def task_list(folder: Fleet, as_json: Json = False) -> None:
    """All tasks: state, rounds that have a transcript, parameters."""
    from blindsum.backend.tasks import read_task, task_names

    kit = coordinator_of(folder)
    rows = [_summary(read_task(kit, name)) for name in task_names(kit)]
    if as_json:
        show({"tasks": rows}, as_json=True)
        return
    table = Table("task", "state", "pause", "stage", "last round", "of", "parameters", "devices")
    for row in rows:
        cells = (
            row["state"],
            f"{row['pause_s']:g} s",
            f"{row['stage']:g} %",
            row["last_round"],
            row["rounds"],
            row["parameters"],
            row["devices"],
        )
        table.add_row(escape(row["task"]), *map(str, cells))
    Console().print(table)


@task_app.command("show", epilog="Example: blindsum task show my-fleet fraud")
def task_show(folder: Fleet, name: Name, as_json: Json = False) -> None:
    """One task: what the operator signed, and what was derived from its threat model."""
    from blindsum.backend.tasks import read_task

    found = read_task(coordinator_of(folder), name)
    show(_summary(found), as_json=as_json, title=name)
    if not as_json:
        print(found.derived.describe())


@task_app.command("pause", epilog="Example: blindsum task pause my-fleet fraud")
def task_pause(folder: Fleet, name: Name, as_json: Json = False) -> None:
    """Let a task rest after the round that is running."""
    _control(folder, name, as_json, state="paused")


@task_app.command("resume", epilog="Example: blindsum task resume my-fleet fraud")
def task_resume(folder: Fleet, name: Name, as_json: Json = False) -> None:
    """Go on with a paused task."""
    _control(folder, name, as_json, state="running")


@task_app.command("stop", epilog="Example: blindsum task stop my-fleet fraud")
def task_stop(folder: Fleet, name: Name, as_json: Json = False) -> None:
    """End a task for good, after the round that is running. Its model and transcripts stay."""
    _control(folder, name, as_json, state="stopped")


@task_app.command("schedule", epilog="Example: blindsum task schedule my-fleet fraud --pause-s 3600")
def task_schedule(
    folder: Fleet,
    name: Name,
    pause_s: Annotated[float, typer.Option(help="Seconds from the end of one round to the beginning of the next.")],
    as_json: Json = False,
) -> None:
    """Set how long a task rests between its rounds."""
    _control(folder, name, as_json, pause_s=pause_s)


@task_app.command("stage", epilog="Example: blindsum task stage my-fleet fraud 10")
def task_stage(
    folder: Fleet,
    name: Name,
    percent: Annotated[float, typer.Argument(help="Share of the devices that may take part; 100 for all.")],
    as_json: Json = False,
) -> None:
    """Let a task run with a share of the devices, always the same ones; more of them, or fewer, with another share."""
    _control(folder, name, as_json, stage=percent)


@task_app.command("rollback", epilog="Example: blindsum task rollback my-fleet fraud --round 12")
def task_rollback(
    folder: Annotated[Path, typer.Argument(help="Folder that 'blindsum init' made.")],
    name: Name,
    number: Annotated[int, typer.Option("--round", help="Go on from the model that this round made; 0: the first.")],
    as_json: Json = False,
) -> None:
    """Take a paused task back to an earlier model, signed by the operator. 'task resume' then goes on from it."""
    from blindsum.backend.provision import FleetFolder
    from blindsum.backend.registry import roll_back

    made = FleetFolder(folder)
    target = roll_back(made.operator, made.coordinator, name, number)
    figures = {"task": name, "round": number, "model": target.model if target else "the task's own"}
    show(figures, as_json=as_json, title="Rolled back; a coordinator that is running takes it up by itself")


def _control(folder: Path, name: str, as_json: bool, **changes: Any) -> None:
    from blindsum.backend.tasks import change_control, read_task

    kit = coordinator_of(folder)
    if not (kit / "coordinator.toml").exists():
        raise BlindsumError("config-missing", f"{kit / 'coordinator.toml'}: do this where the coordinator's kit is")
    change_control(kit, name, **changes)
    show(_summary(read_task(kit, name)), as_json=as_json, title=name)


def _summary(found: Any) -> dict[str, Any]:
    task = found.view.task
    return {
        "task": found.view.name,
        "state": "finished" if found.over else found.control.state,
        "pause_s": found.control.pause_s,
        "stage": found.control.stage,
        "last_round": found.last_round,
        "rounds": task.rounds_max,
        "parameters": sum(segment.length for segment in task.segments if segment.codec == "quantised"),
        "devices": f"{task.devices_min} to {task.devices_max}",
        "algorithm": task.algorithm.name,
        **({} if found.view.has_roster else {"profile": "no-roster", "staleness": found.view.staleness_max}),
        "cohort_min": found.view.threat.cohort_min,
        "eligibility": ", ".join(f"{c.kind}={','.join(map(str, c.values))}" for c in task.eligibility),
    }
