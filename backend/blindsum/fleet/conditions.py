"""What devices of a simulated fleet are like, and what happens to them: speeds, links, hours, dropouts, stragglers."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field, fields
from typing import Final

import numpy as np
from numpy.typing import NDArray

from blindsum.protocol.errors import BlindsumError

__all__ = ["FATES", "Availability", "Conditions", "DeviceClass", "Dropout", "Population", "chance"]

FATES: Final = ("", "away", "before join", "after roster", "mid upload", "corrupted", "slow")
"""What may happen to a device in a round, by number: nothing, its hour is not come, or one of the dropouts."""
DAY_S: Final = 86_400.0
LOOK_MS: Final = 600_000
"""Whether the hour has come for a round is looked at so often."""
SECONDS_MAX: Final = 1e7
ZONES_MAX: Final = 1440
RANGES: Final = {
    "share": (1e-9, 1e9),
    "train_s": (1e-3, SECONDS_MAX),
    "spread": (0.0, 3.0),
    "latency_ms": (1e-3, 1000 * SECONDS_MAX),
    "up": (1.0, 1e15),
    "down": (1.0, 1e15),
}
"""What the numbers of a class of devices may be."""
_WORDS: Final = tuple(struct.Struct(f"<{count}q") for count in range(9))


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropout:
    """The share of devices that each phase of a round loses; drawn anew for every device and round.

    `before_join`: it does not answer the announcement. `after_roster`: it dies with its name in the roster. `mid_upload`: its
    header arrives and its vector does not. `corrupted`: what arrives of its vector has a flipped bit, and is refused. `slow`: it
    trains until the round has long been closed. Raises "simulation-impossible" where they are no shares or exceed one together.
    """

    before_join: float = 0.0
    after_roster: float = 0.0
    mid_upload: float = 0.0
    corrupted: float = 0.0
    slow: float = 0.0

    def __post_init__(self) -> None:
        shares = [getattr(self, each.name) for each in fields(self)]
        numbers = all(isinstance(share, int | float) for share in shares)
        if not numbers or not all(0.0 <= share <= 1.0 for share in shares) or sum(shares) > 1.0:
            raise BlindsumError("simulation-impossible", f"dropouts of {shares}: not shares of one fleet")

    @classmethod
    def spread(cls, share: float) -> Dropout:
        """`share` of the devices in all, a quarter each: before joining, after the roster, in the upload, too slow."""
        quarter = share / 4
        return cls(before_join=quarter, after_roster=quarter, mid_upload=quarter, slow=quarter)

    @property
    def shares(self) -> tuple[float, ...]:
        """In the order of `FATES` from "before join" on."""
        return (self.before_join, self.after_roster, self.mid_upload, self.corrupted, self.slow)

    @property
    def after_joining(self) -> float:
        """The share that a roster loses: what the threat model's `dropped_permille` has to allow."""
        return sum(self.shares[1:])


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceClass:
    """One kind of device. `share`: its part of the fleet, relative to the others'. `train_s`: how long a training takes, in
    virtual seconds (the median; devices differ by `spread`, the standard deviation of its logarithm). Bandwidths in bytes a
    second, `latency_ms` one way."""

    name: str = "phone"
    share: float = 1.0
    train_s: float = 4.0
    spread: float = 0.5
    latency_ms: float = 40.0
    up: float = 1.25e6
    down: float = 5e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Availability:
    """When devices can be reached: with probability `day` by day and `night` by night, in the local time of `zones` time zones
    that the fleet is spread over evenly. Night is from 22 to 6."""

    day: float = 1.0
    night: float = 1.0
    zones: int = 1

    def at(self, now_ms: int, places: NDArray[np.int64]) -> NDArray[np.float64]:
        """The probability for each of `places` (device numbers) at virtual time `now_ms`."""
        hour = (now_ms / 3_600_000 + 24.0 * (places % self.zones) / self.zones) % 24.0
        return np.where((hour < 6.0) | (hour >= 22.0), self.night, self.day)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """Everything about the world but the dropouts. `loss` and `duplicate`: shares of messages between devices and the rest.
    `pause_s`: virtual seconds from the end of one round to the beginning of the next."""

    classes: tuple[DeviceClass, ...] = (DeviceClass(),)
    availability: Availability = field(default_factory=Availability)
    loss: float = 0.0
    duplicate: float = 0.0
    pause_s: float = 60.0

    def __post_init__(self) -> None:
        hours = self.availability
        classes = self.classes if isinstance(self.classes, tuple | list) else ()
        if not classes or not all(isinstance(kind, DeviceClass) for kind in classes):
            raise BlindsumError("simulation-impossible", f"conditions: {self.classes!r} is no tuple of DeviceClass")
        for name, value, low, high in (
            ("loss", self.loss, 0.0, 0.5),
            ("duplicate", self.duplicate, 0.0, 1.0),
            ("pause_s", self.pause_s, 1.0, SECONDS_MAX),
            ("day", hours.day, 0.0, 1.0),
            ("night", hours.night, 0.0, 1.0),
            ("zones", hours.zones, 1, ZONES_MAX),
        ):
            _require(name, value, low, high)
        if not isinstance(hours.zones, int):
            raise BlindsumError("simulation-impossible", f"conditions: zones is {hours.zones!r}, not a whole number")
        for kind in self.classes:
            for name, (low, high) in RANGES.items():
                _require(f"{name} of class {kind.name!r}", getattr(kind, name), low, high)


