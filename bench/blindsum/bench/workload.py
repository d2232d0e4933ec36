"""What the workers of `blindsum bench training` train: the batch, and the step in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np


def load_batch(directory: Path) -> tuple[tuple[Any, ...], Any]:
    """Features in the model's order, and targets."""
    with np.load(directory / "batch.npz") as arrays:
        return tuple(arrays[name] for name in arrays.files if name != "targets"), arrays["targets"]


def torch_step(job: dict[str, Any], features: tuple[Any, ...], targets: Any) -> Callable[[], object]:
    """The same step in PyTorch eager. Weights that are not trained need no gradient there either."""
    import torch

    from blindsum.bench.zoo import example

    torch.set_num_threads(job["threads"])
    made = example(job["example"])
    for name, parameter in made.net.named_parameters():
        parameter.requires_grad_(job["trainable"] is None or any(fnmatch(name, each) for each in job["trainable"]))
    optimiser = torch.optim.SGD([each for each in made.net.parameters() if each.requires_grad], lr=job["lr"])
    x, t = tuple(map(torch.from_numpy, features)), torch.from_numpy(targets)

    def step() -> float:
        optimiser.zero_grad()
        loss = made.torch_loss(made.net(*x), t)
        loss.backward()
        optimiser.step()
        return float(loss.item())

    return step
