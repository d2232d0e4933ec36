"""What parties open for a certified survivor set, and how the coordinator puts the openings together (SPEC.md 7.4, 7.5).

A party gives sums over exactly the survivors, never a seed. Every sum has t or more holders, so a sum is taken only when t
equal hashes vouch for it: with at most t - 1 bad parties one of them is honest. Everybody else is named.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, combinations, groupby
from typing import Protocol

from blindsum.protocol.keys import SEED_SIZE, equal
from blindsum.protocol.masks import Lanes, Seeds, dropped_edges, edge_check, edge_shares, self_sum, unmask_edges
from blindsum.protocol.messages import EDGE_SIZE, OpeningContent
from blindsum.protocol.ring import packed_size, reduce, subtract_packed
from blindsum.protocol.roster import RosterView
from blindsum.protocol.sharing import combine as combine_pads
from blindsum.protocol.sharing import held_by
from blindsum.protocol.view import RoundView

__all__ = ["Capped", "Combined", "Unmask", "combine", "designated", "holders", "make_content"]


class Capped(Protocol):
    """A header, as far as its capped edges go."""

    @property
    def edges(self) -> bytes: ...


class Unmask(Protocol):
    """As `masks.unmask_edges`."""

    def __call__(
        self, view: RoundView, lanes: Lanes, secrets: Iterable[tuple[int, int, bytes]], *, threads: int = 1
    ) -> None: ...


@dataclass(slots=True)
class Combined:
    """What the openings so far amount to. `wants`: subsets to ask of a party; `faults`: (principal, code) proven by what they
    signed; `complete`: the masks are out of the lanes; `hopeless`: no further opening can help."""

    complete: bool = False
    hopeless: str = ""
    wants: dict[int, list[int]] = field(default_factory=dict)
    faults: list[tuple[str, str]] = field(default_factory=list)


def holders(view: RoundView, outside: Sequence[int]) -> list[int]:
    """The member parties that hold the seeds of the subset `outside`, in order."""
    return [member.party for member in view.members if member.party not in outside]


def designated(view: RoundView, subset: int) -> int:
    """The party that sends the vector of self subset number `subset` unasked; the work rotates with the round."""
    able = holders(view, view.base.self_subsets[subset])
    return able[(view.number + subset) % len(able)]


def make_content(
    view: RoundView,
    roster: RosterView,
    *,
    party: int,
    survivors: Sequence[int],
    seeds: Mapping[int, Seeds],
    threads: int = 1,
) -> tuple[OpeningContent, dict[int, bytes]]:
    """(part 0 of `party`'s opening, all self-mask sums it holds, packed, by subset number) for exactly `survivors`, in order."""
    sums: dict[int, bytes] = {}
    for subset in held_by(party, view.base.self_subsets):
        held = ((index, seeds[index].self_seeds[subset]) for index in survivors)
        sums[subset] = self_sum(view, roster, subset, held, threads=threads)
    edges = groupby(dropped_edges(roster, survivors), lambda edge: edge[0])
    lost = [(mine, [theirs for _, theirs in gone]) for mine, gone in edges]
    shares = [
        edge_shares(view, roster, subset, lost, [seeds[mine].cap_seeds[subset] for mine, _ in lost])
        for subset in held_by(party, view.base.cap_subsets)
    ]
    content = OpeningContent(
        hashes=[(subset, hashlib.sha256(vector).digest()) for subset, vector in sums.items()],
        shares=b"".join(shares),
        vectors=[(subset, vector) for subset, vector in sums.items() if designated(view, subset) == party],
    )
    return content, sums


def combine(
    view: RoundView,
    roster: RosterView,
    lanes: Lanes,
    *,
    headers: Mapping[int, Capped],
    contents: Mapping[int, Sequence[OpeningContent]],
    threads: int = 1,
    unmask: Unmask = unmask_edges,
) -> Combined:
    """Take the masks out of `lanes`, the ring sum of the bodies of exactly `headers`' devices, if `contents` (the opened parts of
    each party, in order) suffice; otherwise leave `lanes` as they are and say what is missing. `unmask` takes out those of dropped
    edges."""
    out = Combined()
    survivors = sorted(headers)
    edges = list(dropped_edges(roster, survivors))
    sound = {party: parts for party, parts in contents.items() if _sound(view, party, parts, len(edges), out)}
    vectors = _self_sums(view, sound, out)
    secrets = _edge_secrets(view, roster, edges, headers, sound, out)
    if vectors is None or secrets is None:
        return out
    for vector in vectors:
        subtract_packed(view.base.segments, lanes, vector)
    opened = [(mine, theirs, secret) for (mine, theirs), secret in zip(edges, secrets, strict=True)]
    unmask(view, lanes, opened, threads=threads)
    reduce(view.base.segments, lanes)
    out.complete = True
    return out


def _sound(view: RoundView, party: int, parts: Sequence[OpeningContent], edges: int, out: Combined) -> bool:
    """Whether `party`'s opening has the form it must have; if not it counts for nothing."""
    mine, caps = held_by(party, view.base.self_subsets), held_by(party, view.base.cap_subsets)
    first = parts[0]
    good = tuple(subset for subset, _ in first.hashes) == mine and len(first.shares) == SEED_SIZE * len(caps) * edges
    hashes = dict(first.hashes)
    size = packed_size(view.base.segments)
    for part in parts:
        for subset, vector in part.vectors:
            fine = len(vector) == size and hashlib.sha256(vector).digest() == hashes.get(subset)
            good = good and fine
    if not good:
        out.faults.append((f"party/{party}", "opening-malformed"))
    return good


def _self_sums(view: RoundView, contents: Mapping[int, Sequence[OpeningContent]], out: Combined) -> list[bytes] | None:
    """The vouched-for M_T of every subset, or None with `wants` or `hopeless` set as the case may be."""
    found: list[bytes] = []
    for subset, outside in enumerate(view.base.self_subsets):
        able = holders(view, outside)
        hashes = {party: dict(parts[0].hashes)[subset] for party, parts in contents.items() if party in able}
        value, count = Counter(hashes.values()).most_common(1)[0] if hashes else (b"", 0)
        if count < view.base.committee.threshold:
            if set(able) <= set(contents):
                out.hopeless = "openings-disagree"
            continue
        out.faults += [(f"party/{party}", "opening-differs") for party, other in hashes.items() if other != value]
        vouching = [party for party, other in hashes.items() if other == value]
        keeper = designated(view, subset)
        if keeper in vouching and subset not in dict(contents[keeper][0].vectors):
            out.faults.append((f"party/{keeper}", "opening-malformed"))
        vector = next(
            (v for party in vouching for part in contents[party] for s, v in part.vectors if s == subset), None
        )
        if vector is not None:
            found.append(vector)
            continue
        # so many that one of them is honest and gives what it vouches for
        for party in [party for party in vouching if party != keeper][: view.base.committee.threshold]:
            out.wants.setdefault(party, []).append(subset)
    return found if len(found) == len(view.base.self_subsets) else None


def _edge_secrets(
    view: RoundView,
    roster: RosterView,
    edges: Sequence[tuple[int, int]],
    headers: Mapping[int, Capped],
    contents: Mapping[int, Sequence[OpeningContent]],
    out: Combined,
) -> list[bytes] | None:
    """s_uv of every dropped edge, each proven by its check; None while shares are missing."""
    shares = _shares(view, contents, len(edges))
    if edges and not all(shares):
        return None
    committee = view.base.committee
    liars: frozenset[int] = frozenset()  # who was disregarded for the edge before
    secrets: list[bytes] = []
    heard: set[int] = set()
    witnesses: Counter[int] = Counter()
    said = [{*rows.values()} for rows in shares]
    agreed = [share for each in said for share in each] if all(len(each) == 1 for each in said) else []
    for number, (mine, cap, check) in enumerate(_caps(roster, edges, headers)):
        at = slice(SEED_SIZE * number, SEED_SIZE * (number + 1))
        if agreed:  # what the first story below would come to
            secret = combine_pads(cap, [row[at] for row in agreed])
            if equal(edge_check(view, secret), check):
                secrets.append(secret)
                continue
        given = [{party: row[at] for party, row in rows.items()} for rows in shares]
        stories = _stories(view, cap, check, given, liars)
        story = next(stories, None)
        if story is None:
            if len(contents) == len(view.members):
                out.hopeless = "edge-false"
                if len(contents) == committee.parties >= committee.quorum + committee.equivocators:
                    # every subset has an honest holder among all parties, so no share but the device's cap can be false
                    out.faults.append((f"device/{roster.devices[mine]}", "edge-false"))
            return None
        secret, liars = story
        secrets.append(secret)
        if liars and mine not in heard:
            heard.add(mine)
            witnesses.update(liars.intersection(*(others for _, others in stories)))
    # a corrupt device can make its edges fit the lie of a corrupt party; more devices than may be corrupt do not all do so
    proven = [party for party, count in sorted(witnesses.items()) if count > view.base.threat.corrupt(roster.size)]
    out.faults += [(f"party/{party}", "edge-share-differs") for party in proven]
    return secrets


def _caps(
    roster: RosterView, edges: Sequence[tuple[int, int]], headers: Mapping[int, Capped]
) -> Iterator[tuple[int, bytes, bytes]]:
    """(survivor, cap, check) of every edge, as the survivor's header has them."""
    for mine, lost in groupby(edges, lambda edge: edge[0]):
        neighbours, told = roster.neighbours(mine), headers[mine].edges
        for _, theirs in lost:
            place = EDGE_SIZE * neighbours.index(theirs)
            yield mine, told[place : place + SEED_SIZE], told[place + SEED_SIZE : place + EDGE_SIZE]


def _shares(view: RoundView, contents: Mapping[int, Sequence[OpeningContent]], edges: int) -> list[dict[int, bytes]]:
    """For each cap subset the shares of all edges, by the party that gave them."""
    out: list[dict[int, bytes]] = [{} for _ in view.base.cap_subsets]
    for party, parts in contents.items():
        for place, subset in enumerate(held_by(party, view.base.cap_subsets)):
            out[subset][party] = parts[0].shares[SEED_SIZE * edges * place : SEED_SIZE * edges * (place + 1)]
    return out


def _stories(
    view: RoundView, cap: bytes, check: bytes, given: Sequence[Mapping[int, bytes]], liars: frozenset[int]
) -> Iterator[tuple[bytes, frozenset[int]]]:
    """(secret whose check holds, parties whose lies explain what was given), from few liars to many but `liars` before all.

    At most c parties lie: for some set of so many all others agree on every share. (To try combinations of shares instead
    would let one liar among 7 parties make 2^15 of them.) Lies that cancel out leave more than one story: only who is in all
    of them has lied.
    """
    parties = sorted({party for row in given for party in row})
    sizes = range(view.base.committee.equivocators + 1)
    others = (frozenset(chosen) for size in sizes for chosen in combinations(parties, size))
    for suspects in chain((liars,), others):
        rows = ([share for party, share in row.items() if party not in suspects] or [*row.values()] for row in given)
        values = [set(shares) for shares in rows]
        if all(len(shares) == 1 for shares in values):
            secret = combine_pads(cap, [share for shares in values for share in shares])
            if equal(edge_check(view, secret), check):
                yield secret, suspects
