"""What the workers of `blindsum bench training` train: the batch, and the step in PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np

Shape = Sequence[int]


def load_batch(directory: Path) -> tuple[tuple[Any, ...], Any]:
    """Features in the model's order, and targets."""
    with np.load(directory / "batch.npz") as arrays:
        return tuple(arrays[name] for name in arrays.files if name != "targets"), arrays["targets"]


def operations(step: Callable[[], object]) -> int:
    """Multiplications and additions that the matrix products and convolutions of a step in PyTorch take at the least."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    def backward(dy: Shape, x: Shape, w: Shape, *rest: Any, **_: object) -> int:
        """PyTorch's own count is too high for grouped convolutions."""
        transposed, mask = rest[4], rest[7]
        places = math.prod((x if transposed else dy)[2:])
        return 2 * sum(map(bool, mask[:2])) * x[0] * places * math.prod(w)

    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: backward})
    with torch.backends.mkldnn.flags(enabled=False), counter:  # without oneDNN an LSTM is products that can be counted
        step()
    return int(counter.get_total_flops())


def torch_step(job: dict[str, Any], threads: int, features: tuple[Any, ...], targets: Any) -> Callable[[], object]:
    """The same step in PyTorch eager. Weights that are not trained need no gradient there either."""
    import torch

    from blindsum.bench.zoo import example

    torch.set_num_threads(threads)
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
