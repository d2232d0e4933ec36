"""What byzantine behaviours may look at and do in a simulated fleet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

from blindsum.fleet.identities import Identities

__all__ = ["Surroundings"]


class Surroundings:
    """The `World` of a behaviour in a fleet: `fleet` signs anew, `roster` is that of the round, for parties to look at, and
    `network` takes a message past the coordinator."""

    def __init__(
        self, fleet: Identities, *, roster: Callable[[], Any], send: Callable[[str, str, bytes], None]
    ) -> None:
        self.fleet, self._roster, self._send = fleet, roster, send
        self.now = 0

    @property
    def roster(self) -> Any:
        return self._roster()

    @property
    def network(self) -> Self:
        return self

    def send(self, source: str, target: str, body: bytes, _now: int) -> None:
        """From a role to another, by their names."""
        self._send(source, target, body)
