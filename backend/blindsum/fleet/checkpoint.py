"""What a simulation keeps after a round, so that a later process goes on from there and ends in the same bytes.

Every role begins a round from what it has stored, whether or not it stopped before, and nothing is on its way between rounds. So
stores, trainings that outlast their rounds, what the broker retains, what the learner remembers and the virtual time are the whole
state.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Final

import msgspec

from blindsum.fleet.results import RoundReport
from blindsum.protocol.errors import BlindsumError

__all__ = ["Checkpoint", "IslandState", "Retained", "load_checkpoint", "save_checkpoint"]

FORMAT: Final = 2


class Retained(msgspec.Struct, frozen=True, array_like=True):
    """A chunk that the broker hands to whoever listens to its blob."""

    blob: bytes
    place: int
    body: bytes


class IslandState(msgspec.Struct, kw_only=True):
    """Some roles, by id: `rows` of their stores, `held` the names of the chunks that they keep, `chunks` each of these once;
    `learnt`: what the learner remembers of a device, by number; `training`: when a device is done with what outlasts its round,
    and for which that was. `retained` is the same on every island."""

    rows: dict[int, dict[str, bytes]]
    held: dict[int, list[str]]
    chunks: dict[str, bytes]
    learnt: dict[int, bytes]
    training: dict[int, tuple[int, int]]
    retained: list[Retained]

    def add(self, other: IslandState) -> None:
        """Take in the roles of another island."""
        for name in ("rows", "held", "chunks", "learnt", "training"):
            getattr(self, name).update(getattr(other, name))

    def part(self, roles: Collection[int], devices: Collection[int]) -> IslandState:
        """Only these roles, and what the learner knows of these devices."""
        held = {role: self.held[role] for role in roles if role in self.held}
        names = {name for each in held.values() for name in each}
        return IslandState(
            rows={role: self.rows[role] for role in roles if role in self.rows},
            held=held,
            chunks={name: self.chunks[name] for name in names},
            learnt={device: self.learnt[device] for device in devices if device in self.learnt},
            training={device: self.training[device] for device in devices if device in self.training},
            retained=self.retained,
        )


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A run after some rounds. `run`: what tells it from other runs (see `Fleet`); `now`: when the next round begins; `model`: the
    current one, with what its algorithm keeps behind it."""

    format: int
    run: bytes
    now: int
    rounds: list[RoundReport]
    model: bytes
    wall_s: float
    state: IslandState


def save_checkpoint(
    path: Path, *, run: bytes, now: int, rounds: list[RoundReport], model: bytes, wall_s: float, state: IslandState
) -> None:
    """Write it, in the place of the last one, whole or not at all."""
    kept = Checkpoint(format=FORMAT, run=run, now=now, rounds=rounds, model=model, wall_s=wall_s, state=state)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    fresh.write_bytes(msgspec.msgpack.encode(kept))
    os.replace(fresh, path)


def load_checkpoint(path: Path, *, run: bytes) -> Checkpoint:
    """What `save_checkpoint` wrote. Raises BlindsumError "simulation-unreadable", also where it is of another run than `run`."""
    try:
        kept = msgspec.msgpack.decode(path.read_bytes(), type=Checkpoint)
    except (OSError, msgspec.MsgspecError) as error:
        raise BlindsumError("simulation-unreadable", f"{path}: {error}") from None
    if kept.format != FORMAT or kept.run != run:
        raise BlindsumError("simulation-unreadable", f"{path} is of a run with other settings")
    return kept
