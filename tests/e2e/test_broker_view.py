"""All that a broker sees of whole rounds: no update, no sum, no model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from blindsum.protocol.transcript import read_records
from blindsum.runtime.mqtt import MqttLink
from blindsum.runtime.ports import Inbound
from blindsum.runtime.topics import root_of

WINDOW = 32
"""Bytes that would give a piece of a vector away; by chance they are found once in 2^256 / traffic tries."""


def pieces(data: bytes) -> list[bytes]:
    """Windows of `data` that are not constant (a zero stretch proves nothing)."""
    windows = [data[at : at + WINDOW] for at in range(0, len(data) - WINDOW, WINDOW)]
    return [window for window in windows if len(set(window)) > WINDOW // 4]


def test_broker_sees_neither_updates_nor_sums_nor_models(small_fleet: Callable[..., Any]) -> None:
    fleet = small_fleet(rounds=2)
    seen: list[bytes] = []
    link = MqttLink(fleet.url, "listener")

    def hear(inbound: Inbound) -> bool:
        link.ack(inbound.token)
        seen.append(inbound.body)
        return True

    link.open((f"{root_of(fleet.base.trust.fleet)}/#",), on_message=hear, on_state=lambda _state: None)
    link.wait_connected(5.0)
    fleet.start()
    fleet.watch(60.0)
    link.close()
    fleet.judge()
    traffic = b"\n".join(seen)
    assert len(traffic) > 200_000
    for number, path in fleet.transcripts.items():
        records = read_records(path.read_bytes())
        assert any(piece in traffic for piece in pieces(records["body"][0])), "the masked vectors do pass the broker"
        for name in ("sum", "model", "next"):
            for piece in pieces(records[name][0]):
                assert piece not in traffic, name
        for upload in (fleet.root / "plain" / f"round-{number:04d}").glob("*.npz"):
            vectors = np.load(upload)
            for piece in pieces(vectors["lane0"].astype("<u2").tobytes()) + pieces(vectors["update"].tobytes()):
                assert piece not in traffic