def _require(name: str, value: object, low: float, high: float) -> None:
    if not isinstance(value, int | float) or not low <= value <= high:
        raise BlindsumError("simulation-impossible", f"conditions: {name} is {value!r}, not in {low:g}..{high:g}")


class Population:
    """The devices of one fleet by number, as arrays: what `Conditions` and a seed make of each of them."""

    def __init__(self, devices: int, conditions: Conditions, dropout: Dropout, seed: int) -> None:
        dice = np.random.default_rng([seed, 1])
        kinds = conditions.classes
        shares = np.asarray([kind.share for kind in kinds])
        self.size = devices
        self.kind = dice.choice(len(kinds), size=devices, p=shares / shares.sum())

        def of(name: str) -> NDArray[np.float64]:
            return np.asarray([getattr(kind, name) for kind in kinds], np.float64)[self.kind]

        self.train_ms = 1000 * of("train_s") * np.exp(of("spread") * dice.standard_normal(devices))
        self.latency_ms = of("latency_ms")
        self.up, self.down = of("up") / 1000, of("down") / 1000
        self.conditions, self.dropout, self._seed = conditions, dropout, seed
        self._places = np.arange(devices)
        self._in_zone = np.bincount(
            self._places % conditions.availability.zones, minlength=conditions.availability.zones
        )

    def expected(self, now: int) -> float:
        """How many devices answer an announcement at virtual time `now`, on average."""
        hours = self.conditions.availability
        return float(hours.at(now, np.arange(hours.zones)) @ self._in_zone) * (1 - self.dropout.before_join)

    def opening(self, now: int, least: float) -> int:
        """When, from `now` on, `least` devices can be expected; `now` where they never can."""
        hours = range(now, now + int(1000 * DAY_S), LOOK_MS)
        return next((at for at in hours if self.expected(at) >= least), now)

    def fates(self, number: int, now: int) -> NDArray[np.uint8]:
        """What happens to every device in round `number`, which begins at virtual time `now`: indices into `FATES`."""
        dice = np.random.default_rng([self._seed, 2, number])
        drawn, hour = dice.random(self.size), dice.random(self.size)
        limits = np.cumsum(self.dropout.shares)
        fates = np.searchsorted(limits, drawn, side="right").astype(np.uint8)
        fates = np.where(fates == len(limits), 0, fates + 2).astype(np.uint8)
        fates[hour >= self.conditions.availability.at(now, self._places)] = 1
        return fates


def chance(seed: int, *what: int) -> float:
    """A number in [0, 1) that only the arguments (up to eight) determine: cheap, and the same in all of the fleet's processes."""
    data = _WORDS[len(what) + 1].pack(seed, *what)
    return int.from_bytes(hashlib.blake2b(data, digest_size=6).digest(), "little") / (1 << 48)
