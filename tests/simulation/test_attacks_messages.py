"""Attacks with messages as such: replayed across rounds, tasks and lives, repeated, reordered, cut short, padded, misrouted."""

from __future__ import annotations

import random

import pytest

from blindsum.protocol.codec import encode, encode_chunk
from blindsum.protocol.envelope import Head, open_envelope, peek, seal_envelope
from blindsum.protocol.messages import CHUNK_MESSAGE_SIZE_MAX, MESSAGE_SIZE_MAX, MESSAGES
from blindsum.testing.checkers import RoundsForgotten
from blindsum.testing.faults import Faults
from blindsum.testing.world import World


class Recorder:
    """A broker that keeps everything, and delivers it as it should."""

    def __init__(self, world: World) -> None:
        self.heard: list[tuple[str, str, bytes]] = []
        world.network.tap = self._tap

    def _tap(self, source: str, target: str, body: bytes) -> bytes:
        self.heard.append((source, target, body))
        return body

    def kinds(self) -> set[str]:
        return {open_envelope(body).head.type for _, _, body in self.heard if peek(body)}


def rows(world: World) -> dict[str, dict[str, bytes]]:
    return {name: dict(actor.store.rows) for name, actor in world.actors.items()}


def recorded_round(seed: int = 11, **settings: object) -> tuple[World, Recorder]:
    world = World(seed, devices=4, **settings)
    recorder = Recorder(world)
    world.run()
    world.settle()
    return world, recorder


def test_a_round_uses_every_kind_of_message_but_failure_and_want() -> None:
    _, recorder = recorded_round()
    assert recorder.kinds() >= MESSAGES.keys() - {"task", "rollback", "failure", "want", "ask"}


# -- replay -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("restart", [False, True], ids=["same life", "next life"])
def test_messages_of_an_earlier_round_change_nothing_in_a_later_one(restart: bool) -> None:
    world, recorder = recorded_round()
    earlier = list(recorder.heard)
    world.start()
    world.until("upload")
    world.settle(5)
    if restart:
        for name in world.actors:
            world.crash(name)
    before = rows(world)
    for _, _, body in earlier:
        for name in ("coordinator", "party/1", "party/3", "device/d-0000", "device/d-0003"):
            actor = world.actors[name]
            step = actor.machine.receive(body, world.now)
            assert not [event for event in step.events if event.name in ("evidence", "fault")]
            world.apply(actor, step, faulty=False)
    after = rows(world)
    for name in ("coordinator", "party/1", "party/3", "device/d-0000", "device/d-0003"):
        changed = {
            key for key in before[name].keys() | after[name].keys() if before[name].get(key) != after[name].get(key)
        }
        assert not {key for key in changed if not key.startswith(("blob/", "message/", "state/"))}, name
    world.finish()
    assert world.phase == "done"
    world.check()


def test_everything_replayed_at_once_in_any_order_gives_the_same_sum() -> None:
    world, recorder = recorded_round()
    dice = random.Random(4)
    for _ in range(3):
        world.start()
        for phase in ("manifest", "join", "roster", "upload", "check", "vote", "open"):
            world.until(lambda phase=phase: world.phase == phase or not world.round.active)
            for _, target, body in dice.sample(recorder.heard, 60):
                world.network.push(target, body, world.now + dice.randint(0, 20))
        world.finish()
        assert world.phase == "done", world.failure
    world.check()


def test_messages_of_one_task_mean_nothing_in_another_task_of_the_fleet() -> None:
    _, recorder = recorded_round(name="sum")
    other = World(11, devices=4, name="another")
    for number in (1, 2, 3, 4):  # the parties took part in both, and remember it
        other.actors[f"party/{number}"].store.rows["last/sum"] = encode(1)
    other.start()
    other.until("upload")
    for _, _, body in recorder.heard:
        for name, actor in other.actors.items():
            step = actor.machine.receive(body, other.now)
            assert not [write.key for write in step.writes if "another" in write.key], name
            actor.store.commit(step.writes)  # a party takes up the other task, which the same operator signed
    other.finish()
    other.settle()
    assert other.phase == "done"
    # (at the parties the other task's round has only just begun)
    other.checkers = [checker for checker in other.checkers if not isinstance(checker, RoundsForgotten)]
    other.check()


