"""One state machine a role: whatever it is told, in whatever order, dying whenever, it keeps its promises."""

from __future__ import annotations

from typing import ClassVar, Literal

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from blindsum.protocol.codec import decode, encode
from blindsum.protocol.envelope import open_envelope, peek
from blindsum.protocol.keys import BOX_PRIVATE_SIZE
from blindsum.protocol.machines.coordinatorround import PHASES
from blindsum.protocol.machines.step import Step
from blindsum.testing.actor import Actor
from blindsum.testing.checkers import CHECKERS, Checker
from blindsum.testing.forgery import announcement, certificate, hand, manifest, proposal, roster_proposal, vote
from blindsum.testing.world import World

Death = Literal["", "before it is stored", "before it is sent"]
SETTINGS = settings(deadline=None, max_examples=12, stateful_step_count=30)


class MortalWorld(World):
    """A world in which one role dies at its next step, when told so."""

    mortal = ""
    death: Death = ""

    def apply(self, actor: Actor, step: Step, *, faulty: bool = True) -> None:
        if actor.name != self.mortal or not self.death:
            super().apply(actor, step, faulty=faulty)
            return
        death, self.death = self.death, ""
        if death == "before it is sent":
            actor.store.commit(step.writes)
            self._stored(actor, step)
            for event in step.events:
                self._happened(actor, event)
        self.crash(actor.name)


class SpentFirst(Checker):
    """A device's header is never sent before its round is stored as spent."""

    def sent(self, world: World, role: str, kind: str, body: bytes) -> None:
        if role.startswith("device/") and kind == "header":
            spent = decode(world.actors[role].store.rows[f"spent/{world.task}"])
            assert open_envelope(body).head.round <= spent, "sent before it was spent"


class RoleMachine(RuleBasedStateMachine):
    """Rounds without end around one role, which crashes, hears everything twice, and is lied to."""

    ROLE: ClassVar[str]
    FAULTY: ClassVar[tuple[str, ...]] = ()

    @initialize(seed=st.integers(0, 999))
    def begin(self, seed: int) -> None:
        checkers = (*CHECKERS, SpentFirst)
        self.world = MortalWorld(seed, devices=4, faulty=self.FAULTY, checkers=checkers, decide_ms=4_000)
        self.world.mortal = self.ROLE
        self.heard: list[bytes] = []
        self.world.network.tap = self._tap
        self.world.start()

    def _tap(self, source: str, target: str, body: bytes) -> bytes:
        if target == self.ROLE and body not in self.heard[-200:]:
            self.heard.append(body)
        return body

    @property
    def rows(self) -> dict[str, bytes]:
        return self.world.actors[self.ROLE].store.rows

    def state(self) -> dict[str, object]:
        value = self.rows.get(f"state/{self.world.task}")
        return decode(value) if value else {}

    def number(self, row: str) -> int:
        value = self.rows.get(f"{row}/{self.world.task}")
        return int(decode(value)) if value else 0

    # -- rules for every role -----------------------------------------------------------------------------------------

    @rule(count=st.integers(1, 40))
    def time_passes(self, count: int) -> None:
        for _ in range(count):
            if not self.world.round.active:
                self.world.start()
            self.world.step()

    @rule()
    def it_restarts(self) -> None:
        self.world.crash(self.ROLE)

    @rule(death=st.sampled_from(["before it is stored", "before it is sent"]))
    def its_next_step_is_its_last(self, death: Death) -> None:
        self.world.death = death

    @rule(data=st.data())
    @precondition(lambda self: self.heard)
    def it_hears_something_again(self, data: st.DataObject) -> None:
        self.world.give(self.ROLE, data.draw(st.sampled_from(self.heard)))

    @rule(data=st.data())
    @precondition(lambda self: self.heard)
    def it_hears_something_damaged(self, data: st.DataObject) -> None:
        raw = bytearray(data.draw(st.sampled_from(self.heard)))
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        before = dict(self.rows)
        if bytes(raw) not in self.heard:
            self.world.give(self.ROLE, bytes(raw))
            assert self.rows == before or self.world.death, "what nobody signed is not stored"

    @rule()
    def it_sleeps_through_the_round(self) -> None:
        self.world.stop(self.ROLE)
        self.world.settle(100)
        self.world.crash(self.ROLE)

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.death = ""
            self.world.network.tap = None
            if self.world.round.active:
                self.world.finish()
            self.world.check()


# -- device -----------------------------------------------------------------------------------------------------------


class DeviceMachineRules(RoleMachine):
    """All parties and the coordinator are corrupt: they sign whatever makes the device upload twice."""

    ROLE = "device/d-0000"
    FAULTY = ("coordinator", "party/1", "party/2", "party/3", "party/4")

    @initialize()
    def nothing_is_spent(self) -> None:
        self.spent = 0

    @rule(later_ms=st.integers(1, 3))
    @precondition(lambda self: self.world.round.view is not None)
    def it_is_shown_another_manifest_with_a_quorum(self, later_ms: int) -> None:
        shown = manifest(self.world, expires_at=self.world.view.manifest.expires_at - later_ms)
        votes = [vote(self.world, party, "manifest", shown.digest) for party in (1, 2, 3, 4)]
        self.world.give(self.ROLE, announcement(self.world, shown, votes))

    @invariant()
    def spent_rounds_stay_spent(self) -> None:
        assert self.number("spent") >= self.spent
        self.spent = self.number("spent")

    @invariant()
    def its_key_is_gone_when_its_upload_is_made(self) -> None:
        state = self.state()
        if f"message/{self.world.task}/header" in self.rows:
            assert state["key"] == b""
            assert self.number("spent") >= state["number"]

    @invariant()
    def it_is_in_no_round_that_it_has_spent_but_to_send_the_upload(self) -> None:
        state = self.state()
        assert not state or state["phase"] in ("uploading", "uploaded") or state["number"] > self.number("spent")


