"""`blindsum query …`: ask a question of the data of a fleet's devices, and read what they answered together."""

from __future__ import annotations

from fractions import Fraction
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

__all__ = ["query_app"]

query_app = typer.Typer(
    help="Federated analytics: exact sums over all devices, and nothing of one.", no_args_is_help=True
)


@query_app.command(
    "ask", epilog="Example: blindsum query ask my-fleet heart-rate mean low=30 high=220 digits=1 --devices-max 100"
)
def query_ask(
    folder: Annotated[Path, typer.Argument(help="Folder that 'blindsum init' made.")],
    name: Annotated[str, typer.Argument(help="Name of the task; the app answers what it has registered under it.")],
    kind: Annotated[str, typer.Argument(help="count, sum, mean, variance, histogram, top, quantiles or vector.")],
    fields: Annotated[
        list[str] | None,
        typer.Argument(help="NAME=VALUE, such as low=30 or edges=0,10,20 or domain=@names.txt (docs/ANALYTICS.md)."),
    ] = None,
    devices_max: DevicesMax = ...,  # type: ignore[assignment]
    devices_min: DevicesMin = 10,
    cohort_min: CohortMin = 5,
    corrupt: Corrupt = 0.05,
    dropped: Dropped = 0.3,
    rounds: Annotated[int, typer.Option(help="How often to ask.")] = 1,
    join_s: JoinS = 30.0,
    upload_s: UploadS = 60.0,
    decide_s: DecideS = 30.0,
    eligible: Annotated[
        list[str] | None,
        typer.Option(help="KIND=VALUES, such as once-per=86400 or share=10,5 (docs/SDK.md); may be given again."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Sign a query and put it into the coordinator's kit. Every round asks once."""
    from blindsum.backend.provision import FleetFolder
    from blindsum.backend.queries import create_query
    from blindsum.backend.questions import query_from, title
    from blindsum.backend.tasks import Plan, criterion, save_task, threat_of

    made, query = FleetFolder(folder), query_from(kind, fields or [])
    plan = Plan(
        name=name,
        threat=threat_of(made.operator, corrupt=corrupt, dropped=dropped, cohort_min=cohort_min),
        devices_min=devices_min,
        devices_max=devices_max,
        rounds=rounds,
        join_s=join_s,
        upload_s=upload_s,
        decide_s=decide_s,
        eligibility=tuple(map(criterion, eligible or ())),
    )
    files, derived = create_query(made.operator, query, plan)
    place = save_task(files, made.coordinator)
    if as_json:
        figures = {"task": name, "question": title(query), "integers": query.size, "folder": str(place)}
        show({**figures, "bits": derived.bits, "degree": derived.degree}, as_json=True)
    else:
        print(f"{name}: {title(query)}")
        print(derived.describe())
        print(f"{whereto(made.coordinator)}; see 'blindsum query answers {folder} {name}'")


@query_app.command("answers", epilog="Example: blindsum query answers my-fleet heart-rate")
def query_answers(
    folder: Annotated[Path, typer.Argument(help="Folder that 'blindsum init' made, or the coordinator's kit alone.")],
    name: Annotated[str, typer.Argument(help="Name of the task.")],
    as_json: Json = False,
) -> None:
    """What the devices answered, round by round, from the coordinator's transcripts."""
    from blindsum.backend.queries import answers, question
    from blindsum.backend.questions import in_words, title

    kit = coordinator_of(folder)
    query, found = question(kit, name), answers(kit, name)
    if as_json:
        rows = [
            {"round": number, "devices": one.devices, "value": _floats(one.value), "exact": _texts(one.value)}
            for number, one in found.items()
        ]
        show({"task": name, "question": title(query), "answers": rows}, as_json=True)
        return
    print(f"{name}: {title(query)}")
    if not found:
        print("no round has finished yet")
        return
    table = Table("round", "devices", "answer", "")
    for number, one in found.items():
        for place, (what, how_much) in enumerate(in_words(query, one.value)):
            first = ("", "") if place else (str(number), str(one.devices))
            table.add_row(*first, escape(what), escape(how_much))
    Console().print(table)


def _floats(value: Any) -> Any:
    """An answer for programs: fractions as floats."""
    return _mapped(value, float)


def _texts(value: Any) -> Any:
    """An answer without any rounding: fractions as "1435/19"."""
    return _mapped(value, str)


def _mapped(value: Any, of: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_mapped(item, of) for item in value]
    return of(value) if isinstance(value, Fraction) else value
