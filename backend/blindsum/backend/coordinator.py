"""The coordinator as a process: one round after another of every task in its kit, and a transcript of each."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from blindsum.backend.notices import Notices
from blindsum.backend.registry import rollback_model, rollback_of
from blindsum.backend.service import Reporter, WebSettings, run_until_stopped, stand_by, stop_signal
from blindsum.backend.tasks import TaskControl, load_control, load_task, task_names, task_place, transcript_path
from blindsum.backend.tracking import MlFlow, TensorBoard, Tracker, Tracking, TrackingSettings
from blindsum.backend.witness import Witness
from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.keys import public_of
from blindsum.protocol.machines.coordinator import CoordinatorMachine
from blindsum.protocol.machines.step import Event, Machine
from blindsum.protocol.transcript import write_records
from blindsum.runtime.audit import AuditLog
from blindsum.runtime.driver import Driver
from blindsum.runtime.kit import BrokerSettings, load_broadcast_key, load_key, load_trust, make_link, read_file
from blindsum.runtime.ports import Link
from blindsum.runtime.settings import Settings, load_settings
from blindsum.runtime.sqlite import SqliteStore
from blindsum.runtime.system import now_ms, random_bytes
from blindsum.runtime.topics import Principal, Topics

if TYPE_CHECKING:
    from blindsum.backend.crew import Crew
    from blindsum.backend.postgres import PostgresStore

__all__ = ["CoordinatorSettings", "open_store", "run_coordinator"]

CALL_TIMEOUT_S: Final = 60.0
LOOK_S: Final = 1.0
"""How often the kit's folder of tasks is looked at."""
TRANSCRIPTS_KEPT: Final = 1000


class CoordinatorSettings(Settings, frozen=True):
    """`coordinator.toml`. `database` is the URL of a PostgreSQL database; without it the database is a file in the kit."""

    fleet: str
    broker: BrokerSettings
    database: str = ""
    web: WebSettings = WebSettings()
    tracking: TrackingSettings = TrackingSettings()


def run_coordinator(kit: Path) -> int:
    """Run the coordinator of `kit` until SIGTERM. Raises BlindsumError for a kit, task or database that cannot be used."""
    settings = load_settings(kit / "coordinator.toml", CoordinatorSettings)
    trust, key = load_trust(kit), load_key(kit / "key.pem")
    if settings.fleet != trust.fleet or trust.coordinator != public_of(key):
        raise BlindsumError("kit-incomplete", f"{kit}: key.pem is not the coordinator's in the trust bundle")
    box_private = read_file(kit / "box.key")
    broadcast_key = load_broadcast_key(kit)
    stopped = stop_signal()
    store: SqliteStore | PostgresStore | None = None
    if settings.database:
        store = stand_by(lambda: open_store(kit, settings), Reporter("coordinator"), stopped)
        if store is None:
            return 0
    else:
        store = open_store(kit, settings, owner=trust.owner("coordinator"))
    topics = Topics(trust.fleet, Principal("coordinator", "coordinator"))
    reporter = Reporter("coordinator", AuditLog(kit / "audit", "coordinator"))
    witness = Witness(reporter, kit, trust, store)

    tracking, threads = _tracking(kit, settings, reporter), os.cpu_count() or 1
    totals = None if isinstance(store, SqliteStore) else store.shared_sums(threads)

    def heard(event: Event) -> None:
        witness.event(event)
        if tracking is not None:
            tracking.event(event)

    def machine() -> Machine:
        return CoordinatorMachine(
            key=key,
            box_private=box_private,
            trust=trust,
            store=store,
            random=random_bytes,
            threads=threads,
            totals=totals,
        )

    link = make_link(kit, settings.broker, topics)
    driver = Driver(
        machine,
        store,
        link,
        topics,
        on_event=heard,
        on_refused=reporter.refused,
        broadcast_key=broadcast_key,
    )
    rounds = _Rounds(kit, driver, reporter)
    crew = None if isinstance(store, SqliteStore) else _crew(store, driver, link, topics, reporter)

    def turn() -> None:
        if crew is not None:
            crew.turn()
        rounds.turn()

    try:
        return run_until_stopped(driver, reporter, settings.web, turn, stopped=stopped)
    finally:
        if crew is not None:
            crew.close()
        store.close()
        if tracking is not None:
            tracking.close()


def _crew(store: PostgresStore, driver: Driver, link: Link, topics: Topics, reporter: Reporter) -> Crew:
    from blindsum.backend.crew import Crew  # here, as in `open_store`

    return Crew(store, driver, link, topics, reporter)


def _tracking(kit: Path, settings: CoordinatorSettings, reporter: Reporter) -> Tracking | None:
    trackers: list[Tracker] = []
    if settings.tracking.tensorboard:
        trackers.append(TensorBoard(kit / settings.tracking.tensorboard))
    if settings.tracking.mlflow:
        trackers.append(MlFlow(settings.tracking.mlflow, settings.fleet))
    if not trackers:
        return None
    return Tracking(trackers, reporter.board, lambda detail: reporter.line("tracking-failed", detail=detail))


