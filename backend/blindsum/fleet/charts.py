"""The demo's three charts, drawn with matplotlib, each for a light or a dark page."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from blindsum.protocol.errors import BlindsumError

from .figures import DemoFigures, kilobytes, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["CHARTS", "DARK", "LIGHT", "Chart", "Theme", "draw_png", "draw_svg", "drawn"]

CHART_INCHES: Final = (4.7, 3.5)
"""About as wide as a phone, so that the text of a chart needs no shrinking there."""
PNG_DPI: Final = 150
FLOAT32_SIZE: Final = 4
NUMBERED_ROUNDS_MAX: Final = 12
"""With more rounds than this the bars are too thin to carry numbers."""


@dataclass(frozen=True, slots=True)
class Theme:
    """Colours, after Okabe and Ito's palette, which the colour-blind can tell apart. `drops` serve the phases by turns."""

    page: str
    ink: str
    faint: str
    blue: str
    orange: str
    green: str
    red: str
    drops: tuple[str, ...]


LIGHT: Final = Theme(
    page="#ffffff",
    ink="#1c2430",
    faint="#dfe3e8",
    blue="#0072b2",
    orange="#ffc04d",
    green="#00805f",
    red="#c04f15",
    drops=("#e69f00", "#d55e00", "#a2609e", "#8a94a1"),
)
DARK: Final = Theme(
    page="#161b22",
    ink="#e6e9ee",
    faint="#30363f",
    blue="#3d9bd8",
    orange="#ffd27a",
    green="#35c9a0",
    red="#ef8450",
    drops=("#f0b838", "#e8743b", "#c98bc2", "#7d8896"),
)


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart: its title, how it is drawn, and what it shows in a sentence."""

    title: str
    draw: Callable[[Axes, DemoFigures, Theme], None]
    describe: Callable[[DemoFigures], str]


def draw_png(figures: DemoFigures, path: Path) -> None:
    """All charts side by side on a light ground. Raises "fleet-package-missing"."""
    width, height = CHART_INCHES

    def fill(figure: Figure) -> None:
        title = f"{figures.rounds[-1].enrolled} devices, {figures.parties} parties; secure sum == plain sum: "
        figure.suptitle(title + figures.verdict(), fontsize=13, fontweight="bold")
        for axes, chart in zip(figure.subplots(1, len(CHARTS)), CHARTS, strict=True):
            axes.set_title(chart.title)
            chart.draw(axes, figures, LIGHT)

    path.write_bytes(drawn(fill, LIGHT, "png", (width * len(CHARTS), height + 0.6)))


def draw_svg(chart: Chart, figures: DemoFigures, theme: Theme) -> bytes:
    """One chart without its title; the same figures always give the same bytes. Raises "fleet-package-missing"."""
    return drawn(lambda figure: chart.draw(figure.subplots(), figures, theme), theme, "svg", CHART_INCHES)


def drawn(fill: Callable[[Figure], None], theme: Theme, kind: str, inches: tuple[float, float]) -> bytes:
    """What `fill` draws, in the colours of `theme`, as "svg" or "png". Raises "fleet-package-missing"."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ModuleNotFoundError as error:
        raise BlindsumError("fleet-package-missing", f"charts need matplotlib ({error})") from error
    style: dict[Any, Any] = {
        **dict.fromkeys(("figure.facecolor", "axes.facecolor"), theme.page),
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), theme.ink),
        **dict.fromkeys(("axes.edgecolor", "grid.color"), theme.faint),
        **dict.fromkeys(("axes.spines.top", "axes.spines.right", "axes.spines.left", "legend.frameon"), False),
        "axes.axisbelow": True,
        "axes.titlelocation": "left",
        "axes.titlesize": 11,
        "font.size": 9,
        "legend.fontsize": 8.5,
        "svg.fonttype": "none",  # text stays text: small, sharp, and in the reader's own fonts
        "svg.hashsalt": "blindsum",
        "xtick.major.size": 0,
        "ytick.major.size": 0,
    }
    out = io.BytesIO()
    with matplotlib.rc_context(style):
        figure = Figure(figsize=inches, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08))
        fill(figure)
        figure.savefig(out, format=kind, dpi=PNG_DPI, metadata={"Date": None} if kind == "svg" else None)
    return out.getvalue()


# -- the charts -------------------------------------------------------------------------------------------------------


def _accuracy(axes: Axes, figures: DemoFigures, theme: Theme) -> None:
    numbers = [each.round for each in figures.rounds]
    secure = [100 * each.accuracy_secure for each in figures.rounds]
    plain = [100 * each.accuracy_plain for each in figures.rounds]
    low, high = 100 * min(figures.accuracy_alone), 100 * max(figures.accuracy_alone)
    axes.axhspan(low, high, color=theme.red, alpha=0.1, linewidth=0)
    axes.axhline(100 * figures.accuracy_central, color=theme.green, linestyle=(0, (5, 2)), linewidth=1.5,
                 label=f"all data in one place  {percent(figures.accuracy_central)}")  # fmt: skip
    axes.plot(numbers, secure, color=theme.blue, linewidth=4.5, marker="o", markersize=7, clip_on=False,
              label=f"secure sum  {percent(figures.secure)}")  # fmt: skip
    axes.plot(numbers, plain, color=theme.orange, linewidth=1.5, linestyle=(0, (3, 1.5)), marker="o", markersize=2.5,
              clip_on=False, label=f"plain FedAvg  {percent(figures.plain)}")  # fmt: skip
    axes.axhline(100 * figures.alone, color=theme.red, linestyle=(0, (1, 1.5)), linewidth=1.5,
                 label=f"one owner alone  {percent(figures.alone)}")  # fmt: skip
    axes.set_ylim(0, 100)
    axes.set_ylabel("accuracy on held-out data, %")
    _rounds(axes, numbers)
    _legend(axes)


