"""The topic table: routes, subscriptions and the access list agree with each other."""

from __future__ import annotations

import hashlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blindsum.backend.broker import acl_section, mosquitto_acl
from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.machines.step import ChunkOut, Message
from blindsum.runtime.topics import SHARDS, TABLE, Principal, Topics, acl_for, shard_of

BLOB = bytes(range(32))
NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=64)
DEVICE = Principal("device", "d7")
PARTY = Principal("party", "2")
COORDINATOR = Principal("coordinator", "coordinator")


def topics(principal: Principal, *tasks: str) -> Topics:
    return Topics("f1", principal, tasks)


def matches(pattern: str, topic: str) -> bool:
    """MQTT filters without `#`."""
    wanted, found = pattern.split("/"), topic.split("/")
    return len(wanted) == len(found) and all(want in ("+", have) for want, have in zip(wanted, found, strict=True))


def may(principal: Principal, action: str, topic: str) -> bool:
    return any(act == action and matches(pattern, topic) for act, pattern in acl_for("f1", principal))


ROUTES = [
    (DEVICE, Message("join", "coordinator", b""), f"up/{shard_of('d7')}/d7/join", [COORDINATOR]),
    (DEVICE, Message("header", "coordinator", b""), f"up/{shard_of('d7')}/d7/header", [COORDINATOR]),
    (DEVICE, ChunkOut("coordinator", BLOB, 3), f"up/{shard_of('d7')}/d7/chunk", [COORDINATOR]),
    (COORDINATOR, Message("receipt", "device/d7", b""), "dn/d7/receipt", [DEVICE]),
    (COORDINATOR, ChunkOut("device/d7", BLOB, 3), "dn/d7/chunk", [DEVICE]),
    (COORDINATOR, Message("proposal", "party/2", b""), "pt/2/proposal", [PARTY]),
    (COORDINATOR, Message("proposal", "parties", b""), "pt/all/proposal", [PARTY]),
    (COORDINATOR, ChunkOut("party/2", BLOB, 3), "pt/2/chunk", [PARTY]),
    (COORDINATOR, Message("manifest", "all/t1", b"", retain=True), "bc/t1/manifest", [DEVICE, PARTY]),
    (COORDINATOR, ChunkOut("all/t1", BLOB, 3, retain=True), "bc/t1/chunk/0001020304050607/3", [DEVICE, PARTY]),
    (PARTY, Message("vote", "coordinator", b""), "px/2/coordinator/vote", [COORDINATOR]),
    (COORDINATOR, Message("header", "parties", b""), "pt/all/header", [PARTY]),
    (PARTY, ChunkOut("coordinator", BLOB, 0), "px/2/coordinator/chunk", [COORDINATOR]),
]


@pytest.mark.parametrize(("sender", "out", "expected", "readers"), ROUTES)
def test_message_goes_where_its_sender_may_publish_and_its_readers_may_read(
    sender: Principal, out: Message | ChunkOut, expected: str, readers: list[Principal]
) -> None:
    topic = topics(sender).route(out)
    assert topic == f"blindsum/1/f1/{expected}"
    assert topic.count("/") <= 7
    assert may(sender, "publish", topic)
    assert [who for who in (DEVICE, PARTY, COORDINATOR) if may(who, "read", topic)] == sorted(
        readers, key=[DEVICE, PARTY, COORDINATOR].index
    )


def test_subscriptions_receive_every_route_that_names_the_reader() -> None:
    for _sender, out, expected, readers in ROUTES:
        for reader in readers:
            own = topics(reader, "t1")
            filters = (*own.subscriptions, own.chunks("t1", BLOB))
            assert any(matches(pattern, f"blindsum/1/f1/{expected}") for pattern in filters), (reader, out)


def test_subscriptions_are_within_what_the_access_list_lets_read() -> None:
    for principal in (DEVICE, PARTY, COORDINATOR):
        for pattern in topics(principal, "t1", "t2").subscriptions:
            assert may(principal, "read", pattern.replace("+", "x")), pattern
    assert may(DEVICE, "read", topics(DEVICE, "t1").chunks("t1", BLOB).replace("+", "0"))


def test_device_reads_only_the_broadcasts_of_its_tasks() -> None:
    assert topics(DEVICE, "t1", "t2").subscriptions == (
        "blindsum/1/f1/dn/d7/+",
        "blindsum/1/f1/bc/t1/+",
        "blindsum/1/f1/bc/t2/+",
    )


def test_chunk_broadcasts_come_only_to_who_listens() -> None:
    topic = topics(COORDINATOR).route(ChunkOut("all/t1", BLOB, 3, retain=True))
    for principal in (DEVICE, PARTY, COORDINATOR):
        assert not any(matches(pattern, topic) for pattern in topics(principal, "t1").subscriptions)
        assert matches(topics(principal, "t1").chunks("t1", BLOB), topic)
        assert not matches(topics(principal, "t1").chunks("t1", bytes(32)), topic)


