"""What owners gain by a fleet: each alone, all with the secure sum, and all data in one place, judged by held-out examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from blindsum.fleet.baselines import alone, centralised
from blindsum.fleet.charts import LIGHT
from blindsum.fleet.data import Dataset
from blindsum.fleet.simulation import Fleet, plan_for
from blindsum.protocol.errors import BlindsumError
from blindsum.training import TrainingSession

__all__ = ["Comparison", "Metric", "Owner", "accuracy", "area_under_curve", "compare", "draw", "rms_error"]

Floats = NDArray[np.float32]
INCHES: Final = (7.6, 4.6)
ROW_INCHES: Final = 0.28
ABOVE_INCHES, BELOW_INCHES = 1.2, 1.0
PNG_DPI: Final = 150
NAMES_MAX: Final = 24


@dataclass(frozen=True, slots=True)
class Metric:
    """How predictions are scored against targets. `up`: more is better. `form`: a format of one score."""

    name: str
    score: Callable[[Floats, NDArray[Any]], float]
    up: bool
    form: str


@dataclass(frozen=True, slots=True)
class Owner:
    """One owner's examples: what it trains on and what it keeps back to judge models by."""

    name: str
    train: Dataset = field(repr=False)
    test: Dataset = field(repr=False)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Scores by owner in each of three worlds. `exact`: every opened sum was the plain sum of the owners' vectors."""

    title: str
    metric: Metric
    names: tuple[str, ...]
    alone: tuple[float, ...]
    together: tuple[float, ...]
    pooled: tuple[float, ...]
    exact: bool
    rounds: int
    judge: str

    def mean(self, world: str) -> float:
        return float(np.mean(getattr(self, world)))

    def lines(self) -> list[str]:
        """A table, the means last."""
        form = self.metric.form
        width = max(len("mean"), *map(len, self.names))
        rows = [f"{self.metric.name:{width}}     alone  together  one place"]
        for row in zip(
            (*self.names, "mean"),
            *((*getattr(self, world), self.mean(world)) for world in ("alone", "together", "pooled")),
            strict=True,
        ):
            cells = [format(value, form) for value in row[1:]]
            rows.append(f"{row[0]:{width}}  {cells[0]:>8}  {cells[1]:>8}  {cells[2]:>9}")
        return rows

    def result(self) -> str:
        """Gain over each owner alone and gap to all data in one place, in one line."""
        form, sign = self.metric.form, 1 if self.metric.up else -1
        gain, gap = (
            sign * (self.mean("together") - self.mean("alone")),
            sign * (self.mean("pooled") - self.mean("together")),
        )
        better = sum(sign * (b - a) > 0 for a, b in zip(self.alone, self.together, strict=True))
        return (
            f"result: {self.metric.name} {format(self.mean('alone'), form)} alone, {format(self.mean('together'), form)} together, "
            f"{format(self.mean('pooled'), form)} in one place; gain {format(gain, form)}, gap {format(gap, form)}, "
            f"better for {better} of {len(self.names)} owners; sums {'exact' if self.exact else 'NOT exact'}"
        )


def compare(
    title: str,
    owners: list[Owner],
    artifact: bytes,
    metric: Metric,
    *,
    rounds: int,
    rate: float,
    epochs: int = 1,
    batch_size: int = 32,
    clip_norm: float = 8.0,
    seed: int = 7,
    judge: Literal["own", "all"] = "own",
    plan: Mapping[str, Any] | None = None,
    tell: Callable[[str], None] = print,
) -> Comparison:
    """Train `artifact` three times for `rounds` times `epochs` passes: by each owner alone, by the fleet with masks, and on all
    data in one place. A model is judged on the owner's own held-out examples or, with `judge` "all", on those of all owners.
    `plan`: further fields of the fleet's `Plan`. Raises what `Fleet` raises."""
    weight_max = max(len(owner.train) for owner in owners)
    settings: dict[str, Any] = {
        "epochs": epochs,
        "batch_size": batch_size,
        "rate": rate,
        "clip_norm": clip_norm,
        "width": 32,
    }
    settings |= {"weight_max": weight_max, **(plan or {})}
    fleet = Fleet(
        artifact, data=[owner.train for owner in owners], plan=plan_for(len(owners), **settings), seed=seed, workers=0
    )
    tell(f"{len(owners)} owners, {sum(len(owner.train) for owner in owners)} examples; {rounds} rounds under masks ...")
    report = fleet.run(rounds, on_progress=_every(rounds, tell))
    taught = {"epochs": rounds * epochs, "batch_size": batch_size, "rate": rate, "seed": seed}
    tell("each owner alone ...")
    apart = [alone(artifact, owner.train, **taught) for owner in owners]  # type: ignore[arg-type]
    tell("all data in one place ...")
    pooled = centralised(artifact, _joined([owner.train for owner in owners]), **taught)  # type: ignore[arg-type]
    session = TrainingSession(artifact)

    everyone = _joined([owner.test for owner in owners])

    def scores(models: list[Floats]) -> tuple[float, ...]:
        found = []
        for owner, parameters in zip(owners, models, strict=True):
            session.parameters = parameters
            test = owner.test if judge == "own" else everyone
            found.append(metric.score(session.predict(test.features), test.targets))
        return tuple(found)

    return Comparison(
        title=title,
        metric=metric,
        names=tuple(owner.name for owner in owners),
        alone=scores(apart),
        together=scores([report.parameters] * len(owners)),
        pooled=scores([pooled] * len(owners)),
        exact=all(each.exact and not each.code for each in report.rounds),
        rounds=rounds,
        judge=judge,
    )


