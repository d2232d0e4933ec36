"""Who says what where: the table of MQTT topics below `blindsum/1/<fleet>/`, which is also the source of every access list.

| topic | from | read by |
|---|---|---|
| `up/<shard>/<device>/<kind>` | device | coordinator |
| `dn/<device>/<kind>` | coordinator | that device |
| `bc/<task>/<kind>`, retained | coordinator | devices of the task, parties |
| `bc/<task>/chunk/<blob16>/<index>`, retained | coordinator | devices and parties, while their machine listens |
| `pt/<party>/<kind>`, `pt/all/<kind>` | coordinator | that party; all parties |
| `px/<party>/coordinator/<kind>` | party | coordinator |
| `st/<role>/<id>`, retained | everyone | coordinator |

A coordinator may have workers, who read the `chunk`s of `up` for it, each of some shards.

A topic only says where bytes go; who said something, to whom and in which round is inside the signature (SPEC.md section 12).
Ids are 1 to 64 of a-z, 0-9 and "-": a `+`, `#` or `/` in one could widen an access rule. At most seven slashes (a limit of
AWS IoT Core).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final, Literal

from blindsum.protocol.envelope import is_name
from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.machines.step import ChunkOut, Message

__all__ = [
    "SHARDS",
    "TABLE",
    "WORKERS_MAX",
    "Action",
    "Principal",
    "Role",
    "Rule",
    "Topics",
    "acl_for",
    "shard_of",
    "writer_of",
]

SHARDS: Final = 16
"""Number of `up/` shards, so that a cluster's coordinator workers can each subscribe to their own part."""
WORKERS_MAX: Final = SHARDS
"""Workers have the numbers from 1; more than shards would have nothing to read."""

COORDINATOR: Final = "coordinator"
EVERYONE: Final = "all"
PARTY_USER_PREFIX: Final = "party-"
WORKER_USER_PREFIX: Final = "coordinator-"
BLOB_PREFIX_SIZE: Final = 8
CHUNKS: Final = "bc/+/chunk/+/+"

Role = Literal["device", "party", "coordinator", "worker"]
Action = Literal["publish", "read"]


@dataclass(frozen=True, slots=True)
class Rule:
    """`role` may `action` on topics that match `pattern` below the root; `{id}` stands for its own id."""

    role: Role
    action: Action
    pattern: str


TABLE: Final = (
    Rule("device", "publish", "up/+/{id}/+"),
    Rule("device", "publish", "st/device/{id}"),
    Rule("device", "read", "dn/{id}/+"),
    Rule("device", "read", "bc/+/+"),
    Rule("device", "read", CHUNKS),
    Rule("party", "publish", "px/{id}/coordinator/+"),
    Rule("party", "publish", "st/party/{id}"),
    Rule("party", "read", "pt/{id}/+"),
    Rule("party", "read", "pt/all/+"),
    Rule("party", "read", "bc/+/+"),
    Rule("party", "read", CHUNKS),
    Rule("coordinator", "publish", "dn/+/+"),
    Rule("coordinator", "publish", "bc/+/+"),
    Rule("coordinator", "publish", CHUNKS),
    Rule("coordinator", "publish", "pt/+/+"),
    Rule("coordinator", "publish", "st/coordinator/{id}"),
    Rule("coordinator", "read", "up/+/+/+"),
    Rule("coordinator", "read", "px/+/coordinator/+"),
    Rule("coordinator", "read", "st/+/+"),
    Rule("worker", "publish", "st/worker/{id}"),
    Rule("worker", "read", "up/+/+/chunk"),
)


@dataclass(frozen=True, slots=True)
class Principal:
    """One participant. Raises BlindsumError "name-unusable" for an id that is no topic level or that is another role's name."""

    role: Role
    id: str

    def __post_init__(self) -> None:
        taken = {
            "device": self.id == COORDINATOR or self.id.startswith((PARTY_USER_PREFIX, WORKER_USER_PREFIX)),
            "party": self.id in (COORDINATOR, EVERYONE),
            "coordinator": self.id != COORDINATOR,
            "worker": False,
        }
        if not is_name(self.id) or taken[self.role]:
            raise BlindsumError("name-unusable", f"{self.role} {self.id!r}")

    @property
    def user(self) -> str:
        """MQTT user name, client id and certificate common name, all one: "coordinator", "coordinator-<id>" of a worker,
        "party-<id>" or the device's id."""
        return {"party": PARTY_USER_PREFIX, "worker": WORKER_USER_PREFIX}.get(self.role, "") + self.id


