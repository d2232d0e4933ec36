"""From masked bodies and what parties opened to the sum, and who opened falsely (SPEC.md section 7.5)."""

from __future__ import annotations

import hashlib
from collections import Counter
from itertools import chain, combinations

from oracle.cbor import Value
from oracle.fault import Fault
from oracle.masks import Vector, held, packed_size, unpack, xor
from oracle.views import KEEPER, Roster, Round, place_of

Contents = dict[int, list[dict[str, Value]]]
"""The parts that each party has opened, in order."""


class Unmasking:
    """One set: the headers of its devices by index, ascending. `faults`: [principal, code] in the order found; `lacking`: who could
    give the sums that nobody has given."""

    def __init__(self, view: Round, roster: Roster, headers: dict[int, dict[str, Value]]) -> None:
        self._view, self._roster, self._headers = view, roster, headers
        self._place = place_of(view, roster)
        self._parties, self._threshold, self._quorum, self._liars = view.task.committee
        self.faults: list[list[str]] = []
        self.lacking: dict[int, list[int]] = {}

    def run(self, contents: Contents, total: Vector) -> Vector:
        """`total`, the sum of the bodies, without their masks. Raises `Fault` where what was opened does not give that."""
        edges = [(u, v) for u in self._headers for v in self._roster.neighbours[u] if v not in self._headers]
        sound = {party: parts for party, parts in contents.items() if self._sound(party, parts, len(edges))}
        hopeless = [""]
        vectors = self._self_sums(sound, hopeless)
        secrets = self._edge_secrets(sound, edges, hopeless)
        if vectors is None or secrets is None:
            raise Fault(hopeless[0] or "openings-too-few", KEEPER)
        for vector in vectors:
            total = self._place.add(total, unpack(self._place.segments, vector), -1)
        for (u, v), secret in zip(edges, secrets, strict=True):
            total = self._place.add(total, self._place.edge_mask(secret), -1 if u < v else 1)
        return total

    def _blame(self, principal: str, code: str) -> None:
        if [principal, code] not in self.faults:
            self.faults.append([principal, code])

    def _sound(self, party: int, parts: list[dict[str, Value]], edges: int) -> bool:
        first = parts[0]
        hashes = dict(first["hashes"])
        caps = held(party, self._place.cap_sets)
        good = [subset for subset, _ in first["hashes"]] == held(party, self._place.self_sets)
        good = good and len(first["shares"]) == 32 * len(caps) * edges
        for subset, vector in (entry for part in parts for entry in part["vectors"]):
            fine = len(vector) == packed_size(self._place.segments)
            good = good and fine and hashlib.sha256(vector).digest() == hashes.get(subset)
        if not good:
            self._blame(f"party/{party}", "opening-malformed")
        return good

    def _self_sums(self, contents: dict[int, list[dict[str, Value]]], hopeless: list[str]) -> list[bytes] | None:
        found = []
        for subset, outside in enumerate(self._place.self_sets):
            able = [party for party in self._view.members if party not in outside]
            hashes = {p: dict(parts[0]["hashes"])[subset] for p, parts in contents.items() if p in able}
            best, count = Counter(hashes.values()).most_common(1)[0] if hashes else (b"", 0)
            if count < self._threshold:
                if set(able) <= set(contents):
                    hopeless[0] = "openings-disagree"
                continue
            for party, other in hashes.items():
                if other != best:
                    self._blame(f"party/{party}", "opening-differs")
            vouching = [party for party, other in hashes.items() if other == best]
            designated = able[(self._view.number + subset) % len(able)]
            if designated in vouching and subset not in dict(contents[designated][0]["vectors"]):
                self._blame(f"party/{designated}", "opening-malformed")
            sent = [v for p in vouching for part in contents[p] for s, v in part["vectors"] if s == subset]
            found += sent[:1]
            if not sent:
                self.lacking[subset] = vouching
        return found if len(found) == len(self._place.self_sets) else None

    def _edge_secrets(
        self, contents: dict[int, list[dict[str, Value]]], edges: list[tuple[int, int]], hopeless: list[str]
    ) -> list[bytes] | None:
        rows: list[dict[int, bytes]] = [{} for _ in self._place.cap_sets]
        for party, parts in contents.items():
            for place, subset in enumerate(held(party, self._place.cap_sets)):
                rows[subset][party] = parts[0]["shares"][32 * len(edges) * place : 32 * len(edges) * (place + 1)]
        if edges and not all(rows):
            return None
        secrets = []
        liars: frozenset[int] = frozenset()
        heard: set[int] = set()
        witnesses: Counter[int] = Counter()
        for number, (u, v) in enumerate(edges):
            place = 48 * self._roster.neighbours[u].index(v)
            entry = self._headers[u]["edges"][place : place + 48]
            given = [{p: row[32 * number : 32 * number + 32] for p, row in shares.items()} for shares in rows]
            stories = self._stories(entry[:32], entry[32:], given, liars)
            if not stories:
                if len(contents) == len(self._view.members):
                    hopeless[0] = "edge-false"
                    if len(contents) == self._parties >= self._quorum + self._liars:
                        self._blame(f"device/{self._roster.devices[u]}", "edge-false")
                return None
            secret, liars = stories[0]
            secrets.append(secret)
            if liars and u not in heard:
                heard.add(u)
                witnesses.update(frozenset.intersection(*(suspects for _, suspects in stories)))
        corrupt = len(self._roster.devices) * self._view.task.shares[0] // 1000
        for party, count in sorted(witnesses.items()):
            if count > corrupt:
                self._blame(f"party/{party}", "edge-share-differs")
        return secrets

    def _stories(
        self, cap: bytes, check: bytes, given: list[dict[int, bytes]], before: frozenset[int]
    ) -> list[tuple[bytes, frozenset[int]]]:
        """(secret whose check holds, parties whose lies explain what was given), `before` first, then from few liars to many."""
        parties, stories = sorted({party for row in given for party in row}), []
        sets = (frozenset(chosen) for size in range(self._liars + 1) for chosen in combinations(parties, size))
        for out in chain((before,), sets):
            rows = [[share for party, share in row.items() if party not in out] or list(row.values()) for row in given]
            if all(len(set(shares)) == 1 for shares in rows):
                secret = xor(cap, *(shares[0] for shares in rows))
                if self._place.edge_check(secret) == check:
                    stories.append((secret, out))
        return stories
