"""The local policy: what this device insists on, whatever any server says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from blindsum.protocol.errors import BlindsumError

__all__ = ["Policy"]

Conditions = Callable[[], Mapping[str, bool]]


@dataclass(frozen=True, slots=True)
class Policy:
    """The floor that no server can lower. A task below it is declined before anything leaves.

    `min_cohort`: take part only where at least so many devices' updates are summed. `min_liars`: only where the sum stays hidden
    though so many parties lie. `require`: names of conditions joined by "and" that must hold, before a round and all through
    training; `conditions` tells the current ones, such as {"charging": True, "unmetered": False}. `artifacts`: SHA-256, in hex, of
    the training artifacts that may run here (None: any that the operator signed). `rounds_per_day`, `bytes_per_day`: the most
    updates, and bytes both ways, within 24 hours (None: no limit). `ask_consent`: nothing happens before the app has set
    `Device.consent`. `no_roster`: take part also in tasks without a roster, whose updates one mask layer hides instead of two: f +
    1 parties that keep what was sealed to them, and pool it with the coordinator, read them.

    Raises BlindsumError "policy-invalid" where they do not fit together.
    """

    min_cohort: int = 2
    require: str = ""
    conditions: Conditions = field(default=dict, repr=False)
    min_liars: int = 1
    artifacts: frozenset[str] | None = None
    rounds_per_day: int | None = None
    bytes_per_day: int | None = None
    ask_consent: bool = False
    no_roster: bool = False

    def __post_init__(self) -> None:
        if self.min_cohort < 2:
            raise BlindsumError(
                "policy-invalid", f"min_cohort is {self.min_cohort}; a sum of fewer than 2 hides nothing"
            )
        if self.min_liars < 1:
            raise BlindsumError("policy-invalid", f"min_liars is {self.min_liars}; with 0 any one party sees updates")
        for name in ("rounds_per_day", "bytes_per_day"):
            limit = getattr(self, name)
            if limit is not None and limit < 1:
                raise BlindsumError("policy-invalid", f"{name} is {limit}; to take no part, do not start the device")
        for digest in self.artifacts or ():
            if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
                raise BlindsumError("policy-invalid", f"artifacts: {digest!r} is no SHA-256 in lower-case hex")
        try:
            unknown = set(self.names) - set(self.conditions())
        except Exception as error:
            raise BlindsumError("policy-invalid", f"`conditions` raised {error!r}") from error
        if unknown:
            raise BlindsumError("policy-invalid", f"`conditions` does not tell {', '.join(sorted(unknown))}")

    def obstacle(self) -> str:
        """ "" where all required conditions hold, else which one does not, for people. One that cannot be told does not hold."""
        try:
            now = self.conditions() if self.names else {}
            return ", ".join(f"not {name}" for name in self.names if not now.get(name, False))
        except Exception as error:
            return f"the app cannot tell its conditions: {error!r}"

    @property
    def names(self) -> list[str]:
        """The conditions that are required."""
        return [name.strip() for name in self.require.split(" and ")] if self.require.strip() else []
