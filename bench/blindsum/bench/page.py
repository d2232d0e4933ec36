"""The figures of `blindsum bench training` as docs/TRAINING.md shows them: where they were measured, and two tables."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

Row = Mapping[str, object]

NONE = "–"

_WHOLE = re.compile(r"(.+), batch (\d+)")
_PART = re.compile(r"(.+), batch (\d+)(?:, (head|last block) only|, (recompute))?")


def markdown(rows: Sequence[Row], threads: int, load: float) -> str:
    """`threads`: how many "all of them" were; `load`: processes that wanted to run when the bench began."""
    by_name = {str(row["name"]): row for row in rows}
    return "\n\n".join([_where(load), _steps(by_name, threads), _parts(by_name), _others(by_name)]) + "\n"


def _where(load: float) -> str:
    packages = [f"{name} {_version(name)}" for name in ("onnxruntime", "torch", "numpy") if _version(name)]
    return (
        f"`blindsum bench training` at commit {_commit()}: {os.cpu_count()} cores of {_processor()}, {platform.system()}, "
        f"Python {platform.python_version()}, {', '.join(packages)}; load when it began {load:.1f}."
    )


def _steps(rows: Mapping[str, Row], threads: int) -> str:
    """Whole models: one thread, all threads, memory."""
    lines = [
        f"| model | step, ms | limit | PyTorch | ratio | {threads} threads | PyTorch | ratio | onnxruntime-training | "
        f"{threads} threads | memory of a step, MiB | PyTorch |",
        "|---" * 12 + "|",
    ]
    for name, row in rows.items():
        match = _WHOLE.fullmatch(name)
        many = rows.get(f"{name}, {threads} threads", {})
        memory = rows.get(f"{name}, peak memory of a step", {})
        if match and (many or memory):
            cells = [match[1], row["ours"], row["limit"], row["peer"], row["ours / peer"]]
            cells += [many.get("ours"), many.get("peer"), many.get("ours / peer")]
            cells += [row["onnxruntime-training"], many.get("onnxruntime-training")]
            lines.append(_line([*cells, memory.get("ours"), memory.get("peer")]))
    return "\n".join(lines)


def _parts(rows: Mapping[str, Row]) -> str:
    """Small batches, and parts of models."""
    lines = ["| model | batch | trained | step, ms | limit | PyTorch | ratio |", "|---" * 7 + "|"]
    for name, row in rows.items():
        match = _PART.fullmatch(name)
        if match and (match[3] or match[4] or match[2] != "32"):
            trained = match[3] or ("all, recomputed" if match[4] else "all")
            lines.append(
                _line([match[1], match[2], trained, *(row[key] for key in ("ours", "limit", "peer", "ours / peer"))])
            )
    return "\n".join(lines)


def _others(rows: Mapping[str, Row]) -> str:
    """Start, and memory of the process."""
    lines = ["| | ours | PyTorch | ratio |", "|---" * 4 + "|"]
    for name, row in rows.items():
        if row["unit"] != "ms/step" and (row["unit"] == "s" or "step" not in name or "recompute" in name):
            lines.append(_line([f"{name}, {row['unit']}", row["ours"], row["peer"], row["ours / peer"]]))
    return "\n".join(lines)


def _line(cells: Sequence[object]) -> str:
    return "| " + " | ".join(map(_cell, cells)) + " |"


def _cell(value: object) -> str:
    """Three digits, ratios two places."""
    return NONE if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def _version(package: str) -> str:
    return importlib.metadata.version(package) if importlib.util.find_spec(package) else ""


def _processor() -> str:
    names = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return f"{names[0].strip() if names else platform.processor()} ({platform.machine()})"


def _commit() -> str:
    """Of this file's repository, "?" where it was installed from a package."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=, changed"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "?"
