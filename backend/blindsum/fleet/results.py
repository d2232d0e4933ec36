"""What a simulation measured, round by round: for people, as data frame, as JSON, and as a file that a later run goes on from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from blindsum.protocol.errors import BlindsumError

if TYPE_CHECKING:
    import pandas

__all__ = ["FleetReport", "RoundReport", "Spread", "compare"]


class Spread(msgspec.Struct, frozen=True):
    """How a quantity is spread over the devices that had any of it: percentiles 0, 5, 25, 50, 75, 95, 100, and the mean."""

    percentiles: tuple[float, ...]
    mean: float

    @classmethod
    def of(cls, values: NDArray[Any]) -> Spread:
        """Of the values above zero."""
        some = values[values > 0]
        if not some.size:
            return cls((0.0,) * 7, 0.0)
        return cls(tuple(np.percentile(some, (0, 5, 25, 50, 75, 95, 100)).tolist()), float(some.mean()))

    def scaled(self, factor: float) -> Spread:
        """The same in other units."""
        return Spread(tuple(factor * each for each in self.percentiles), factor * self.mean)

    @property
    def median(self) -> float:
        return self.percentiles[3]


class RoundReport(msgspec.Struct, frozen=True, kw_only=True):
    """One round. `code`: why it failed, or "". `seconds`, `phases`: virtual time; `wall_s`: how long the simulation took.

    `dropped`: devices by what made them drop out ("late": overtaken by the round); `stale`: how many updates in the sum were so
    many rounds old; `excluded`: devices by why they were left out of it. `exact`: the opened sum is byte for byte the plain ring
    sum of the survivors' vectors. `loss`: the devices' mean training loss; `accuracy` and `test_loss`: of the new model on the
    test examples, where there are any. Bytes, seconds and mask_ms are per device.
    """

    round: int
    code: str
    devices: int
    joined: int
    rostered: int
    survivors: int
    dropped: dict[str, int]
    excluded: dict[str, int]
    refusals: dict[str, int]
    faults: dict[str, str]
    exact: bool
    weight: int
    examples: int
    loss: float
    accuracy: float | None
    test_loss: float | None
    degree: int
    survivors_min: int
    seconds: float
    phases: dict[str, float]
    bytes_up: Spread
    bytes_down: Spread
    upload_s: Spread
    mask_ms: Spread
    model: str
    wall_s: float
    stale: dict[int, int] = {}

    def row(self) -> dict[str, object]:
        """The plain figures, one cell each."""
        return {
            "round": self.round,
            "code": self.code,
            "joined": self.joined,
            "rostered": self.rostered,
            "survivors": self.survivors,
            "dropped": self.devices - self.survivors,
            "excluded": sum(self.excluded.values()),
            "exact": self.exact,
            "staleness": sum(tau * count for tau, count in self.stale.items()) / max(self.survivors, 1),
            "weight": self.weight,
            "loss": self.loss,
            "accuracy": self.accuracy,
            "test_loss": self.test_loss,
            "seconds": self.seconds,
            "bytes_up": self.bytes_up.median,
            "bytes_down": self.bytes_down.median,
            "upload_s": self.upload_s.median,
            "mask_ms": self.mask_ms.median,
            "model": self.model[:16],
            "wall_s": self.wall_s,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetReport:
    """A simulation's rounds and what was derived for them. `parameters`: the final model, without personal layers; `personal`:
    where the artifact has such, those of each simulated device that has trained, by number (they are not saved). `interrupted`:
    it was ended early."""

    name: str
    seed: int
    devices: int
    masks: bool
    derived: str
    settings: Mapping[str, object]
    rounds: tuple[RoundReport, ...]
    parameters: NDArray[np.float32] = field(repr=False)
    personal: Mapping[int, NDArray[np.float32]] = field(default_factory=dict, repr=False)
    interrupted: bool = False
    wall_s: float = 0.0

    @property
    def digest(self) -> str:
        """SHA-256 of the final model's bytes: two runs of one seed have the same."""
        return hashlib.sha256(self.parameters.astype("<f4").tobytes()).hexdigest()

    @property
    def exact(self) -> bool:
        """Whether every opened sum was the plain sum."""
        return all(each.exact for each in self.rounds if not each.code)

    @property
    def finished(self) -> tuple[RoundReport, ...]:
        """The rounds that gave a sum."""
        return tuple(each for each in self.rounds if not each.code)

    def rows(self) -> list[dict[str, object]]:
        """One flat record a round."""
        return [each.row() for each in self.rounds]

    def frame(self) -> pandas.DataFrame:
        """`rows` as a data frame. Raises BlindsumError "fleet-package-missing"."""
        try:
            import pandas
        except ModuleNotFoundError as error:
            raise BlindsumError("fleet-package-missing", f"a data frame needs pandas ({error})") from error
        return pandas.DataFrame(self.rows())

    def as_json(self) -> dict[str, object]:
        """What `blindsum simulate --json` prints."""
        return {
            "name": self.name,
            "seed": self.seed,
            "devices": self.devices,
            "masks": self.masks,
            "rounds": len(self.rounds),
            "failed": {str(each.round): each.code for each in self.rounds if each.code},
            "sum_exact": self.exact,
            "interrupted": self.interrupted,
            "model": self.digest,
            "settings": dict(self.settings),
            "wall_s": round(self.wall_s, 3),
            "per_round": [msgspec.to_builtins(each) for each in self.rounds],
        }

    def plot(self, path: str | Path) -> Path:
        """Write the report: HTML at `path` and the same charts as PNG beside it. Raises "fleet-package-missing"."""
        return compare([self], path)

    def save(self, folder: str | Path) -> Path:
        """Write "report.json" and the final model, "model.npy", into `folder`."""
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        (place / "report.json").write_bytes(
            msgspec.json.format(msgspec.json.encode(self.as_json() | {"derived": self.derived}))
        )
        np.save(place / "model.npy", self.parameters)
        return place

    @classmethod
    def load(cls, folder: str | Path) -> FleetReport:
        """What `save` wrote. Raises BlindsumError "simulation-unreadable"."""
        place = Path(folder)
        try:
            data = msgspec.json.decode((place / "report.json").read_bytes())
            return cls(
                name=data["name"],
                seed=data["seed"],
                devices=data["devices"],
                masks=data["masks"],
                derived=data["derived"],
                settings=data["settings"],
                rounds=tuple(msgspec.convert(data["per_round"], list[RoundReport], str_keys=True)),
                parameters=np.load(place / "model.npy", allow_pickle=False),
                interrupted=data["interrupted"],
                wall_s=data["wall_s"],
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BlindsumError("simulation-unreadable", f"{place}: {error}") from None


def compare(reports: Sequence[FleetReport], path: str | Path) -> Path:
    """Write one page (and a PNG) with several runs side by side. Raises "fleet-package-missing"."""
    from blindsum.fleet.fleetpage import write_page

    return write_page(Path(path), reports)
