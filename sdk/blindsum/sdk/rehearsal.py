"""A dry run: one round's work on the app's own examples, and what of it would leave the device."""

from __future__ import annotations

import time
from dataclasses import dataclass

from blindsum.protocol.errors import BlindsumError, Refused
from blindsum.protocol.ring import packed_size
from blindsum.protocol.trust import Trust
from blindsum.protocol.update import encode_update
from blindsum.protocol.view import open_task
from blindsum.runtime.system import random_bytes
from blindsum.sdk.admission import HEADER_SIZE, JOIN_SIZE
from blindsum.sdk.model import Model
from blindsum.sdk.policy import Policy
from blindsum.sdk.trainer import Aborted, contribute
from blindsum.sdk.worker import Context, Examples

__all__ = ["DryRun", "rehearse"]

ROTATION_SIZE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    """What a round takes on this device. `memory`: bytes that a training step holds at once, weights included. `leaves`: for
    people, everything that would leave, whose reader and how it is protected."""

    task: str
    version: int
    examples: int
    loss: float
    seconds: float
    memory: int
    download_bytes: int
    upload_bytes: int
    leaves: tuple[str, ...]

    def __str__(self) -> str:
        lines = [
            f"{self.task}: {self.examples} examples, {self.seconds:.1f} s, {self.memory / 1e6:.1f} MB of memory",
            f"fetches {self.download_bytes} bytes, sends {self.upload_bytes} bytes a round; what leaves:",
        ]
        return "\n".join([*lines, *(f"  - {line}" for line in self.leaves)])


def rehearse(model: Model, trust: Trust, task: str, examples: Examples, policy: Policy) -> DryRun:
    """Raises BlindsumError "model-unknown", "condition-unmet", and what training raises."""
    from blindsum.training import TrainingSession

    record, plan, parameters, number = model.newest()
    base = open_task(trust, record)
    if isinstance(base, Refused):
        raise BlindsumError("model-unknown", f"{task}: {base.code}, {base.detail}")
    began = time.monotonic()
    session, settings = TrainingSession(plan), base.task.training
    try:
        trained = contribute(
            base.task,
            plan,
            parameters,
            lambda epoch: examples(Context(task, 0, epoch, base.task.algorithm.name == "evaluate")),
            obstacle=policy.obstacle,
            session=session,
            personal=model.personal(),
        )
    except Aborted as error:
        raise BlindsumError("condition-unmet", str(error)) from None
    lanes = encode_update(
        base,
        trained.update,
        weight=min(trained.examples, base.task.codec.weight_max),
        statistics=trained.statistics,
        rotation=bytes(ROTATION_SIZE) if base.task.codec.rotate else b"",
        key=random_bytes(32),
    )
    seconds = time.monotonic() - began
    size = packed_size(base.segments)
    cohort, liars = base.threat.cohort_min, base.threat.malicious_parties
    own = session.manifest.personal
    leaves = [
        f"join, about {JOIN_SIZE} bytes, to the coordinator: this device's name, its certificate, a key for one round",
        f"header, up to {HEADER_SIZE} bytes, to the coordinator and parties: seeds of masks, each sealed for one party",
        f"update, {size} bytes, to the coordinator: {sum(lane.size for lane in lanes)} numbers (the change of "
        f"{trained.update.size} shared parameters, and {lanes[-1].size} of: weight, examples, summed loss), masked; only "
        f"their sum over at least {cohort} devices is ever opened, though {liars} parties lie",
    ]
    if trained.personal.size:
        leaves.append(f"not sent: {trained.personal.size} personal parameters ({', '.join(own)})")
    return DryRun(
        task=task,
        version=number,
        examples=trained.examples,
        loss=trained.loss,
        seconds=seconds,
        memory=session.cost(min(settings.batch_size, max(1, trained.examples))).memory,
        download_bytes=base.task.plan.size + base.task.model.size,
        upload_bytes=size + HEADER_SIZE + JOIN_SIZE,
        leaves=tuple(leaves),
    )
