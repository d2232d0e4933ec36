"""How often something may be asked for: so many at once, so many a second after that."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

__all__ = ["FRUITLESS_BURST", "FRUITLESS_PER_S", "SENDERS_MAX", "Allowance", "Shares"]

FRUITLESS_BURST: Final = 400
FRUITLESS_PER_S: Final = 100
"""Messages under one name that come to nothing and are looked at all the same, a second; each may take 0.3 ms."""
SENDERS_MAX: Final = 10_000
"""Names whose fruitless messages are counted; the one that was charged least lately is forgotten first."""


class Allowance:
    """A bucket that holds `burst` and gets `per_s` a second (of the caller's clock, which may step)."""

    def __init__(self, *, burst: int, per_s: int, now: int) -> None:
        self._burst, self._per_s = burst * 1000, per_s
        self._left, self._at = self._burst, now

    def left(self, now: int) -> bool:
        """Whether one more is allowed at `now` (ms)."""
        self._left = min(self._burst, self._left + self._per_s * max(0, now - self._at))
        self._at = now
        return self._left >= 1000

    def take(self, now: int) -> bool:
        """Whether one more is allowed at `now`; it is then used up."""
        if not self.left(now):
            return False
        self._left -= 1000
        return True

    def give_back(self) -> None:
        """One that was taken has turned out to be none that counts."""
        self._left = min(self._burst, self._left + 1000)


class Shares:
    """An `Allowance` of messages that come to nothing for each sender, so that one sender's junk takes up a role's time no longer
    than this, and nobody else's turn. Where the broker lets a name be used by its owner alone, nobody is charged for another."""

    def __init__(self, *, burst: int = FRUITLESS_BURST, per_s: int = FRUITLESS_PER_S) -> None:
        self._burst, self._per_s = burst, per_s
        self._senders: OrderedDict[str, Allowance] = OrderedDict()

    def left(self, sender: str, now: int) -> bool:
        """Whether a message of `sender` is to be looked at."""
        allowance = self._senders.get(sender)
        return allowance is None or allowance.left(now)

    def charge(self, sender: str, now: int) -> None:
        """A message of `sender` came to nothing."""
        allowance = self._senders.get(sender)
        if allowance is None:
            allowance = self._senders[sender] = Allowance(burst=self._burst, per_s=self._per_s, now=now)
            if len(self._senders) > SENDERS_MAX:
                self._senders.popitem(last=False)
        self._senders.move_to_end(sender)
        allowance.take(now)
