"""A board as Prometheus metrics. Nothing is counted twice: every scrape reads the board."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from blindsum.backend.board import Board

__all__ = ["CONTENT_TYPE", "Exposition"]

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST


class Exposition:
    """The text of `/metrics` for one board, with the process's own figures."""

    def __init__(self, board: Board) -> None:
        self._registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)
        self._registry.register(_BoardCollector(board))

    def text(self) -> bytes:
        return generate_latest(self._registry)


class _BoardCollector(Collector):
    def __init__(self, board: Board) -> None:
        self._board = board

    def collect(self) -> Iterable[Metric]:
        board = self._board.snapshot(rounds=1)
        yield _gauge("connected", "1 while the role is connected to its broker", [], [([], float(board["connected"]))])
        yield _gauge("devices_online", "devices whose presence says so", [], [([], board["devices_online"])])
        yield _gauge(
            "role_online",
            "presence of the other roles",
            ["who"],
            [([who], float(up)) for who, up in board["online"].items()],
        )
        yield _counter("events", "events by name", ["event"], [([name], n) for name, n in board["events"].items()])
        yield _counter("refusals", "refusals by code", ["code"], [([code], n) for code, n in board["refusals"].items()])
        tasks = board["tasks"]
        outcomes = [([task["name"], how], task[how]) for task in tasks for how in ("finished", "failed")]
        yield _counter("rounds", "rounds by outcome", ["task", "outcome"], outcomes)
        latest = [(task["name"], task["rounds"][-1]) for task in tasks if task["rounds"]]
        yield _gauge(
            "round", "number of the latest round", ["task"], [([task], line["number"]) for task, line in latest]
        )
        for name, text in (
            ("enrolled", "devices in the roster"),
            ("joined", "devices that joined"),
            ("uploaded", "devices whose upload is whole"),
            ("survivors", "devices in the sum"),
            ("left_out", "devices left out for a fault that is not proven"),
        ):
            values = [([task], line[name]) for task, line in latest]
            yield _gauge(f"round_{name}", f"latest round: {text}", ["task"], values)
        yield _gauge(
            "round_phase",
            "1 for the phase of the latest round",
            ["task", "phase"],
            [([task, line["phase"]], 1.0) for task, line in latest],
        )
        yield _gauge(
            "round_loss",
            "mean training loss of the latest round",
            ["task"],
            [([task], line["loss"]) for task, line in latest if line["loss"] is not None],
        )
        yield _gauge(
            "phase_seconds",
            "seconds that each phase of the latest round took",
            ["task", "phase"],
            [([task, phase], seconds) for task, line in latest for phase, seconds in line["seconds"].items()],
        )


Values = Iterable[tuple[list[str], float]]


def _gauge(name: str, text: str, labels: list[str], values: Values) -> Metric:
    family = GaugeMetricFamily(f"blindsum_{name}", text, labels=labels)
    for label, value in values:
        family.add_metric(label, value)
    return family


def _counter(name: str, text: str, labels: list[str], values: Values) -> Metric:
    family = CounterMetricFamily(f"blindsum_{name}", text, labels=labels)
    for label, value in values:
        family.add_metric(label, value)
    return family
