"""Worker of `blindsum bench training`: milliseconds per step of ours and of PyTorch, and the limit, interleaved.

python -m blindsum.bench.steps JOB

Prints {number of threads: {ours, limit, peer, typical}}, `typical` being the median over the rounds of ours / peer.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from operator import truediv
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from blindsum.bench.workload import load_batch, torch_step
from blindsum.training import TrainingSession

ROUNDS = 40
SECONDS_MAX = 4.0  # after which slow models stop before `ROUNDS`, yet not before the third
SECONDS_MAX_SHARED = 8.0  # of several threads: two cores of a rented machine are both at full speed less often than one
BURST_S = 0.03  # of one side in one round, at least one step
PAUSE_S = 0.05  # between sides of several threads: PyTorch's stay awake for up to 10 ms after a step
AGAIN_S = 0.02  # of steps after a pause that do not count: cores and threads wake up, caches fill
WARM_UP = 3
MATRIX = 512  # rows and columns of the product that the limit is taken from: 3 MB, and long enough to reach full speed


def main() -> None:
    job = json.loads(sys.argv[1])
    print(json.dumps({threads: _measured(job, threads) for threads in job["threads"]}))


def _measured(job: dict[str, Any], threads: int) -> dict[str, float]:
    directory = Path(job["directory"])
    session = TrainingSession((directory / "artifact").read_bytes(), threads=threads)
    features, targets = load_batch(directory)
    x = features[0] if len(features) == 1 else features
    sides: dict[str, Callable[[], object]] = {"ours": lambda: session.step(x, targets), "limit": _product(threads)}
    if job["example"]:
        sides["peer"] = torch_step(job, threads, features, targets)
    rounds = rounds_ms(sides, threads)
    found = {name: min(times) for name, times in rounds.items()}
    if "peer" in rounds:
        found["typical"] = statistics.median(map(truediv, rounds["ours"], rounds["peer"]))
    return {**found, "limit": found["limit"] * job["operations"] / (2 * MATRIX**3)}


def _product(threads: int) -> Callable[[], object]:
    """The product of two square matrices."""
    shape = [MATRIX, MATRIX]
    a, b, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in "aby")
    graph = onnx.helper.make_graph([onnx.helper.make_node("MatMul", ["a", "b"], ["y"])], "product", [a, b], [y])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.spin_duration_us", "500")
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {name: np.random.default_rng(0).normal(size=shape).astype(np.float32) for name in "ab"}
    return lambda: session.run(None, feeds)


def rounds_ms(sides: dict[str, Callable[[], object]], threads: int) -> dict[str, list[float]]:
    """Milliseconds per call in each of interleaved bursts: of the processor on one thread, by the clock on several.

    Several threads pause before each burst, and begin with calls that do not count, so that no side runs beside threads
    of the one before, and each finds its own as in a loop of steps.
    """
    alone = threads == 1
    clock = time.process_time if alone else time.perf_counter
    seconds_max = SECONDS_MAX if alone else SECONDS_MAX_SHARED
    bursts = {}
    for name, side in sides.items():
        for _ in range(WARM_UP):
            side()
        start = clock()
        side()
        bursts[name] = max(1, round(BURST_S / (clock() - start)))
    found: dict[str, list[float]] = {name: [] for name in sides}
    began = time.monotonic()
    for done in range(ROUNDS):
        if done >= 3 and time.monotonic() - began > seconds_max:
            break
        for name, side in sides.items():
            if not alone:
                time.sleep(PAUSE_S)
                again = time.monotonic()
                side()
                while time.monotonic() - again < AGAIN_S:
                    side()
            start = clock()
            for _ in range(bursts[name]):
                side()
            found[name].append((clock() - start) / bursts[name] * 1e3)
    return found


if __name__ == "__main__":
    main()
