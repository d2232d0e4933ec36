"""`Fleet`: a device fleet from a script: production machines and messages, in virtual time."""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from numpy.typing import NDArray

from blindsum.backend.plan import Plan, check_numbers, check_plan
from blindsum.backend.tasks import STATISTICS_LENGTH, sign_task, statistics_length
from blindsum.backend.tracking import Tracker
from blindsum.fleet.bridge import CLIENTS_MAX
from blindsum.fleet.checkpoint import load_checkpoint, save_checkpoint
from blindsum.fleet.conditions import Conditions, Dropout, Population
from blindsum.fleet.data import Dataset
from blindsum.fleet.engine import Engine, Outcome
from blindsum.fleet.identities import Identities
from blindsum.fleet.learner import FunctionLearner, Learned, Learner, Local, TrainingLearner, personal_of
from blindsum.fleet.pairs import Pairs, paired
from blindsum.fleet.possible import (
    DEVICES_MAX,
    DEVICES_MIN,
    SEED_MAX,
    WORKERS_MAX,
    check_function,
    check_name,
    check_parts,
    check_possible,
    check_roles,
    check_run,
    check_step,
    check_vector,
    of_kind,
    whole,
    worded,
)
from blindsum.fleet.results import FleetReport, RoundReport, Spread
from blindsum.fleet.setup import Setup
from blindsum.fleet.unmasked import unmasked
from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.memo import sharing
from blindsum.protocol.params import ThreatModel
from blindsum.protocol.view import TaskView, open_task
from blindsum.testing.behaviours import Behaviour
from blindsum.training import decode
from blindsum.training.personal import join, split

if TYPE_CHECKING:
    from blindsum.training import TrainingSession

__all__ = ["Fleet", "plan_for"]

TASK: Final = "simulation"
SIGMAS: Final = 4.0
"""How far above its mean the share of dropouts may come by chance before a round fails for it."""
WORKERS_FROM: Final = 64
"""Smaller fleets are played by one process: starting others takes longer."""

Update = Callable[[Local], NDArray[np.float32] | Learned]
Progress = Callable[[float, str], None]
"""on_progress(rounds done, what is going on)."""


