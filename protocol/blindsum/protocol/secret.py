"""What holds secrets shows nothing of them when it is printed, and is not pickled."""

from __future__ import annotations

from typing import NoReturn

__all__ = ["Secret"]


class Secret:
    """A base for records with secrets in them. Python cannot wipe memory: what is dropped is gone when its place is used again."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(secret)"

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{type(self).__name__} holds secrets and is not pickled")
