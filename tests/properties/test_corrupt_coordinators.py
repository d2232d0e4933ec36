"""A coordinator and f parties in league show honest parties sets, certificates and wants at random, and kill them in between.
Whatever the order, honest parties open one set, and nothing but its sum can be computed of what they sent."""

from __future__ import annotations

import random
from collections import Counter, defaultdict

import pytest

from blindsum.protocol.messages import Want
from blindsum.protocol.params import Committee
from blindsum.testing.behaviours import Silent
from blindsum.testing.checkers import OneAnswer, OnlySums
from blindsum.testing.closure import rounds
from blindsum.testing.forgery import Forged, certificate, hand, proposal, said, vote
from blindsum.testing.world import World

DEVICES, MOVES = 5, 40


class League:
    """A corrupt coordinator with the keys of f parties and all that honest ones have ever signed."""

    def __init__(self, seed: int, f: int) -> None:
        self.dice = random.Random(seed)
        committee = Committee.for_f(f)
        self.liars = range(2 * f + 2, 3 * f + 2)
        self.honest = range(1, 2 * f + 2)
        self.world = World(
            seed,
            devices=DEVICES,
            committee=committee,
            behaviours={"coordinator": Silent("proposal", "certificate")},
            faulty=[f"party/{party}" for party in self.liars],
            checkers=(OneAnswer, OnlySums),
        )
        self.world.start()
        self.world.until("vote")
        self.world.settle(100)
        self.world.stop("coordinator")
        members = (sorted(self.dice.sample(range(DEVICES), size)) for size in (DEVICES, DEVICES - 1, DEVICES - 2))
        self.sets = [proposal(self.world, indices) for indices in members]
        self.votes: defaultdict[bytes, list[bytes]] = defaultdict(list)
        self.parts: Counter[int] = Counter()
        self.codes: Counter[str] = Counter()
        self.opened: dict[int, set[bytes]] = defaultdict(set)
        favourite = self.dice.choice((None, *self.sets))
        self.chosen = [*self.sets, *([favourite] * 4 if favourite else [])]

    def move(self) -> None:
        party, proposed = self.dice.choice(self.honest), self.dice.choice(self.chosen)
        what = self.dice.choice(("show", "show", "certify", "certify", "want", "crash"))
        if what == "crash":
            self.world.crash(f"party/{party}")
        elif what == "show":
            step = hand(self.world, f"party/{party}", proposed)
            self.votes[proposed.digest] += said(step, "vote")
            self.note(step.refused)
        elif what == "certify":
            step = hand(self.world, f"party/{party}", self.certificate(proposed))
            if said(step, "opening"):
                self.opened[party].add(proposed.digest)
            self.note(step.refused)
        else:
            subsets = self.dice.sample(range(len(self.world.base.self_subsets)), 2)
            wanted = Want(
                proposal=proposed.digest, part=self.parts[party] + 1, subsets=subsets[: self.dice.randint(1, 2)]
            )
            step = self.world.give(f"party/{party}", self.world.forge("want", "coordinator", f"party/{party}", wanted))
            self.parts[party] += len(said(step, "opening")) > 0 and step.refused is None
            self.note(step.refused)

    def certificate(self, proposed: Forged) -> Forged:
        """All votes there are for the set, those of the liars, and some that are for another set or twice the same."""
        votes = [*self.votes[proposed.digest], *(vote(self.world, liar, "set", proposed.digest) for liar in self.liars)]
        others = [raw for digest, raws in self.votes.items() if digest != proposed.digest for raw in raws]
        stuffing = [*others, *votes]
        if self.dice.random() < 0.3 and stuffing:
            votes += self.dice.sample(stuffing, min(2, len(stuffing)))
        return certificate(self.world, proposed, votes[:10])

    def note(self, refused: object) -> None:
        self.codes[getattr(refused, "code", "")] += 1


@pytest.mark.parametrize(("f", "seeds"), [(1, range(16)), (2, range(4))])
def test_whatever_a_league_shows_to_whom_one_set_is_opened_and_one_sum_learned(f: int, seeds: range) -> None:
    codes: Counter[str] = Counter()
    opened_in, sums = 0, 0
    for seed in seeds:
        league = League(seed, f)
        for _ in range(MOVES * f):
            league.move()
        sets = set().union(*league.opened.values())
        assert len(sets) <= 1, f"seed {seed}: {len(sets)} sets opened"
        league.world.check()
        checker = next(each for each in league.world.checkers if isinstance(each, OnlySums))
        (round_,) = rounds(league.world, checker.tap)
        learned = round_.derivable([f"party/{liar}" for liar in league.liars])
        assert len(learned) <= len(sets)
        codes += league.codes
        opened_in += len(sets)
        sums += len(learned)
    assert {"second-set", "votes-too-few", "roster-differs", "message-early"} <= codes.keys(), "the league was tame"
    assert 0 < sums <= opened_in < len(seeds) + 1
