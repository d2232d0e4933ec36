"""A dry run: one round's work on the app's own data, and what of it would leave the device."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from blindsum.protocol.errors import BlindsumError, Refused
from blindsum.protocol.ring import packed_size
from blindsum.protocol.trust import Trust
from blindsum.protocol.update import encode_update
from blindsum.protocol.view import TaskView, open_task
from blindsum.runtime.system import random_bytes
from blindsum.sdk.admission import HEADER_SIZE, JOIN_SIZE
from blindsum.sdk.model import Model
from blindsum.sdk.own import Context, Examples, Own
from blindsum.sdk.policy import Policy
from blindsum.sdk.trainer import Aborted, Batch, Job, Trained, contribute

if TYPE_CHECKING:
    from blindsum.training import TrainingSession

__all__ = ["DryRun", "perform", "rehearse", "task_of"]

ROTATION_SIZE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    """What a round takes on this device. `memory`: bytes that a training step holds at once, weights included; 0 where the SDK
    trains nothing. `statistics`: the integers that the exact sums would get beside the weight; of a query, the whole answer.
    `leaves`: for people, everything that would leave, whose reader and how it is protected."""

    task: str
    version: int
    examples: int
    loss: float
    seconds: float
    memory: int
    download_bytes: int
    upload_bytes: int
    statistics: tuple[int, ...] = field(repr=False)
    leaves: tuple[str, ...]

    def __str__(self) -> str:
        held = f", {self.memory / 1e6:.1f} MB of memory" if self.memory else ""
        lines = [
            f"{self.task}: {self.examples} examples, {self.seconds:.1f} s{held}",
            f"fetches {self.download_bytes} bytes, sends {self.upload_bytes} bytes a round; what leaves:",
        ]
        return "\n".join([*lines, *(f"  - {line}" for line in self.leaves)])


def rehearse(model: Model, trust: Trust, task: str, function: Examples, policy: Policy) -> DryRun:
    """Raises BlindsumError "model-unknown", "condition-unmet", and what training or the app's function raises."""
    record, plan, parameters, number = model.newest()
    base = task_of(trust, record)
    began = time.monotonic()
    session = None if isinstance(function, Own) else _session(plan)
    trained = perform(
        base,
        plan,
        parameters,
        function,
        number,
        obstacle=policy.obstacle,
        session=session,
        personal=model.personal(),
    )
    lanes = encode_update(
        base,
        trained.update,
        weight=min(trained.examples, base.task.codec.weight_max),
        statistics=trained.statistics,
        rotation=bytes(ROTATION_SIZE) if base.task.codec.rotate else b"",
        key=random_bytes(32),
    )
    seconds = time.monotonic() - began
    size, personal = packed_size(base.segments), session.manifest.personal if session is not None else ()
    batch = min(base.task.training.batch_size, max(1, trained.examples))
    return DryRun(
        task=task,
        version=number,
        examples=trained.examples,
        loss=trained.loss,
        seconds=seconds,
        memory=session.cost(batch).memory if session is not None else 0,
        download_bytes=base.task.plan.size + base.task.model.size,
        upload_bytes=size + HEADER_SIZE + JOIN_SIZE,
        statistics=tuple(trained.statistics),
        leaves=tuple(_leaves(base, trained, sum(lane.size for lane in lanes), size, personal)),
    )


def task_of(trust: Trust, record: bytes) -> TaskView:
    """The task in a signed record that was kept. Raises BlindsumError "model-unknown"."""
    base = open_task(trust, record)
    if isinstance(base, Refused):
        raise BlindsumError("model-unknown", f"{base.code}, {base.detail}")
    return base


def perform(
    base: TaskView,
    plan: bytes,
    parameters: bytes,
    function: Examples,
    number: int,
    *,
    obstacle: Callable[[], str] = str,
    session: TrainingSession | None = None,
    personal: NDArray[np.float32] | None = None,
) -> Trained:
    """What `function` adds to round `number`, which begins with `parameters`. The others as in `Job`. Raises BlindsumError
    "condition-unmet", and what training or the function raises."""
    if isinstance(function, Own):
        if reason := obstacle():
            raise BlindsumError("condition-unmet", reason)
        return function.perform(base, plan, parameters, number)
    evaluates = base.task.algorithm.name == "evaluate"

    def batches(epoch: int) -> Iterable[Batch]:
        return function(Context(base.name, number, epoch, evaluates))

    try:
        return contribute(base.task, Job(plan, parameters, batches, obstacle, session, personal))
    except Aborted as error:
        raise BlindsumError("condition-unmet", str(error)) from None


def _leaves(base: TaskView, trained: Trained, numbers: int, size: int, personal: Sequence[str]) -> Iterator[str]:
    cohort, liars = base.threat.cohort_min, base.threat.malicious_parties
    exact = len(trained.statistics) + 1
    if not base.task.model.size:
        what = f"{exact} numbers (that this device answers, and {exact - 1} of its answer"
    else:
        told = "weight, examples, summed loss" if trained.update.size else "weight, examples, summed metrics"
        what = f"{numbers} numbers (the change of {trained.update.size} shared parameters, and {exact} of: {told}"
    yield f"join, about {JOIN_SIZE} bytes, to the coordinator: this device's name, its certificate, a key for one round"
    yield f"header, up to {HEADER_SIZE} bytes, to the coordinator and parties: seeds of masks, each sealed for one party"
    yield (
        f"update, {size} bytes, to the coordinator: {what}), masked; only their sum over at least {cohort} devices is ever "
        f"opened, even if {liars} of the parties lie"
    )
    if trained.personal.size:
        yield f"not sent: {trained.personal.size} personal parameters ({', '.join(personal)})"


def _session(plan: bytes) -> TrainingSession:
    from blindsum.training import TrainingSession

    return TrainingSession(plan)
