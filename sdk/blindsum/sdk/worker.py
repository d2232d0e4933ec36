"""The training thread of a device between one start and its stop: rounds in, masked updates out, no exception anywhere."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.machines.device import DeviceMachine
from blindsum.protocol.machines.late import LateUpdate
from blindsum.protocol.machines.step import Machine, Step
from blindsum.protocol.ring import packed_size
from blindsum.protocol.update import decode_lanes, encode_update
from blindsum.protocol.view import RoundView
from blindsum.runtime.driver import Driver
from blindsum.runtime.logs import fields
from blindsum.runtime.system import random_bytes
from blindsum.sdk.admission import HEADER_SIZE, Admission
from blindsum.sdk.controls import Controls
from blindsum.sdk.model import Model
from blindsum.sdk.own import Context, Examples, Own
from blindsum.sdk.policy import Policy
from blindsum.sdk.trainer import Aborted, Batch, Job, Trained, contribute

__all__ = ["Inspect", "Inspection", "Worker"]

log = logging.getLogger("blindsum.sdk")

CALL_TIMEOUT_S: Final = 30.0
JOBS_MAX: Final = 64
"""Rounds that wait for a slow examples function; later ones pass by."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """What is about to be masked, shown to the app in its own process: the update and weight, and the exact ring elements."""

    task: str
    round: int
    update: NDArray[np.float32] = field(repr=False)
    weight: int
    lanes: list[np.ndarray] = field(repr=False)


Inspect = Callable[[Inspection], None]


class _Made(NamedTuple):
    """What a training made for round `began`, as it goes into the round at hand. `kept`: whether the device's database has it."""

    update: NDArray[np.float32]
    weight: int
    examples: int
    statistics: list[int]
    began: int
    kept: bool = False


