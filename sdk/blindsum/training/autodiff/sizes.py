"""Sizes that may depend on the batch: integers, whole multiples of the batch, and what is not known.

As a dimension of a value a multiple is a symbol ("batch", "8*batch"); as an element of a shape that the graph computes
it is a `Rows`. The batch is at least 1 and otherwise open.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from .graph import Dimension

BATCH = "batch"
_SYMBOL = re.compile(rf"(?:([1-9][0-9]*)\*)?{BATCH}")


@dataclass(frozen=True, slots=True)
class Rows:
    """`factor` times the batch; factor at least 1."""

    factor: int


Size = int | Rows | None


def of(dimension: Dimension) -> Size:
    """The size that a dimension stands for."""
    if isinstance(dimension, str):
        match = _SYMBOL.fullmatch(dimension)
        return Rows(int(match[1] or 1)) if match else None
    return dimension


def dimension(size: Size) -> Dimension:
    """The dimension of that size."""
    if isinstance(size, Rows):
        return BATCH if size.factor == 1 else f"{size.factor}*{BATCH}"
    return size


def times(a: Size, b: Size) -> Size:
    if a == 0 or b == 0:
        return 0
    if isinstance(a, int) and isinstance(b, int):
        return a * b
    if isinstance(a, Rows) and isinstance(b, int) and b > 0:
        return Rows(a.factor * b)
    return times(b, a) if isinstance(a, int) and isinstance(b, Rows) and a > 0 else None


def over(a: Size, b: Size) -> Size:
    """a / b as ONNX divides integers, towards zero; None where it does not come out as a size."""
    if b == 0 or a is None or b is None:
        return None
    if isinstance(a, int) and isinstance(b, int):
        quotient = abs(a) // abs(b)
        return quotient if (a < 0) == (b < 0) else -quotient
    if not isinstance(a, Rows):
        return None
    divisor = b.factor if isinstance(b, Rows) else b
    if divisor < 0 or a.factor % divisor:
        return None
    return a.factor // divisor if isinstance(b, Rows) else Rows(a.factor // divisor)


def plus(a: Size, b: Size) -> Size:
    if isinstance(a, int) and isinstance(b, int):
        return a + b
    if isinstance(a, Rows) and isinstance(b, Rows):
        return Rows(a.factor + b.factor)
    return b if a == 0 else a if b == 0 else None


def minus(a: Size, b: Size) -> Size:
    if isinstance(a, int) and isinstance(b, int):
        return a - b
    if isinstance(a, Rows) and isinstance(b, Rows) and a.factor >= b.factor:
        return Rows(a.factor - b.factor) if a.factor > b.factor else 0
    return a if b == 0 else None


def larger(a: Size, b: Size) -> Size:
    return _ranked(a, b)[1]


def smaller(a: Size, b: Size) -> Size:
    return _ranked(a, b)[0]


def _ranked(a: Size, b: Size) -> tuple[Size, Size]:
    """The smaller and the larger of two, where that is so for every batch."""
    if isinstance(a, int) and isinstance(b, int):
        return min(a, b), max(a, b)
    if isinstance(a, Rows) and isinstance(b, Rows):
        return (a, b) if a.factor <= b.factor else (b, a)
    if isinstance(a, int) and isinstance(b, Rows):
        return (a, b) if a <= b.factor else (None, None)
    return _ranked(b, a) if isinstance(a, Rows) and isinstance(b, int) else (None, None)


def same(a: Size, b: Size) -> bool | None:
    """Whether two sizes are equal for every batch; None where that depends on the batch."""
    if a is None or b is None:
        return None
    if type(a) is type(b):
        return a == b
    number = a if isinstance(a, int) else b
    return False if isinstance(number, int) and number < 1 else None


def product(items: Sequence[Size]) -> Size:
    """The number of elements of a value of that shape."""
    result: Size = 1
    for item in items:
        result = times(result, item)
    return result


def reshaped(shape: Sequence[Size], wanted: Sequence[Size], batch: int, before: int | None = None) -> list[int] | None:
    """A constant target for the Reshape of a value of shape `shape` to `wanted`, where one serves for every batch.

    `wanted` counts 0 as a copied dimension and -1 as the rest. Where the model was made for a batch fixed at
    `batch` > 0, the number in `wanted` that held it becomes open; `before` elements lie before the batch where that is
    known. None where no constant will do, or none is needed.
    """
    given, total = list(wanted), product(shape)
    rows = [at for at, size in enumerate(given) if isinstance(size, Rows)]
    if any(size is None for size in given) or len(rows) > 1:
        return None
    copies = bool(shape) and shape[0] == Rows(1)
    if rows:
        at = rows[0]
        if at == 0 and copies and given[0] == Rows(1):
            given[0] = 0
        elif -1 in given:
            return None
        else:
            given[at] = -1
    elif isinstance(total, Rows) and batch:
        _reopen(given, shape, total.factor * batch, batch, before)
    if given and given[0] == -1 and copies:  # [-1, ...] that leaves rows whole says so
        rest = product([shape[at] if size == 0 and at < len(shape) else size for at, size in enumerate(given)][1:])
        if isinstance(rest, int) and isinstance(total, Rows) and rest == total.factor:
            given[0] = 0
    return [size for size in given if isinstance(size, int)]


def _reopen(given: list[Size], shape: Sequence[Size], total: int, batch: int, before: int | None) -> None:
    """Open the number in `given` that held the batch of a model made for a fixed one, where there is one."""
    copied = [shape[at] if size == 0 and at < len(shape) else size for at, size in enumerate(given)]
    numbers = [size.factor * batch if isinstance(size, Rows) else size for size in copied]
    known = [size for size in numbers if isinstance(size, int)]
    rest = math.prod(size for size in known if size != -1)
    if len(known) < len(numbers) or not rest or total % rest:
        return
    known = [total // rest if size == -1 else size for size in known]
    at = _holder(known, batch, before) if math.prod(known) == total else None
    if at is not None:
        first = at == 0 and bool(shape) and shape[0] == Rows(1) and known[0] == batch
        given[:] = [*known[:at], 0 if first else -1, *known[at + 1 :]]


def _holder(numbers: Sequence[int], batch: int, before: int | None) -> int | None:
    """Which of the sizes holds the batch: the one that is the batch and lies where it should, one that begins there, one
    that contains its place. The last one, as a rule the features, comes last in each.
    """
    places = [(at, math.prod(numbers[:at])) for at, size in enumerate(numbers) if size % batch == 0]
    if before is None:
        ranked = [at for at, _ in places if numbers[at] == batch] + [at for at, _ in places]
        return ranked[0] if ranked else None
    begin = [at for at, outside in places if outside == before]
    hold = [at for at, outside in places if before % outside == 0 and numbers[at] // batch % (before // outside) == 0]
    inner = [at for at in (*begin, *hold) if at < len(numbers) - 1]
    ranked = [*(at for at in begin if numbers[at] == batch), *inner, *begin, *hold]
    return ranked[0] if ranked else None
