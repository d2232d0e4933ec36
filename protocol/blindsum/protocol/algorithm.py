"""Which algorithms a task may name, what each needs, and what it keeps from round to round (SPEC.md sections 5.1 and 9.3)."""

from __future__ import annotations

from typing import Final

from blindsum.protocol.codec import convert
from blindsum.protocol.messages import Algorithm, Task

__all__ = ["STATE_VECTORS", "algorithm_fault", "algorithm_of", "state_size"]

STATE_VECTORS: Final = {"fedavg": 0, "fedavgm": 1, "fedadam": 2, "fedyogi": 2, "scaffold": 0, "evaluate": 0}
"""Vectors of the model's length that an algorithm's state has."""

_FIELDS: Final = {
    "fedavg": {"rate_micros"},
    "fedavgm": {"rate_micros", "beta1_micros"},
    "fedadam": {"rate_micros", "beta1_micros", "beta2_micros", "tau_micros"},
    "fedyogi": {"rate_micros", "beta1_micros", "beta2_micros", "tau_micros"},
    "scaffold": {"rate_micros", "population"},
    "evaluate": set[str](),
}
_NUMBERS: Final = tuple(name for name in Algorithm.__struct_fields__ if name != "name")


def algorithm_of(name: str, **numbers: int) -> Algorithm:
    """The algorithm of that name with these numbers, 0 for all others. Raises `DecodeError` where one is out of range."""
    return convert({"name": name, **dict.fromkeys(_NUMBERS, 0), **numbers}, Algorithm)


def state_size(task: Task) -> int:
    """Bytes of the state behind the model of a round but the first, which begins with none."""
    return STATE_VECTORS[task.algorithm.name] * task.model.size


def algorithm_fault(task: Task) -> str:
    """What keeps a task's algorithm from working on its segments, or ""."""
    algorithm, name = task.algorithm, task.algorithm.name
    foreign = [number for number in _NUMBERS if number not in _FIELDS[name] and getattr(algorithm, number)]
    if foreign:
        return f"{name} has no place for {', '.join(foreign)}"
    if "tau_micros" in _FIELDS[name] and not algorithm.tau_micros:
        return f"{name} divides by tau, which must be positive"
    if (name == "scaffold") != bool(task.training.control_micros):
        return "control_micros belongs to scaffold, which cannot do without"
    lengths = [segment.length for segment in task.segments if segment.codec == "quantised"]
    if name == "evaluate":
        return (
            "" if not lengths and task.model.size % 4 == 0 else "evaluate sums no quantised values and takes any model"
        )
    if name == "scaffold" and not (len(lengths) == 2 and lengths[0] == lengths[1] and algorithm.population):
        return "scaffold takes two quantised segments of one length, and a population"
    if name != "scaffold" and len(lengths) > 1:
        return f"{name} takes one quantised segment at most"
    return "" if task.model.size == 4 * sum(lengths) else "the model is not one float32 a quantised value"