@pytest.mark.parametrize(
    ("sender", "out"),
    [
        (PARTY, Message("vote", "device/d7", b"")),
        (PARTY, Message("vote", "all/t1", b"")),
        (PARTY, Message("vote", "party/1", b"")),
        (COORDINATOR, Message("slot", "coordinator", b"")),
        (COORDINATOR, Message("slot", "device/", b"")),
        (COORDINATOR, Message("slot", "device/+", b"")),
        (COORDINATOR, Message("slot", "device/a/b", b"")),
        (COORDINATOR, Message("slot/#", "parties", b"")),
        (DEVICE, Message("", "coordinator", b"")),
    ],
)
def test_message_without_a_topic_is_not_routed(sender: Principal, out: Message) -> None:
    with pytest.raises(ValueError, match=r"not a kind|not an address|has no topic"):
        topics(sender).route(out)


@given(NAMES.filter(lambda name: name != "coordinator" and not name.startswith("party-")), NAMES)
def test_device_publishes_under_no_other_id(device: str, kind: str) -> None:
    topic = topics(Principal("device", device)).route(Message(kind, "coordinator", b""))
    assert may(Principal("device", device), "publish", topic)
    assert not may(DEVICE, "publish", topic) or device == "d7"


@pytest.mark.parametrize("name", ["", "a" * 65, "A", "a/b", "+", "#", "a b", "ä", "a\n", "$sys"])
def test_name_that_is_no_topic_level_is_refused(name: str) -> None:
    for make in (
        lambda: Principal("device", name),
        lambda: Topics(name, DEVICE),
        lambda: Topics("f1", DEVICE, (name,)),
    ):
        with pytest.raises(BlindsumError, match="name-unusable"):
            make()


@pytest.mark.parametrize(
    ("role", "name"),
    [
        ("device", "coordinator"),
        ("device", "party-1"),
        ("party", "all"),
        ("party", "coordinator"),
        ("coordinator", "x"),
    ],
)
def test_name_of_another_role_is_refused(role: str, name: str) -> None:
    with pytest.raises(BlindsumError, match="name-unusable"):
        Principal(role, name)  # type: ignore[arg-type]


def test_users_of_all_roles_are_distinct() -> None:
    assert [DEVICE.user, PARTY.user, COORDINATOR.user] == ["d7", "party-2", "coordinator"]


def test_shard_is_the_first_byte_of_the_hash_modulo_the_shards() -> None:
    assert shard_of("d7") == f"{hashlib.sha256(b'd7').digest()[0] % 16:02x}"
    assert {shard_of(str(number)) for number in range(500)} == {f"{shard:02x}" for shard in range(SHARDS)}


def test_presence_topic_names_role_and_id() -> None:
    for principal in (DEVICE, PARTY, COORDINATOR):
        topic = topics(principal).presence
        assert may(principal, "publish", topic)
        assert may(COORDINATOR, "read", topic)
        assert topics(COORDINATOR).presence_of(topic) == principal
    for other in (
        "blindsum/1/f1/dn/d7/x",
        "blindsum/1/f2/st/device/d7",
        "blindsum/1/f1/st/owner/d7",
        "blindsum/1/f1/st/device/",
    ):
        assert topics(COORDINATOR).presence_of(other) is None


def test_mosquitto_access_list_is_the_table() -> None:
    """Parse what is written and compare it with `acl_for` for every principal, after Mosquitto's own rules."""
    words = {"write": "publish", "read": "read"}
    patterns: set[tuple[str, str]] = set()
    users: dict[str, set[tuple[str, str]]] = {}
    user = ""
    for line in mosquitto_acl("f1", ["1", "2"]).splitlines():
        if match := re.fullmatch(r"user (\S+)", line):
            user = match[1]
            users[user] = set()
        elif match := re.fullmatch(r"topic (read|write) (\S+)", line):
            users[user].add((words[match[1]], match[2]))
        elif match := re.fullmatch(r"pattern (read|write) (\S+)", line):
            patterns.add((words[match[1]], match[2]))
        else:
            assert not line or line.startswith("#"), line
    assert {(action, pattern.replace("%u", "d7")) for action, pattern in patterns} == set(acl_for("f1", DEVICE))
    assert users == {
        "party-1": set(acl_for("f1", Principal("party", "1"))),
        "party-2": set(acl_for("f1", PARTY)),
        "coordinator": set(acl_for("f1", COORDINATOR)),
    }


def test_table_lets_nobody_publish_with_a_wildcard_in_place_of_its_own_id() -> None:
    for rule in TABLE:
        if rule.action == "publish" and rule.role != "coordinator":
            assert "{id}" in rule.pattern.split("/"), rule


def test_worker_reads_chunks_and_speaks_for_nobody() -> None:
    worker = Principal("worker", "1")
    assert worker.user == "coordinator-1"
    assert may(worker, "read", f"blindsum/1/f1/up/{shard_of('d7')}/d7/chunk")
    assert not may(worker, "read", f"blindsum/1/f1/up/{shard_of('d7')}/d7/header")
    assert [rule.pattern for rule in TABLE if (rule.role, rule.action) == ("worker", "publish")] == ["st/worker/{id}"]
    shards = topics(worker).subscriptions
    assert len(shards) == SHARDS
    assert sum(matches(pattern, f"blindsum/1/f1/up/{shard_of('d7')}/d7/chunk") for pattern in shards) == 1
    assert acl_section("f1", worker).split("\n")[1:-1] == [
        "user coordinator-1",
        "topic write blindsum/1/f1/st/worker/1",
        "topic read blindsum/1/f1/up/+/+/chunk",
    ]
    with pytest.raises(BlindsumError, match="name-unusable"):
        Principal("device", "coordinator-1")