# -- party ------------------------------------------------------------------------------------------------------------


class PartyMachineRules(RoleMachine):
    """The coordinator and party 4 are corrupt: they propose other manifests, rosters and sets to party 1."""

    ROLE = "party/1"
    FAULTY = ("coordinator", "party/4")

    @initialize()
    def nothing_is_offered(self) -> None:
        self.last = 0

    @rule(later_ms=st.integers(1, 3))
    @precondition(lambda self: self.world.round.view is not None)
    def it_is_asked_for_another_manifest(self, later_ms: int) -> None:
        hand(self.world, self.ROLE, manifest(self.world, expires_at=self.world.view.manifest.expires_at - later_ms))

    @rule(count=st.integers(2, 4))
    @precondition(lambda self: len(self.world.round.joins) >= 2)
    def it_is_asked_for_another_roster(self, count: int) -> None:
        joins = {device: raw for device, (raw, _) in sorted(self.world.round.joins.items())[:count]}
        entries = encode([[device, open_envelope(joins[device]).payload["key"]] for device in sorted(joins)])
        hand(self.world, self.ROLE, roster_proposal(self.world, joins, entries))

    @rule(indices=st.sets(st.integers(0, 3), min_size=2))
    @precondition(lambda self: self.world.round.bodies is not None and len(self.world.round.bodies.headers) == 4)
    def it_is_asked_for_another_set(self, indices: set[int]) -> None:
        hand(self.world, self.ROLE, proposal(self.world, indices))

    @rule(indices=st.sets(st.integers(0, 3), min_size=2))
    @precondition(lambda self: self.world.round.bodies is not None and len(self.world.round.bodies.headers) == 4)
    def it_is_shown_a_certificate_without_a_quorum(self, indices: set[int]) -> None:
        proposed = proposal(self.world, indices)
        votes = [vote(self.world, 4, "set", proposed.digest)] * 3
        step = hand(self.world, self.ROLE, certificate(self.world, proposed, votes))
        assert not [event for event in step.events if event.name == "opened"]

    @invariant()
    def round_numbers_never_come_back(self) -> None:
        assert self.number("last") >= self.last
        self.last = self.number("last")
        state = self.state()
        assert not state or state["number"] == self.last

    @invariant()
    def what_is_opened_has_left_no_seed(self) -> None:
        state = self.state()
        if state and state["opened"]:
            assert state["box_private"] == state["beacon"] == b""
            store = self.world.actors[self.ROLE].store
            secrets = [secret for device in self.world.devices for secret in self.world.drawn[f"device/{device}"]]
            assert not any(store.holds(secret) for secret in secrets)
            boxes = [secret for secret in self.world.drawn[self.ROLE] if len(secret) == BOX_PRIVATE_SIZE]
            assert boxes and not any(store.holds(secret) for secret in boxes)  # the beacons are public by now

    @invariant()
    def it_opens_what_it_voted_for(self) -> None:
        state = self.state()
        if state and state["set_vote"]:
            voted = open_envelope(state["set_vote"]).payload["digest"]
            assert voted == state["set_digest"]
            assert {open_envelope(raw).payload["proposal"] for raw in state["openings"]} <= {voted}


# -- coordinator ------------------------------------------------------------------------------------------------------


class CoordinatorMachineRules(RoleMachine):
    """One party and one device are corrupt, and send what is not asked for."""

    ROLE = "coordinator"
    FAULTY = ("party/4", "device/d-0003")

    @initialize()
    def nothing_has_begun(self) -> None:
        self.place = (0, 0)
        self.sums: dict[int, bytes] = {}

    @rule(decides=st.sampled_from(["manifest", "roster", "set"]), digest=st.binary(min_size=32, max_size=32))
    def it_gets_a_vote_for_something_else(self, decides: str, digest: bytes) -> None:
        self.world.give(self.ROLE, vote(self.world, 4, decides, digest))

    @rule(source=st.sampled_from(["party/4", "device/d-0003"]), data=st.data())
    @precondition(lambda self: self.heard)
    def it_gets_another_message_of_a_corrupt_role(self, source: str, data: st.DataObject) -> None:
        own = [raw for raw in self.heard if peek(raw) and open_envelope(raw).head.sender == source]
        if own:
            raw = data.draw(st.sampled_from(own))
            payload = dict(open_envelope(raw).payload)
            name = data.draw(st.sampled_from(sorted(payload)))
            if isinstance(payload[name], bytes) and payload[name]:
                payload[name] = bytes([payload[name][0] ^ 1]) + payload[name][1:]
            self.world.give(self.ROLE, self.world.fleet.resign(raw, payload))

    @invariant()
    def a_round_never_goes_back(self) -> None:
        round_ = self.world.round
        phase = len(PHASES) if round_.state.phase == "failed" else PHASES.index(round_.state.phase)
        assert (round_.state.number, phase) >= self.place
        self.place = (round_.state.number, phase)

    @invariant()
    def a_published_result_stays_as_it_is(self) -> None:
        for key, raw in self.rows.items():
            if key.startswith("result/"):
                assert self.sums.setdefault(int(key.rsplit("/", 1)[1]), raw) == raw


TestDevice = DeviceMachineRules.TestCase
TestParty = PartyMachineRules.TestCase
TestCoordinator = CoordinatorMachineRules.TestCase
TestDevice.settings = TestParty.settings = TestCoordinator.settings = SETTINGS
