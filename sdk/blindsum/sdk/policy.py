"""The local policy: what this device insists on, whatever any server says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from blindsum.protocol.errors import BlindsumError

__all__ = ["Policy"]

Conditions = Callable[[], Mapping[str, bool]]


@dataclass(frozen=True, slots=True)
class Policy:
    """`min_cohort`: take part only where at least so many devices' updates are summed. `require`: names of conditions joined by
    "and" that must hold, before a round and all through training; `conditions` tells the current ones, such as
    {"charging": True, "unmetered": False}. Raises BlindsumError "policy-invalid" where they do not fit together."""

    min_cohort: int = 2
    require: str = ""
    conditions: Conditions = field(default=dict, repr=False)

    def __post_init__(self) -> None:
        if self.min_cohort < 2:
            raise BlindsumError(
                "policy-invalid", f"min_cohort is {self.min_cohort}; a sum of fewer than 2 hides nothing"
            )
        try:
            unknown = set(self._names) - set(self.conditions())
        except Exception as error:
            raise BlindsumError("policy-invalid", f"`conditions` raised {error!r}") from error
        if unknown:
            raise BlindsumError("policy-invalid", f"`conditions` does not tell {', '.join(sorted(unknown))}")

    def obstacle(self) -> str:
        """ "" where all required conditions hold, else which one does not, for people. One that cannot be told does not hold."""
        try:
            now = self.conditions() if self._names else {}
            return ", ".join(f"not {name}" for name in self._names if not now.get(name, False))
        except Exception as error:
            return f"the app cannot tell its conditions: {error!r}"

    @property
    def _names(self) -> list[str]:
        return [name.strip() for name in self.require.split(" and ")] if self.require.strip() else []
