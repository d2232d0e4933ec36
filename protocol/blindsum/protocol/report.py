"""Who did what, as anybody finds it in signed records (SPEC.md section 10)."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Fault", "Report"]


@dataclass(frozen=True, slots=True)
class Fault:
    """Who did what: `principal` as in message heads, `code` of the refusals table."""

    principal: str
    code: str
    detail: str = ""

    @property
    def role(self) -> str:
        return self.principal.split("/")[0]

    @property
    def id(self) -> str:
        return self.principal.split("/")[-1]


@dataclass(slots=True)
class Report:
    """The outcome of verifying. `facts` are figures for people: task, round, devices, survivors, votes, parties."""

    faults: list[Fault] = field(default_factory=list)
    facts: dict[str, object] = field(default_factory=dict)

    @property
    def valid(self) -> bool:
        return not self.faults

    def blame(self, principal: str, code: str, detail: str = "") -> None:
        fault = Fault(principal, code, detail)
        if fault not in self.faults:
            self.faults.append(fault)