def test_messages_of_another_fleet_mean_nothing_here() -> None:
    _, recorder = recorded_round(seed=12)
    world = World(11, devices=4)
    world.start()
    world.until("upload")
    for body in {body for _, _, body in recorder.heard if peek(body)}:
        for name, actor in world.actors.items():
            step = actor.machine.receive(body, world.now)
            assert step.refused is not None and not step.writes, name


def test_messages_sent_back_to_their_sender_or_to_anybody_else_change_nothing() -> None:
    world = World(11, devices=4)
    recorder = Recorder(world)
    world.start()
    world.until("upload")
    world.settle(5)
    before = rows(world)
    for source, target, body in list(recorder.heard):
        for name in world.actors:
            if not peek(body):
                continue
            head = open_envelope(body).head
            if name == target or head.to in (name, "all", "parties") or head.type == "header":
                continue
            step = world.actors[name].machine.receive(body, world.now)
            assert step.refused is not None and not step.writes, (source, name, head)
    assert rows(world) == before
    world.finish()
    world.check()


# -- repeated and reordered -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_duplicates_and_reordering_alone_change_no_result(seed: int) -> None:
    calm = World(seed, devices=5)
    calm.run(2)
    wild = World(seed, devices=5, faults=Faults(duplicate=0.5, delay_ms=(1, 900)), join_ms=10_000)
    wild.run(2)
    assert [result.total for result in wild.results] == [result.total for result in calm.results]
    wild.check()


# -- malformed --------------------------------------------------------------------------------------------------------


def damaged(body: bytes, dice: random.Random) -> list[bytes]:
    """Cut short, padded, blanked and flipped copies of a message."""
    cut = [body[:at] for at in {0, 1, len(body) // 2, len(body) - 1, dice.randrange(len(body))}]
    flipped = bytearray(body)
    flipped[dice.randrange(len(body))] ^= 1 << dice.randrange(8)
    blanked = body[: len(body) // 3] + bytes(len(body) - len(body) // 3)
    copies = [*cut, body + b"\x00", body + body, blanked, bytes(flipped), body[:1] + body]
    return [copy for copy in copies if copy != body]  # (the first model is zeros, and blanking leaves them)


def test_damaged_copies_of_every_message_are_refused_and_change_nothing() -> None:
    world = World(11, devices=4)
    dice = random.Random(5)
    seen: dict[tuple[str, str], int] = {}
    tried = 0

    def broker(source: str, target: str, body: bytes) -> bytes:
        nonlocal tried
        kind = open_envelope(body).head.type if peek(body) else "chunk"
        key = (target.split("/", maxsplit=1)[0], kind)
        seen[key] = seen.get(key, 0) + 1
        if seen[key] > 3 or not world.actors[target].alive:
            return body
        actor = world.actors[target]
        before = dict(actor.store.rows)
        for bad in damaged(body, dice):
            step = actor.machine.receive(bad, world.now)
            tried += 1
            assert step.refused is not None, (kind, bad[:20])
            assert not step.writes and not step.messages and not step.refused.culprit, (kind, step)
        assert actor.store.rows == before
        return body

    world.network.tap = broker
    world.run()
    assert world.phase == "done" and tried > 300
    world.check()


def test_oversized_messages_are_refused_before_they_are_parsed() -> None:
    world = World(11, devices=4)
    world.start()
    world.until("upload")
    huge = encode_chunk(bytes(32), 0, bytes(CHUNK_MESSAGE_SIZE_MAX))
    limit = MESSAGES["failure"][2]
    long = seal_envelope(
        world.fleet.coordinator,
        Head(type="failure", fleet="test", task=world.task, round=1, sender="coordinator", to="all"),
        {"manifest": bytes(32), "code": "z" * limit},
    )
    for name in ("coordinator", "party/1", "device/d-0000"):
        for body in (huge, b"\xd2" + bytes(MESSAGE_SIZE_MAX), long):
            step = world.give(name, body)
            assert step.refused.code == "message-too-large", name
            assert not step.writes


def test_deeply_nested_and_indefinite_encodings_are_refused() -> None:
    world = World(11, devices=4)
    world.start()
    nested = b"\x81" * 5000 + b"\x00"
    for body in (b"\xd2" + nested, b"\xd2\x9f\xff", b"\xd2" * 3000, b"\xd2\x84\x40\xa0\x40\x40", encode([1, 2, 3])):
        for name in ("coordinator", "party/1", "device/d-0000"):
            step = world.give(name, body)
            assert step.refused.code == "message-malformed" and not step.writes
