"""The bodies of all messages (SPEC.md section 5) as data, and the check of a value against them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeAlias

from oracle.cbor import Value
from oracle.fault import require

Check: TypeAlias = Callable[[Value], bool]
_NAME = re.compile(r"[a-z0-9-]{1,64}\Z")


def whole(low: int, high: int) -> Check:
    return lambda value: type(value) is int and low <= value <= high


def octets(low: int, high: int) -> Check:
    return lambda value: isinstance(value, bytes) and low <= len(value) <= high


def text(most: int) -> Check:
    return lambda value: isinstance(value, str) and len(value) <= most


def one_of(*values: Value) -> Check:
    return lambda value: type(value) in (str, int) and value in values


def many(item: Check, low: int, high: int) -> Check:
    return lambda value: isinstance(value, list) and low <= len(value) <= high and all(map(item, value))


def row(*items: Check) -> Check:
    return lambda value: (
        isinstance(value, list) and len(value) == len(items) and all(c(v) for c, v in zip(items, value, strict=True))
    )


def fields(*optional: str, **wanted: Check) -> Check:
    return lambda value: (
        isinstance(value, dict)
        and set(wanted) - set(optional) <= set(value) <= set(wanted)
        and all(wanted[name](value[name]) for name in value)
    )


def is_name(value: Value) -> bool:
    return isinstance(value, str) and _NAME.match(value) is not None


def is_bool(value: Value) -> bool:
    return isinstance(value, bool)


HASH = octets(32, 32)
RAW = octets(1, 65_536)
KEYS = many(row(whole(0, 2**31 - 1), whole(0, 8), HASH, octets(64, 64)), 0, 9)
RAWS = many(RAW, 0, 10)
MILLIS = whole(0, 2**53)
DURATION = whole(100, 7 * 86_400_000)
INDEX = whole(0, 99_999)
SUBSET = whole(0, 511)
COUNT = whole(0, 2**31 - 1)
DEVICES = whole(2, 100_000)
CODE = text(64)
BLOB = fields(size=whole(0, 2**28), chunk_size=whole(1024, 2**18), digests=octets(0, 32_768))
TENTH = whole(1, 10)
PERMILLE = whole(0, 1000)
MANY_DEVICES = 100_000

OPENING_CONTENT = fields(
    hashes=many(row(SUBSET, HASH), 0, 512), shares=octets(0, 2**63), vectors=many(row(SUBSET, octets(0, 2**63)), 0, 512)
)

BODIES: dict[str, tuple[Check, str, int]] = {
    "task": (
        fields(
            "no_roster",
            trust=HASH,
            plan=BLOB,
            model=BLOB,
            segments=many(
                fields(
                    name=is_name,
                    length=whole(1, 2**27),
                    width=one_of(16, 24, 32, 64),
                    codec=one_of("quantised", "exact"),
                ),
                1,
                16,
            ),
            codec=fields(
                clip_micros=whole(1, 2**53),
                range_micros=whole(1, 2**53),
                bits=whole(2, 32),
                weight_max=whole(1, 2**24),
                rotate=is_bool,
            ),
            threat=fields(
                parties=TENTH,
                threshold=TENTH,
                quorum=TENTH,
                malicious_parties=TENTH,
                corrupt_permille=PERMILLE,
                dropped_permille=PERMILLE,
                cohort_min=DEVICES,
            ),
            devices_min=DEVICES,
            devices_max=DEVICES,
            suite=one_of("aes128-ctr", "chacha20"),
            training=fields(
                epochs=whole(1, 1000),
                batch_size=whole(1, 65_536),
                rate_micros=MILLIS,
                proximal_micros=MILLIS,
                control_micros=MILLIS,
            ),
            algorithm=fields(
                name=one_of("fedavg", "fedavgm", "fedadam", "fedyogi", "scaffold", "evaluate"),
                rate_micros=MILLIS,
                beta1_micros=whole(0, 999_999),
                beta2_micros=whole(0, 999_999),
                tau_micros=MILLIS,
                population=whole(0, 2**53),
            ),
            join_ms=DURATION,
            upload_ms=DURATION,
            decide_ms=DURATION,
            rounds_max=COUNT,
            eligibility=many(fields(kind=is_name, version=whole(1, 255), values=many(MILLIS, 0, 4)), 0, 8),
            no_roster=fields(staleness_max=whole(0, 100)),
        ),
        "operator",
        65_536,
    ),
    "rollback": (fields(task=HASH, previous=HASH, origin=HASH, model=BLOB), "operator", 65_536),
    "offer-request": (fields(task=RAW), "coordinator", 131_072),
    "offer": (fields(box_key=octets(1216, 1216), beacon_commitment=HASH, chain=HASH, keys=KEYS), "party", 4_096),
    "manifest": (
        fields(
            task=HASH,
            previous=HASH,
            model=BLOB,
            state=HASH,
            offers=RAWS,
            rotation=octets(0, 16),
            issued_at=MILLIS,
            join_until=MILLIS,
            upload_until=MILLIS,
            expires_at=MILLIS,
        ),
        "coordinator",
        65_536,
    ),
    "vote": (fields(decides=one_of("manifest", "roster", "set"), digest=HASH, beacon=octets(0, 32)), "party", 1_024),
    "announcement": (fields(task=RAW, manifest=RAW, votes=RAWS), "coordinator", 196_608),
    "join": (fields(manifest=HASH, certificate=octets(1, 1024), key=HASH), "device", 2_048),
    "roster-proposal": (fields(manifest=HASH, joins=BLOB, entries=BLOB), "coordinator", 65_536),
    "roster": (fields(proposal=RAW, votes=RAWS), "coordinator", 131_072),
    "header": (
        fields(
            "certificate",
            manifest=HASH,
            roster=HASH,
            index=INDEX,
            body=BLOB,
            commitments=octets(0, 16_384),
            boxes=many(octets(0, 32_768), 0, 10),
            edges=octets(0, 24_576),
            certificate=octets(1, 1024),
        ),
        "device",
        147_456,
    ),
    "ask": (fields(blob=HASH, have=octets(0, 128), window=whole(1, 64)), "any", 1_024),
    "receipt": (fields(subject=HASH, status=one_of("held", "complete", "refused"), code=CODE), "coordinator", 1_024),
    "candidate": (fields(roster=HASH, survivors=BLOB), "coordinator", 40_960),
    "check": (
        fields(survivors=HASH, missing=many(INDEX, 0, MANY_DEVICES), bad=many(row(INDEX, CODE), 0, MANY_DEVICES)),
        "party",
        393_216,
    ),
    "proposal": (fields(roster=HASH, survivors=BLOB), "coordinator", 40_960),
    "certificate": (fields(proposal=RAW, votes=RAWS), "coordinator", 65_536),
    "opening": (fields(proposal=HASH, part=whole(0, 63), content=BLOB, plain=HASH), "party", 40_960),
    "want": (fields(proposal=HASH, part=whole(1, 63), subsets=many(SUBSET, 1, 512)), "coordinator", 8_192),
    "result": (
        fields(
            previous=HASH,
            rotation=octets(0, 16),
            manifest=HASH,
            roster=HASH,
            proposal=HASH,
            count=whole(1, 100_000),
            sum=BLOB,
            model=BLOB,
            state=HASH,
            openings=many(row(TENTH, HASH), 0, 640),
        ),
        "coordinator",
        131_072,
    ),
    "failure": (fields(manifest=HASH, code=CODE), "coordinator", 1_024),
}
"""type: (body, role that signs, largest size)"""


def check_body(kind: str, value: Value) -> None:
    require(BODIES[kind][0](value), "message-malformed")
