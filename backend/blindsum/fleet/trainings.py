"""What the devices of one island train: done when the island has time, told when the virtual time for it has come.

Where later rounds take what has missed its own, training and upload are two things: nobody knows before its time which round an
upload will be for. What outlasts its round is learnt when that is over, because its model goes with it.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterable
from typing import Final

from blindsum.fleet.ledger import Ledger
from blindsum.fleet.pairs import Pairs
from blindsum.fleet.roles import DeviceRole, Job
from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.graph import degree_for
from blindsum.protocol.machines.device import DeviceMachine
from blindsum.protocol.machines.late import LateUpdate
from blindsum.protocol.machines.step import Step
from blindsum.protocol.messages import EDGE_SIZE
from blindsum.protocol.view import RoundView

__all__ = ["Trainings"]

RUNAWAY: Final = ("training-diverged", "update-not-finite")
AHEAD_MAX: Final = 128
"""Uploads or updates made before their time: what an island may hold of them."""


class Trainings:
    """Those of the round that is played, in `task`, and those that have outlasted theirs."""

    def __init__(self, task: str, ledger: Ledger, pairs: Pairs) -> None:
        self._task, self._ledger, self._pairs = task, ledger, pairs
        self._jobs: list[tuple[int, int, Job]] = []
        self._ahead = 0
        self._inputs: tuple[RoundView, bytes, bytes] | None = None  # of a round whose trainings later ones take

    def begin(self) -> None:
        """A round begins."""
        self._jobs, self._ahead = [], 0

    def add(self, device: DeviceRole, view: RoundView, at: int) -> Job:
        """A device trains for the round of `view`, until `at`."""
        if view.base.staleness_max and self._inputs is None:
            machine = _machine(device)
            plan, model = machine.blob(view.task.plan), machine.blob(view.manifest.model)
            assert plan is not None and model is not None
            self._inputs = view, plan, model
        device.job = job = Job(at, view.number, device)
        heapq.heappush(self._jobs, (at, device.id, job))
        return job

    def work(self) -> bool:
        """Do one before its time. False where there is none to do, or enough are done."""
        while self._jobs and self._ahead < AHEAD_MAX:
            _, _, job = heapq.heappop(self._jobs)
            if job.step is None and not job.learnt and job.device.job is job:
                (self._make if self._inputs is None else self._learn)(job)
                return True
        return False

    def done(self, device: DeviceRole, number: int, now: int) -> Step:
        """What a device does when its training for round `number` is done."""
        job = device.job
        if job is None or job.number != number:
            return Step()
        if self._inputs is not None:
            self._learn(job)
        elif job.step is None and not job.learnt:
            self._make(job)
        device.job = None
        if job.learnt:
            return self._finished(device, device.take_learnt(), now)
        self._ahead -= job.step is not None
        self._ledger.failed[job.failed] += bool(job.failed)
        if job.step is None or _machine(device).phase(self._task) != "uploading":
            return Step()
        device.uploading()
        self._ledger.sent.add(device.number)
        return job.step

    def contribute(self, device: DeviceRole, view: RoundView, late: LateUpdate, now: int) -> Step:
        """The upload to the round of `view` of what was trained for it, or for an earlier one."""
        fresh = late.began == view.number
        tau = 0 if fresh else late.staleness(view) or 0
        lanes = device.lanes_of(view, late, tau)
        self._ledger.made(device.number, lanes, tau)
        self._ledger.sent.add(device.number)
        began = time.thread_time()
        step = _machine(device).upload(self._task, view.number, lanes, now, late if fresh else None)
        self._ledger.mask_ms[device.number] = 1000 * (time.thread_time() - began)
        return step

    def close(self, devices: Iterable[DeviceRole], number: int) -> None:
        """Round `number` is over."""
        for device in devices:
            if device.job is not None:
                self._ledger.late += device.job.number == number
                self._learn(device.job)
        self._inputs = None

    def _make(self, job: Job) -> None:
        """Train, mask and store; what is to be sent waits for its time. The machine is told that time, and until then nothing but
        copies and the end of the round can reach it, so nobody sees that it was early."""
        device, machine = job.device, _machine(job.device)
        view = machine.view(self._task)
        self._ahead += 1
        job.step = Step()
        if view is None or view.number != job.number or machine.phase(self._task) != "training":
            return
        try:
            lanes = device.lanes(view)
        except BlindsumError as error:
            job.failed = _befallen(job, error)
            return
        self._ledger.made(device.number, lanes)
        began, spared = time.thread_time(), self._pairs.spared_s
        step = machine.upload(self._task, job.number, lanes, job.at)
        device.extra = _extra(view, step)
        took = time.thread_time() - began + self._pairs.spared_s - spared
        self._ledger.mask_ms[device.number] = 1000 * took
        device.store.commit(step.writes)
        job.step = step._replace(writes=())

    def _learn(self, job: Job) -> None:
        """Train; the upload is made when it is known for which round."""
        if job.learnt or self._inputs is None:
            return
        try:
            job.device.learn(*self._inputs)
            job.learnt = True
        except BlindsumError as error:
            self._ledger.failed[_befallen(job, error)] += 1
            job.device.job = None

    def _finished(self, device: DeviceRole, late: LateUpdate, now: int) -> Step:
        """An upload to the round that it was trained for, where that waits for it; else it is kept."""
        machine = _machine(device)
        view = machine.view(self._task)
        here = view is not None and view.number == late.began and machine.phase(self._task) == "training"
        if view is not None and here and now < view.manifest.upload_until:
            return self.contribute(device, view, late, now)
        return machine.keep(self._task, late, now)


def _befallen(job: Job, error: BlindsumError) -> str:
    """Numbers that run away cost a device its round. All else is a mistake of whoever wrote the script, and raised."""
    if error.code not in RUNAWAY:
        raise BlindsumError(error.code, f"device {job.device.number} in round {job.number}: {error.detail}") from error
    return error.code


def _machine(device: DeviceRole) -> DeviceMachine:
    machine = device.machine
    assert isinstance(machine, DeviceMachine)
    return machine


def _extra(view: RoundView, step: Step) -> int:
    """By how much the header that `step` sends is longer than one of a device with as many neighbours as the graph's degree."""
    told = next((event.data for event in step.events if event.name == "uploading"), None)
    if told is None:
        return 0
    if not view.base.has_roster:
        return 0
    threat, size, neighbours = view.base.threat, told["devices"], told["neighbours"]
    assert isinstance(size, int) and isinstance(neighbours, int)
    return EDGE_SIZE * (neighbours - degree_for(size, threat.corrupt_permille, threat.dropped_permille))
