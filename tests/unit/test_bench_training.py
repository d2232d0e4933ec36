"""The training bench measures, in processes of their own, what it says it does."""

from __future__ import annotations

import importlib.util

import pytest

from blindsum.bench import training


@pytest.fixture(name="rows", scope="module")
def _rows():
    """As where PyTorch is not installed: the MLP only, and no peer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        return {row["name"]: row for row in training.rows()}


def test_without_torch_there_is_the_mlp_and_no_peer(rows):
    assert {row["unit"] for row in rows.values()} == {"ms/step", "MiB", "s"}
    assert all(row["peer"] is None and row["ours"] > 0 for row in rows.values())


def test_a_step_takes_longer_than_its_multiplications_at_full_speed(rows):
    row = rows["MLP, batch 32"]
    assert 0 < row["limit"] < row["ours"]
    assert row["ratio"] == pytest.approx(row["ours"] / row["limit"], rel=0.02)


def test_memory_of_a_step_is_part_of_the_process(rows):
    step, peak, loaded = (
        rows[f"MLP, batch 32, {title}"]["ours"]
        for title in ("peak memory of a step", "peak memory of the process", "memory after import and load")
    )
    assert step + loaded == pytest.approx(peak, abs=0.2)
    weights = 4 * (784 * 256 + 256 * 128 + 128 * 10) / 2**20
    assert loaded > 2 * weights  # two banks of them
