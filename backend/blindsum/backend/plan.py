"""What an operator decides about a task, as a plan whose numbers are checked before anything is signed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from blindsum.protocol.algorithm import STATE_VECTORS, algorithm_of
from blindsum.protocol.envelope import is_name
from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.messages import Algorithm, Criterion
from blindsum.protocol.messages.common import CHUNK_SIZE_MAX, DEVICES_MAX
from blindsum.protocol.params import ThreatModel

if TYPE_CHECKING:
    from blindsum.training.manifest import Manifest

__all__ = ["Plan", "algorithm_for", "check_numbers", "check_plan", "control_scale", "scaled"]

ADAPTIVE: Final = ("fedadam", "fedyogi")
ADAPTIVE_RATE: Final = 0.01
STALENESS_MAX: Final = 100
SCALED_MAX: Final = 1 << 53
"""Above it, two numbers may travel as one."""
MICRO: Final = 1e-6
WHOLE: Final = {
    "devices_min": (1, DEVICES_MAX),
    "devices_max": (1, DEVICES_MAX),
    "rounds": (1, (1 << 31) - 1),
    "epochs": (1, 1000),
    "batch_size": (1, 65_536),
    "weight_max": (1, 1 << 24),
    "population": (0, SCALED_MAX),
    "chunk_size": (0, CHUNK_SIZE_MAX),
    "staleness": (0, SCALED_MAX),
}
"""A plan's whole numbers: the least and the most of each."""
_MOST: Final = SCALED_MAX * MICRO
_SPAN: Final = (0.1, 7 * 86_400.0)
_DECAY: Final = (0.0, 1 - MICRO)
NUMBERS: Final = {
    "rate": (MICRO, _MOST),
    "clip_norm": (MICRO, _MOST),
    "server_rate": (MICRO, _MOST),
    "momentum": _DECAY,
    "beta2": _DECAY,
    "tau": (MICRO, _MOST),
    "proximal": (0.0, _MOST),
    "join_s": _SPAN,
    "upload_s": _SPAN,
    "decide_s": _SPAN,
}
"""The others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What an operator decides about a task. Times in seconds; `clip_norm` is the largest L2 norm of an update; `weight_max` the
    largest weight (in examples) of one device. `chunk_size` 0: 120 KiB, which every broker takes, or 256 KiB where 1024 chunks of
    120 KiB do not hold what a round needs.

    `algorithm`: "fedavg", "fedavgm", "fedadam", "fedyogi", "scaffold" (the artifact's optimiser is SGD with `control`), or
    "evaluate", which leaves the model as it is and sums metrics. `server_rate`: None takes 0.01 for fedadam and fedyogi, 1 for
    the others. `momentum` is that of fedavgm and beta 1 of the adaptive two, `beta2` and `tau` are theirs; `population`: the
    weight of all devices together, in a round or not (scaffold). `profile` "no-roster": one upload a device, when it is ready,
    under the first mask layer alone (docs/THREAT-MODEL.md); `join_s` then adds to `upload_s`, and a round closes as soon as
    `devices_max` uploads are in. There, `staleness` makes rounds the buffers of FedBuff: a device whose training outlasts its round
    adds it, discounted, to one of so many rounds later. `proximal`: FedProx's mu, beside
    any algorithm (the artifact's optimiser has one).
    """

    name: str
    threat: ThreatModel
    devices_min: int
    devices_max: int
    rounds: int
    epochs: int = 1
    batch_size: int = 32
    rate: float = 0.1
    clip_norm: float = 1.0
    weight_max: int = 64
    width: Literal[16, 24, 32, 64] = 24
    rotate: bool = False
    algorithm: str = "fedavg"
    server_rate: float | None = None
    momentum: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3
    population: int = 0
    proximal: float = 0.0
    join_s: float = 30.0
    upload_s: float = 300.0
    decide_s: float = 30.0
    chunk_size: int = 0
    profile: Literal["roster", "no-roster"] = "roster"
    staleness: int = 0
    eligibility: tuple[Criterion, ...] = ()


