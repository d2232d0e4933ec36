"""The training bench measures, in processes of their own, what it says it does."""

from __future__ import annotations

import importlib.util

import pytest

from blindsum.bench import page, training


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


def test_page_says_where_and_shows_each_figure_once(rows):
    part = {**rows["MLP, batch 32"], "name": "1-D CNN, batch 8, head only", "peer": 3.0, "ours / peer": 0.25}
    two = {**rows["MLP, batch 32"], "name": "MLP, batch 32, 2 threads", "ours": 123.0}
    where, steps, parts, others = page.markdown([*rows.values(), part, two], 2, 0.5).strip().split("\n\n")
    assert "load when it began 0.5" in where
    assert steps.count("\n") == 2
    cells = [cell.strip() for cell in steps.splitlines()[2].strip("|").split("|")]
    memory = rows["MLP, batch 32, peak memory of a step"]["ours"]
    assert (cells[0], cells[3], cells[5], float(cells[-2])) == ("MLP", "–", "123", pytest.approx(memory, rel=0.01))
    assert "| 1-D CNN | 8 | head |" in parts and parts.endswith("| 3 | 0.25 |")
    assert [line.split(",")[0] for line in others.splitlines()[2:]] == ["| MLP"] * 3
