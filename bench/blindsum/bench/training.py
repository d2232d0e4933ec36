"""Time of one training step beside the time of the forward pass alone (the limit) and PyTorch eager (the peer).

    python bench/training.py

One thread, float32, batch 32, MLP 784-256-128-10, cross-entropy. A row per optimiser: milliseconds per step, the least
of interleaved rounds; `ratio` is ours / limit. The limit cannot be reached: a backward pass alone costs about two
forward passes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from blindsum.training import SGD, Adam, TrainingSession, build_artifact, models

SIZES = [784, 256, 128, 10]
BATCH = 32
ROUNDS = 15
STEPS = 30  # in one round

OPTIMISERS: dict[str, SGD | Adam | str] = {
    "SGD": SGD(lr=0.01),
    "SGD with momentum": SGD(lr=0.01, momentum=0.9),
    "Adam": Adam(),
    "gradient only": "gradient",
}


def rows() -> list[dict[str, object]]:
    """One row per optimiser: {name, ours, limit, peer, unit, ratio}; `peer` is None without PyTorch."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(BATCH, SIZES[0])).astype(np.float32)
    y = generator.integers(0, SIZES[-1], BATCH)
    artifacts = {
        name: build_artifact(models.mlp(SIZES, seed=1), loss="cross-entropy", optimizer=optimiser)
        for name, optimiser in OPTIMISERS.items()
    }
    sessions = {name: TrainingSession(artifact) for name, artifact in artifacts.items()}
    forward = TrainingSession(artifacts["SGD"])
    jobs: dict[tuple[str, str], Callable[[], object]] = {("limit", ""): lambda: forward.predict(x)}
    for name, session in sessions.items():
        jobs["ours", name] = partial(session.step, x, y)
    for name, step in _torch_steps(x, y).items():
        jobs["peer", name] = step
    best = _least_ms(jobs)
    limit = best["limit", ""]
    return [
        {
            "name": f"MLP {'-'.join(map(str, SIZES))}, batch {BATCH}, {name}",
            "ours": round(best["ours", name], 4),
            "limit": round(limit, 4),
            "peer": round(best["peer", name], 4) if ("peer", name) in best else None,
            "unit": "ms/step",
            "ratio": round(best["ours", name] / limit, 2),
        }
        for name in OPTIMISERS
    ]


def _least_ms(jobs: dict[tuple[str, str], Callable[[], object]]) -> dict[tuple[str, str], float]:
    for job in jobs.values():
        job()
    best = dict.fromkeys(jobs, float("inf"))
    for _ in range(ROUNDS):
        for name, job in jobs.items():
            start = time.perf_counter()
            for _ in range(STEPS):
                job()
            best[name] = min(best[name], (time.perf_counter() - start) / STEPS * 1e3)
    return best


def _torch_steps(x: np.ndarray, y: np.ndarray) -> dict[str, Callable[[], object]]:
    """The same steps in PyTorch eager, none where it is not installed."""
    try:
        import torch
    except ImportError:
        return {}
    torch.set_num_threads(1)
    features, targets = torch.from_numpy(x), torch.from_numpy(y)
    steps: dict[str, Callable[[], object]] = {}
    for name in OPTIMISERS:
        layers: list[torch.nn.Module] = []
        for fan_in, fan_out in pairwise(SIZES):
            layers += [torch.nn.Linear(fan_in, fan_out), torch.nn.ReLU()]
        net = torch.nn.Sequential(*layers[:-1])
        optimiser = {
            "SGD": lambda net=net: torch.optim.SGD(net.parameters(), lr=0.01),
            "SGD with momentum": lambda net=net: torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9),
            "Adam": lambda net=net: torch.optim.Adam(net.parameters()),
        }.get(name, lambda: None)()

        def step(net: Any = net, optimiser: Any = optimiser) -> float:
            net.zero_grad()
            loss = torch.nn.functional.cross_entropy(net(features), targets)
            loss.backward()
            if optimiser:
                optimiser.step()
            return float(loss)

        steps[name] = step
    return steps


if __name__ == "__main__":
    for row in rows():
        print(json.dumps(row))
