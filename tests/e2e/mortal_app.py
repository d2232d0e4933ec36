"""An app whose process dies by SIGKILL at a named moment: `mortal_app.py KIT TASK PLAIN MOMENT`. It says on stdout what happens."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from blindsum.sdk import Context, Device, DeviceEvent, Inspection

KIT, TASK, PLAIN, MOMENT = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4]
SENT = {int(number) for number in sys.argv[5:]}
"""Rounds whose upload was made; the arguments are those of an earlier process."""
DONE = threading.Event()


def reach(moment: str) -> None:
    if moment == MOMENT:
        os.kill(os.getpid(), signal.SIGKILL)


def tell(event: DeviceEvent) -> None:
    print(json.dumps({"event": event.name, **event.data}), flush=True)
    reach(event.name)
    if event.name == "uploading":
        SENT.add(event.data["round"])
    if event.name == "round-finished" and event.data["round"] in SENT:
        DONE.set()


def inspect(inspection: Inspection) -> None:
    folder = PLAIN / f"round-{inspection.round:04d}"
    folder.mkdir(parents=True, exist_ok=True)
    lanes = {f"lane{number}": lane for number, lane in enumerate(inspection.lanes)}
    np.savez(folder / f"{KIT.name}.npz", update=inspection.update, weight=inspection.weight, **lanes)


device = Device.open(KIT, on_event=tell, inspect=inspect, secret=b"a secret that the app keeps elsewhere")


@device.task(TASK)
def examples(_context: Context) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    dice = np.random.default_rng(1)
    yield dice.random((24, 64), np.float32), dice.integers(0, 10, 24)


with device:
    DONE.wait(100)
