"""Step time, memory and start-up of training beside PyTorch eager and onnxruntime-training.

    blindsum bench training

One run, at most about eleven minutes, on one thread and on all of them. Every figure comes from a process of its own, so
that no library's memory disturbs another's. Times are the least of interleaved rounds of a plain SGD step, loss read
back; float32. One thread is timed by the processor time it takes, which other work on the machine disturbs little,
several by the clock, and then each side with the other's threads asleep (PyTorch's wait awake for up to 10 ms after a
step) and its own awake, as in a loop of steps. `limit` is the time that the multiplications of the step would take at the
speed of the fastest matrix product, 512 x 512 by 512 x 512, measured in the same rounds: no step reaches it, as weights
change and activations go through memory. `ratio` is ours / limit, `ours / peer` speaks for itself. `typical` is the median
of the rounds' ours / peer, which says more than the quotient of the least times where a machine's speed comes and goes.

The peer is PyTorch eager; where it is not installed, the models cannot be made either and only the MLP is measured. The
last release of onnxruntime-training has a column of its own. It cannot be installed beside onnxruntime, so
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
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from blindsum.bench.workload import operations, torch_step
from blindsum.training import SGD, build_artifact, models

CORES = os.cpu_count() or 1
ALL_THREADS = tuple(sorted({1, CORES}))
BATCH = 32
SMALL_BATCHES = {"MLP": (1, 8), "LeNet": (1, 8)}
RECOMPUTED = {"MobileNetV2-like": 3_200_000, "ViT-tiny": 700_000}  # bytes per example, see `build_artifact`
LEARNING_RATE = 1e-4  # so small that hundreds of steps on one batch leave every number finite
SECONDS_MAX = 900.0  # after which nothing more is begun
WORKER_S_MAX = 100
ORT_TRAINING = "BLINDSUM_ORT_TRAINING"

Row = dict[str, object]
Part = Callable[[], Iterable[Row]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a worker measures; the files lie in one directory. `trainable` are names in PyTorch and in ONNX."""

    example: str
    directory: str
    trainable: tuple[str, ...] | None
    loss: str
    operations: int  # see `workload.operations`
    threads: tuple[int, ...] = (1,)
    lr: float = LEARNING_RATE


def rows() -> list[Row]:
    """One row a figure: {name, ours, limit, peer, unit, ratio, onnxruntime-training, ours / peer, typical}.

    A figure nobody has is None.
    """
    began, found = time.monotonic(), list[Row]()
    with tempfile.TemporaryDirectory() as directory:
        bare = importlib.util.find_spec("torch") is None
        parts = list((_without_torch if bare else _all)(Path(directory)))
        for done, part in enumerate(parts):
            if time.monotonic() - began > SECONDS_MAX:
                print(f"stopped after {SECONDS_MAX:.0f} s, {len(parts) - done} parts not measured", file=sys.stderr)
                break
            found += part()
    return found


def _all(root: Path) -> Iterator[Part]:
    """What matters most comes first."""
    from blindsum.bench.zoo import ZOO, example

    def timed(title: str, beside: bool, *arguments: Any, **options: Any) -> Part:
        return lambda: _timed(_prepared(root, *arguments, **options), title, beside=beside)

    def weighed(title: str, *arguments: Any, **options: Any) -> Part:
        return lambda: _weighed(_prepared(root, *arguments, **options), title)

    for name in ZOO:
        yield timed(f"{name}, batch {BATCH}", True, name, threads=ALL_THREADS)
    for name in ZOO:
        for title, part in (("head", example(name).head), ("last block", example(name).last_block)):
            if part:
                yield timed(f"{name}, batch {BATCH}, {title} only", False, name, part)
        for size in SMALL_BATCHES.get(name, ()):
            yield timed(f"{name}, batch {size}", False, name, batch=size)
    yield lambda: [_started(_prepared(root, "MLP"))]
    for name in ZOO:
        yield weighed(f"{name}, batch {BATCH}", name)
    for name, budget in RECOMPUTED.items():
        yield timed(f"{name}, batch {BATCH}, recompute", False, name, recompute=budget)
        yield weighed(f"{name}, batch {BATCH}, recompute", name, recompute=budget)


def _without_torch(root: Path) -> Iterator[Part]:
    generator = np.random.default_rng(0)
    sizes = [784, 256, 128, 10]
    products = [ins * outs for ins, outs in pairwise(sizes)]
    job = Job(
        example="",
        directory=str(root),
        trainable=None,
        loss="cross-entropy",
        operations=2 * BATCH * (3 * sum(products) - products[0]),  # the features need no gradient
    )
    artifact = build_artifact(models.mlp(sizes, seed=1), loss="cross-entropy", optimizer=SGD(lr=job.lr))
    (root / "artifact").write_bytes(artifact)
    features = generator.normal(size=(BATCH, 784)).astype(np.float32)
    np.savez(root / "batch.npz", targets=generator.integers(0, 10, BATCH), features=features)
    yield lambda: _timed(job, f"MLP, batch {BATCH}")
    yield lambda: _weighed(job, f"MLP, batch {BATCH}")
    yield lambda: [_started(job)]


def _prepared(
    root: Path,
    name: str,
    trainable: tuple[str, ...] | None = None,
    *,
    batch: int = BATCH,
    recompute: int | None = None,
    threads: tuple[int, ...] = (1,),
) -> Job:
    """A job with its files: the ONNX model, the artifact and one batch."""
    from blindsum.bench.zoo import example, export

    directory = Path(tempfile.mkdtemp(dir=root))
    made = example(name)
    features, targets = made.batch(batch)
    np.savez(directory / "batch.npz", targets=targets, **dict(zip(made.inputs, features, strict=True)))  # type: ignore[arg-type]
    model = export(made)
    (directory / "model.onnx").write_bytes(model)
    job = Job(
        example=name, directory=str(directory), trainable=trainable, loss=made.loss, operations=0, threads=threads
    )
    job = replace(job, operations=operations(torch_step(asdict(job), 1, features, targets)))
    artifact = build_artifact(model, loss=made.loss, trainable=trainable, optimizer=SGD(lr=job.lr), recompute=recompute)
    (directory / "artifact").write_bytes(artifact)
    return job


def _timed(job: Job, title: str, *, beside: bool = False) -> Iterator[Row]:
    """`beside` onnxruntime-training too, where there is one."""
    python, times = os.environ.get(ORT_TRAINING), _run("steps", job)
    script = Path(__file__).with_name("ort_training.py")
    last = _result([python, str(script), json.dumps(asdict(job))]) if beside and python else {}
    for threads, found in times.items():
        name = title if threads == "1" else f"{title}, {threads} threads"
        row = _row(name, found["ours"], found["limit"], found.get("peer"), "ms/step", 4, last.get(threads))
        yield {**row, "typical": round(found["typical"], 2) if "typical" in found else None}


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


def _row(
    name: str, ours: float, limit: float | None, peer: float | None, unit: str, digits: int, last: float | None = None
) -> Row:
    return {
        "name": name,
        "ours": round(ours, digits),
        "limit": None if limit is None else round(limit, digits),
        "peer": None if peer is None else round(peer, digits),
        "unit": unit,
        "ratio": None if limit is None else round(ours / limit, 2),
        "onnxruntime-training": None if last is None else round(last, digits),
        "ours / peer": None if peer is None else round(ours / peer, 2),
        "typical": None,
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
