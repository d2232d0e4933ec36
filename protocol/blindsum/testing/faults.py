"""What may go wrong in a virtual world, by name."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["QUIET_MS", "Faults"]

QUIET_MS = (1, 20)
"""How long a message takes when nothing goes wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """Probabilities per message or step, times in ms. All of it stops `until` ms after the world began.

    Messages: `loss`, `duplicate`, `flip` (one bit), `delay_ms` (least and most; a wide range reorders); `partition` cuts a
    role off from the broker for a while. Roles: a crash before the step is stored (as if nothing had happened) or after it is
    stored and before anything is sent; with a `disk_full` the step cannot be stored and the role is down until there is room.
    Devices drop out before they join, after the roster, or in the middle of their upload, for the rest of the round. `away`
    keeps a party down for a whole round, at most P - q of them; `skew_ms` is how far a party's or device's clock may be off.
    Only roles that count as faulty: `amnesia` begins a new life from nothing, `old_backup` from a copy of some time ago.
    """

    loss: float = 0.0
    duplicate: float = 0.0
    delay_ms: tuple[int, int] = QUIET_MS
    flip: float = 0.0
    partition: float = 0.0
    crash_before_commit: float = 0.0
    crash_after_commit: float = 0.0
    disk_full: float = 0.0
    drop_join: float = 0.0
    drop_roster: float = 0.0
    drop_upload: float = 0.0
    away: float = 0.0
    skew_ms: int = 0
    amnesia: float = 0.0
    old_backup: float = 0.0
    until: int = 10**15