def plan_for(
    devices: int, dropout: Dropout | None = None, *, rounds: int = 1000, buffer: int = 0, **changes: object
) -> Plan:
    """A task for so many devices whose threat model allows for `dropout`; `buffer`: most uploads in a round (0: of all devices);
    `changes` are fields of `Plan`."""
    share = of_kind("dropout", dropout, Dropout).after_joining
    whole("devices", devices, DEVICES_MIN, DEVICES_MAX)
    most = whole("buffer", buffer, DEVICES_MIN, devices) if buffer else devices
    known = [each.name for each in fields(Plan)]
    unknown = sorted(set(changes) - set(known))
    if unknown:
        raise BlindsumError("simulation-impossible", f"a plan has no {', '.join(unknown)}; it has {', '.join(known)}")
    margin = SIGMAS * math.sqrt(max(share * (1 - share), 0.01) / most)
    lost = min(400, max(100, math.ceil(1000 * (share + margin))))
    plan = Plan(
        name=TASK,
        threat=ThreatModel(corrupt_permille=50, dropped_permille=lost, cohort_min=max(2, most // 10)),
        devices_min=max(3, most // 4),
        devices_max=most,
        rounds=rounds,
        join_s=8.0,
        upload_s=40.0 + devices / 100,
        decide_s=30.0,
    )
    return replace(plan, **changes)  # type: ignore[arg-type]


class Fleet:
    """A fleet of simulated devices, its parties and its coordinator.

    `model`: a training artifact, which each device trains on its part of `data` (one `Dataset` a device); or the parameters
    that round 1 starts from (float32), where `update(local)` gives each device's update instead. `update` may also stand beside an
    artifact, and so may `parameters`, to start from instead of the artifact's own. `test`: examples that the model is evaluated on
    after each round, with the personal layers as they were built where the artifact has such. `plan`: the task and its algorithm
    (see `plan_for`; SCAFFOLD's population follows from `data`); where that is "evaluate", accuracy and loss in the report are those
    that the devices measured on `data`.
    `profile`, `staleness`, `buffer`: those of the plan where none is given. With `profile="no-roster"` a round closes when `buffer`
    uploads are in, and with a `staleness` besides, devices go on training when they are overtaken and add it to one of so many
    later rounds: asynchronous training as FedBuff does it.
    `transport`: "mqtt", or the URL of a broker, makes the share `real` of the devices clients of an embedded broker, or of that
    one: production drivers, databases and networking in the same rounds. They draw their own randomness, so that only a fleet
    without them ends in the same bytes every time.
    `byzantine`: behaviours by "party/<number from 1>" or "device/<number from 0>". `workers`: processes for the devices; the
    result does not depend on it. `cluster`: they are on the Ray cluster at this address, or on one that is started here ("local").
    `masks="off"` leaves out keystreams and key agreement, to see what they cost, and protects nothing. Raises BlindsumError
    "simulation-impossible" or "parameters-unsafe", with the numbers, before anything runs.
    """

    def __init__(
        self,
        model: bytes | NDArray[np.float32],
        *,
        devices: int | None = None,
        data: Sequence[Dataset] | None = None,
        update: Update | None = None,
        test: Dataset | None = None,
        parameters: NDArray[np.float32] | None = None,
        plan: Plan | None = None,
        profile: Literal["roster", "no-roster"] = "roster",
        staleness: int = 0,
        buffer: int = 0,
        dropout: Dropout | None = None,
        conditions: Conditions | None = None,
        byzantine: Mapping[str, Behaviour] | None = None,
        seed: int = 7,
        workers: int | None = None,
        cluster: str = "",
        masks: Literal["on", "off"] = "on",
        transport: str = "",
        real: float = 0.1,
        name: str = "fleet",
    ) -> None:
        if isinstance(data, Dataset):
            raise BlindsumError(
                "simulation-impossible", "data is one Dataset, not one a device: see blindsum.fleet.partition"
            )
        data = None if data is None else list(data)
        count = whole("devices", len(data or ()) if devices is None else devices, DEVICES_MIN, DEVICES_MAX)
        seed = whole("seed", seed, 0, SEED_MAX)
        worded("masks", masks, ("on", "off"))
        worded("profile", profile, ("roster", "no-roster"))
        if data is None and update is None:
            raise BlindsumError("simulation-impossible", "neither data to train on nor a function that gives updates")
        if data is not None and len(data) != count:
            raise BlindsumError("simulation-impossible", f"{len(data)} parts of data for {count} devices")
        if not isinstance(model, bytes):
            model = check_vector("model", model)
            if update is None:
                raise BlindsumError(
                    "simulation-impossible", "bare parameters train nothing: give an artifact or update"
                )
        if plan is not None and (profile, staleness, buffer) != ("roster", 0, 0):
            raise BlindsumError(
                "simulation-impossible", "profile, staleness and buffer are those of the plan that is given"
            )
        if plan is not None:
            check_numbers(of_kind("plan", plan, Plan))
        self.name, self.seed, self.devices = check_name(name), seed, count
        self.dropout = of_kind("dropout", dropout, Dropout)
        self.conditions = of_kind("conditions", conditions, Conditions)
        self.plan = plan or plan_for(count, self.dropout, buffer=buffer, profile=profile, staleness=staleness)
        if update is not None:
            check_function(self.plan, artifact=isinstance(model, bytes))
        if self.plan.algorithm == "scaffold" and not self.plan.population and data is not None:
            weight = sum(min(len(part), self.plan.weight_max) for part in data)
            self.plan = replace(self.plan, population=weight)
        self.masks, self.transport, self._cluster = masks, transport, cluster
        self._byzantine = dict(byzantine or {})
        check_roles(self._byzantine, count, self._parties())
        self._test = test
        self._artifact = model if isinstance(model, bytes) else b"no artifact: a function gives the updates"
        statistics = STATISTICS_LENGTH
        self._metrics: tuple[str, ...] = ()
        self._built = np.zeros(0, np.float32)
        if isinstance(model, bytes):
            decoded = decode(model)
            self._metrics = decoded.manifest.metrics if self.plan.algorithm == "evaluate" else ()
            shared, self._built = split(decoded.manifest, decoded.parameters)
            self._manifest = decoded.manifest
            parameters = shared if parameters is None else check_vector("parameters", parameters)
            if parameters.size != shared.size:
                told = f"{parameters.size} parameters to start from, the artifact shares {shared.size}"
                raise BlindsumError("simulation-impossible", told)
            check_plan(decoded.manifest, self.plan)
            check_parts(decoded.manifest, data if data is not None and update is None else (), test)
            statistics = statistics_length(decoded.manifest, self.plan)
        else:
            parameters = model
        self._size = parameters.size
        self._identities = Identities(seed, self._parties())
        files, self.derived = sign_task(
            self._identities.trust,
            self._identities.operator,
            self._artifact,
            parameters.astype("<f4").tobytes(),
            self.plan,
            statistics=statistics,
        )
        base = open_task(self._identities.trust, files.record)
        assert isinstance(base, TaskView), base
        self._base, self._model = base, files.model
        self._population = Population(count, self.conditions, self.dropout, seed)
        if update is None and self.plan.algorithm != "evaluate":
            check_step(base, parameters)
        check_possible(self.plan, self.derived, base, self._population, self._byzantine)
        if transport and self.plan.staleness:
            raise BlindsumError(
                "simulation-impossible", "devices over MQTT train in real time: no late updates in virtual time"
            )
        if cluster and masks == "off":
            raise BlindsumError("simulation-impossible", "masks are left out in the processes of this machine only")
        self._real = self._choose_real(real) if transport else ()
        self._learner: Learner = (
            FunctionLearner(update) if update is not None else TrainingLearner(list(data or ()), seed)
        )
        default = 0 if count < WORKERS_FROM else min(8, os.cpu_count() or 1)
        chosen = default if workers is None else whole("workers", workers, 0, WORKERS_MAX)
        self._workers = min(max(chosen, 1 if cluster else 0), count)
        self._session: TrainingSession | None = None

    def run(
        self,
        rounds: int,
        *,
        on_progress: Progress | None = None,
        checkpoint: str | Path | None = None,
        resume: bool = False,
        tracker: Tracker | None = None,
    ) -> FleetReport:
        """Play `rounds` rounds. Where it is interrupted (Ctrl-C), the report has the rounds that were finished. `tracker` is told
        the figures of each (`blindsum.backend.tracking`).

        `checkpoint`: a file that is written after each round; `resume` goes on from it (with any number of workers), to the same
        bytes as a run that was not interrupted. Raises BlindsumError "simulation-impossible", and "simulation-unreadable" where
        the file is not there, damaged, or of a fleet with other settings.
        """
        whole("rounds", rounds, 1, self.plan.rounds)
        began = time.monotonic()
        tell = on_progress or (lambda _done, _text: None)
        setup = Setup(
            self._identities,
            self._base,
            self._artifact,
            self._model,
            self._population,
            self._learner,
            self._byzantine,
            Pairs(self.devices),
            self.transport,
            self._real,
        )
        file = None if checkpoint is None else Path(checkpoint)
        check_run(file, resume=resume, real=bool(self._real), tracker=tracker)
        kept = load_checkpoint(file, run=self._run) if resume and file is not None else None
        found: list[RoundReport] = [] if kept is None else kept.rounds
        model, before = (self._model, 0.0) if kept is None else (kept.model, kept.wall_s)
        interrupted, personal = False, dict[int, NDArray[np.float32]]()
        watch = _Watch(self.devices, tell)
        tell(0.0, f"{self.devices} devices, {self._parties()} parties")
        try:
            with (
                nullcontext() if self.masks == "on" else unmasked(),
                # real devices read on threads of their own, and do all of their work themselves
                nullcontext() if self._real else sharing(),
                nullcontext() if self._real else paired(setup.pairs),
                Engine(setup, workers=self._workers, on_event=watch.event, cluster=self._cluster) as engine,
            ):
                if kept is not None:
                    engine.resume(len(found), kept.now, kept.state)
                    kept = None
                for number in range(len(found) + 1, rounds + 1):
                    watch.begin(number)
                    at = time.monotonic()
                    outcome = engine.run_round()
                    found.append(self._report(outcome, time.monotonic() - at))
                    model = outcome.model
                    if tracker is not None:
                        tracker.round(self.name, number, found[-1].row())
                    if file is not None:
                        wall_s = before + time.monotonic() - began
                        save_checkpoint(
                            file,
                            run=self._run,
                            now=engine.now,
                            rounds=found,
                            model=model,
                            wall_s=wall_s,
                            state=engine.state(),
                        )
                    tell(float(number), f"round {number}: " + (outcome.code or f"sum of {len(outcome.survivors)}"))
                if self._built.size:
                    personal = {device: personal_of(memory) for device, memory in engine.memories().items()}
        except KeyboardInterrupt:
            interrupted = True
        return FleetReport(
            name=self.name,
            seed=self.seed,
            devices=self.devices,
            masks=self.masks == "on",
            derived=self.derived.describe(),
            settings=self._settings(),
            rounds=tuple(found),
            parameters=self._parameters(model),
            personal=personal,
            interrupted=interrupted,
            wall_s=before + time.monotonic() - began,
        )

    # -- before the run ---------------------------------------------------------------------------------------------------

    def _parties(self) -> int:
        return 3 * self.plan.threat.malicious_parties + 1

    @property
    def _run(self) -> bytes:
        """What tells this run from others: the task (with it model, artifact and plan), the world, the seed."""
        world = (self.devices, self.dropout, self.conditions, self.masks, sorted(self._byzantine), self.seed)
        return hashlib.sha256(self._base.raw + repr(world).encode()).digest()

    def _choose_real(self, share: float) -> tuple[int, ...]:
        """Which devices are real clients: evenly spread, and honest ones."""
        honest = [number for number in range(self.devices) if f"device/{number}" not in self._byzantine]
        most = min(CLIENTS_MAX, len(honest))
        count = round(share * self.devices) if math.isfinite(share) else -1
        if not 1 <= count <= most:
            told = f"a share of {share} over MQTT is {count} of {self.devices} devices, not in 1..{most}"
            raise BlindsumError("simulation-impossible", told if count >= 0 else f"a share of {share} over MQTT")
        return tuple(honest[place] for place in np.linspace(0, len(honest) - 1, count).round().astype(int))

    def _settings(self) -> dict[str, object]:
        plan, drops = self.plan, self.dropout
        return {
            "devices": self.devices,
            "parameters": self._size,
            "algorithm": plan.algorithm,
            "server_rate": "default" if plan.server_rate is None else plan.server_rate,
            "proximal": plan.proximal,
            "profile": plan.profile,
            "staleness": plan.staleness,
            "parties": self._parties(),
            "width": plan.width,
            "epochs": plan.epochs,
            "batch_size": plan.batch_size,
            "rate": plan.rate,
            "clip_norm": plan.clip_norm,
            "before_join": drops.before_join,
            "after_joining": drops.after_joining,
            "byzantine": sorted(self._byzantine),
        }

    # -- after a round ----------------------------------------------------------------------------------------------------

    def _report(self, outcome: Outcome, wall_s: float) -> RoundReport:
        notes, statistics = outcome.notes, outcome.statistics or (0, 0, 0)
        weight, examples, loss = statistics[0], statistics[1], statistics[2]
        measured: dict[str, float] = {}
        if self._test is not None and not outcome.code:
            measured = self._evaluate(self._parameters(outcome.model))
        elif examples:
            sums = zip(self._metrics, statistics[2:], strict=bool(self._metrics))
            measured = {name: total / 1e6 / examples for name, total in sums}
        dropped = notes.fates + notes.failed
        dropped += Counter({"late": notes.late})
        return RoundReport(
            round=outcome.number,
            code=outcome.code,
            devices=self.devices,
            joined=outcome.joined,
            rostered=outcome.rostered,
            survivors=len(outcome.survivors),
            dropped=dict(sorted(dropped.items())),
            stale=dict(sorted(notes.stale.items())) if not outcome.code else {},
            excluded=dict(sorted(Counter(outcome.excluded.values()).items())),
            refusals=dict(sorted(notes.refusals.items())),
            faults=dict(outcome.faults),
            exact=outcome.exact,
            weight=weight,
            examples=examples,
            loss=loss / 1e6 / examples if examples else 0.0,
            accuracy=measured.get("accuracy"),
            test_loss=measured.get("loss"),
            degree=outcome.degree,
            survivors_min=outcome.survivors_min,
            seconds=(outcome.ended - outcome.began) / 1000,
            phases={phase: (at - outcome.began) / 1000 for phase, at in outcome.phases.items()},
            bytes_up=Spread.of(notes.up),
            bytes_down=Spread.of(notes.down),
            upload_s=Spread.of(notes.seconds),
            mask_ms=Spread.of(notes.mask_ms),
            model=hashlib.sha256(outcome.model).hexdigest(),
            wall_s=wall_s,
        )

    def _parameters(self, model: bytes) -> NDArray[np.float32]:
        """The parameters of a model; what SCAFFOLD keeps behind them is left out."""
        return np.frombuffer(model, "<f4")[: self._size].astype(np.float32)

    def _evaluate(self, parameters: NDArray[np.float32]) -> dict[str, float]:
        from blindsum.training import TrainingSession

        assert self._test is not None
        if self._session is None:
            self._session = TrainingSession(self._artifact)
        self._session.parameters = join(self._manifest, parameters, self._built)
        return self._session.evaluate(self._test.features, self._test.targets)


class _Watch:
    """Turns the coordinator's events into progress."""

    def __init__(self, devices: int, tell: Progress) -> None:
        self._devices, self._tell = devices, tell
        self._number, self._seen = 0, Counter[str]()

    def begin(self, number: int) -> None:
        self._number, self._seen = number, Counter()

    def event(self, _at: int, name: str, _data: Mapping[str, object]) -> None:
        if name not in ("join", "upload"):
            return
        self._seen[name] += 1
        if self._seen[name] % max(1, self._devices // 50) == 0:
            share = (self._seen["join"] * 0.3 + self._seen["upload"] * 0.6) / self._devices
            words = {"join": "joined", "upload": "uploaded"}[name]
            self._tell(
                self._number - 1 + min(share, 0.9),
                f"round {self._number}: {self._seen[name]} of {self._devices} {words}",
            )
