"""Whether a device takes part: the floor, the budgets, the task's criteria, and that each is said in words."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from blindsum.backend.provision import create_fleet
from blindsum.backend.tasks import Plan, create_task, criterion
from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.messages import Manifest
from blindsum.protocol.params import ThreatModel
from blindsum.protocol.view import RoundView, TaskView, open_task
from blindsum.runtime.kit import load_trust
from blindsum.sdk import Policy
from blindsum.sdk.admission import Admission
from blindsum.sdk.ledger import DAY_MS, Ledger
from blindsum.training import build_artifact, models

NOW = 1_800_000_000_000
ARTIFACT = build_artifact(models.mlp([4, 8, 3], seed=1), loss="cross-entropy")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> TaskView:
    folder = create_fleet(
        tmp_path_factory.mktemp("f") / "fleet", fleet="f", malicious_parties=1, broker="mqtt://127.0.0.1:1"
    )
    threat = ThreatModel(malicious_parties=1, corrupt_permille=0, dropped_permille=300, cohort_min=5)
    files, _ = create_task(
        folder.operator, ARTIFACT, Plan(name="t", threat=threat, devices_min=10, devices_max=100, rounds=20)
    )
    opened = open_task(load_trust(folder.operator), files.record)
    assert isinstance(opened, TaskView)
    return opened


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    book = Ledger(tmp_path / "ledger.db")
    yield book
    book.close()


class Phone:
    """An admission with a clock to set, and rounds of a task to be asked about."""

    def __init__(self, base: TaskView, ledger: Ledger, policy: Policy | None = None, count: int | None = None) -> None:
        self.base, self.ledger, self.now = base, ledger, NOW
        counts = {} if count is None else {"t": lambda: count}
        self.admission = Admission("d-1", policy or Policy(), ledger, counts, clock=lambda: self.now)

    def view(self, number: int, *criteria: str, issued_at: int = 0) -> RoundView:
        task = msgspec.structs.replace(self.base.task, eligibility=[criterion(text) for text in criteria])
        manifest = Manifest(
            task=self.base.digest,
            previous=bytes(32),
            model=task.model,
            state=bytes(32),
            offers=[],
            rotation=b"",
            issued_at=issued_at or self.now,
            join_until=0,
            upload_until=0,
            expires_at=0,
        )
        return RoundView(dataclasses.replace(self.base, task=task), number, manifest, b"", (), b"")

    def ask(self, number: int, *criteria: str, held: bool = False) -> str:
        return self.admission.join(self.view(number, *criteria), lambda _ref: held)

    def take_part(self, number: int, *criteria: str, examples: int = 10, began: int = 0) -> None:
        self.admission.update(self.view(number, *criteria), examples=examples, size=100, began=began or number)


def test_join_is_in_the_ledger_before_it_leaves_and_a_refusal_is_not(base: TaskView, ledger: Ledger) -> None:
    phone = Phone(base, ledger, Policy(require="charging", conditions=lambda: {"charging": True}))
    assert phone.ask(3) == ""
    [use] = ledger.uses()
    assert (use.task, use.round, use.what, use.at) == ("t", 3, "join", NOW)
    assert "5 devices" in use.why and "charging" in use.why
    assert phone.ask(4, "share=0,0") != ""
    assert len(ledger.uses()) == 1


def test_ledger_says_of_a_late_update_for_which_round_it_was_trained(base: TaskView, ledger: Ledger) -> None:
    phone = Phone(base, ledger)
    phone.take_part(4, began=2)
    phone.take_part(5)
    fresh, late = ledger.uses()
    assert late.round == 4 and late.why.startswith("10 examples, trained for round 2; hidden among")
    assert fresh.why.startswith("10 examples; hidden among")


def test_nothing_leaves_where_the_ledger_cannot_be_kept(base: TaskView, ledger: Ledger) -> None:
    phone = Phone(base, ledger)

    def freeze() -> None:
        with ledger._guard():
            ledger._db.execute("PRAGMA query_only = 1")  # what a read-only disk says

    freeze()
    assert "database-unwritable" in phone.ask(1)
    freeze()  # the ledger has opened its file again
    with pytest.raises(BlindsumError, match="database-unwritable"):
        phone.take_part(1)


def test_task_that_bears_fewer_liars_than_the_floor_is_declined(base: TaskView, ledger: Ledger) -> None:
    assert "lying parties" in Phone(base, ledger, Policy(min_liars=2)).ask(1)


def test_rounds_a_day_are_the_devices_own_limit(base: TaskView, ledger: Ledger) -> None:
    phone = Phone(base, ledger, Policy(rounds_per_day=2))
    for number in (1, 2):
        assert phone.ask(number) == ""
        phone.take_part(number)
    assert "2 rounds a day" in phone.ask(3)
    phone.now += DAY_MS + 1
    assert phone.ask(3) == ""


def test_bytes_a_day_count_what_went_over_the_link_and_what_a_round_takes(base: TaskView, ledger: Ledger) -> None:
    blobs = base.task.model.size + base.task.plan.size
    phone = Phone(base, ledger, Policy(bytes_per_day=100_000))
    assert phone.ask(1) == ""
    ledger.add_traffic(50_000, 100_000 - 50_000 - blobs, NOW)
    assert "of the day's 100000" in phone.ask(2)
    assert "of the day's 100000" in phone.ask(2, held=True)  # the upload still does not fit
    phone.now += DAY_MS + 3_600_000
    assert phone.ask(2) == ""


def test_artifact_that_is_not_allowed_is_not_run_and_its_task_declined(base: TaskView, ledger: Ledger) -> None:
    digest = hashlib.sha256(ARTIFACT).hexdigest()
    allowed = Phone(base, ledger, Policy(artifacts=frozenset({digest})))
    allowed.admission.artifact(allowed.view(1), ARTIFACT)
    phone = Phone(base, ledger, Policy(artifacts=frozenset({"0" * 64})))
    assert phone.ask(1) == ""  # it cannot be known before it is here
    with pytest.raises(BlindsumError, match="artifact-not-allowed"):
        phone.admission.artifact(phone.view(1), ARTIFACT)
    assert digest[:16] in phone.ask(2)


@pytest.mark.parametrize(("count", "reason"), [(None, "does not say"), (19, "19 examples, 20 are asked"), (20, "")])
def test_examples_are_counted_by_the_app(base: TaskView, ledger: Ledger, count: int | None, reason: str) -> None:
    said = Phone(base, ledger, count=count).ask(1, "examples-min=20")
    assert reason in said and bool(said) == bool(reason)


def test_update_from_fewer_examples_than_were_counted_stays_here(base: TaskView, ledger: Ledger) -> None:
    phone = Phone(base, ledger, count=20)
    assert phone.ask(1, "examples-min=20") == ""
    with pytest.raises(BlindsumError, match="not-eligible"):
        phone.take_part(1, "examples-min=20", examples=19)
    assert [use.what for use in ledger.uses()] == ["join"]


def test_separation_is_kept_across_a_restart(base: TaskView, ledger: Ledger) -> None:
    Phone(base, ledger).take_part(5)
    again = Phone(base, ledger)
    assert "round 5" in again.ask(7, "rounds-apart=2")
    assert again.ask(8, "rounds-apart=2") == ""
    assert "this period" in again.ask(8, "once-per=86400")


def test_once_per_period_goes_by_the_manifests_time_not_by_this_clock(base: TaskView, ledger: Ledger) -> None:
    phone = Phone(base, ledger)
    phone.take_part(5)
    later = phone.view(6, "once-per=86400", issued_at=NOW + 1000)
    for jump in (-400 * DAY_MS, 0, 400 * DAY_MS):
        phone.now = NOW + jump
        assert "this period" in phone.admission.join(later, lambda _ref: True)


def test_retry_window_is_obeyed_and_ends(base: TaskView, ledger: Ledger) -> None:
    phone = Phone(base, ledger)
    phone.admission.left_early(phone.view(1, "retry=60,600"))
    assert "asked to wait" in phone.ask(2, "retry=60,600")
    phone.now += 59_000
    assert "asked to wait" in phone.ask(2, "retry=60,600")
    phone.now = NOW + 601_000
    assert phone.ask(2, "retry=60,600") == ""
    phone.now = NOW - 10 * DAY_MS  # the clock was ahead: no wait of ten days
    assert phone.ask(3, "retry=60,600") == ""


def test_kind_of_later_years_is_not_eligible_and_no_crash(base: TaskView, ledger: Ledger) -> None:
    phone = Phone(base, ledger)
    view = phone.view(1)
    newer = SimpleNamespace(kind="moon", version=3, values=[1])
    task = msgspec.structs.replace(view.task, eligibility=[newer])
    view = dataclasses.replace(view, base=dataclasses.replace(view.base, task=task))
    assert phone.admission.join(view, lambda _ref: True) == (
        "the task asks for 'moon' version 3, which this device does not know"
    )


@pytest.mark.parametrize(
    "wrong",
    [{"min_liars": 0}, {"rounds_per_day": 0}, {"bytes_per_day": -1}, {"artifacts": frozenset({"ABC"})}],
)
def test_policy_that_contradicts_itself_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(BlindsumError, match="policy-invalid"):
        Policy(**wrong)  # type: ignore[arg-type]
