"""Whatever bytes arrive, in whatever state: a machine gives a step. What is not signed changes nothing; what is signed but wrong
never raises."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import cbor2
from hypothesis import given, settings
from hypothesis import strategies as st

from blindsum.protocol.codec import DecodeError, convert, decode, decode_chunk, encode, encode_chunk
from blindsum.protocol.envelope import Head, glance, open_envelope, peek, seal_envelope
from blindsum.protocol.errors import BlindsumError, Refused
from blindsum.protocol.keys import certificate_fault
from blindsum.protocol.machines.step import Machine, Step
from blindsum.protocol.messages import MESSAGES
from blindsum.protocol.queries import read_query
from blindsum.protocol.refusals import REFUSALS
from blindsum.protocol.revocation import revocations_open
from blindsum.protocol.roster import open_join, open_joins, open_roster, read_survivors
from blindsum.protocol.transcript import MAGIC, read_records
from blindsum.protocol.trust import Trust
from blindsum.protocol.versions import foreign, upgrade_required
from blindsum.protocol.view import open_manifest, open_message, open_task
from blindsum.testing.store import DictStore
from blindsum.testing.world import World

PHASES = ("offer", "manifest", "join", "roster", "upload", "check", "vote", "open", "done")
ROLES = ("coordinator", "party/1", "device/d-0000")


@dataclass(frozen=True)
class Recording:
    """A round as seen at the end of each phase: every role's store, what was sent until then, and what time it was."""

    world: World
    rows: dict[tuple[str, str], dict[str, bytes]]
    now: dict[str, int]
    messages: tuple[bytes, ...]

    def store(self, role: str, phase: str) -> DictStore:
        """A copy of the role's store in that phase."""
        return DictStore(self.rows[role, phase])

    def machine(self, role: str, phase: str) -> Machine:
        """The role as it comes back from its store in that phase."""
        return self.world.actors[role].make(self.store(role, phase), 99)


@cache
def of_kind(kind: str) -> list[bytes]:
    """The recorded messages of one type."""
    return [raw for raw in recording().messages if peek(raw) and open_envelope(raw).head.type == kind]


@cache
def enclosed() -> list[bytes]:
    """Messages that stand inside others."""
    kinds = ("announcement", "manifest", "offer", "proposal", "roster-proposal", "task", "vote")
    return [raw for kind in kinds for raw in of_kind(kind)]


@cache
def recording() -> Recording:
    """Two rounds with a dropout in the second, which is recorded."""
    world = World(21, devices=4, rotate=True)
    messages: list[bytes] = [world.task_raw]

    def tap(source: str, target: str, body: bytes) -> bytes | None:
        messages.append(body)
        return None if world.number == 2 and source == "device/d-0003" and not peek(body) else body

    world.network.tap = tap
    world.run()
    world.settle()
    world.start()
    rows, now = {}, {}
    for phase in PHASES:
        world.until(lambda phase=phase: world.phase == phase)
        world.settle(8 if phase != "done" else 4_000)
        now[phase] = world.now
        for role in ROLES:
            rows[role, phase] = dict(world.actors[role].store.rows)
    return Recording(world, rows, now, tuple(dict.fromkeys(messages)))


def check_step(step: Step) -> None:
    assert isinstance(step, Step)
    assert step.refused is None or step.refused.code in REFUSALS


def deliver(role: str, phase: str, body: bytes) -> Step:
    tape = recording()
    machine = tape.machine(role, phase)
    machine.wake(tape.now[phase])  # what a new life says first
    step = machine.receive(body, tape.now[phase])
    check_step(step)
    check_step(machine.wake(tape.now[phase] + 1))
    return step


# -- unsigned bytes ---------------------------------------------------------------------------------------------------