def _cohort(axes: Axes, figures: DemoFigures, theme: Theme) -> None:
    from matplotlib.ticker import MaxNLocator

    rounds = figures.rounds
    numbers = [each.round for each in rounds]
    summed = [each.survivors for each in rounds]
    axes.bar(numbers, summed, width=0.75, color=theme.blue, label="in the sum")
    if len(rounds) <= NUMBERED_ROUNDS_MAX:
        for number, count in zip(numbers, summed, strict=True):
            axes.text(number, count / 2, str(count), ha="center", va="center", color="white", fontsize=8.5)
    tops = summed
    for place, phase in enumerate(dict.fromkeys(phase for each in rounds for phase in each.missing)):
        counts = [each.missing.get(phase, 0) for each in rounds]
        colour = theme.drops[place % len(theme.drops)]
        axes.bar(numbers, counts, width=0.75, bottom=tops, color=colour, label=phase, edgecolor=theme.page)
        tops = [top + count for top, count in zip(tops, counts, strict=True)]
    axes.set_ylim(0, max(each.enrolled for each in rounds) * 1.02)
    axes.set_ylabel("devices")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    _rounds(axes, numbers)
    _legend(axes)


def _traffic(axes: Axes, figures: DemoFigures, theme: Theme) -> None:
    clear = FLOAT32_SIZE * figures.parameters
    masked = min(figures.upload_bytes_per_parameter * figures.parameters, figures.upload_bytes)
    rest = figures.upload_bytes - masked
    axes.barh([1], [masked / 1000], height=0.45, color=theme.blue, label="masked vector")
    axes.barh([1], [rest / 1000], height=0.45, left=masked / 1000, color=theme.drops[2], edgecolor=theme.page,
              label="keys, sealed seeds, signature")  # fmt: skip
    axes.barh([0], [clear / 1000], height=0.45, color=theme.drops[3])
    for place, text in (
        (
            1,
            f"secure: {kilobytes(figures.upload_bytes)}, {figures.upload_bytes / figures.parameters:.2f} bytes a parameter",
        ),
        (0, f"the same update as bare float32: {kilobytes(clear)}, {FLOAT32_SIZE} bytes"),
    ):
        axes.text(
            0, place + 0.29, text, ha="left", va="bottom", bbox={"facecolor": theme.page, "linewidth": 0, "pad": 1}
        )
    axes.set_ylim(-0.4, 1.6)
    axes.set_yticks([])
    axes.set_xlabel("kB sent by a device in one round")
    axes.grid(axis="x")
    _legend(axes)


def _rounds(axes: Axes, numbers: list[int]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlim(min(numbers) - 0.5, max(numbers) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=NUMBERED_ROUNDS_MAX, integer=True, min_n_ticks=1))
    axes.set_xlabel("round")
    axes.grid(axis="y")


def _legend(axes: Axes) -> None:
    """Below the axes, where it can hide nothing."""
    axes.legend(loc="upper left", bbox_to_anchor=(-0.06, -0.17), ncols=2, columnspacing=1.2, handlelength=2.2)


def _tell_accuracy(figures: DemoFigures) -> str:
    return (
        f"After round {figures.rounds[-1].round} the secure sum has taught a model that is right on {percent(figures.secure)} of "
        f"the held-out examples. Plain FedAvg on the same updates reaches {percent(figures.plain)}, all data in one place "
        f"{percent(figures.accuracy_central)}, an owner alone {percent(figures.alone)} on average (the shaded band runs from "
        "the worst to the best owner)."
    )


def _tell_cohort(figures: DemoFigures) -> str:
    counts = figures.devices
    return (
        f"Of {counts['enrolled']} chances to take part, {counts['dropped']} were lost on the way. Every round was summed over "
        "the devices that remained; none of them had to send anything more because others were lost."
    )


def _tell_traffic(figures: DemoFigures) -> str:
    return (
        f"A device sends {kilobytes(figures.upload_bytes)} once a round, the masked vector in "
        f"{figures.upload_bytes_per_parameter:.2f} bytes a parameter; masking takes it {figures.device_mask_ms:.1f} ms."
    )


CHARTS: Final = (
    Chart("Accuracy, round by round", _accuracy, _tell_accuracy),
    Chart("Devices, by what became of them", _cohort, _tell_cohort),
    Chart("What protection costs a device", _traffic, _tell_traffic),
)
