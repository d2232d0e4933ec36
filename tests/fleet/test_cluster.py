"""Islands that were sent elsewhere, as to the machines of a Ray cluster (`scripts/cluster` has a real one): pickled, and asked
question by question."""

from __future__ import annotations

import pickle
import socket
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from blindsum.fleet import Dropout, Fleet, Local, engine
from blindsum.fleet.cluster import knock
from blindsum.fleet.remote import Remote, answer_of
from blindsum.fleet.setup import Setup
from blindsum.protocol.errors import BlindsumError
from blindsum.testing.behaviours import GarbageBox


def step(local: Local) -> np.ndarray:
    return np.full(40, 0.01 * (1 + local.device % 5), np.float32) - 0.1 * local.parameters


class Sent(Remote):
    """An island of what arrives when a setup is sent; questions and answers are pickled, too."""

    made: list[Sent] = []

    def __init__(self, setup: Setup, devices: Sequence[int], _others: Sequence[Remote]) -> None:
        super().__init__(devices)
        self._island = pickle.loads(pickle.dumps(setup)).island(devices, backends=False)
        self._answers: deque[bytes] = deque()
        self.made.append(self)

    def ask(self, *what: object) -> None:
        name, *arguments = pickle.loads(pickle.dumps(what))
        self._answers.append(pickle.dumps(answer_of(self._island, name, arguments)))

    def answer(self) -> Any:
        return pickle.loads(self._answers.popleft())

    def stop(self) -> None:
        assert not self._answers


def test_islands_elsewhere_play_the_same_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    def play(workers: int) -> list[str]:
        fleet = Fleet(
            np.zeros(40, np.float32),
            devices=24,
            update=step,
            dropout=Dropout.spread(0.1),
            byzantine={"device/7": GarbageBox(2)},
            workers=workers,
        )
        report = fleet.run(2)
        assert report.exact
        return [each.model for each in report.rounds]

    here = play(0)
    monkeypatch.setattr(engine, "Forked", Sent)
    monkeypatch.setattr(Sent, "made", [])
    assert play(2) == here and [len(each.devices) for each in Sent.made] == [12, 12]


def test_cluster_that_does_not_answer_is_named_at_once() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        with pytest.raises(BlindsumError, match=f"simulation-impossible.*{address}"):
            knock(address)


def test_masks_are_left_out_on_this_machine_only() -> None:
    with pytest.raises(BlindsumError, match="simulation-impossible"):
        Fleet(np.zeros(40, np.float32), devices=24, update=step, masks="off", cluster="local")
