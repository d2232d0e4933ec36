"""Step time, memory and start-up of training beside PyTorch eager and onnxruntime-training.

    blindsum bench training

Every figure comes from a process of its own, so that no library's threads or memory disturb another's. Times are the
least of interleaved rounds of a plain SGD step, loss read back; float32. One thread is timed by the processor time it
takes, which other work on the machine disturbs little, several by the clock. `limit` is the forward pass alone with constant
weights (`predict`): a step runs it too, and onnxruntime may lay out constant weights in advance as it cannot those that
change. The limit cannot be reached: a backward pass costs about two forward passes more. `ratio` is ours / limit.

The peer is PyTorch eager; where it is not installed, the models cannot be made either and only the MLP is measured.
Rows "beside onnxruntime-training" have its last release as the peer. It cannot be installed beside onnxruntime, so
BLINDSUM_ORT_TRAINING names the Python of an environment that has it (onnxruntime-training-cpu 1.19.2, numpy < 2,
onnx 1.16, torch); without it there is no figure.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from blindsum.training import SGD, build_artifact, models

CORES = os.cpu_count() or 1
BATCH = 32
SMALL_BATCHES = {"MLP": (1, 8), "LeNet": (1, 8)}
RECOMPUTED = {"MobileNetV2-like": 3_200_000, "ViT-tiny": 1_400_000}  # bytes per example, see `build_artifact`
LEARNING_RATE = 1e-4  # so small that hundreds of steps on one batch leave every number finite
WORKER_S_MAX = 300
ORT_TRAINING = "BLINDSUM_ORT_TRAINING"

Row = dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a worker measures; the files lie in one directory. `trainable` are names in PyTorch and in ONNX."""

    example: str
    directory: str
    trainable: tuple[str, ...] | None
    loss: str
    threads: int = 1
    lr: float = LEARNING_RATE


def rows() -> list[Row]:
    """One row a figure: {name, ours, limit, peer, unit, ratio}. A figure nobody has is None."""
    with tempfile.TemporaryDirectory() as directory:
        if importlib.util.find_spec("torch") is None:
            return list(_without_torch(Path(directory)))
        return list(_all(Path(directory)))


def _all(root: Path) -> Iterator[Row]:
    from blindsum.bench.zoo import ZOO, example

    for name in ZOO:
        yield _timed(job := _prepared(root, name, None, BATCH), f"{name}, batch {BATCH}")
        yield _timed(_with_threads(job), f"{name}, batch {BATCH}, {CORES} threads")
        yield _timed_beside_ort_training(job, f"{name}, batch {BATCH}")
        for title, part in (("head", example(name).head), ("last block", example(name).last_block)):
            if part:
                yield _timed(_prepared(root, name, part, BATCH), f"{name}, batch {BATCH}, {title} only")
        for size in SMALL_BATCHES.get(name, ()):
            yield _timed(_prepared(root, name, None, size), f"{name}, batch {size}")
        yield from _weighed(job, f"{name}, batch {BATCH}")
        if name in RECOMPUTED:
            tight = _prepared(root, name, None, BATCH, RECOMPUTED[name])
            yield _timed(tight, f"{name}, batch {BATCH}, recompute")
            yield from _weighed(tight, f"{name}, batch {BATCH}, recompute")
    yield _started(_prepared(root, "MLP", None, BATCH))


def _without_torch(root: Path) -> Iterator[Row]:
    generator = np.random.default_rng(0)
    job = Job(example="", directory=str(root), trainable=None, loss="cross-entropy")
    artifact = build_artifact(models.mlp([784, 256, 128, 10], seed=1), loss="cross-entropy", optimizer=SGD(lr=job.lr))
    (root / "artifact").write_bytes(artifact)
    features = generator.normal(size=(BATCH, 784)).astype(np.float32)
    np.savez(root / "batch.npz", targets=generator.integers(0, 10, BATCH), features=features)
    yield _timed(job, f"MLP, batch {BATCH}")
    yield from _weighed(job, f"MLP, batch {BATCH}")
    yield _started(job)


def _prepared(
    root: Path, name: str, trainable: tuple[str, ...] | None, batch: int, recompute: int | None = None
) -> Job:
    """A job with its files: the ONNX model, the artifact and one batch."""
    from blindsum.bench.zoo import example, export

    directory = Path(tempfile.mkdtemp(dir=root))
    made = example(name)
    features, targets = made.batch(batch)
    np.savez(directory / "batch.npz", targets=targets, **dict(zip(made.inputs, features, strict=True)))  # type: ignore[arg-type]
    model = export(made)
    (directory / "model.onnx").write_bytes(model)
    job = Job(example=name, directory=str(directory), trainable=trainable, loss=made.loss)
    artifact = build_artifact(model, loss=made.loss, trainable=trainable, optimizer=SGD(lr=job.lr), recompute=recompute)
    (directory / "artifact").write_bytes(artifact)
    return job


def _with_threads(job: Job) -> Job:
    return Job(**{**asdict(job), "threads": CORES})


def _timed(job: Job, name: str) -> Row:
    times = _run("steps", job)
    return _row(name, times["ours"], times["limit"], times.get("peer"), "ms/step", 4)


def _timed_beside_ort_training(job: Job, name: str) -> Row:
    python = os.environ.get(ORT_TRAINING)
    peer = None
    if python:
        script = Path(__file__).with_name("ort_training.py")
        peer = _result([python, str(script), json.dumps(asdict(job))]).get("peer")
    times = _run("steps", job, "--alone")
    return _row(f"{name}, beside onnxruntime-training", times["ours"], times["limit"], peer, "ms/step", 4)


def _weighed(job: Job, name: str) -> Iterator[Row]:
    ours, peer = _run("footprint", job, "ours"), _run("footprint", job, "peer") if job.example else {}
    titles = {"step": "peak memory of a step", "peak": "peak memory of the process"}
    if job.example in ("", "MLP"):
        titles["loaded"] = "memory after import and load"
    for key, title in titles.items():
        yield _row(f"{name}, {title}", ours[key], None, peer.get(key), "MiB", 1)


def _started(job: Job) -> Row:
    """Seconds from the start of the process to the end of the first step, the least of three."""

    def seconds(side: str) -> float:
        starts: list[float] = []
        for _ in range(3):
            start = time.time()
            starts.append(float(_run("footprint", job, side)["stepped"]) - start)
        return min(starts)

    return _row(
        "MLP, process start to first step", seconds("ours"), None, seconds("peer") if job.example else None, "s", 2
    )


def _row(name: str, ours: float, limit: float | None, peer: float | None, unit: str, digits: int) -> Row:
    return {
        "name": name,
        "ours": round(ours, digits),
        "limit": None if limit is None else round(limit, digits),
        "peer": None if peer is None else round(peer, digits),
        "unit": unit,
        "ratio": None if limit is None else round(ours / limit, 2),
    }


def _run(worker: str, job: Job, *arguments: str) -> dict[str, Any]:
    return _result([sys.executable, "-m", f"blindsum.bench.{worker}", json.dumps(asdict(job)), *arguments])


def _result(command: list[str]) -> dict[str, Any]:
    """The JSON object that the worker prints last."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=WORKER_S_MAX, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:3])} failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    for row in rows():
        print(json.dumps(row))
