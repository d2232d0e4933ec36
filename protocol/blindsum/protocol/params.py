"""From a threat model to every number of a round, and the refusal of unsafe ones (SPEC.md section 11).

An operator states who may misbehave: f parties, a share of the devices that is corrupt, a share that may drop, and the
smallest number of honest devices a sum may hide in. Everything else follows. Other committees are taken only where two
facts hold, with P parties, t that open layer 1, q whose votes decide, c that may sign two different things:

* 2 q > P + c: two quorums share at least one party that signs once, so no two survivor sets of a round are both
decided;
* t > c: the parties that lie do not hold every seed;
* q >= 2 t - 1: of any q parties that take part, t hold each self-mask sum and can vouch for it; else rounds could not open.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.graph import degree_for
from blindsum.protocol.quantize import bits_for
from blindsum.protocol.sharing import subsets

__all__ = ["PARTIES_MAX", "Committee", "Derived", "ThreatModel", "arrivals_min", "derive", "survivors_min"]

PARTIES_MAX: Final = 10
"""Seeds grow as P choose q - 1: 210 at f = 3. Larger committees want another sharing."""
COHORT_MIN: Final = 2
"""A sum over one honest device is that device's update."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreatModel:
    """`malicious_parties` parties do as they like; `corrupt_permille` of the devices are corrupt and
    `dropped_permille` may vanish at any moment; a sum is opened only over at least `cohort_min` honest devices.
    Raises "parameters-unsafe"."""

    malicious_parties: int = 1
    corrupt_permille: int = 50
    dropped_permille: int = 100
    cohort_min: int

    def __post_init__(self) -> None:
        gamma, delta = self.corrupt_permille, self.dropped_permille
        if self.malicious_parties < 1:
            raise _unsafe("at least one party must be allowed to lie (f >= 1), or one that does reads every update")
        if min(gamma, delta) < 0 or gamma + delta >= 1000:
            raise _unsafe(f"{gamma} permille corrupt and {delta} permille dropped leave no device")
        if self.cohort_min < COHORT_MIN:
            raise _unsafe(f"a cohort of {self.cohort_min} honest devices hides nothing; at least {COHORT_MIN}")

    def corrupt(self, n: int) -> int:
        """How many of n devices are corrupt at most: floor(gamma n)."""
        return n * self.corrupt_permille // 1000

    def dropped(self, n: int) -> int:
        """How many of n devices drop at most: floor(delta n)."""
        return n * self.dropped_permille // 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Committee:
    """`parties` P, of which `threshold` t open layer 1, `quorum` q decide, and `equivocators` c may sign two
    different things. Made by `for_f` or `custom`; raises "parameters-unsafe" with the reason where 2q > P + c, t > c or
    q >= 2t - 1 fails."""

    parties: int
    threshold: int
    quorum: int
    equivocators: int

    def __post_init__(self) -> None:
        p, t, q, c = self.parties, self.threshold, self.quorum, self.equivocators
        name = f"{p} parties, threshold {t}, quorum {q}, {c} equivocating"
        if not 1 <= t <= q <= p <= PARTIES_MAX:
            raise _unsafe(f"{name}: 1 <= threshold <= quorum <= parties <= {PARTIES_MAX} does not hold")
        if 2 * q <= p + max(c, 1):
            raise _unsafe(f"{name}: 2q > P + c fails ({2 * q} <= {p} + {max(c, 1)}). {_breakers(p, t, q)}")
        if c < 1:
            raise _unsafe(f"{name}: at least one party must be allowed to lie, or one that does reads every update")
        if t <= c:
            raise _unsafe(f"{name}: t > c fails: {c} lying parties hold every seed")
        if q < 2 * t - 1:
            short = f"{q} parties may hold a sum {q - t + 1} times, and {t} must vouch for it"
            raise _unsafe(f"{name}: q >= 2t - 1 fails: {short}")

    @classmethod
    def for_f(cls, f: int) -> Committee:
        """The committee of 3f + 1 parties that withstands f malicious ones: t = f + 1, q = 2f + 1, c = f (1 <= f <=
        3)."""
        return cls(parties=3 * f + 1, threshold=f + 1, quorum=2 * f + 1, equivocators=f)

    @classmethod
    def custom(cls, parties: int, threshold: int, quorum: int, equivocators: int) -> Committee:
        """Any committee that is safe against `equivocators` parties that lie in concert with the coordinator."""
        return cls(parties=parties, threshold=threshold, quorum=quorum, equivocators=equivocators)

    @property
    def self_subsets(self) -> tuple[tuple[int, ...], ...]:
        """Layer 1: all sets of t - 1 parties. The seed of a set goes to every party outside it."""
        return subsets(self.parties, self.threshold - 1)

    @property
    def cap_subsets(self) -> tuple[tuple[int, ...], ...]:
        """Layer 2: all sets of q - 1 parties."""
        return subsets(self.parties, self.quorum - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Derived:
    """Every number of a task that a threat model implies. Counts of devices; `degree` and `survivors_min` are those of
    `n_max` devices (a round of n has `degree_for(n, ...)` and `survivors_min(n, threat)`)."""

    threat: ThreatModel
    committee: Committee
    n_min: int
    n_max: int
    degree: int
    survivors_min: int
    width: int
    bits: int
    weight_max: int
    headroom_bits: int
    roster: bool = True

    def describe(self) -> str:
        """The numbers for people, one a line, each with what it follows from."""
        threat, committee = self.threat, self.committee
        seeds = len(committee.self_subsets), len(committee.cap_subsets) if self.roster else 0
        floor = f"{threat.cohort_min} honest ones beside {threat.corrupt(self.n_max)} corrupt"
        rows = (
            (
                "parties",
                f"{committee.parties}: {committee.equivocators} may be malicious, "
                f"{committee.parties - committee.quorum} may be silent",
            ),
            (
                "opening",
                f"any {committee.threshold} parties hold every self-mask seed, "
                f"{committee.threshold - 1} always miss one",
            ),
            (
                "quorum",
                f"{committee.quorum} votes decide, because 2 * {committee.quorum} > "
                f"{committee.parties} + {committee.equivocators}",
            ),
            ("seeds", f"{seeds[0]} for self masks and {seeds[1]} for caps a device"),
            ("devices", f"{self.n_min} to {self.n_max} a round"),
            (
                "survivors",
                f"at least {self.survivors_min} of {self.n_max}: {floor}"
                + (f", at most {threat.dropped(self.n_max)} dropped" if self.roster else ""),
            ),
            ("neighbours", f"{self.degree} at {self.n_max} devices")
            if self.roster
            else (
                "no roster",
                f"one mask layer: {committee.threshold} parties that keep their seeds and pool them with the coordinator "
                f"read every upload (with a roster: {committee.quorum}); devices take part only where their owners allow it",
            ),
            (
                "ring",
                f"{self.width} bits ({self.width / 8:g} bytes a parameter): {self.bits}-bit values, weights up to "
                f"{self.weight_max}" + (f", {self.headroom_bits} bits of headroom" if self.headroom_bits else ""),
            ),
        )
        return "\n".join(f"{name:<11} {text}" for name, text in rows)


def survivors_min(n: int, threat: ThreatModel) -> int:
    """The smallest survivor set that parties open in a round of n devices: `cohort_min` honest ones even if all
    corrupt ones survive, and no more dropped than the graph was made for."""
    return max(threat.cohort_min + threat.corrupt(n), n - threat.dropped(n))


def arrivals_min(n_min: int, n_max: int, threat: ThreatModel) -> int:
    """The smallest survivor set that parties open in a round without a roster: nobody promised to stay, so dropouts do not count,
    and among `n_max` uploads the coordinator may leave out honest ones until all corrupt ones are in the set."""
    return max(n_min, threat.cohort_min + threat.corrupt(n_max))


def derive(
    threat: ThreatModel,
    *,
    n_max: int,
    n_min: int | None = None,
    weight_max: int = 1,
    width: int = 24,
    headroom_bits: int = 0,
    committee: Committee | None = None,
    roster: bool = True,
) -> Derived:
    """What follows from `threat` for rounds of up to `n_max` devices with integer weights up to `weight_max` in a
    ring of `width` bits. `n_min` defaults to the smallest round that survives all its dropouts, `committee` to 3f + 1
    parties; without a `roster` there is one mask layer. Raises "parameters-unsafe" with the numbers where they cannot keep the
    promise."""
    committee = committee or Committee.for_f(threat.malicious_parties)
    if committee.equivocators < threat.malicious_parties:
        raise _unsafe(f"the committee stands {committee.equivocators} lying parties, not {threat.malicious_parties}")
    if n_max < 1 or weight_max < 1 or headroom_bits < 0:
        raise _unsafe(f"{n_max} devices, weights up to {weight_max}, {headroom_bits} bits of headroom")
    if n_min is None:
        n_min = next(
            (n for n in range(threat.cohort_min, n_max + 1) if _opens(n, n - threat.dropped(n), threat)), n_max
        )
    if not n_min <= n_max or not _opens(n_min, n_min, threat):
        raise _unsafe(
            f"{n_min} to {n_max} devices a round: {threat.cohort_min} honest ones beside "
            f"{threat.corrupt(n_min)} corrupt do not fit the smallest"
        )
    return Derived(
        threat=threat,
        committee=committee,
        n_min=n_min,
        n_max=n_max,
        degree=degree_for(n_max, threat.corrupt_permille, threat.dropped_permille) if roster else 0,
        survivors_min=survivors_min(n_max, threat) if roster else arrivals_min(n_min, n_max, threat),
        roster=roster,
        width=width,
        bits=bits_for(width, n_max, weight_max, headroom_bits),
        weight_max=weight_max,
        headroom_bits=headroom_bits,
    )


def _opens(n: int, survivors: int, threat: ThreatModel) -> bool:
    """Whether so many survivors of n devices hold the cohort even where every corrupt device is among them."""
    return survivors >= threat.cohort_min + threat.corrupt(n)


def _breakers(parties: int, threshold: int, quorum: int) -> str:
    """Who breaks a committee whose quorums overlap too little: as many as must sign twice to make two of them."""
    twice = 2 * quorum - parties
    vote = "without votes " if quorum == threshold else ""
    who = "" if twice < 1 else f"{'one bad party' if twice == 1 else f'{twice} bad parties'} plus "
    alone = " alone" if twice < 1 else ""
    return (
        f"{quorum}-of-{parties} {vote}is broken by {who}the coordinator{alone}: two survivor sets that differ in one "
        "device are both opened, and the difference of the sums is its update"
    )


def _unsafe(detail: str) -> BlindsumError:
    return BlindsumError("parameters-unsafe", detail)