junk = st.one_of(
    st.binary(max_size=300),
    st.binary(max_size=300).map(lambda data: b"\xd2" + data),
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.binary(max_size=40) | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=5),
        max_leaves=20,
    ).map(lambda value: b"\xd2" + cbor2.dumps(value)),
    st.builds(
        lambda parts: cbor2.dumps(cbor2.CBORTag(18, parts), canonical=True),
        st.lists(st.binary(max_size=60) | st.just({}), min_size=3, max_size=5),
    ),
    st.builds(encode_chunk, st.binary(min_size=32, max_size=32), st.integers(0, 2**20 - 1), st.binary(max_size=2000)),
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A genuine message of the recording, cut, spliced with another, or with a few bytes changed."""
    messages = recording().messages
    raw = bytearray(draw(st.sampled_from(messages)))
    how = draw(st.sampled_from(("cut", "splice", "bytes", "insert")))
    at = draw(st.integers(0, len(raw) - 1))
    if how == "cut":
        return bytes(raw[:at])
    if how == "splice":
        return bytes(raw[:at] + draw(st.sampled_from(messages))[at:])
    if how == "insert":
        return bytes(raw[:at] + draw(st.binary(min_size=1, max_size=9)) + raw[at:])
    for _ in range(draw(st.integers(1, 3))):
        raw[draw(st.integers(0, len(raw) - 1))] ^= draw(st.integers(1, 255))
    return bytes(raw)


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(ROLES), st.sampled_from(PHASES), junk | damaged())
def test_bytes_that_nobody_signed_change_nothing_in_any_state(role: str, phase: str, body: bytes) -> None:
    if body in recording().messages:
        return  # the damage undid itself
    step = deliver(role, phase, body)
    assert step.refused is not None and not step.refused.culprit
    assert not step.writes and not step.messages


@settings(deadline=None, max_examples=200)
@given(junk | damaged())
def test_decoders_give_a_value_or_their_one_error(body: bytes) -> None:
    for decoder in (decode, decode_chunk, open_envelope, Trust.decode):
        with suppress(DecodeError):
            decoder(body)
    trust = recording().world.fleet.trust
    for opener in (open_message, open_task):
        opened = opener(trust, body)
        assert not isinstance(opened, Refused) or opened.code in REFUSALS
    try:
        value = decode(body)
    except DecodeError:
        return
    assert encode(value) == body, "one value has one encoding"
    for kind, _, _ in MESSAGES.values():
        with suppress(DecodeError):
            convert(value, kind)


lists = st.recursive(
    st.integers(-1, 9) | st.binary(max_size=40) | st.sampled_from([bytes(32), "d-0000", "d-0001", "training"]),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.sampled_from(["kind", "digits", "x"]), inner),
    max_leaves=12,
).map(encode)


@settings(deadline=None, max_examples=200)
@given(junk | damaged() | lists)
def test_openers_give_a_view_or_a_refusal(body: bytes) -> None:
    """Of what stands in blobs, of other versions, of files, and of what a message claims."""
    tape = recording()
    view = tape.world.round.view
    assert view is not None
    for opened in (
        read_survivors(body, 8),
        open_join(view, body),
        open_joins(view, body),
        open_roster(view, body, bytes(32)),
        open_manifest(view.base, body),
        upgrade_required(view.trust, body) or body,
    ):
        assert not isinstance(opened, Refused) or opened.code in REFUSALS
    assert glance(body) is None or foreign(body) is None
    with suppress(DecodeError):
        read_records(MAGIC + body)
    with suppress(BlindsumError):
        read_query(body)
    with suppress(BlindsumError):
        revocations_open(body, ca=view.trust.ca)
    fault, _, _ = certificate_fault(body, ca=view.trust.ca, now=tape.now["done"])
    assert fault in REFUSALS


# -- signed bytes -----------------------------------------------------------------------------------------------------

leaves = st.one_of(
    st.integers(-2, 5),
    st.sampled_from([0, 1, 63, 64, 511, 512, 99_999, 100_000, 2**31 - 1, 2**31, 2**53, 2**63, 2**64 - 1]),
    st.binary(max_size=33),
    st.sampled_from([bytes(32), bytes(16), b"\xff" * 32, b""]),
    st.text(max_size=8),
    st.none(),
    st.booleans(),
    st.just([]),
    st.just({}),
)


@st.composite
def signed(draw: st.DrawFn) -> bytes:
    """A message that its sender has really signed, with some of its fields exchanged for others'."""
    tape = recording()
    kind = draw(st.sampled_from(sorted(MESSAGES)))
    known = of_kind(kind)
    if known:
        raw = draw(st.sampled_from(known))
        head, payload = open_envelope(raw).head, open_envelope(raw).payload
    else:
        role = MESSAGES[kind][1]
        sender = {"party": "party/2", "device": "device/d-0001", "any": "coordinator"}.get(role, role)
        head = Head(type=kind, fleet="test", task="sum", round=2, sender=sender, to="all")
        payload = draw(st.fixed_dictionaries(dict.fromkeys(MESSAGES[kind][0].__struct_fields__, leaves)))
    for _ in range(draw(st.integers(0, 3))):
        payload = draw(mutated(payload))
    fields = {name: getattr(head, name) for name in ("type", "fleet", "task", "round", "sender", "to")}
    fields["round"] = draw(st.sampled_from([2, 2, 2, head.round, 1, 3]))
    fields["to"] = draw(st.sampled_from([head.to, head.to, "all", "parties", *ROLES]))
    if draw(st.integers(0, 9)) == 0:
        fields["type"] = draw(st.sampled_from(sorted(MESSAGES)))
    return seal_envelope(tape.world.fleet.key_of(head.sender), Head(**fields), payload)


