"""Worker of `blindsum bench training`: memory of a process that trains, in MiB, and when its first step was done.

python -m blindsum.bench.footprint JOB ours|peer

Prints {loaded: resident memory when the model is loaded, peak: the most at any time, step: the most above what was
loaded, stepped: Unix time after the first step}.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from blindsum.bench.workload import load_batch, torch_step

STEPS = 5


def main() -> None:
    job, side = json.loads(sys.argv[1]), sys.argv[2]
    begin = _ours if side == "ours" else _torch
    step = begin(job)
    loaded = memory("VmRSS")
    step()
    stepped = time.time()
    for _ in range(STEPS - 1):
        step()
    peak = memory("VmHWM")
    print(json.dumps({"loaded": loaded, "peak": peak, "step": peak - loaded, "stepped": stepped}))


def _ours(job: dict[str, Any]) -> Callable[[], object]:
    from blindsum.training import TrainingSession

    session = TrainingSession((Path(job["directory"]) / "artifact").read_bytes(), threads=1)
    features, targets = load_batch(Path(job["directory"]))
    x = features[0] if len(features) == 1 else features
    return lambda: session.step(x, targets)


def _torch(job: dict[str, Any]) -> Callable[[], object]:
    return torch_step(job, 1, *load_batch(Path(job["directory"])))


def memory(field: str) -> float:
    """A field of this process's memory in MiB, as Linux states it."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) / 1024


if __name__ == "__main__":
    main()
