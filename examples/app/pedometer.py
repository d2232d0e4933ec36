"""An app with a device in it: a pedometer whose makers learn how much people walk, and when, from nobody's data."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from blindsum.sdk import Context, Device, Policy, answer


class Pedometer:
    """Counts steps. `steps` has the day's count by date, `hours` what each hour was like (rows of features) and `walked` whether
    its owner walked in it. All of it stays here."""

    def __init__(self, kit: Path) -> None:
        self.steps: dict[str, int] = {}
        self.hours = np.zeros((0, 3), np.float32)
        self.walked = np.zeros((0, 1), np.float32)
        self.charging = True
        conditions = lambda: {"charging": self.charging}  # noqa: E731
        self.device = Device.open(kit, policy=Policy(min_cohort=2, require="charging", conditions=conditions))

        @self.device.task("steps-a-day")
        @answer
        def steps(_context: Context) -> Iterator[int]:
            yield from self.steps.values()

        @self.device.task("walking")
        def examples(_context: Context) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            yield self.hours, self.walked

    def start(self) -> None:
        self.device.start()

    def stop(self) -> None:
        self.device.stop()
