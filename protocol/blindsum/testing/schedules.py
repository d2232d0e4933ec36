"""Every schedule of a vote: what a corrupt coordinator can have honest parties open, in whatever order it shows them what.

The rule of one party comes in as a table of what it does in each standing; the search goes through all orders in which a
coordinator with `equivocators` parties in league can show sets and certificates to the others. Parties are interchangeable, so
a state is how many of them stand where, and nothing is left out by counting them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

__all__ = ["MOVES", "SETS", "Search", "Standing", "search"]

SETS: Final = ("A", "B")
MOVES: Final = tuple((what, name) for what in ("show", "certify") for name in SETS)
"""What a coordinator can do to a party: show it a proposed set, or the set with a quorum of votes."""

Move = tuple[str, str]
Table = Mapping[tuple["Standing", Move], "Standing"]


@dataclass(frozen=True, slots=True, order=True)
class Standing:
    """What a party has done in a round, as set names or "": the vote it signed, the set it answers for, the set it opened."""

    voted: str = ""
    answered: str = ""
    opened: str = ""


@dataclass(frozen=True, slots=True)
class Search:
    """`states` were looked at; `schedule` is a shortest way to two openings, as (who, by standing; move), or None."""

    states: int
    schedule: tuple[tuple[Standing, Move], ...] | None


def search(table: Table, *, honest: int, equivocators: int, quorum: int, threshold: int) -> Search:
    """Look for a schedule after which `threshold` parties, liars included, give the sums of A and as many those of B."""
    start = ((Standing(),) * honest, ())
    seen = {start[0]}
    frontier: deque[tuple[tuple[Standing, ...], tuple[tuple[Standing, Move], ...]]] = deque([start])
    while frontier:
        state, schedule = frontier.popleft()
        if all(equivocators + sum(one.opened == name for one in state) >= threshold for name in SETS):
            return Search(len(seen), schedule)
        for who, move, after in _following(table, state, quorum - equivocators):
            if after not in seen:
                seen.add(after)
                frontier.append((after, (*schedule, (who, move))))
    return Search(len(seen), None)


def _following(
    table: Table, state: tuple[Standing, ...], votes_needed: int
) -> Iterator[tuple[Standing, Move, tuple[Standing, ...]]]:
    for who in sorted(set(state)):
        for move in MOVES:
            what, name = move
            if what == "certify" and sum(one.voted == name for one in state) < votes_needed:
                continue
            rest = list(state)
            rest.remove(who)
            yield who, move, tuple(sorted([*rest, table[who, move]]))
