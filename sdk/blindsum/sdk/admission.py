"""Whether this device takes part in a round: the policy's floor, its budgets, and what the task asks for."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping
from typing import Final

from blindsum.protocol.eligibility import History, not_eligible, retry_window
from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.messages import BlobRef
from blindsum.protocol.ring import packed_size
from blindsum.protocol.view import RoundView
from blindsum.runtime.system import now_ms
from blindsum.sdk.ledger import Ledger, Use
from blindsum.sdk.policy import Policy

__all__ = ["HEADER_SIZE", "JOIN_SIZE", "Admission", "Count"]

JOIN_SIZE: Final = 1_024
HEADER_SIZE: Final = 16_384
"""What a budget reckons for a header with its boxes, receipts and asks."""

Count = Callable[[], int]


class Admission:
    """Decides for the device `name`; `counts` says how many examples the app holds for a task, where it says so."""

    def __init__(
        self,
        name: str,
        policy: Policy,
        ledger: Ledger,
        counts: Mapping[str, Count],
        *,
        clock: Callable[[], int] = now_ms,
    ) -> None:
        self._name, self._policy, self._ledger, self._counts, self._clock = name, policy, ledger, counts, clock
        self._refused: dict[bytes, str] = {}  # plans that may not run here, few: a task has one
        self._draw = random.SystemRandom()

    def join(self, view: RoundView, held: Callable[[BlobRef], bool]) -> str:
        """ "" to join the round, which is then in the ledger; else why not. `held`: whether a blob is here already."""
        try:
            reason = self._obstacle(view, held)
            if not reason:
                use = Use(self._clock(), view.name, view.number, "join", JOIN_SIZE, self.why(view))
                self._ledger.record(use, issued_at=view.manifest.issued_at)
        except BlindsumError as error:
            return f"the ledger cannot be kept: {error.code}"
        return reason

    def update(self, view: RoundView, *, examples: int, size: int, began: int) -> int:
        """Note that an update, trained for round `began`, is about to leave. Returns the number for `Ledger.retract`. Raises
        BlindsumError "not-eligible" where there were fewer examples than the task asks for, or a database code."""
        if reason := self._not_wanted(view, examples):
            raise BlindsumError("not-eligible", reason)
        since = f", trained for round {began}" if began != view.number else ""
        why = f"{examples} examples{since}; {self.why(view)}"
        return self._ledger.record(
            Use(self._clock(), view.name, view.number, "update", size, why), issued_at=view.manifest.issued_at
        )

    def retract(self, number: int) -> None:
        """It did not leave after all."""
        self._ledger.retract(number)

    def artifact(self, view: RoundView, plan: bytes) -> None:
        """Raises BlindsumError "artifact-not-allowed" where the policy does not let this plan run."""
        allowed = self._policy.artifacts
        if allowed is not None and (found := hashlib.sha256(plan).hexdigest()) not in allowed:
            self._refused[view.task.plan.id] = f"training artifact {found[:16]}… is not one that the policy allows"
            raise BlindsumError("artifact-not-allowed", found)

    def left_early(self, view: RoundView) -> None:
        """A round ended without this device's update: its retry window begins."""
        least, most = retry_window(view.task.eligibility)
        if most:
            self._ledger.set_switch(f"retry/{view.name}", self._clock() + self._draw.randint(least, most))

    def why(self, view: RoundView) -> str:
        """What allows a use, for people."""
        threat = view.base.threat
        hidden = (
            f"hidden among at least {threat.cohort_min} devices, even if {threat.malicious_parties} of the parties lie"
        )
        return "; ".join([hidden, *self._policy.names])

    def fetch(self, view: RoundView, held: Callable[[BlobRef], bool]) -> bool:
        """Whether the model of a round may be fetched though this device takes no part."""
        try:
            return not (
                self._policy.obstacle()
                or self._below_floor(view)
                or self._refused.get(view.task.plan.id, "")
                or self._too_many_bytes(view, held, 0)
            )
        except BlindsumError:
            return False

    def _obstacle(self, view: RoundView, held: Callable[[BlobRef], bool]) -> str:
        return (
            self._policy.obstacle()
            or self._below_floor(view)
            or self._refused.get(view.task.plan.id, "")
            or self._too_soon(view)
            or self._not_wanted(view, self._count(view.name))
            or self._over_budget(view, held)
        )

    def _below_floor(self, view: RoundView) -> str:
        liars = view.base.threat.malicious_parties
        least = self._policy.min_liars
        return f"the task bears {liars} lying parties, the policy asks for {least}" if liars < least else ""

    def _too_soon(self, view: RoundView) -> str:
        most = retry_window(view.task.eligibility)[1]
        until, now = self._ledger.switch(f"retry/{view.name}") or 0, self._clock()
        # a wait longer than the window means that the clock has been set back since
        return f"asked to wait {(until - now) // 1000 + 1} s" if 0 < until - now <= most else ""

    def _not_wanted(self, view: RoundView, examples: int | None) -> str:
        number, issued_at = self._ledger.last(view.name)
        history = History(device=self._name, examples=examples, round=number, issued_at=issued_at)
        return not_eligible(
            view.task.eligibility,
            task=view.name,
            number=view.number,
            issued_at=view.manifest.issued_at,
            history=history,
        )

    def _over_budget(self, view: RoundView, held: Callable[[BlobRef], bool]) -> str:
        policy, now = self._policy, self._clock()
        if policy.rounds_per_day is not None and self._ledger.updates(now) >= policy.rounds_per_day:
            return f"{policy.rounds_per_day} rounds a day are the policy's limit"
        return self._too_many_bytes(view, held, packed_size(view.base.segments) + HEADER_SIZE + JOIN_SIZE)

    def _too_many_bytes(self, view: RoundView, held: Callable[[BlobRef], bool], sent: int) -> str:
        if self._policy.bytes_per_day is not None:
            used = self._ledger.traffic(self._clock())
            needed = sent + sum(ref.size for ref in (view.manifest.model, view.task.plan) if not held(ref))
            if used + needed > self._policy.bytes_per_day:
                return f"a round takes {needed} bytes, {used} of the day's {self._policy.bytes_per_day} are used"
        return ""

    def _count(self, task: str) -> int | None:
        count = self._counts.get(task)
        if count is None:
            return None
        try:
            return int(count())
        except Exception:  # an app that cannot count holds none that count
            return 0
