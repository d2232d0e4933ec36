"""Who is not heard: by topic alone, for a while, in bounded numbers, and counted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blindsum.protocol.machines.allowance import FRUITLESS_BURST, FRUITLESS_PER_S
from blindsum.protocol.machines.step import ChunkOut, Message
from blindsum.runtime import gate as module
from blindsum.runtime.gate import MUTE_S, MUTED_MAX, TELL_MS, Gate
from blindsum.runtime.topics import Principal, Topics, writer_of


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def topic(device: str, kind: str = "header") -> bytes:
    return f"blindsum/1/f1/up/0a/{device}/{kind}".encode()


def muted(*devices: str) -> Gate:
    gate = Gate()
    for device in devices:
        for _ in range(FRUITLESS_BURST):
            assert gate.admits(f"device/{device}", 0)
            gate.charge(f"device/{device}", 0)
        assert not gate.ignores(topic(device)), "it is heard until it is over its share"
        assert not gate.admits(f"device/{device}", 0)
    return gate


def test_sender_over_its_share_is_not_heard_for_a_while_on_any_of_its_topics(clock: list[float]) -> None:
    gate = muted("d1")
    assert all(gate.ignores(topic("d1", kind)) for kind in ("header", "join", "anything"))
    assert not gate.ignores(topic("d2")) and not gate.ignores(b"blindsum/1/f1/px/d1/coordinator/vote")
    clock[0] += 1.01 * MUTE_S
    assert not gate.ignores(topic("d1"))
    looked_at = 0
    while gate.admits("device/d1", 1000):
        gate.charge("device/d1", 1000)
        looked_at += 1
    assert looked_at == FRUITLESS_PER_S, "what its share has gained in a second"
    assert gate.ignores(topic("d1"))


def test_senders_that_are_not_heard_are_bounded_and_the_latest_stay(clock: list[float]) -> None:
    names = [f"d{number}" for number in range(MUTED_MAX + 5)]
    gate = muted(*names)
    assert [name for name in names if not gate.ignores(topic(name))] == names[:5]


def test_flood_is_told_of_now_and_then_with_all_that_was_dropped(clock: list[float]) -> None:
    gate = muted("d1", "d2")
    told = []
    for number in range(30):
        for device, count in (("d1", 1), ("d2", 3)):
            assert all(gate.ignores(topic(device)) for _ in range(count))
        event = gate.flood(TELL_MS + number * TELL_MS // 10)
        if event is not None:
            told.append(event.data)
    assert len(told) == 3
    assert told[0] == {"unread": 4, "senders": 2, "worst": "device/d2", "of_worst": 3}
    last = gate.flood(10 * TELL_MS)
    assert last is not None and sum(data["unread"] for data in [*told, last.data]) == 30 * 4
    assert gate.flood(100 * TELL_MS) is None


def test_clock_that_is_set_back_does_not_silence_the_telling(clock: list[float]) -> None:
    gate = muted("d1")
    assert gate.ignores(topic("d1")) and gate.flood(10**12) is not None
    assert gate.ignores(topic("d1")) and gate.flood(10**9) is not None


OWN = [
    (Principal("device", "d7"), Message("join", "coordinator", b"")),
    (Principal("device", "d7"), ChunkOut("coordinator", bytes(32), 1)),
    (Principal("party", "2"), Message("vote", "coordinator", b"")),
    (Principal("coordinator", "coordinator"), Message("header", "parties", b"")),
    (Principal("coordinator", "coordinator"), Message("slot", "device/d7", b"")),
    (Principal("coordinator", "coordinator"), ChunkOut("all/t1", bytes(32), 3, retain=True)),
]


@pytest.mark.parametrize(("principal", "out"), OWN)
def test_writer_of_a_topic_is_its_speaker(principal: Principal, out: Message | ChunkOut) -> None:
    topics = Topics("f1", principal)
    speaker = topics.speaker(topics.route(out))
    assert writer_of(topics.route(out).encode()).decode() == (speaker[0] if speaker else "")


@given(st.binary(max_size=60) | st.lists(st.sampled_from([b"up", b"px", b"", b"a"]), max_size=9).map(b"/".join))
def test_any_bytes_are_somebodys_topic_or_nobodys(raw: bytes) -> None:
    speaker = Topics("f1", Principal("coordinator", "coordinator")).speaker(
        f"blindsum/1/f1/{raw.decode(errors='replace')}"
    )
    writer = writer_of(b"blindsum/1/f1/" + raw.decode(errors="replace").encode())
    if speaker is not None:
        assert writer.decode() == speaker[0]