@st.composite
def mutated(draw: st.DrawFn, value: Any) -> Any:
    """`value` with one thing in it changed, somewhere."""
    if isinstance(value, dict) and value and draw(st.integers(0, 5)):
        name = draw(st.sampled_from(sorted(value, key=str)))
        return {**value, name: draw(mutated(value[name]))}
    if isinstance(value, list) and value and draw(st.integers(0, 3)):
        at = draw(st.integers(0, len(value) - 1))
        how = draw(st.sampled_from(("change", "drop", "repeat", "reverse")))
        if how == "drop":
            return value[:at] + value[at + 1 :]
        if how == "repeat":
            return [*value, value[at]]
        if how == "reverse":
            return value[::-1]
        return [*value[:at], draw(mutated(value[at])), *value[at + 1 :]]
    if isinstance(value, bytes):
        return draw(
            st.one_of(
                st.binary(min_size=len(value), max_size=len(value)) if len(value) < 65 else st.just(value[:-1]),
                st.sampled_from(enclosed()),
                st.just(value + b"\x00"),
                leaves,
            )
        )
    if isinstance(value, int) and not isinstance(value, bool):
        return draw(st.integers(value - 2, value + 2) | leaves)
    return draw(leaves)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(ROLES), st.sampled_from(PHASES), signed())
def test_no_signed_message_makes_a_machine_raise(role: str, phase: str, body: bytes) -> None:
    deliver(role, phase, body)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(ROLES), st.sampled_from(PHASES), st.lists(signed() | damaged(), min_size=2, max_size=12))
def test_no_sequence_of_messages_makes_a_machine_raise(role: str, phase: str, bodies: list[bytes]) -> None:
    tape = recording()
    machine = tape.machine(role, phase)
    store = DictStore(tape.rows[role, phase])
    machine = tape.world.actors[role].make(store, 98)
    now = tape.now[phase]
    for place, body in enumerate(bodies):
        step = machine.receive(body, now + place)
        check_step(step)
        store.commit(step.writes)
        if place % 4 == 3:
            machine = tape.world.actors[role].make(store, 100 + place)
    store.commit(machine.wake(now + 10_000).writes)
    tape.world.actors[role].make(store, 200).wake(now + 10_000_000)