def check_numbers(plan: Plan) -> None:
    """Raises BlindsumError "parameters-unsafe" where a number of a plan is none, or out of its range; "name-unusable";
    "task-invalid"."""
    if not isinstance(plan.name, str) or not is_name(plan.name):
        raise BlindsumError("name-unusable", repr(plan.name))
    for name, (least, most) in WHOLE.items():
        value = getattr(plan, name)
        if type(value) is not int or not least <= value <= most:
            raise BlindsumError("parameters-unsafe", f"{name} is {value!r}, not a whole number from {least} to {most}")
    for name, (low, high) in NUMBERS.items():
        value = getattr(plan, name)
        if name == "server_rate" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise BlindsumError("parameters-unsafe", f"{name} is {value!r}, not a number from {low:g} to {high:g}")
    if plan.profile not in ("roster", "no-roster"):
        raise BlindsumError("task-invalid", f"profile {plan.profile!r}; known: roster, no-roster")
    if plan.staleness > (STALENESS_MAX if plan.profile == "no-roster" else 0):
        told = f"staleness {plan.staleness}; profile no-roster takes up to {STALENESS_MAX} rounds, roster none"
        raise BlindsumError("task-invalid", told)


def check_plan(manifest: Manifest, plan: Plan) -> None:
    """Raises BlindsumError "task-invalid" where the artifact's step cannot do what the plan asks of it."""
    if plan.algorithm != "evaluate" and manifest.optimiser == "gradient":
        raise BlindsumError("task-invalid", "the artifact's step hands out gradients and trains nothing")
    if plan.proximal and "proximal" not in manifest.hyperparameters:
        raise BlindsumError("task-invalid", "FedProx needs an artifact whose optimiser has a proximal term")
    if plan.algorithm == "scaffold" and not (
        manifest.control
        and manifest.optimiser == "sgd"
        and "momentum" not in manifest.hyperparameters
        and not manifest.personal
    ):
        raise BlindsumError(
            "task-invalid", "SCAFFOLD needs an artifact with plain SGD, a control variate and no personal layers"
        )


def algorithm_for(plan: Plan) -> Algorithm:
    """What the task says of a plan's algorithm. Raises BlindsumError "task-invalid" where it is unknown."""
    name = plan.algorithm
    if name not in STATE_VECTORS:
        others = "FedProx is proximal beside one of them, FedBuff profile no-roster with a staleness"
        raise BlindsumError("task-invalid", f"algorithm {name!r}; known: {', '.join(STATE_VECTORS)}; {others}")
    rate = plan.server_rate if plan.server_rate is not None else ADAPTIVE_RATE if name in ADAPTIVE else 1.0
    given = {"rate_micros": ("server_rate", rate)} if name != "evaluate" else {}
    if name in ("fedavgm", *ADAPTIVE):
        given["beta1_micros"] = "momentum", plan.momentum
    if name in ADAPTIVE:
        given |= {"beta2_micros": ("beta2", plan.beta2), "tau_micros": ("tau", plan.tau)}
    if name == "scaffold" and plan.population < 1:
        raise BlindsumError("task-invalid", "SCAFFOLD needs the population: the weight of all devices together")
    numbers = {field: scaled(what, value, 1e6) for field, (what, value) in given.items()}
    return algorithm_of(name, **numbers, population=plan.population if name == "scaffold" else 0)


def control_scale(plan: Plan) -> int:
    """So that controls are as large as updates: learning rate times the steps of a device with `weight_max` examples."""
    return scaled("rate", plan.rate * plan.epochs * -(-plan.weight_max // plan.batch_size), 1e6)


def scaled(name: str, value: float, factor: float) -> int:
    """A setting as the integer that travels. Raises BlindsumError "parameters-unsafe" where it is no finite number, or would travel
    as another one."""
    if not math.isfinite(value * factor) or abs(value * factor) > SCALED_MAX:
        raise BlindsumError("parameters-unsafe", f"{name} is {value}, not a number up to {SCALED_MAX / factor:g}")
    if value and not round(value * factor):
        raise BlindsumError("parameters-unsafe", f"{name} is {value}, and the least but 0 is {1 / factor:g}")
    return round(value * factor)
