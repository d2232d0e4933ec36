"""Keystreams, rings, subsets, graphs, uploads and whole rounds: SPEC.md sections 2 and 7."""

from __future__ import annotations

from typing import Any, Final

from blindsum.protocol.codec import encode
from blindsum.protocol.ring import Segment, packed_size
from scenarios.case import File, secret
from scenarios.scene import Scene

__all__ = ["files"]

_SUITES: Final = (("aes128-ctr", 24), ("chacha20", 40))
_PAGE: Final = 262_144


def files(scene: Scene) -> list[File]:
    return [_keystream(), _mask(), _pack(), _sum(), _subsets(), _graph(), _upload(scene), _round(), _survivors(scene)]


def _segment(length: int, width: int, name: str = "s") -> dict[str, Any]:
    return {"name": name, "length": length, "width": width}


def _vector(name: str, segments: list[dict[str, Any]]) -> bytes:
    return secret(name, packed_size([Segment(**segment) for segment in segments]))


def _keystream() -> File:
    file = File(
        "keystream.json", "the pages of a stream: beginnings, ends, and what lies between blocks", "2.2", "keystream"
    )
    for suite, size in _SUITES:
        key = secret(f"stream of {suite}", size)
        for page, start, count in (
            (0, 0, 80),
            (0, 61, 7),
            (0, _PAGE - 20, 20),
            (1, 0, 20),
            (1, _PAGE - 1, 1),
            (2**32 - 1, 130, 40),
        ):
            file.ok(f"{suite}, page {page}, byte {start}", suite=suite, key=key, page=page, start=start, size=count)
    return file


def _mask() -> File:
    file = File(
        "mask.json", "a keystream added to and subtracted from a vector: every segment starts a page", "2.2", "mask"
    )
    for suite, size in _SUITES:
        for widths in ((16,), (24,), (32,), (64,), (24, 64), (16, 24, 32, 64)):
            segments = [_segment(5, width, f"s{place}") for place, width in enumerate(widths)]
            key = secret(f"mask of {suite}", size)
            file.ok(f"{suite}, {widths} bits", suite=suite, key=key, segments=segments, vector=_vector("x", segments))
    return file


def _pack() -> File:
    file = File("pack.json", "signed values in two's complement, little-endian, 24 bits as two planes", "2.1", "pack")
    for width in (16, 24, 32, 64):
        top = 2 ** (width - 1) - 1
        file.ok(f"{width} bits", segments=[_segment(6, width)], values=[[0, 1, -1, 258, top, -top - 1]])
    file.ok("no values", segments=[_segment(0, 24)], values=[[]])
    both = [_segment(3, 24, "a"), _segment(2, 64, "b")]
    file.ok("two segments", segments=both, values=[[-2, 65_536, 70_000], [-3, 4]])
    return file


def _sum() -> File:
    file = File("sum.json", "sums wrap around, and only vectors of the exact size enter", "2.1", "sum")
    segments = [_segment(4, width, f"s{width}") for width in (16, 24, 32, 64)]
    one, two, three = (_vector(name, segments) for name in ("one", "two", "three"))
    file.ok("three terms", segments=segments, terms=[[1, one], [1, two], [-1, three]])
    file.ok("what is subtracted again is gone", segments=segments, terms=[[1, one], [1, two], [-1, one]])
    for name, wrong in (("one byte short", one[:-1]), ("one byte more", one + b"\0"), ("empty", b"")):
        file.bad("update-wrong-shape", name, segments=segments, terms=[[1, wrong]])
    return file


def _subsets() -> File:
    file = File("subsets.json", "whose seed goes to whom", "2.3", "subsets")
    for parties, size in ((4, 1), (4, 2), (7, 2), (3, 1), (3, 2), (5, 0)):
        file.ok(f"{size} of {parties}", parties=parties, size=size)
    return file


def _graph() -> File:
    file = File(
        "graph.json", "neighbours from a seed: cycles until all have enough, the complete graph for few", "2.4", "graph"
    )
    for devices, degree in ((2, 2), (5, 4), (6, 2), (7, 4), (12, 4), (24, 6), (40, 20)):
        file.ok(
            f"{devices} devices, {degree} neighbours", devices=devices, degree=degree, seed=secret(f"graph {devices}")
        )
    return file


