"""What a demo run measured: one record for the terminal table, the JSON and the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

__all__ = ["DemoFigures", "RoundFigures", "kilobytes", "percent"]

UNPLANNED: Final = "not in time"
"""The phase of devices that are missing from a sum though the run did not make them drop out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundFigures:
    """One round. `dropped`: how many devices the run made drop out, by phase; `survivors`: those in the sum, `weight` their
    examples; `exact`: the secure sum was byte for byte the plain sum of the same ring elements. Accuracies are shares."""

    round: int
    enrolled: int
    joined: int
    uploaded: int
    survivors: int
    dropped: Mapping[str, int]
    weight: int
    seconds: float
    exact: bool
    accuracy_secure: float
    accuracy_plain: float

    @property
    def missing(self) -> dict[str, int]:
        """Every enrolled device that is not in the sum, by phase; phases without any are left out. A device that was to
        drop out and came through all the same is not missing."""
        left, missing = self.enrolled - self.survivors, {}
        for phase, count in self.dropped.items():
            missing[phase] = min(count, left)
            left -= missing[phase]
        missing[UNPLANNED] = left
        return {phase: count for phase, count in missing.items() if count}

    def as_json(self) -> dict[str, object]:
        return {
            "round": self.round,
            "enrolled": self.enrolled,
            "joined": self.joined,
            "uploaded": self.uploaded,
            "survivors": self.survivors,
            "dropped": self.missing,
            "weight": self.weight,
            "seconds": round(self.seconds, 3),
            "exact": self.exact,
            "accuracy": {"secure": round(self.accuracy_secure, 4), "plain": round(self.accuracy_plain, 4)},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoFigures:
    """A whole run. `rounds`: those that ended with a sum, one at least; `failed`: error codes of the others by number.

    `data`, `parameters`: what was learnt from, and how long a model is. `accuracy_central`: with all data in one place,
    `accuracy_alone`: of each owner that trains on its own examples only; both shares on held-out examples.
    `upload_bytes_per_parameter`: the masked vector; `upload_bytes`: all that a device sends in a round it completes, the
    header with its sealed seeds included; `device_mask_ms`: what masking takes a device, median. `transcripts_valid`:
    `blindsum verify` accepts every round's transcript.
    """

    data: str
    parameters: int
    parties: int
    rounds: tuple[RoundFigures, ...]
    failed: Mapping[int, str] = field(default_factory=dict)
    accuracy_central: float
    accuracy_alone: tuple[float, ...]
    upload_bytes_per_parameter: float
    upload_bytes: int
    device_mask_ms: float
    party_restarted: bool
    transcripts_valid: bool
    transcript: Path
    report: Path
    picture: Path
    seconds: float

    def __post_init__(self) -> None:
        assert self.rounds and self.accuracy_alone and self.parameters > 0, "a run has rounds, owners and parameters"

    @property
    def sum_exact(self) -> bool:
        """Whether the secure sum was the plain sum, byte for byte, in every round that had one."""
        return all(each.exact for each in self.rounds)

    @property
    def alone(self) -> float:
        """Mean accuracy of an owner alone."""
        return sum(self.accuracy_alone) / len(self.accuracy_alone)

    @property
    def secure(self) -> float:
        """Accuracy of the model after the last secure sum."""
        return self.rounds[-1].accuracy_secure

    @property
    def plain(self) -> float:
        """Accuracy of plain FedAvg after as many rounds of the same updates."""
        return self.rounds[-1].accuracy_plain

    @property
    def devices(self) -> dict[str, int]:
        """Counts summed over the rounds; an enrolled device is in a round's sum or counts as dropped."""
        return {
            "enrolled": sum(each.enrolled for each in self.rounds),
            "joined": sum(each.joined for each in self.rounds),
            "uploaded": sum(each.uploaded for each in self.rounds),
            "dropped": sum(each.enrolled - each.survivors for each in self.rounds),
        }

    def as_json(self) -> dict[str, object]:
        """What `blindsum demo --json` prints."""
        return {
            "rounds": len(self.rounds),
            "parties": self.parties,
            "devices": self.devices,
            "sum_exact": self.sum_exact,
            "accuracy": {
                "secure": round(self.secure, 4),
                "plain": round(self.plain, 4),
                "central": round(self.accuracy_central, 4),
                "alone": round(self.alone, 4),
            },
            "upload_bytes_per_parameter": round(self.upload_bytes_per_parameter, 4),
            "device_mask_ms": round(self.device_mask_ms, 3),
            "party_restarted": self.party_restarted,
            "transcript": str(self.transcript),
            "report": str(self.report),
            "seconds": round(self.seconds, 1),
            "per_round": [each.as_json() for each in self.rounds],
        }

    def as_table(self) -> list[tuple[str, str]]:
        """The final table for the terminal and the report: (what, figure)."""
        devices, low, high = self.devices, min(self.accuracy_alone), max(self.accuracy_alone)
        failed = "; ".join(f"round {number} failed: {code}" for number, code in self.failed.items())
        return [
            ("data", f"{self.data}, a model of {self.parameters:,} parameters"),
            ("rounds", f"{len(self.rounds)} in {self.seconds:.0f} s" + (f"; {failed}" if failed else "")),
            ("parties", f"{self.parties}" + (", one killed and restarted on the way" if self.party_restarted else "")),
            (
                "devices, summed over rounds",
                f"{devices['enrolled']} enrolled, {devices['joined']} joined, {devices['uploaded']} uploaded, "
                f"{devices['dropped']} dropped",
            ),
            ("secure sum == plain sum", self.verdict()),
            ("transcripts", "all verified" if self.transcripts_valid else "NOT ALL VALID"),
            ("accuracy, secure", percent(self.secure)),
            ("accuracy, plain FedAvg on the same updates", percent(self.plain)),
            ("accuracy, all data in one place", percent(self.accuracy_central)),
            ("accuracy, one owner alone", f"{percent(self.alone)} on average, {percent(low)} to {percent(high)}"),
            (
                "sent by a device in a round",
                f"{kilobytes(self.upload_bytes)}, masked vector {self.upload_bytes_per_parameter:.2f} bytes a parameter",
            ),
            ("masking on a device", f"{self.device_mask_ms:.1f} ms"),
        ]

    def verdict(self) -> str:
        """The run's main claim, or its failure."""
        wrong = [str(each.round) for each in self.rounds if not each.exact]
        return f"NOT EQUAL in round {', '.join(wrong)}" if wrong else "exact in every round"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def kilobytes(size: float) -> str:
    return f"{size / 1000:.1f} kB"
