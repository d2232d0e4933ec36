"""One file a message type: real messages of one round, and bodies that break the schema in one way: SPEC.md section 5."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from scenarios.case import File, secret
from scenarios.scene import Scene, Sent

__all__ = ["files"]

_MALFORMED: Final = "message-malformed"
_HASH: Final = secret("hash")
_BLOB: Final = {"size": 1, "chunk_size": 1024, "digests": secret("digest")}

_SECTIONS: Final = {
    "5.1": ("task",),
    "5.2": ("offer-request", "offer", "manifest", "vote", "announcement"),
    "5.3": ("join", "roster-proposal", "roster"),
    "5.4": ("header", "receipt"),
    "5.5": ("candidate", "check", "proposal", "certificate", "opening", "want", "failure"),
    "5.6": ("result", "rollback"),
    "6": ("ask",),
}

_FAULTS: Final[dict[str, dict[str, dict[str, Any]]]] = {
    "task": {
        "a segment of 8 bits": {"segments": [{"name": "s", "length": 1, "width": 8, "codec": "exact"}]},
        "no segments": {"segments": []},
        "a segment's name with a line end": {"segments": [{"name": "s\n", "length": 1, "width": 64, "codec": "exact"}]},
        "an unknown suite": {"suite": "aes256-ctr"},
        "one device": {"devices_min": 1},
        "a float": {"rounds_max": "10"},
        "a deadline of 99 ms": {"join_ms": 99},
        "a criterion of version 0": {"eligibility": [{"kind": "share", "version": 0, "values": []}]},
        "a criterion of five values": {"eligibility": [{"kind": "share", "version": 1, "values": [1] * 5}]},
        "an algorithm without its numbers": {"algorithm": {"name": "fedavg", "rate_micros": 1}},
    },
    "offer-request": {"no task": {"task": b""}, "a task in text": {"task": "task"}},
    "offer": {
        "a box key of 1215 bytes": {"box_key": bytes(1215)},
        "a commitment of 31 bytes": {"beacon_commitment": bytes(31)},
        "ten steps to its key": {"keys": [[0, step % 9, _HASH, bytes(64)] for step in range(10)]},
        "a step signed with 63 bytes": {"keys": [[0, 1, _HASH, bytes(63)]]},
    },
    "manifest": {
        "eleven offers": {"offers": [b"o"] * 11},
        "a rotation of 17 bytes": {"rotation": bytes(17)},
        "a state of 31 bytes": {"state": bytes(31)},
        "a time before 1970": {"issued_at": -1},
        "a time beyond 2^53": {"expires_at": 2**53 + 1},
        "model chunks of 1023 bytes": {"model": {**_BLOB, "chunk_size": 1023}},
    },
    "vote": {
        "on something else": {"decides": "model"},
        "a digest of 33 bytes": {"digest": bytes(33)},
        "a beacon of 33 bytes": {"beacon": bytes(33)},
        "true for bytes": {"digest": True},
    },
    "announcement": {"an empty vote": {"votes": [b""]}, "eleven votes": {"votes": [b"v"] * 11}},
    "join": {
        "no certificate": {"certificate": b""},
        "a certificate of 1025 bytes": {"certificate": bytes(1025)},
        "a key of 31 bytes": {"key": bytes(31)},
    },
    "roster-proposal": {
        "joins as bytes": {"joins": b"joins"},
        "entries without digests": {"entries": {"size": 1, "chunk_size": 1024}},
    },
    "roster": {"votes as a map": {"votes": {"1": b"vote"}}, "no proposal": {"proposal": b""}},
    "header": {
        "index 100000": {"index": 100_000},
        "index -1": {"index": -1},
        "index true": {"index": True},
        "eleven boxes": {"boxes": [b""] * 11},
        "a box in text": {"boxes": ["box"]},
        "a negative size": {"body": {**_BLOB, "size": -1}},
    },
    "receipt": {"an unknown status": {"status": "lost"}, "a code of 65 characters": {"code": "c" * 65}},
    "candidate": {"a roster of 31 bytes": {"roster": bytes(31)}, "survivors as a list": {"survivors": [0, 1]}},
    "check": {
        "index 100000": {"missing": [100_000]},
        "a complaint without a code": {"bad": [[1]]},
        "a code of 65 characters": {"bad": [[1, "c" * 65]]},
    },
    "proposal": {"a roster of 33 bytes": {"roster": bytes(33)}, "survivors as an id": {"survivors": _HASH}},
    "certificate": {"no proposal": {"proposal": b""}, "eleven votes": {"votes": [b"v"] * 11}},
    "opening": {"part 64": {"part": 64}, "plain of 31 bytes": {"plain": bytes(31)}},
    "want": {"part 0": {"part": 0}, "no subsets": {"subsets": []}, "subset 512": {"subsets": [512]}},
    "failure": {"a code of 65 characters": {"code": "c" * 65}, "no digest": {"manifest": b""}},
    "result": {
        "nobody": {"count": 0},
        "party 11": {"openings": [[11, _HASH]]},
        "an opening without a digest": {"openings": [[1]]},
    },
    "rollback": {"an origin of 31 bytes": {"origin": bytes(31)}, "a model as an id": {"model": _HASH}},
    "ask": {
        "no window": {"window": 0},
        "a window of 65": {"window": 65},
        "a bitmap of 129 bytes": {"have": bytes(129)},
    },
}
"""What is changed in a body of each type, so that it breaks the schema."""


def files(scene: Scene) -> list[File]:
    return [_file(scene, section, kind) for section, kinds in _SECTIONS.items() for kind in kinds]


def _file(scene: Scene, section: str, kind: str) -> File:
    about = f"`{kind}`: real ones of one round, and bodies that break the schema"
    file = File(f"messages/{kind}.json", about, section, "message", {"trust": scene.trust.encode()})
    chosen = scene.sent[kind][:3] if kind != "vote" else [scene.sent[kind][n] for n in (0, 4, 7)]
    if kind == "receipt":
        chosen = [scene.sent[kind][n] for n in (0, -2, -1)]
    if kind in ("header", "offer", "offer-request", "join"):
        chosen = chosen[:1]
    for number, sent in enumerate(chosen, 1):
        file.ok(
            f"{number}: from {sent.sender} to {sent.to}",
            **_inputs(scene, sent, msgspec.to_builtins(sent.payload, builtin_types=(bytes,))),
        )
    sent = chosen[0]
    body = _small(kind, msgspec.to_builtins(sent.payload, builtin_types=(bytes,)))
    for name, changes in _FAULTS[kind].items():
        file.bad(_MALFORMED, name, **_inputs(scene, sent, {**body, **changes}))
    least = next(iter(body))
    file.bad(
        _MALFORMED, f"field {least} missing", **_inputs(scene, sent, {k: v for k, v in body.items() if k != least})
    )
    file.bad(_MALFORMED, "one field more", **_inputs(scene, sent, {**body, "extra": 0}))
    file.bad(_MALFORMED, "fields as an array", **_inputs(scene, sent, list(body.values())))
    return file


def _inputs(scene: Scene, sent: Sent, body: Any) -> dict[str, Any]:
    number = 0 if sent.kind == "task" else 2 if sent.kind == "failure" else 1
    head = scene.head(sent.kind, sent.sender, sent.to, number)
    fields = {
        "type": head.type,
        "fleet": head.fleet,
        "task": head.task,
        "round": head.round,
        "from": head.sender,
        "to": head.to,
    }
    return {"seed": scene.seeds[sent.sender], "head": fields, "body": body}


def _small(kind: str, body: dict[str, Any]) -> dict[str, Any]:
    """A body that is as good for the schema and does not fill the files."""
    short: dict[str, dict[str, Any]] = {
        "offer-request": {"task": b"task"},
        "manifest": {"offers": [b"offer"]},
        "announcement": {"task": b"task", "manifest": b"manifest", "votes": [b"vote"]},
        "roster": {"proposal": b"proposal", "votes": [b"vote"]},
        "header": {"boxes": [b"box"]},
        "certificate": {"proposal": b"proposal", "votes": [b"vote"]},
        "offer": {"chain": _HASH},
        "join": {"certificate": b"certificate"},
    }
    return {**body, **short.get(kind, {})}
