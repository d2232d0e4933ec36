"""Worker of `blindsum bench training`: milliseconds per step of ours, of the forward pass and of PyTorch, interleaved.

python -m blindsum.bench.steps JOB [--alone]
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from blindsum.bench.workload import load_batch, torch_step
from blindsum.training import TrainingSession

ROUNDS = 15
SECONDS_MAX = 30.0  # after which slow models stop before `ROUNDS`, yet not before the third
BURST_S = 0.03  # of one side in one round, at least one step
WARM_UP = 3


def main() -> None:
    job, alone = json.loads(sys.argv[1]), "--alone" in sys.argv
    directory = Path(job["directory"])
    session = TrainingSession((directory / "artifact").read_bytes(), threads=job["threads"])
    features, targets = load_batch(directory)
    x = features[0] if len(features) == 1 else features
    forward = TrainingSession((directory / "artifact").read_bytes(), threads=job["threads"])
    sides: dict[str, Callable[[], object]] = {
        "ours": lambda: session.step(x, targets),
        "limit": lambda: forward.predict(x),
    }
    if job["example"] and not alone:
        sides["peer"] = torch_step(job, features, targets)
    print(json.dumps(least_ms(sides, time.process_time if job["threads"] == 1 else time.perf_counter)))


def least_ms(sides: dict[str, Callable[[], object]], clock: Callable[[], float]) -> dict[str, float]:
    """Milliseconds per call, the least of interleaved bursts."""
    bursts = {}
    for name, side in sides.items():
        for _ in range(WARM_UP):
            side()
        start = clock()
        side()
        bursts[name] = max(1, round(BURST_S / (clock() - start)))
    best = dict.fromkeys(sides, float("inf"))
    began = time.monotonic()
    for number in range(ROUNDS):
        if number >= 3 and time.monotonic() - began > SECONDS_MAX:
            break
        for name, side in sides.items():
            start = clock()
            for _ in range(bursts[name]):
                side()
            best[name] = min(best[name], (clock() - start) / bursts[name] * 1e3)
    return best


if __name__ == "__main__":
    main()
