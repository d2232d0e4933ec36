"""Whom a round leaves out when parties complain about uploads (SPEC.md section 8.3).

One party's complaint proves nothing: its box may hold garbage, or it may lie. The device is left out all the same, because the
party could not open with it; but a party that complains about so many that no round could finish is disregarded instead, as
long as a quorum can vote and open without it. So neither one bad device nor f bad parties stop a round.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from blindsum.protocol.params import Committee

__all__ = ["Verdict", "judge"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """`excluded`: the code by index of every device left out; `proven`: those of them that t parties refuse, one of which is
    honest."""

    excluded: dict[int, str]
    proven: frozenset[int]


def judge(
    complaints: Mapping[int, Mapping[int, str]], complete: Collection[int], *, least: int, committee: Committee
) -> Verdict:
    """The verdict on `complaints` ({party: {index: code}}) about the `complete` uploads, of which `least` must remain."""
    counts = Counter(index for told in complaints.values() for index in told if index in complete)
    proven = frozenset(index for index, count in counts.items() if count >= committee.threshold)
    heard = dict(complaints)
    for _ in range(committee.parties - committee.quorum + 1):
        excluded = {
            index: code
            for party in sorted(complaints)
            for index, code in complaints[party].items()
            if index in counts and (party in heard or index in proven)
        }
        if len(complete) - len(excluded) >= least:
            break
        doubtful = {party: len(set(counts) & set(told) - proven) for party, told in heard.items()}
        heard.pop(max(sorted(doubtful), key=lambda party: doubtful[party]))
    return Verdict(excluded, proven)