def open_store(kit: Path, settings: CoordinatorSettings, *, owner: str = "") -> SqliteStore | PostgresStore:
    """The coordinator's database. Raises BlindsumError with a database's code."""
    if not settings.database:
        return SqliteStore(kit / "coordinator.db", owner=owner)
    try:
        from blindsum.backend.postgres import PostgresStore  # here: who has no such server needs no client of it
    except ModuleNotFoundError as error:
        if error.name != "psycopg":
            raise
        detail = "database is PostgreSQL's, which needs: pip install 'blindsum[postgres]'"
        raise BlindsumError("config-invalid", f"{kit / 'coordinator.toml'}: {detail}") from None

    return PostgresStore(settings.database)


class _Rounds:
    """Keeps every task of the kit going: takes up new ones, heeds their control, writes the transcript of a round that is
    over, and begins the next."""

    def __init__(self, kit: Path, driver: Driver, reporter: Reporter) -> None:
        self._kit, self._driver, self._reporter = kit, driver, reporter
        self._tasks: dict[str, TaskControl] = {}
        self._over: set[str] = set()
        self._refused: dict[str, list[tuple[str, int, int]]] = {}
        self._rollbacks: dict[str, bytes] = {}
        self._notices = Notices(kit, driver, reporter)
        self._looked = -LOOK_S

    def turn(self) -> None:
        self._notices.turn()
        if time.monotonic() - self._looked >= LOOK_S:
            self._look()
            self._looked = time.monotonic()
        for task in self._tasks:
            if task not in self._over:
                self._advance(task)

    def _look(self) -> None:
        """Take up what is new in the kit's folder of tasks, and read the control of each. What is wrong with a task while others
        run is reported and stops nothing; at the start it is an error."""
        first = not self._tasks and not self._refused
        for name in task_names(self._kit):
            try:
                if name not in self._tasks:
                    if self._refused.get(name) == _stamp(task_place(self._kit, name)):
                        continue
                    files = load_task(task_place(self._kit, name))
                    self._call(lambda machine, _now, f=files: machine.add_task(f.record, plan=f.plan, model=f.model))  # type: ignore[misc]
                control = load_control(task_place(self._kit, name))
            except BlindsumError as error:
                if first:
                    raise
                if name not in self._tasks:
                    self._refused[name] = _stamp(task_place(self._kit, name))
                self._reporter.line("task-refused", task=name, code=error.code, detail=error.detail)
                continue
            if self._tasks.get(name) != control:
                self._tasks[name] = control
                self._call(lambda machine, _now, n=name, c=control: machine.stage(n, c.permille))  # type: ignore[misc]
                facts = {"state": control.state, "pause_s": control.pause_s, "stage": control.stage}
                self._reporter.line("task", task=name, **facts)

    def _advance(self, task: str) -> None:
        control, state = self._tasks[task], self._call(lambda machine, _now: _state(machine, task))
        if state is not None:
            number, phase, since = state
            if phase not in ("done", "failed"):
                return
            if not transcript_path(self._kit, task, number, failed=phase == "failed").exists():
                self._write_transcript(task, number, failed=phase == "failed")
            self._roll_back(task)
            if now_ms() < since + control.pause_s * 1e3:
                return
        if control.state != "running":
            return
        try:
            self._call(lambda machine, now: machine.start(task, now))
        except BlindsumError as error:
            if error.code != "task-finished":
                raise
            self._over.add(task)
            self._reporter.line("task-finished", task=task)

    def _roll_back(self, task: str) -> None:
        """Go back to an earlier model where the operator has signed so since the last look."""
        raw = rollback_of(self._kit, task)
        if self._rollbacks.get(task, b"") == raw:
            return
        self._rollbacks[task] = raw
        try:
            model = rollback_model(self._kit, task)
            self._call(lambda machine, _now: machine.roll_back(raw, model=model))
        except BlindsumError as error:
            self._reporter.line("rollback-refused", task=task, code=error.code, detail=error.detail)

    def _write_transcript(self, task: str, number: int, *, failed: bool) -> None:
        records = self._call(lambda machine, _now: list(machine.records(task)))
        path = transcript_path(self._kit, task, number, failed=failed)
        path.parent.mkdir(exist_ok=True)
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            for piece in write_records(records):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        for old in sorted(path.parent.glob(f"{task}-{'[0-9]' * 6}.blindsum"))[:-TRANSCRIPTS_KEPT]:
            old.unlink()
        self._reporter.line("failed-transcript" if failed else "transcript", task=task, round=number, path=str(path))

    def _call(self, fn: Callable[[Any, int], Any]) -> Any:
        return self._driver.call(fn).result(CALL_TIMEOUT_S)


def _stamp(place: Path) -> list[tuple[str, int, int]]:
    """Changes with the files of a task: one that is still being copied is looked at again."""
    found = ((path.name, path.stat()) for path in place.glob("*"))
    return sorted((name, stat.st_mtime_ns, stat.st_size) for name, stat in found)


def _state(machine: CoordinatorMachine, task: str) -> tuple[int, str, int] | None:
    """Number, phase and when that began."""
    round_ = machine.round(task)
    return None if round_ is None else (round_.state.number, round_.state.phase, round_.state.phase_since)
