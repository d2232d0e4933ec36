"""`blindsum bench NAME`: a table of ours, the physical limit and the peer, measured in one run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

__all__ = ["BENCHES", "bench"]


def _masks() -> list[dict[str, Any]]:
    from blindsum.bench.masks import rows

    return rows()


def _training() -> list[dict[str, Any]]:
    from blindsum.bench.training import rows

    return rows()


def _fleet() -> list[dict[str, Any]]:
    from blindsum.bench.fleet import rows

    return rows()


def _round() -> list[dict[str, Any]]:
    from blindsum.bench.round import rows

    return rows()


BENCHES: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "masks": _masks,
    "training": _training,
    "round": _round,
    "fleet": _fleet,
}
PEERS: dict[str, dict[str, tuple[str, ...]]] = {
    "masks": {"flwr": ("flwr",)},
    "training": {"torch": ("torch",)},
    "round": {"flwr": ("flwr",)},
    "fleet": {"flwr[simulation]": ("flwr", "ray"), "pfl": ("pfl",)},
}
"""What pip installs for the peers of each bench, and the modules that are then there."""


def bench(
    name: Annotated[str, typer.Argument(help=f"One of: {', '.join(BENCHES)}.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object last on stdout.")] = False,
) -> None:
    """Measure one part beside the physical limit and the peer. Example: blindsum bench masks"""
    if name not in BENCHES:
        raise typer.BadParameter(f"{name!r} is not one of: {', '.join(BENCHES)}", param_hint="NAME")
    missing = [package for package, modules in PEERS[name].items() if not all(map(find_spec, modules))]
    console = Console(stderr=True, highlight=False)
    console.print(f"measuring {name}: seconds, with peers minutes")
    if missing:
        wanted = " ".join(f"'{package}'" for package in missing)
        told = f"without the figures of {' and '.join(missing)}; for those: pip install {wanted}"
        console.print(told, markup=False, soft_wrap=True)
    load = os.getloadavg()[0]
    found = BENCHES[name]()
    if as_json:
        print(json.dumps({"name": name, "rows": found, "missing": missing}))
        return
    table = Table(title=name)
    columns = list(found[0])
    for column in columns:
        table.add_column(column, justify="left" if column in ("name", "unit") else "right")
    for row in found:
        table.add_row(*(_cell(row[column]) for column in columns))
    Console().print(table)
    if name == "training":
        from blindsum.bench.page import markdown
        from blindsum.bench.training import CORES

        print(markdown(found, CORES, load))


def _cell(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else "–" if value is None else str(value)
