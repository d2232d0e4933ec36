"""What a device insists on: the floor, and conditions named in words."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from blindsum.protocol.errors import BlindsumError
from blindsum.sdk import Policy


def code_of(**arguments: object) -> str:
    with pytest.raises(BlindsumError) as caught:
        Policy(**arguments)  # type: ignore[arg-type]
    return f"{caught.value.code}: {caught.value.detail}"


def test_default_policy_has_a_floor_of_two_and_no_obstacle() -> None:
    assert Policy().min_cohort == 2
    assert Policy().obstacle() == ""


@pytest.mark.parametrize("cohort", [1, 0, -5])
def test_cohort_that_hides_nothing_is_refused(cohort: int) -> None:
    assert code_of(min_cohort=cohort).startswith("policy-invalid: min_cohort")


def test_all_required_conditions_must_hold_and_the_failing_ones_are_named() -> None:
    now = {"charging": True, "unmetered": True, "idle": False}
    policy = Policy(require="charging and unmetered", conditions=lambda: now)
    assert policy.obstacle() == ""
    now["unmetered"] = False
    assert policy.obstacle() == "not unmetered"
    now["charging"] = False
    assert policy.obstacle() == "not charging, not unmetered"


def test_condition_that_is_not_told_at_all_is_refused_at_once() -> None:
    detail = code_of(require="charging and on wifi", conditions=lambda: {"charging": True})
    assert detail.startswith("policy-invalid") and "on wifi" in detail
    assert "charging" in code_of(require="charging")


@pytest.mark.parametrize(
    "require", ["charging or unmetered", "not charging", "charging and", "and", "charging and  and idle"]
)
def test_only_and_joins_conditions(require: str) -> None:
    assert code_of(require=require, conditions=lambda: {"charging": True, "unmetered": True, "idle": True})


@pytest.mark.parametrize("require", ["", "   "])
def test_conditions_are_not_asked_where_none_is_required(require: str) -> None:
    asked: list[int] = []

    def conditions() -> Mapping[str, bool]:
        asked.append(1)
        return {}

    policy = Policy(require=require, conditions=conditions)
    asked.clear()
    assert policy.obstacle() == "" and not asked


def test_condition_that_disappears_does_not_hold() -> None:
    now = {"charging": True}
    policy = Policy(require="charging", conditions=lambda: now)
    del now["charging"]
    assert policy.obstacle() == "not charging"


def test_conditions_that_raise_do_not_hold_and_do_not_raise() -> None:
    battery: list[bool] = [True]
    policy = Policy(require="charging", conditions=lambda: {"charging": battery[0]})
    battery.clear()
    assert "IndexError" in policy.obstacle()
    assert "IndexError" in code_of(require="charging", conditions=lambda: {"charging": battery[0]})


def test_conditions_that_tell_nothing_do_not_hold() -> None:
    told: list[object] = [{"charging": True}]
    policy = Policy(require="charging", conditions=lambda: told[-1])  # type: ignore[arg-type,return-value]
    told.append(None)
    assert policy.obstacle()


def test_policy_does_not_show_the_apps_function() -> None:
    assert "conditions" not in repr(Policy(require="idle", conditions=lambda: {"idle": True}))
