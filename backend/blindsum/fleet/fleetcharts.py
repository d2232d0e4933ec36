"""A simulation's charts: what was learnt, who dropped out, and what a round costs a device, for one run or several side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from blindsum.fleet.charts import LIGHT, Theme, drawn
from blindsum.fleet.results import FleetReport, Spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Panel", "draw_all", "draw_panel", "panels_of"]

WIDTH_INCHES: Final = 4.7
"""About as wide as a phone, so that the text of a chart needs no shrinking there."""
TALL, LOW = 3.3, 1.9
COLUMNS: Final = 2
LINES: Final = ("-", "--", "-.", ":")
PHASES: Final = ("away", "before join", "after roster", "mid upload", "corrupted", "slow", "late", "left out")
"""Why a device is not in a sum, from early to late; for all other reasons it has failed."""
SHADES: Final = ("#cfd6de", "#f6d9a0", "#e69f00", "#d55e00", "#a2609e", "#8a94a1", "#5a6573", "#b3261e")


class Panel(NamedTuple):
    """One chart: what it shows, how it is drawn, and how high it is in inches."""

    title: str
    draw: Callable[[Axes, Sequence[FleetReport], Theme], None]
    height: float


def panels_of(reports: Sequence[FleetReport]) -> list[Panel]:
    """The charts that there are figures for."""
    measured = any(each.accuracy is not None for report in reports for each in report.rounds)
    low = LOW + 0.25 * (len(reports) - 1)
    return [
        *([Panel("Accuracy on held-out examples", _accuracy, TALL)] if measured else []),
        Panel("Mean training loss of the devices", _loss, TALL),
        Panel("Devices that are not in the sum, by why", _dropped, TALL),
        Panel("Sent and received by a device", _bytes, low + 0.25 * len(reports)),
        Panel("From start to receipt of an upload", _seconds, low),
        Panel("Processor time of masking on a device", _masking, low),
    ]


def draw_all(reports: Sequence[FleetReport]) -> bytes:
    """All charts as one PNG on a light ground. Raises "fleet-package-missing"."""
    panels = panels_of(reports)
    heights = [
        max(panel.height for panel in panels[first : first + COLUMNS]) for first in range(0, len(panels), COLUMNS)
    ]

    def fill(figure: Figure) -> None:
        names = ", ".join(report.name for report in reports)
        exact = "exact in every round" if all(report.exact for report in reports) else "NOT EQUAL"
        figure.suptitle(f"{names}: secure sum == plain sum: {exact}", fontsize=13, fontweight="bold", wrap=True)
        places = figure.subplots(len(heights), COLUMNS, squeeze=False, height_ratios=heights).flatten()
        for axes, panel in zip(places, panels, strict=False):
            axes.set_title(panel.title)
            panel.draw(axes, reports, LIGHT)
        for axes in places[len(panels) :]:
            axes.set_axis_off()

    return drawn(fill, LIGHT, "png", (WIDTH_INCHES * COLUMNS, sum(heights) + 0.5))


def draw_panel(panel: Panel, reports: Sequence[FleetReport], theme: Theme) -> bytes:
    """One chart as SVG, without its title. Raises "fleet-package-missing"."""
    size = WIDTH_INCHES, panel.height
    return drawn(lambda figure: panel.draw(figure.subplots(), reports, theme), theme, "svg", size)


def _colours(theme: Theme) -> tuple[str, ...]:
    return (theme.blue, theme.red, theme.green, theme.orange)


def _lines(axes: Axes, reports: Sequence[FleetReport], theme: Theme, value: Callable[..., float | None]) -> None:
    for place, report in enumerate(reports):
        points = [(each.round, value(each)) for each in report.finished]
        known = [(number, height) for number, height in points if height is not None]
        axes.plot(
            [number for number, _ in known],
            [height for _, height in known],
            LINES[place // 4 % 4],
            marker="o",
            markersize=3.5,
            color=_colours(theme)[place % 4],
            label=report.name,
        )
    axes.set_xlabel("round")
    axes.locator_params(axis="x", integer=True)
    axes.grid(axis="y")
    if len(reports) > 1:
        axes.legend()


def _accuracy(axes: Axes, reports: Sequence[FleetReport], theme: Theme) -> None:
    _lines(axes, reports, theme, lambda each: None if each.accuracy is None else 100 * each.accuracy)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")


def _loss(axes: Axes, reports: Sequence[FleetReport], theme: Theme) -> None:
    _lines(axes, reports, theme, lambda each: each.loss)
    axes.set_ylim(bottom=0)


def _dropped(axes: Axes, reports: Sequence[FleetReport], theme: Theme) -> None:
    """One stack a round; of several runs side by side."""
    width = 0.8 / len(reports)
    shown: set[str] = set()
    for place, report in enumerate(reports):
        for each in report.rounds:
            counts = {**each.dropped, "left out": sum(each.excluded.values())}
            told = sum(counts.get(phase, 0) for phase in PHASES)
            counts["failed"] = max(0, each.devices - each.survivors - told)
            bottom = 0
            for phase, shade in zip((*PHASES, "failed"), (*SHADES, theme.ink), strict=True):
                count = counts.get(phase, 0)
                if count:
                    at = each.round - 0.4 + width * (place + 0.5)
                    label = None if phase in shown else phase
                    axes.bar(at, count, width * 0.92, bottom=bottom, color=shade, label=label)
                    shown.add(phase)
                    bottom += count
    axes.set_xlabel("round" if len(reports) == 1 else "round; in each the runs from left to right")
    axes.locator_params(axis="x", integer=True)
    axes.grid(axis="y")
    axes.set_xlim(0.4, max((each.round for report in reports for each in report.rounds), default=1) + 0.6)
    if not shown:
        axes.set_ylim(0, 1)
        axes.text(0.5, 0.5, "none in any round", transform=axes.transAxes, ha="center")
    if shown:
        axes.margins(y=0.35)
        axes.legend(ncols=3, loc="upper center")


def _boxes(axes: Axes, rows: Sequence[tuple[str, Spread, str]], unit: str, theme: Theme) -> None:
    """One bar from the 5th to the 95th percentile a row, thick between the quartiles, with its median."""
    for place, (_, spread, colour) in enumerate(reversed(rows)):
        _, low, quarter, median, three, high, _ = spread.percentiles
        axes.hlines(place, low, high, color=colour, linewidth=2, alpha=0.5)
        axes.hlines(place, quarter, three, color=colour, linewidth=9, alpha=0.75)
        axes.plot([median], [place], "o", color=colour, markersize=9, markeredgecolor=theme.page, markeredgewidth=1.5)
        axes.annotate(
            f"{median:.3g} {unit}", (median, place), (0, 8), textcoords="offset points", ha="center", fontsize=8
        )
    axes.set_yticks(range(len(rows)), [name for name, _, _ in reversed(rows)])
    axes.set_ylim(-0.6, len(rows) - 0.2)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"{unit}, last round: median, quartiles, 5 to 95 % of devices")
    axes.grid(axis="x")


def _last(reports: Sequence[FleetReport], theme: Theme, name: str, words: str = "") -> list[tuple[str, Spread, str]]:
    """A quantity of each run's last good round."""
    rows = []
    for place, report in enumerate(reports):
        if report.finished:
            spread: Spread = getattr(report.finished[-1], name)
            label = " ".join(part for part in (report.name if len(reports) > 1 else "", words) if part)
            rows.append((label or "device", spread, _colours(theme)[place % 4]))
    return rows


def _bytes(axes: Axes, reports: Sequence[FleetReport], theme: Theme) -> None:
    rows = _last(reports, theme, "bytes_up", "sent") + _last(reports, theme, "bytes_down", "received")
    _boxes(axes, [(name, spread.scaled(1e-3), colour) for name, spread, colour in rows], "kB", theme)


def _seconds(axes: Axes, reports: Sequence[FleetReport], theme: Theme) -> None:
    _boxes(axes, _last(reports, theme, "upload_s"), "s", theme)


def _masking(axes: Axes, reports: Sequence[FleetReport], theme: Theme) -> None:
    _boxes(axes, _last(reports, theme, "mask_ms"), "ms", theme)
