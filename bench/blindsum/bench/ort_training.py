"""Worker of `blindsum bench training` for onnxruntime-training: milliseconds per step, by that package's own interface.

    python ort_training.py JOB

Runs in an environment of its own, which has neither blindsum nor onnxruntime proper. Prints {number of threads:
milliseconds}, {} where the package cannot build or run the model. Its step is three calls: train (forward and backward),
optimiser, gradients back to zero.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SECONDS = {1: 0.5, 2: 3.0}  # of bursts on one thread, and on several, as long as steps.py takes for one side
BURST_S = 0.03  # at least one step
WARM_UP = 3


def main() -> None:
    job = json.loads(sys.argv[1])
    try:
        found = {threads: _least_ms(job, threads) for threads in job["threads"]}
    except Exception as error:  # it fails in as many ways as there are operators
        found = {}
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    print(json.dumps(found))


def _least_ms(job: dict[str, Any], threads: int) -> float:
    import numpy as np
    import onnx
    import onnxruntime
    from onnxruntime.training import api, artifacts

    onnxruntime.set_default_logger_severity(4)
    losses = {
        "cross-entropy": artifacts.LossType.CrossEntropyLoss,
        "mse": artifacts.LossType.MSELoss,
        "binary-cross-entropy": artifacts.LossType.BCEWithLogitsLoss,
    }
    model = onnx.load(str(Path(job["directory"]) / "model.onnx"))
    weights = [item.name for item in model.graph.initializer if item.data_type == onnx.TensorProto.FLOAT and item.dims]
    with np.load(Path(job["directory"]) / "batch.npz") as arrays:
        batch = [*(arrays[name] for name in arrays.files if name != "targets"), arrays["targets"]]
    with tempfile.TemporaryDirectory() as directory:
        artifacts.generate_artifacts(
            model,
            requires_grad=weights,
            loss=losses[job["loss"]],
            optimizer=artifacts.OptimType.SGD,
            artifact_directory=directory,
        )
        state = api.CheckpointState.load_checkpoint(f"{directory}/checkpoint")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        module = api.Module(f"{directory}/training_model.onnx", state, session_options=options)
        optimiser = api.Optimizer(f"{directory}/optimizer_model.onnx", module)
    optimiser.set_learning_rate(job["lr"])
    module.train()

    def step() -> None:
        module(*batch)
        optimiser.step()
        module.lazy_reset_grad()

    clock = time.process_time if threads == 1 else time.perf_counter  # as steps.py
    for _ in range(WARM_UP):
        step()
    start = clock()
    step()
    burst = max(1, round(BURST_S / (clock() - start)))
    best, began = float("inf"), time.monotonic()
    while best == float("inf") or time.monotonic() - began < SECONDS[min(threads, 2)]:
        start = clock()
        for _ in range(burst):
            step()
        best = min(best, (clock() - start) / burst * 1e3)
    return best


if __name__ == "__main__":
    main()