@dataclass(frozen=True, slots=True)
class Topics:
    """The topics of one principal in one fleet. `tasks`: what a device takes part in; other roles read every task."""

    fleet: str
    principal: Principal
    tasks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in (self.fleet, *self.tasks):
            if not is_name(name):
                raise BlindsumError("name-unusable", repr(name))

    @property
    def root(self) -> str:
        return root_of(self.fleet)

    @property
    def presence(self) -> str:
        """Where this principal's "online" and "offline" stand, retained."""
        return f"{self.root}/st/{self.principal.role}/{self.principal.id}"

    @property
    def subscriptions(self) -> tuple[str, ...]:
        """What to subscribe to from the start to the end. Chunk broadcasts come and go with `chunks`."""
        if self.principal.role == "device":
            return (f"{self.root}/dn/{self.principal.id}/+", *(f"{self.root}/bc/{task}/+" for task in self.tasks))
        if self.principal.role == "worker":  # all, until it knows how many share them
            return tuple(self.uploads("chunk", f"{shard:02x}") for shard in range(SHARDS))
        chunks = f"{self.root}/{CHUNKS}"
        read = [pattern for action, pattern in acl_for(self.fleet, self.principal) if action == "read"]
        return tuple(pattern for pattern in read if pattern != chunks)

    def chunks(self, task: str, blob: bytes) -> str:
        """The filter for the broadcast chunks of `blob` in `task`."""
        return f"{self.root}/bc/{task}/chunk/{blob[:BLOB_PREFIX_SIZE].hex()}/+"

    def uploads(self, kind: str, shard: str = "+") -> str:
        """The filter for what devices say of this kind ("+": of any)."""
        return f"{self.root}/up/{shard}/+/{kind}"

    def route(self, out: Message | ChunkOut) -> str:
        """The topic for an outgoing message. Raises ValueError for a `to` or `kind` this principal has no topic for."""
        kind = "chunk" if isinstance(out, ChunkOut) else out.kind
        if not is_name(kind):
            raise ValueError(f"not a kind: {kind!r}")
        role, own = self.principal.role, self.principal.id
        if role == "device":
            return f"{self.root}/up/{shard_of(own)}/{own}/{kind}"
        target, slash, name = out.to.partition("/")
        if slash and not is_name(name):
            raise ValueError(f"not an address: {out.to!r}")
        if role == "party" and out.to == COORDINATOR:
            return f"{self.root}/px/{own}/{COORDINATOR}/{kind}"
        if role == "coordinator" and out.to == "parties":
            return f"{self.root}/pt/{EVERYONE}/{kind}"
        if role == "coordinator" and slash and target in ("device", "party"):
            return f"{self.root}/{'dn' if target == 'device' else 'pt'}/{name}/{kind}"
        if role == "coordinator" and slash and target == EVERYONE:
            if isinstance(out, ChunkOut):
                return f"{self.root}/bc/{name}/chunk/{out.blob[:BLOB_PREFIX_SIZE].hex()}/{out.index}"
            return f"{self.root}/bc/{name}/{kind}"
        raise ValueError(f"a {role} has no topic for {kind!r} to {out.to!r}")

    def speaker(self, topic: str) -> tuple[str, str] | None:
        """Who alone, and of what type alone, a signed message on `topic` can be, or None for a topic of the coordinator. Where the
        broker keeps to the table, nobody's message can claim to be another's."""
        match topic.removeprefix(f"{self.root}/").split("/"):
            case ["up", _, device, kind]:
                return f"device/{device}", kind
            case ["px", party, _, kind]:
                return f"party/{party}", kind
        return None

    def presence_of(self, topic: str) -> Principal | None:
        """Whose presence `topic` tells, or None where it is any other topic."""
        start = f"{self.root}/st/"
        if not topic.startswith(start):
            return None
        role, _, name = topic.removeprefix(start).partition("/")
        if not is_name(name):
            return None
        try:
            match role:
                case "device" | "party" | "coordinator" | "worker":
                    return Principal(role, name)
        except BlindsumError:
            pass
        return None


def root_of(fleet: str) -> str:
    """The topic prefix of `fleet`: product, protocol version, fleet."""
    return f"blindsum/1/{fleet}"


def writer_of(topic: bytes) -> bytes:
    """Who alone may write on a topic of `up` or `px`, such as b"device/d7"; b"" for other topics. What `Topics.speaker` says, for
    the link's thread, which has a microsecond for it."""
    levels = topic.split(b"/", 6)
    if len(levels) == 7 and levels[3] == b"up":
        return b"device/" + levels[5]
    if len(levels) == 7 and levels[3] == b"px":
        return b"party/" + levels[4]
    return b""


def shard_of(device: str) -> str:
    """The shard of a device as two hex digits: first byte of SHA-256 of its id, mod `SHARDS`."""
    return f"{hashlib.sha256(device.encode()).digest()[0] % SHARDS:02x}"


def acl_for(fleet: str, principal: Principal) -> tuple[tuple[Action, str], ...]:
    """What `principal` may do in `fleet`, as (action, topic filter). Everything else is to be denied."""
    return tuple(
        (rule.action, f"{root_of(fleet)}/{rule.pattern.format(id=principal.id)}")
        for rule in TABLE
        if rule.role == principal.role
    )