def accuracy(predictions: Floats, targets: NDArray[Any]) -> float:
    """Share of rows whose largest output is the target."""
    return float((predictions.argmax(axis=1) == targets).mean())


def area_under_curve(predictions: Floats, targets: NDArray[Any]) -> float:
    """Area under the ROC curve of the last output, ties counted half (Mann and Whitney 1947)."""
    wanted = np.asarray(targets).ravel() > 0
    _, place, many = np.unique(predictions[:, -1], return_inverse=True, return_counts=True)
    ranks = (np.cumsum(many) - (many - 1) / 2)[place]  # ties share their mean rank
    positives = int(wanted.sum())
    above = ranks[wanted].sum() - positives * (positives + 1) / 2
    return float(above / (positives * (wanted.size - positives)))


def rms_error(scale: float) -> Callable[[Floats, NDArray[Any]], float]:
    """Root of the mean squared error, in units of `scale`."""
    return lambda predictions, targets: scale * float(np.sqrt(np.mean((predictions - targets) ** 2)))


def draw(comparison: Comparison, path: Path, *, source: str) -> None:
    """The comparison as PNG: a row an owner, from alone to together, and where all data in one place would be. Raises
    "fleet-package-missing"."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise BlindsumError("fleet-package-missing", str(error)) from error
    shown = _chosen(comparison)
    width, height = INCHES
    figure = Figure(
        figsize=(width, max(height, ABOVE_INCHES + BELOW_INCHES + ROW_INCHES * len(shown))),
        dpi=PNG_DPI,
        facecolor=LIGHT.page,
    )
    tall = figure.get_figheight()
    axes = figure.add_axes((0.25, BELOW_INCHES / tall, 0.71, 1 - (ABOVE_INCHES + BELOW_INCHES) / tall))
    for row, place in enumerate(shown):
        before, after, best = comparison.alone[place], comparison.together[place], comparison.pooled[place]
        better = (after > before) == comparison.metric.up
        axes.annotate(
            "",
            (after, row),
            (before, row),
            arrowprops={"arrowstyle": "-|>", "color": LIGHT.blue if better else LIGHT.red, "lw": 1.8, "shrinkB": 4},
        )
        axes.plot(best, row, marker="|", color=LIGHT.ink, markersize=13, markeredgewidth=2, ls="none")
        axes.plot(before, row, marker="o", color=LIGHT.orange, markersize=8, ls="none", zorder=3)
        axes.plot(after, row, marker="o", color=LIGHT.blue, markersize=8, ls="none", zorder=3)
    axes.set_yticks(range(len(shown)), [comparison.names[place] for place in shown], fontsize=9)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.margins(x=0.06)
    judges = "the owner's own" if comparison.judge == "own" else "all owners'"
    axes.set_xlabel(
        f"{comparison.metric.name} on {judges} held-out examples "
        f"({'more' if comparison.metric.up else 'less'} is better)",
        color=LIGHT.ink,
        fontsize=9,
    )
    axes.grid(axis="x", color=LIGHT.faint)
    axes.set_axisbelow(True)
    if comparison.metric.form.endswith("%"):
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0, colors=LIGHT.ink, labelsize=9)
    form = comparison.metric.form
    figure.text(0.03, 1 - 0.2 / tall, comparison.title, fontsize=13, fontweight="bold", color=LIGHT.ink, va="top")
    figure.text(
        0.03,
        1 - 0.52 / tall,
        f"mean: {format(comparison.mean('alone'), form)} alone, {format(comparison.mean('together'), form)} together, "
        f"{format(comparison.mean('pooled'), form)} with all data in one place",
        fontsize=9.5,
        color=LIGHT.ink,
        va="top",
    )
    marks = [
        ("o", LIGHT.orange, "alone"),
        ("o", LIGHT.blue, "together, masked"),
        ("|", LIGHT.ink, "all data in one place"),
    ]
    handles = [
        axes.plot([], [], marker=mark, color=colour, ls="none", markersize=8, markeredgewidth=2, label=label)[0]
        for mark, colour, label in marks
    ]
    axes.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        ncols=3,
        frameon=False,
        fontsize=9,
        handletextpad=0.2,
    )
    names = len(comparison.names)
    some = f"; {len(shown)} of {names} owners shown, evenly spread" if len(shown) < names else ""
    sums = "every sum equal to the plain sum" if comparison.exact else "a sum differed from the plain sum"
    figure.text(
        0.03,
        0.14 / tall,
        f"{source}\n{comparison.rounds} rounds under both mask layers, {sums}{some}",
        fontsize=7.5,
        color="#5b6675",
        va="bottom",
    )
    figure.savefig(path, facecolor=LIGHT.page)


def _chosen(comparison: Comparison) -> list[int]:
    """Which owners have a row: all, or evenly spread ones of many, by how they do alone."""
    order = sorted(range(len(comparison.names)), key=lambda place: comparison.alone[place])
    if not comparison.metric.up:
        order.reverse()
    if len(order) <= NAMES_MAX:
        return order
    return [order[round(step)] for step in np.linspace(0, len(order) - 1, NAMES_MAX)]


def _joined(parts: list[Dataset]) -> Dataset:
    features = np.concatenate([part.features for part in parts])
    targets = np.concatenate([part.targets for part in parts])
    return Dataset(parts[0].name, features, targets, parts[0].classes)


def _every(rounds: int, tell: Callable[[str], None]) -> Callable[[float, str], None]:
    """Says what a round came to, at most about ten times."""
    said = {0.0}

    def progress(done: float, text: str) -> None:
        if done == int(done) and done not in said and (done % max(1, rounds // 10) == 0 or done == rounds):
            said.add(done)
            tell(f"  {text}")

    return progress
