"""A simulation's report: one HTML file that needs neither network nor scripts, and its charts as PNG beside it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

from blindsum.fleet.charts import DARK, LIGHT
from blindsum.fleet.fleetcharts import Panel, draw_all, draw_panel, panels_of
from blindsum.fleet.report import STYLE
from blindsum.fleet.results import FleetReport

__all__ = ["write_page"]


def write_page(path: Path, reports: Sequence[FleetReport]) -> Path:
    """Write `path` (HTML) and a PNG of the same name. Several reports stand side by side. Raises "fleet-package-missing"."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".png").write_bytes(draw_all(reports))
    path.write_text(_page(reports), encoding="utf-8")
    return path


def _page(reports: Sequence[FleetReport]) -> str:
    first = reports[0]
    title = "blindsum simulation: " + ", ".join(report.name for report in reports)
    charts = "".join(_figure(panel, reports) for panel in panels_of(reports))
    sections = "".join(_rounds(report) for report in reports)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
<p class="lead">{escape(_lead(first))}</p>
<section class="tiles">{"".join(_tiles(report) for report in reports)}</section>
<section class="charts">{charts}</section>
<h2>Settings</h2>
{_settings(reports)}
{sections}
<h2>What follows from the threat model</h2>
{_derived(reports)}
</main>
</body>
</html>
"""


def _lead(report: FleetReport) -> str:
    masks = "" if report.masks else " Masks were left out to see what they cost: this run protected nothing."
    return (
        "Every device, party and coordinator ran the production protocol, message by message, in virtual time. Bytes and seconds "
        f"are those of the simulated links; processor time was measured.{masks}"
    )


def _tiles(report: FleetReport) -> str:
    last = report.finished[-1] if report.finished else None
    good = len(report.finished)
    tiles = [
        (
            "exact" if report.exact else "NOT EQUAL",
            "secure sum against the plain sum of the same vectors",
            report.exact,
        ),
        (
            f"{good} of {len(report.rounds)} rounds",
            f"gave a sum, {report.devices:,} devices",
            good == len(report.rounds),
        ),
        (f"{report.wall_s:.1f} s", "to simulate it all", True),
    ]
    if last is not None and last.accuracy is not None:
        tiles.append((f"{100 * last.accuracy:.1f} %", "accuracy of the last model", True))
    if last is not None:
        tiles.append((f"{last.bytes_up.median / 1000:.1f} kB", "sent by a device in a round (median)", True))
    return "".join(
        f'<div class="tile{"" if fine else " bad"}"><b>{escape(value)}</b><span>{escape(report.name)}: {escape(text)}</span></div>'
        for value, text, fine in tiles
    )


def _figure(panel: Panel, reports: Sequence[FleetReport]) -> str:
    light, dark = (
        "data:image/svg+xml;base64," + base64.b64encode(draw_panel(panel, reports, theme)).decode()
        for theme in (LIGHT, DARK)
    )
    return (
        f'<figure><h2>{escape(panel.title)}</h2><picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{escape(panel.title)}"></picture></figure>'
    )


def _derived(reports: Sequence[FleetReport]) -> str:
    """Once for all runs that have it in common."""
    names: dict[str, list[str]] = {}
    for report in reports:
        names.setdefault(report.derived, []).append(report.name)
    heads = [f"<h3>{escape(', '.join(each))}</h3>" if len(names) > 1 else "" for each in names.values()]
    return "".join(f"{head}<pre><code>{escape(text)}</code></pre>" for head, text in zip(heads, names, strict=True))


def _settings(reports: Sequence[FleetReport]) -> str:
    names = list(dict.fromkeys(name for report in reports for name in report.settings))
    rows = [[name, *(_said(report.settings.get(name, "")) for report in reports)] for name in names]
    rows += [
        ["seed", *(str(report.seed) for report in reports)],
        ["model", *(report.digest[:16] for report in reports)],
    ]
    return _table(["", *(report.name for report in reports)], rows)


def _said(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return (", ".join(map(str, value)) or "none") if isinstance(value, list | tuple) else str(value)


def _rounds(report: FleetReport) -> str:
    head = [
        "round",
        "joined",
        "in the sum",
        "sum",
        "loss",
        "accuracy",
        "virtual s",
        "sent, kB",
        "masking, ms",
        "dropped",
        "lied",
    ]
    rows = []
    for each in report.rounds:
        dropped = ", ".join(f"{count} {why}" for why, count in {**each.dropped, **each.excluded}.items()) or "none"
        rows.append(
            [
                str(each.round),
                f"{each.joined} of {each.devices}",
                str(each.survivors),
                each.code or ("exact" if each.exact else "NOT EQUAL"),
                f"{each.loss:.4f}",
                "" if each.accuracy is None else f"{100 * each.accuracy:.1f} %",
                f"{each.seconds:.1f}",
                f"{each.bytes_up.median / 1000:.1f}",
                f"{each.mask_ms.median:.2f}",
                dropped,
                ", ".join(f"{who} ({code})" for who, code in each.faults.items()) or "nobody",
            ]
        )
    return f"<h2>{escape(report.name)}, round by round</h2>{_table(head, rows, 'rounds')}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "pairs") -> str:
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in rest) + "</tr>"
        for first, *rest in rows
    )
    return f'<div class="scroll"><table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