def _upload(scene: Scene) -> File:
    file = File(
        "upload.json",
        "what a device makes of its vector and its secrets: masked body, commitments, capped edges, contents of the boxes",
        "7",
        "upload",
        {
            "manifest": scene.view.digest,
            "roster": scene.roster.digest,
            "suite": scene.base.task.suite,
            "segments": [_segment(s.length, s.width, s.name) for s in scene.base.segments],
            "committee": [4, 2, 3, 1],
            "members": [1, 2, 3, 4],
            "degree": scene.roster.degree,
            "keys": list(scene.roster.keys),
        },
    )
    count = len(scene.base.self_subsets)
    for index, (upload, vector) in enumerate(zip(scene.uploads, scene.vectors, strict=True)):
        file.ok(
            f"device {index} of the round in `messages`",
            index=index,
            private=scene.privates[index],
            self_seeds=upload["seeds"][:count],
            cap_seeds=upload["seeds"][count:],
            vector=vector,
        )
    seeds = {"self_seeds": [secret(f"s{n}") for n in range(21)], "cap_seeds": [secret(f"c{n}") for n in range(35)]}
    segments = [_segment(3, 32, "a"), _segment(2, 64, "b")]
    file.ok(
        "seven parties of which five take part, chacha20",
        suite="chacha20",
        segments=segments,
        committee=[7, 3, 5, 2],
        members=[1, 3, 4, 6, 7],
        index=1,
        private=scene.privates[1],
        vector=_vector("seven", segments),
        **seeds,
    )
    return file


def _round() -> File:
    file = File(
        "round.json",
        "a whole round: `random` gives every device's X25519 key, then all self seeds, then all cap seeds, each by device. All "
        "upload; those who are no survivors count as dropped.",
        "7",
        "round",
    )
    for name, committee, suite, devices, degree, survivors, widths, seeds in (
        ("nobody drops", (4, 2, 3, 1), "aes128-ctr", 4, 3, [0, 1, 2, 3], (24, 64), 10),
        ("two of six drop, sparse graph", (4, 2, 3, 1), "aes128-ctr", 6, 2, [0, 2, 3, 5], (24, 64), 10),
        ("chacha20, the last drops", (4, 2, 3, 1), "chacha20", 4, 3, [0, 1, 2], (16, 32), 10),
        ("seven parties", (7, 3, 5, 2), "aes128-ctr", 3, 2, [0, 2], (32, 64), 56),
    ):
        segments = [_segment(4, width, f"s{width}") for width in widths]
        file.ok(
            name,
            segments=segments,
            committee=list(committee),
            suite=suite,
            degree=degree,
            vectors=[_vector(f"{name} {n}", segments) for n in range(devices)],
            survivors=survivors,
            manifest=secret(f"{name} manifest"),
            roster=secret(f"{name} roster"),
            random=secret(name, devices * 32 * (1 + seeds)),
        )
    return file


def _survivors(scene: Scene) -> File:
    file = File("survivors.json", "the list that candidates and proposals refer to", "5.5", "survivors", {"devices": 6})
    digests = [secret(f"header {n}") for n in range(7)]
    rows = [[n, digests[n]] for n in range(7)]
    file.ok("of the round in `messages`", bytes=scene.survivors)
    file.ok("nobody", bytes=encode([]))
    for name, value in (
        ("not ascending", [rows[2], rows[1]]),
        ("twice the same", [rows[1], rows[1]]),
        ("beyond the roster", [rows[5], rows[6]]),
        ("negative", [[-1, digests[0]]]),
        ("true for an index", [[True, digests[0]]]),
        ("digest of 31 bytes", [[0, digests[0][:-1]]]),
        ("three items", [[0, digests[0], 0]]),
        ("more than there are", [*rows[:6], rows[0]]),
        ("a map", {"0": digests[0]}),
    ):
        file.bad("survivors-malformed", name, bytes=encode(value))
    file.bad("survivors-malformed", "trailing byte", bytes=encode(rows[:2]) + b"\0")
    return file