class Worker:
    """Trains for the rounds that `offer` names, one after another. `tell(name, data)` is called on the worker's thread."""

    def __init__(
        self,
        driver: Driver,
        examples: Mapping[str, Examples],
        policy: Policy,
        admission: Admission,
        models: Callable[[str], Model],
        controls: Controls,
        *,
        inspect: Inspect | None,
        tell: Callable[[str, dict[str, object]], None],
    ) -> None:
        self._driver, self._examples = driver, examples
        self._policy, self._admission, self._models = policy, admission, models
        self._controls = controls
        self._inspect, self._tell = inspect, tell
        self._stopping = threading.Event()
        self._open: dict[str, int] = {}  # the round of each task that waits for this device's update
        self._patient: dict[str, int] = {}  # the round of each training that a later round may take too
        self._jobs: queue.Queue[tuple[str, int]] = queue.Queue(JOBS_MAX)
        self.thread = threading.Thread(target=self._run, daemon=True)

    def offer(self, task: str, number: int) -> None:
        """A round of `task` waits for an update."""
        self._open[task] = number
        with suppress(queue.Full):
            self._jobs.put_nowait((task, number))

    def over(self, task: str) -> None:
        """The round of `task` waits no more: whatever is done for it is in vain, unless a later round may take it."""
        self._open.pop(task, None)

    def training(self, task: str) -> int | None:
        """The round for which something is being trained that a later round may take."""
        return self._patient.get(task)

    def busy(self, view: RoundView) -> str:
        """ "" where this device is free for a round, else what it still trains. What the round is too late for is given up."""
        began = self._patient.get(view.name)
        if began is None or began == view.number:
            return ""
        if view.number - began > view.base.staleness_max:
            self._patient.pop(view.name, None)
            return ""
        return f"training for round {began} goes on"

    def stop(self) -> None:
        """End soon: after the step under way, or when the examples function comes back."""
        self._stopping.set()
        with suppress(queue.Full):  # then it has something to wake up for
            self._jobs.put_nowait(("", 0))

    # -- the worker's thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            task, number = self._jobs.get()
            if self._stopping.is_set():
                return
            about: dict[str, object] = {"task": task, "round": number}
            try:
                self._train(task, number)
            except Aborted as error:
                self._tell("training-aborted", {**about, "reason": str(error) or "by the app"})
            except BlindsumError as error:
                log.warning("training failed", extra=fields(**about, code=error.code, detail=error.detail))
                self._tell("training-failed", {**about, "code": error.code, "detail": error.detail})
            except Exception as error:
                log.exception("training failed", extra=fields(**about))
                self._tell("training-failed", {**about, "code": "internal-error", "detail": repr(error)})

    def _train(self, task: str, number: int) -> None:
        inputs = self._call(lambda machine, _now: _inputs(machine, task, number))
        if inputs is None:
            return
        view, plan, model, late = inputs
        if late is not None:
            vector = late.discounted(late.staleness(view) or 0)
            self._contribute(view, _Made(vector, late.weight, late.examples, late.statistics, late.began, kept=True))
            return
        if view.base.staleness_max:
            self._patient[task] = number
        try:
            made, control = self._make(view, plan, model)
        finally:
            self._patient.pop(task, None)
        self._contribute(view, made, control)

    def _make(self, view: RoundView, plan: bytes, model: bytes) -> tuple[_Made, NDArray[np.float32] | None]:
        """What this device makes of the round's model, and the control variate with which it did."""
        task, number = view.name, view.number
        self._admission.artifact(view, plan)
        function, control, length = self._examples[task], None, len(model) // 8
        self._models(task).keep(view, plan, model)
        if isinstance(function, Own):
            with _of_the_app("task"):
                trained = function.perform(view.base, plan, model, number)
        else:
            if view.task.algorithm.name == "scaffold":
                control = self._call(lambda _machine, _now: self._controls.own(task, length))
            trained = self._learn(view, plan, model, control)
        self._tell("trained", {"task": task, "round": number, "examples": trained.examples, "loss": trained.loss})
        weight = min(trained.examples, view.task.codec.weight_max)
        return _Made(trained.update, weight, trained.examples, trained.statistics, number), control

    def _contribute(self, view: RoundView, made: _Made, control: NDArray[np.float32] | None = None) -> None:
        """Mask and upload; where the round has no time for it, keep it for a later one if the task takes it."""
        task, number, weight = view.name, view.number, made.weight
        lanes = encode_update(
            view.base,
            made.update,
            weight=weight,
            statistics=made.statistics,
            rotation=view.manifest.rotation,
            key=random_bytes(32),
        )
        if control is not None:
            following = control + decode_lanes(view.base, lanes, weight, view.manifest.rotation)[control.size :]
            self._call(lambda _machine, _now: self._controls.stage(task, number, following))
        if self._inspect is not None:
            with _of_the_app("inspect"):
                self._inspect(Inspection(task, number, made.update, weight, [lane.copy() for lane in lanes]))
        fresh = None
        if view.base.staleness_max and not made.kept:
            fresh = LateUpdate.of(view, made.update, weight=weight, examples=made.examples, statistics=made.statistics)

        def upload(machine: Machine, now: int) -> Step:
            assert isinstance(machine, DeviceMachine)
            began = time.thread_time()
            step = machine.upload(task, number, lanes, now, fresh)
            took_ms = 1000 * (time.thread_time() - began)  # CPU: what it costs the device, not what else it does
            self._tell("masked", {"task": task, "round": number, "ms": took_ms})
            return step

        def keep(machine: Machine, now: int) -> Step:
            assert isinstance(machine, DeviceMachine) and fresh is not None
            return machine.keep(task, fresh, now)

        why = self._obstacle(task, number)
        if not why:
            size = packed_size(view.base.segments) + HEADER_SIZE
            entry = self._admission.update(view, examples=made.examples, size=size, began=made.began)
            try:
                step = self._call(upload)
            except BlindsumError as error:
                if error.code != "round-over":
                    raise
                self._admission.retract(entry)
                if fresh is None:
                    raise
            else:
                if any(event.name == "uploading" for event in step.events):
                    return
                self._admission.retract(entry)
        if fresh is not None:
            self._call(keep)
        elif why:
            raise Aborted(why)

    def _learn(self, view: RoundView, plan: bytes, model: bytes, control: NDArray[np.float32] | None) -> Trained:
        """Train or evaluate the task's model on the app's examples."""
        task, number, evaluates = view.name, view.number, view.task.algorithm.name == "evaluate"
        model_here = self._models(task)
        job = Job(
            plan,
            model,
            lambda epoch: self._batches(Context(task, number, epoch, evaluates)),
            obstacle=lambda: self._obstacle(task, number),
            personal=model_here.personal(),
            control=control,
        )
        trained = contribute(view.task, job)
        if trained.personal.size:
            model_here.keep_personal(trained.personal)
        return trained

    def _batches(self, context: Context) -> Iterator[Batch]:
        with _of_the_app("examples"):
            yield from self._examples[context.task](context)

    def _obstacle(self, task: str, number: int) -> str:
        """ "" as long as work for this round may go on, else why not."""
        if self._stopping.is_set():
            return "stopped"
        if number not in (self._open.get(task), self._patient.get(task)):
            return "the round is over"
        return self._policy.obstacle()

    def _call(self, fn: Callable[[Machine, int], Any]) -> Any:
        try:
            return self._driver.call(fn).result(CALL_TIMEOUT_S)
        except TimeoutError:
            raise BlindsumError("driver-busy") from None
        except BlindsumError as error:
            if error.code == "driver-stopped" and self._stopping.is_set():
                raise Aborted("stopped") from None
            raise


@contextmanager
def _of_the_app(function: str) -> Iterator[None]:
    """What a function of the app raises ends this training and nothing else. (GeneratorExit and KeyboardInterrupt pass.)"""
    try:
        yield
    except (Aborted, BlindsumError):
        raise
    except (Exception, SystemExit) as error:
        log.exception("a function of the app failed", extra=fields(function=function))
        raise BlindsumError("examples-failed", f"{function}: {error!r}") from error


def _inputs(machine: Machine, task: str, number: int) -> tuple[RoundView, bytes, bytes, LateUpdate | None] | None:
    """The round's view, plan and model, or None where the round is over. Where the device holds a training for it, that and no
    model is needed."""
    assert isinstance(machine, DeviceMachine)
    view = machine.view(task)
    if view is None or view.number != number or machine.phase(task) != "training":
        return None
    if (late := machine.late.fit(view)) is not None:
        return view, b"", b"", late
    plan, model = machine.blob(view.task.plan), machine.blob(view.manifest.model)
    return (view, plan, model, None) if plan is not None and model is not None else None
