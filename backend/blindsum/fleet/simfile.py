"""A simulation as a file: TOML, or a Python script that makes a `Fleet`."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from blindsum.fleet.conditions import Availability, Conditions, DeviceClass, Dropout
from blindsum.fleet.data import Dataset, digits
from blindsum.fleet.learner import Local
from blindsum.fleet.partition import dirichlet, iid, quantity
from blindsum.fleet.possible import SEED_MAX, whole
from blindsum.fleet.simulation import Fleet, plan_for
from blindsum.protocol.algorithm import STATE_VECTORS
from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.params import ThreatModel
from blindsum.runtime.settings import Settings, load_settings
from blindsum.training import SGD, build_artifact, models

__all__ = ["load_fleet"]

ROUNDS = 5
ROUNDS_MAX = 1_000_000
HIDDEN_MAX = 100_000
LENGTH_MAX = 1 << 26
ADAPTIVE = ("fedadam", "fedyogi")
SERVER = {
    "server_rate": ("fedavg", "fedavgm", *ADAPTIVE, "scaffold"),
    "momentum": ("fedavgm", *ADAPTIVE),
    "beta2": ADAPTIVE,
    "tau": ADAPTIVE,
}
"""Which algorithms have which numbers."""


class ThreatSettings(Settings, frozen=True):
    """`ThreatModel`, all of it or nothing."""

    malicious_parties: int = 1
    corrupt_permille: int = 50
    dropped_permille: int = 100
    cohort_min: int = 2


class TaskSettings(Settings, frozen=True):
    """How devices train, what is made of their sum, and what a round is; see `Plan`, and `Fleet` for the last three. None: as
    `Plan` has it. `personal`: names or patterns of weights that stay on their devices; `start`: a model.npy to start from, beside
    the file."""

    algorithm: str = "fedavg"
    server_rate: float | None = None
    momentum: float | None = None
    beta2: float | None = None
    tau: float | None = None
    proximal: float = 0.0
    epochs: int = 1
    batch_size: int = 32
    rate: float = 0.1
    clip_norm: float = 8.0
    weight_max: int = 64
    width: Literal[16, 24, 32, 64] = 24
    rotate: bool = False
    personal: list[str] = []
    start: str = ""
    profile: Literal["roster", "no-roster"] = "roster"
    staleness: int = 0
    buffer: int = 0


class DataSettings(Settings, frozen=True):
    """`set` "digits": real digits, split over the devices; "none": bare vectors of `length`, to see what the protocol costs."""

    set: Literal["digits", "none"] = "digits"
    partition: Literal["iid", "dirichlet", "quantity"] = "dirichlet"
    alpha: float = 0.5
    hidden: int = 32
    length: int = 10_000


class DropoutSettings(Settings, frozen=True):
    """`Dropout`."""

    before_join: float = 0.0
    after_roster: float = 0.0
    mid_upload: float = 0.0
    corrupted: float = 0.0
    slow: float = 0.0


class ClassSettings(Settings, frozen=True):
    """`DeviceClass`."""

    name: str = "phone"
    share: float = 1.0
    train_s: float = 4.0
    spread: float = 0.5
    latency_ms: float = 40.0
    up: float = 1.25e6
    down: float = 5e6


class ConditionSettings(Settings, frozen=True):
    """`Conditions`; `day`, `night` and `zones` are those of `Availability`."""

    loss: float = 0.0
    duplicate: float = 0.0
    pause_s: float = 60.0
    day: float = 1.0
    night: float = 1.0
    zones: int = 1
    classes: list[ClassSettings] = []


class SimulationSettings(Settings, frozen=True):
    """The whole file."""

    devices: int
    name: str = "fleet"
    rounds: int = ROUNDS
    seed: int = 7
    transport: str = ""
    real: float = 0.1
    threat: ThreatSettings | None = None
    task: TaskSettings = TaskSettings()
    data: DataSettings = DataSettings()
    dropout: DropoutSettings = DropoutSettings()
    conditions: ConditionSettings = ConditionSettings()


def load_fleet(
    path: Path, *, workers: int | None = None, masks: Literal["on", "off"] = "on", cluster: str = ""
) -> tuple[Fleet, int]:
    """The fleet that a file describes, and for how many rounds. A script (".py") leaves it as `fleet`, with `rounds` where that
    is not `ROUNDS`. Raises BlindsumError: "config-missing", "config-invalid", or what `Fleet` raises."""
    if path.suffix != ".py":
        return _from_settings(load_settings(path, SimulationSettings), path.parent, workers, masks, cluster)
    if not path.exists():
        raise BlindsumError("config-missing", str(path))
    made = runpy.run_path(str(path), run_name="blindsum-simulation")
    fleet, rounds = made.get("fleet"), made.get("rounds", ROUNDS)
    if not isinstance(fleet, Fleet) or not isinstance(rounds, int):
        raise BlindsumError(
            "config-invalid", f"{path}: the script leaves no `fleet` that is a Fleet (and `rounds`, a number)"
        )
    return fleet, rounds


def _from_settings(
    settings: SimulationSettings, folder: Path, workers: int | None, masks: Literal["on", "off"], cluster: str
) -> tuple[Fleet, int]:
    said, task, air = settings.dropout, settings.task, settings.conditions
    dropout = Dropout(
        before_join=said.before_join,
        after_roster=said.after_roster,
        mid_upload=said.mid_upload,
        corrupted=said.corrupted,
        slow=said.slow,
    )
    conditions = Conditions(
        classes=tuple(
            DeviceClass(
                name=each.name,
                share=each.share,
                train_s=each.train_s,
                spread=each.spread,
                latency_ms=each.latency_ms,
                up=each.up,
                down=each.down,
            )
            for each in air.classes
        )
        or (DeviceClass(),),
        availability=Availability(day=air.day, night=air.night, zones=air.zones),
        loss=air.loss,
        duplicate=air.duplicate,
        pause_s=air.pause_s,
    )
    whole("rounds", settings.rounds, 1, ROUNDS_MAX)
    threat = settings.threat
    chosen: dict[str, object] = _server(task)
    if threat is not None:
        chosen["threat"] = ThreatModel(**{name: getattr(threat, name) for name in THREAT})
    plan = plan_for(
        settings.devices,
        dropout,
        rounds=ROUNDS_MAX,  # of the task: a run may be resumed for more than the file says
        algorithm=task.algorithm,
        proximal=task.proximal,
        epochs=task.epochs,
        batch_size=task.batch_size,
        rate=task.rate,
        clip_norm=task.clip_norm,
        weight_max=task.weight_max,
        width=task.width,
        rotate=task.rotate,
        profile=task.profile,
        staleness=task.staleness,
        buffer=task.buffer,
        **chosen,
    )
    common = {"plan": plan, "dropout": dropout, "conditions": conditions, "seed": settings.seed, "workers": workers}
    common |= {
        "name": settings.name,
        "masks": masks,
        "transport": settings.transport,
        "real": settings.real,
        "cluster": cluster,
    }
    start = _vector(folder / task.start) if task.start else None
    if settings.data.set == "none":
        if task.personal:
            raise BlindsumError(
                "simulation-impossible", 'personal layers are those of a model: [data] set = "none" has none'
            )
        zeros = np.zeros(whole("length", settings.data.length, 1, LENGTH_MAX), np.float32)
        bare = zeros if start is None else start
        fleet = Fleet(bare, devices=settings.devices, update=_constant, **common)  # type: ignore[arg-type]
    else:
        train, test = digits()
        hidden = whole("hidden", settings.data.hidden, 1, HIDDEN_MAX)
        seed = whole("seed", settings.seed, 0, SEED_MAX)
        optimiser = SGD(
            lr=0.01, proximal=max(task.proximal, 0.0), control=task.algorithm == "scaffold"
        )  # the plan has the rate
        net = models.mlp((64, hidden, 10), seed=seed)
        artifact = build_artifact(net, loss="cross-entropy", optimizer=optimiser, personal=task.personal)
        parts = _parts(settings, train)
        fleet = Fleet(artifact, data=parts, test=test, parameters=start, **common)  # type: ignore[arg-type]
    return fleet, settings.rounds


def _server(task: TaskSettings) -> dict[str, object]:
    """The numbers of the server's step that the file gives. Raises BlindsumError "simulation-impossible" where its algorithm has no
    place for one."""
    given = {name: value for name in SERVER if (value := getattr(task, name)) is not None}
    for name in given:
        if task.algorithm not in SERVER[name] and task.algorithm in STATE_VECTORS:
            told = f"{name} belongs to {', '.join(SERVER[name])}; the algorithm is {task.algorithm}"
            raise BlindsumError("simulation-impossible", told)
    return given


def _vector(path: Path) -> NDArray[np.float32]:
    """What `FleetReport.save` wrote. Raises BlindsumError "simulation-unreadable"."""
    try:
        found: NDArray[np.float32] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BlindsumError("simulation-unreadable", f"{path}: {error}") from None
    return found


THREAT = ("malicious_parties", "corrupt_permille", "dropped_permille", "cohort_min")


def _parts(settings: SimulationSettings, train: Dataset) -> list[Dataset]:
    data, count, seed = settings.data, settings.devices, settings.seed
    least = min(8, max(1, len(train) // (2 * count)))
    if data.partition == "iid":
        found = iid(train.targets, count, seed, least)
    elif data.partition == "quantity":
        found = quantity(train.targets, count, data.alpha, seed, least)
    else:
        found = dirichlet(train.targets, count, data.alpha, seed, least)
    return [train.take(indices) for indices in found]


def _constant(local: Local) -> NDArray[np.float32]:
    return np.full(local.parameters.size, 0.001, np.float32)
