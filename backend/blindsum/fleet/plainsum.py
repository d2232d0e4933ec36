"""Holding an opened sum against what the devices meant to send, which only a demo or test can see."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from blindsum.fleet.baselines import plain_ring_sum
from blindsum.protocol.codec import convert, decode
from blindsum.protocol.envelope import open_envelope
from blindsum.protocol.messages import Result
from blindsum.protocol.view import TaskView

__all__ = ["compare_with_plain"]


def compare_with_plain(
    base: TaskView, records: dict[str, list[bytes]], plain: Path
) -> tuple[bool, list[tuple[str, np.ndarray, int]]]:
    """(whether a transcript's opened sum equals the plain ring sum over its survivors bit for bit, their (name, update, weight)).
    `plain` is the folder where the devices' host kept what they were about to mask in that round."""
    names = _survivors(records)
    uploads = [np.load(plain / f"{name}.npz") for name in names]
    lanes = [[upload[f"lane{place}"] for place in range(len(base.segments))] for upload in uploads]
    exact = plain_ring_sum(base.segments, lanes) == records["sum"][0]
    return exact, [(n, upload["update"], int(upload["weight"])) for n, upload in zip(names, uploads, strict=True)]


def _survivors(records: dict[str, list[bytes]]) -> list[str]:
    """The names of the devices that a transcript's sum is over, in index order."""

    names = [open_envelope(raw).head.sender.removeprefix("device/") for raw in records["header"]]
    assert len(names) == convert(open_envelope(records["result"][0]).payload, Result).count
    assert len(names) == len(decode(records["survivors"][0]))
    return names
