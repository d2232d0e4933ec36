"""Worker of `blindsum bench training`: milliseconds per step of ours and of PyTorch, and the limit, interleaved.

python -m blindsum.bench.steps JOB

Prints {number of threads: {ours, limit, peer}}.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from blindsum.bench.workload import load_batch, torch_step
from blindsum.training import TrainingSession

ROUNDS = 15
SECONDS_MAX = 4.0  # after which slow models stop before `ROUNDS`, yet not before the third
BURST_S = 0.03  # of one side in one round, at least one step
PAUSE_S = 0.05  # between sides of several threads: PyTorch's stay awake for up to 10 ms after a step
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
    found = least_ms(sides, time.process_time) if threads == 1 else least_ms(sides, time.perf_counter, PAUSE_S)
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


def least_ms(
    sides: dict[str, Callable[[], object]], clock: Callable[[], float], pause_s: float = 0.0
) -> dict[str, float]:
    """Milliseconds per call, the least of interleaved bursts.

    With a pause before each burst, and one call that does not count, so that no side runs beside threads of the one
    before, and each finds its own as in a loop of steps.
    """
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
            if pause_s:
                time.sleep(pause_s)
                side()
            start = clock()
            for _ in range(bursts[name]):
                side()
            best[name] = min(best[name], (clock() - start) / bursts[name] * 1e3)
    return best


if __name__ == "__main__":
    main()
