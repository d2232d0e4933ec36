"""The rule of Einsum: the gradient of an operand is an Einsum of the output's gradient and the other operands."""

from __future__ import annotations

import string
from collections.abc import Sequence

from .graph import Dimension, Shape
from .registry import Backward, Gradients, rule
from .shape import positions, scattered


@rule("Einsum", since=12)
def einsum(b: Backward) -> Gradients:
    terms, output = labels(b.text("equation", ""), [b.rank(name) for name in b.x])
    sizes = _sizes(terms, [b.shape(name) for name in b.x])
    return [_operand(b, terms, output, at, sizes) for at in range(len(terms))]


def labels(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """One letter for each axis of each operand, and of the output; an ellipsis gets letters of its own."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    spare = [letter for letter in string.ascii_letters if letter not in equation]
    spans = [rank - len(term) + 3 for term, rank in zip(terms, ranks, strict=True) if "..." in term]
    batch = "".join(spare[: max(spans, default=0)])
    named = sorted({letter for letter in left if letter.isalpha() and left.count(letter) == 1})
    output = right if arrow else "..." + "".join(named)
    whole = [
        term.replace("...", batch[len(batch) - (rank - len(term) + 3) :])
        for term, rank in zip(terms, ranks, strict=True)
    ]
    return whole, output.replace("...", batch)


def _sizes(terms: Sequence[str], shapes: Sequence[Shape]) -> dict[str, Dimension]:
    """Of each letter; an operand of size 1 is broadcast to that."""
    sizes: dict[str, Dimension] = {}
    for term, shape in zip(terms, shapes, strict=True):
        for letter, size in zip(term, shape, strict=True):
            if sizes.get(letter, 1) == 1:
                sizes[letter] = size
    return sizes


def _operand(b: Backward, terms: list[str], output: str, at: int, sizes: dict[str, Dimension]) -> str:
    """Letters that only this operand has were summed, so its gradient repeats along them."""
    term, name = terms[at], b.x[at]
    letters = "".join(dict.fromkeys(term))
    others, factors = [output, *terms[:at], *terms[at + 1 :]], [b.dy, *b.x[:at], *b.x[at + 1 :]]
    shared = "".join(letter for letter in letters if any(letter in other for other in others))
    dx = b.op("Einsum", *factors, equation=f"{','.join(others)}->{shared}")
    for place, letter in enumerate(letters):
        if letter not in shared:
            dx = b.op("Unsqueeze", dx, b.integers([place]))
    if len(letters) < len(term):
        # A repeated letter takes a diagonal.
        places = b.op("Einsum", positions(b, name), equation=f"{term}->{letters}")
        return scattered(b, b.op("Expand", dx, b.op("Shape", places)), places, name)
    if letters != shared:
        dx = b.op("Expand", dx, b.op("Shape", name))
    return b.graph.reduce(dx, tuple(sizes[letter] for letter in term), b.shape(name), name)
