"""A simulation's charts: what was learnt, who dropped out, and what a round costs a device, for one run or several side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from blindsum.fleet.charts import Theme, drawn
from blindsum.fleet.results import FleetReport, Spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw"]

PANEL_INCHES: Final = (4.9, 3.3)
COLUMNS: Final = 2
LINES: Final = ("-", "--", "-.", ":")
PHASES: Final = ("away", "before join", "after roster", "mid upload", "corrupted", "slow", "late", "left out", "failed")
"""Why a device is not in a sum, from early to late."""
SHADES: Final = ("#cfd6de", "#f6d9a0", "#e69f00", "#d55e00", "#a2609e", "#8a94a1", "#5a6573", "#b3261e", "#1c2430")


def draw(reports: Sequence[FleetReport], theme: Theme, kind: str) -> bytes:
    """All charts as "svg" or "png". Raises "fleet-package-missing"."""
    panels: list[tuple[str, Callable[[Axes, Sequence[FleetReport], Theme], None]]] = []
    if any(each.accuracy is not None for report in reports for each in report.rounds):
        panels.append(("Accuracy on held-out examples", _accuracy))
    panels += [
        ("Mean training loss of the devices", _loss),
        ("Devices that are not in the sum, by why", _dropped),
        ("Sent and received by a device in a round", _bytes),
        ("From the round's start to a device's receipt", _seconds),
        ("Processor time of masking on a device", _masking),
    ]
    rows = -(-len(panels) // COLUMNS)
    width, height = PANEL_INCHES

    def fill(figure: Figure) -> None:
        names = ", ".join(report.name for report in reports)
        exact = "exact in every round" if all(report.exact for report in reports) else "NOT EQUAL"
        figure.suptitle(f"{names}: secure sum == plain sum: {exact}", fontsize=13, fontweight="bold")
        axes = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
        for place, (title, panel) in zip(axes, panels, strict=False):
            place.set_title(title)
            panel(place, reports, theme)
        for place in axes[len(panels) :]:
            place.set_axis_off()

    return drawn(fill, theme, kind, (width * COLUMNS, height * rows + 0.5))


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
            counts["failed"] = max(0, each.devices - each.survivors - sum(counts.values()))
            bottom = 0
            for phase, shade in zip(PHASES, SHADES, strict=True):
                count = counts.get(phase, 0)
                if count:
                    at = each.round - 0.4 + width * (place + 0.5)
                    label = None if phase in shown else phase
                    axes.bar(at, count, width * 0.92, bottom=bottom, color=shade, label=label)
                    shown.add(phase)
                    bottom += count
    axes.set_xlabel("round")
    axes.locator_params(axis="x", integer=True)
    axes.grid(axis="y")
    if shown:
        axes.margins(y=0.35)
        axes.legend(ncols=3, loc="upper center")


def _boxes(axes: Axes, rows: Sequence[tuple[str, Spread, str]], unit: str) -> None:
    """One bar from the 5th to the 95th percentile a row, thick between the quartiles, with its median."""
    for place, (_, spread, colour) in enumerate(reversed(rows)):
        _, low, quarter, median, three, high, _ = spread.percentiles
        axes.hlines(place, low, high, color=colour, linewidth=2, alpha=0.5)
        axes.hlines(place, quarter, three, color=colour, linewidth=9, alpha=0.75)
        axes.plot([median], [place], "|", color="#ffffff", markersize=9, markeredgewidth=2)
        axes.annotate(
            f"{median:.3g} {unit}", (median, place), (0, 8), textcoords="offset points", ha="center", fontsize=8
        )
    axes.set_yticks(range(len(rows)), [name for name, _, _ in reversed(rows)])
    axes.set_ylim(-0.6, len(rows) - 0.3)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"{unit}; bars: 5th to 95th percentile and quartiles of all devices")
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
    _boxes(axes, [(name, spread.scaled(1e-3), colour) for name, spread, colour in rows], "kB")


def _seconds(axes: Axes, reports: Sequence[FleetReport], theme: Theme) -> None:
    _boxes(axes, _last(reports, theme, "upload_s"), "s")


def _masking(axes: Axes, reports: Sequence[FleetReport], theme: Theme) -> None:
    _boxes(axes, _last(reports, theme, "mask_ms"), "ms")
