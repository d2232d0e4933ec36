"""Stable codes for everything that can go wrong, each with a cause and a remedy (docs/ERRORS.md is made from this table).

Three kinds of wrong: the caller's raise `BlindsumError`; a peer's is returned as `Refused`; our own is an assertion.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CATALOGUE", "BlindsumError", "Entry", "Refused"]


@dataclass(frozen=True, slots=True)
class Entry:
    """What an error code means and what the reader can do about it."""

    cause: str
    remedy: str


CATALOGUE: dict[str, Entry] = {
    # -- what the owner of a process did wrong (raised) --------------------------------------------------------------
    "parameters-unsafe": Entry(
        "the stated numbers of parties, devices or bits cannot keep the promise they are meant for",
        "use the numbers the message names; a threat model (f, gamma, delta, cohort) derives safe ones by itself",
    ),
    "update-not-finite": Entry(
        "the update holds NaN or infinity", "check the training data and lower the learning rate; nothing was sent"
    ),
    "update-wrong-shape": Entry(
        "the update does not have the length that the task's segments state",
        "return one float vector per segment, in the order of the task",
    ),
}


class BlindsumError(Exception):
    """An error made by the owner of this process. `code` is stable; `cause` and `remedy` are for people."""

    def __init__(self, code: str, detail: str = "") -> None:
        entry = CATALOGUE[code]
        self.code = code
        self.detail = detail
        self.cause = entry.cause
        self.remedy = entry.remedy
        super().__init__(f"{code}: {detail or entry.cause}; {entry.remedy}")


@dataclass(frozen=True, slots=True)
class Refused:
    """What a machine returns for a peer's wrong message: never raised, always counted.

    `code` is a key of `CATALOGUE`; `culprit` is the principal whose signature proves the fault, or "" where nothing does.
    """

    code: str
    culprit: str = ""
    detail: str = ""
