"""Reading a public message once where one process plays many roles.

A fleet in one process hears every announcement a thousand times, and each time would verify the same ten signatures. What reads
public bytes and depends on nothing else is marked `shared`: inside `sharing()` the process keeps the last answers by what they
were made from. Outside of it, in every production process, a marked function is just called. Nothing that takes a secret is
marked: answers would outlive what they were made from.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import update_wrapper
from typing import Any, Final, Generic, ParamSpec, TypeVar, cast

__all__ = ["LongKey", "shared", "sharing"]

KEY_SIZE: Final = 64

P = ParamSpec("P")
R = TypeVar("R")


class _Shared(Generic[P, R]):
    """A function that remembers its last `bound` answers while sharing is on."""

    def __init__(self, function: Callable[P, R], bound: int, key: Callable[P, Hashable]) -> None:
        update_wrapper(self, function)
        self._function, self._bound, self._key = function, bound, key
        self.answers: OrderedDict[Hashable, R] | None = None

    def __call__(self, *args: P.args, **named: P.kwargs) -> R:
        answers = self.answers
        if answers is None:
            return self._function(*args, **named)
        key = self._key(*args, **named)
        answer = answers.get(key)
        if answer is None:
            answer = answers[key] = self._function(*args, **named)
            if len(answers) > self._bound:
                answers.popitem(last=False)
        return answer


class LongKey:
    """Bytes as a key, found by their last few: to hash all of them would take longer than what it is to save."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __hash__(self) -> int:
        return hash(self._data[-KEY_SIZE:])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LongKey) and self._data == other._data


_ALL: list[_Shared[Any, Any]] = []


def shared(bound: int, key: Callable[P, Hashable]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Mark a pure function of public arguments. `key(*arguments)` says what its answer depends on."""

    def mark(function: Callable[P, R]) -> Callable[P, R]:
        made = _Shared(function, bound, key)
        _ALL.append(made)
        return cast(Callable[P, R], made)

    return mark


class sharing:
    """Let the roles of this process share their readings. Not nested; not while other threads read."""

    def __enter__(self) -> None:
        for each in _ALL:
            each.answers = OrderedDict()

    def __exit__(self, *_: object) -> None:
        for each in _ALL:
            each.answers = None
