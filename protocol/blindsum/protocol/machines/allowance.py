"""How often something may be asked for: so many at once, so many a second after that."""

from __future__ import annotations

__all__ = ["Allowance"]


class Allowance:
    """A bucket that holds `burst` and gets `per_s` a second (of the caller's clock, which may step)."""

    def __init__(self, *, burst: int, per_s: int, now: int) -> None:
        self._burst, self._per_s = burst * 1000, per_s
        self._left, self._at = self._burst, now

    def take(self, now: int) -> bool:
        """Whether one more is allowed at `now` (ms); it is then used up."""
        self._left = min(self._burst, self._left + self._per_s * max(0, now - self._at))
        self._at = now
        if self._left < 1000:
            return False
        self._left -= 1000
        return True
