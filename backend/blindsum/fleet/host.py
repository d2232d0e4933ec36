"""A process that hosts some of a demo's devices: each a real MQTT client with its own kit, database and data.

Started as `python -m blindsum.fleet.host SPEC.json`; writes one JSON line an event to stdout and ends on SIGTERM or when stdin
closes.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from blindsum.backend.service import Reporter
from blindsum.fleet.data import digits
from blindsum.fleet.flaky import FlakyLink
from blindsum.protocol.view import RoundView
from blindsum.runtime.ports import Link
from blindsum.runtime.topics import Topics
from blindsum.sdk import Context, Device, DeviceEvent, Inspection, Policy
from blindsum.sdk.trainer import Aborted

__all__ = ["Drop", "HostSpec", "run_host"]

DropPhase = Literal["before join", "after roster", "mid upload"]


class Drop(msgspec.Struct, frozen=True):
    """Device `device` (by number) fails in round `round` in this way."""

    round: int
    device: int
    phase: DropPhase


class HostSpec(msgspec.Struct, frozen=True):
    """What a host runs. `kits`: device number to kit; `parts`: device number to the indices of its examples in the training set;
    `plain`: the folder for what devices are about to mask (only a demo, which checks the sums, has one); `slow`: devices whose
    training lasts until its round is over."""

    task: str
    kits: dict[int, str]
    parts: dict[int, list[int]]
    drops: list[Drop]
    plain: str
    seed: int
    slow: list[int] = []


class _DemoDevice(Device):
    """A device that drops out when its script says so."""

    number: int
    script: dict[int, DropPhase]
    flaky: FlakyLink | None = None

    def _link(self, topics: Topics) -> Link:
        self.flaky = FlakyLink(super()._link(topics))
        return self.flaky

    def _willing(self, view: RoundView) -> str:
        return "away" if self.script.get(view.number) == "before join" else super()._willing(view)


class _Host:
    def __init__(self, spec: HostSpec) -> None:
        self._spec = spec
        self._reporter = Reporter("host")
        self._train, _ = digits()
        self._devices = [self._device(number, Path(kit)) for number, kit in sorted(spec.kits.items())]
        self._dead: list[tuple[int, _DemoDevice]] = []
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._over = 0

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stopped.set())
        threading.Thread(target=self._watch_stdin, daemon=True).start()
        for device in self._devices:
            device.start()
        while not self._stopped.wait(0.2):
            pass
        for device in self._devices:
            device.stop(0.5)
        return 0

    def _watch_stdin(self) -> None:
        sys.stdin.read()
        self._stopped.set()

    def _device(self, number: int, kit: Path) -> _DemoDevice:
        device = _DemoDevice(
            kit,
            Policy(min_cohort=2, no_roster=True),
            on_event=lambda event: self._event(device, event),
            inspect=lambda inspection: self._inspect(device, inspection),
        )
        device.number = number
        device.script = {drop.round: drop.phase for drop in self._spec.drops if drop.device == number}
        part = np.asarray(self._spec.parts[number])
        features, targets = self._train.features[part], self._train.targets[part]

        @device.task(self._spec.task)
        def examples(context: Context) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            if device.script.get(context.round) == "after roster":
                raise Aborted
            while number in self._spec.slow and self._over < context.round and not self._stopped.wait(0.05):
                pass
            order = np.random.default_rng([self._spec.seed, number, context.round, context.epoch]).permutation(
                len(part)
            )
            yield features[order], targets[order]

        return device

    def _inspect(self, device: _DemoDevice, inspection: Inspection) -> None:
        folder = Path(self._spec.plain) / f"round-{inspection.round:04d}"
        folder.mkdir(parents=True, exist_ok=True)
        lanes = {f"lane{number}": lane for number, lane in enumerate(inspection.lanes)}
        arrays: dict[str, Any] = {"update": inspection.update, "weight": inspection.weight, **lanes}
        np.savez(folder / f"{device.name}.npz", **arrays)
        if device.script.get(inspection.round) == "mid upload":
            assert device.flaky is not None
            device.flaky.arm(chunks=1)
            with self._lock:
                self._dead.append((inspection.round, device))

    def _event(self, device: _DemoDevice, event: DeviceEvent) -> None:
        self._reporter.line(event.name, device=device.name, number=device.number, **event.data)
        if event.name in ("round-finished", "round-abandoned"):
            self._over = max(self._over, int(str(event.data["round"])))
            self._revive(int(str(event.data["round"])))

    def _revive(self, number: int) -> None:
        """Devices whose connection was cut come back once their round is over."""
        with self._lock:
            back = [device for round_, device in self._dead if round_ <= number]
            self._dead = [(round_, device) for round_, device in self._dead if round_ > number]
        for device in back:
            threading.Thread(target=self._restart, args=(device,), daemon=True).start()

    def _restart(self, device: _DemoDevice) -> None:
        device.stop()
        if not self._stopped.is_set():
            device.start()


def run_host(path: Path) -> int:
    """Host the devices of a spec until told to stop."""
    return _Host(msgspec.json.decode(path.read_bytes(), type=HostSpec)).run()


if __name__ == "__main__":
    sys.exit(run_host(Path(sys.argv[1])))
