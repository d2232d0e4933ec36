"""A coordinator written from the specification alone (`oracle/coordinator.py`) among the product's devices and parties."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from blindsum.protocol.algorithm import algorithm_of
from blindsum.protocol.codec import decode_chunk
from blindsum.protocol.envelope import open_envelope
from blindsum.protocol.errors import Refused
from blindsum.protocol.evidence import verify_evidence, write_evidence
from blindsum.protocol.machines.device import DeviceMachine
from blindsum.protocol.machines.step import ChunkOut, Event, Message, Outgoing, Step, Write
from blindsum.protocol.messages import chunk_key
from blindsum.protocol.params import Committee
from blindsum.protocol.ring import add_packed, pack, reduce, zeros
from blindsum.protocol.transcript import verify, write_records
from blindsum.protocol.update import encode_update
from blindsum.testing.actor import Actor, make_machine
from blindsum.testing.behaviours import Behaviour
from blindsum.testing.entropy import Entropy
from blindsum.testing.faults import Faults
from blindsum.testing.fleet import make_fleet, make_task
from blindsum.testing.stage import Stage
from blindsum.testing.store import DictStore

LIMIT_MS = 600_000
Lie = Callable[[str, str, bytes], bytes | None]


def with_openssl(oracle: Callable[[str], Any]) -> None:
    """Signatures and key agreements of the second implementation are OpenSSL's: its own are slow, and held to the vectors."""
    for name in ("envelope", "views", "coordinator", "party", "judge", "masks", "kem"):
        module = vars(oracle(name))
        quick = {"ed25519_verify": verified, "ed25519_sign": signed_with, "x25519": agreed}
        module.update({function: quick[function] for function in quick if function in module})


def agreed(private: bytes, public: bytes) -> bytes:
    try:
        return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        return bytes(32)  # what RFC 7748 makes of a point of small order


def verified(public: bytes, signature: bytes, data: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, data)
    except InvalidSignature:
        return False
    return True


def signed_with(seed: bytes, data: bytes) -> tuple[bytes, bytes]:
    """(public key, signature)"""
    key = Ed25519PrivateKey.from_private_bytes(seed)
    return key.public_key().public_bytes_raw(), key.sign(data)


class Spoken:
    """The second implementation where a stage has a machine."""

    deadline = None

    def __init__(self, meeting: Meeting) -> None:
        self._meeting = meeting

    def receive(self, body: bytes, now: int) -> Step:
        try:
            self._meeting.post(self._meeting.book.receive(body, now))
        except self._meeting.fault as fault:
            return Step(refused=Refused(fault.code, fault.culprit or None))
        return Step()

    def wake(self, now: int) -> Step:
        return Step()


class Meeting(Stage):
    """`book` is the coordinator; `lie(target, kind, raw)` says what one receiver is shown in the place of `raw`, None for nothing.
    `quick`: see `with_openssl`."""

    def __init__(
        self,
        oracle: Callable[[str], Any],
        *,
        devices: int = 5,
        behaviours: Mapping[str, Behaviour] | None = None,
        algorithm: str = "fedavg",
        quick: bool = True,
        **task: object,
    ) -> None:
        super().__init__(6, Faults())
        self.oracle, self.fault = oracle, oracle("fault").Fault
        if quick:
            with_openssl(oracle)
        committee = Committee.for_f(1)
        self.fleet = make_fleet(6, parties=committee.parties, devices=devices)
        self.devices = [identity.name for identity in self.fleet.devices]
        settings: dict[str, Any] = {"committee": committee, "devices_max": devices, "length": 8, **task}
        if algorithm != "fedavg":
            settings["algorithm"] = algorithm_of(algorithm, rate_micros=500_000)
        self.task_raw, plan, model = make_task(self.fleet, **settings)
        key, box = self.fleet.coordinator.private_bytes_raw(), self.fleet.coordinator_box
        self.book = oracle("coordinator").BookCoordinator(
            key, box, self.fleet.trust.encode(), self.task_raw, plan, model, Entropy(6, "book")
        )
        self.lie: Lie = lambda _target, _kind, raw: raw
        self.truth: dict[tuple[int, str], bytes] = {}
        self.views: dict[int, Any] = {}
        self.events: list[tuple[str, Event]] = []
        self.said: dict[str, list[bytes]] = {}
        parties = [f"party/{number}" for number in range(1, committee.parties + 1)]
        for name in [*parties, *(f"device/{device}" for device in self.devices)]:
            self._enter(name, (behaviours or {}).get(name, Behaviour()))
        store = DictStore()
        self.actors["coordinator"] = Actor(
            "coordinator", lambda _store, _life: Spoken(self), Behaviour(), store, Spoken(self)
        )

    # -- playing ----------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        self.post(self.book.begin(self.book.number + 1))

    def until(self, phase: str) -> None:
        self.play(lambda: self.book.phase == phase, LIMIT_MS)

    def run(self, rounds: int = 1) -> None:
        for _ in range(rounds):
            self.begin()
            self.until("done")
            self.settle()

    def late(self) -> None:
        """The coordinator waits no longer for those who have not answered."""
        self.post(self.book.turn(self.now, late=True))

    def post(self, outs: list[tuple[str, str, bytes]]) -> None:
        for to, kind, raw in outs:
            self.said.setdefault(kind, []).append(raw)
            roles = {"all": tuple(self.actors), "parties": tuple(n for n in self.actors if n.startswith("party/"))}
            targets = [name for name in roles.get(to, (to,)) if name != "coordinator"]
            if kind == "retained":
                blob, index, _ = decode_chunk(raw)
                self.network.retained.setdefault(blob, {})[index] = raw
                targets = [name for name in targets if blob in self.actors[name].listening]
            for target in targets:
                shown = self.lie(target, kind, raw)
                if shown is not None:
                    self.network.send("coordinator", target, shown, self.now)

    def tell(self, target: str, kind: str, body: object, to: str = "parties") -> str:
        """The coordinator says this to one role, this moment. What it is refused with, "" for nothing."""
        step = self.give(target, self.book.say(kind, to, body)[2])
        return "" if step.refused is None else step.refused.code

    def hand(self, target: str, raw: bytes) -> str:
        step = self.give(target, raw)
        return "" if step.refused is None else step.refused.code

    # -- looking ----------------------------------------------------------------------------------------------------------

    def plain(self, number: int, survivors: list[str]) -> bytes:
        """The packed sum of what these devices have uploaded in a round."""
        segments = self.views[number].base.segments
        lanes = zeros(segments)
        for name in survivors:
            add_packed(segments, lanes, self.truth[number, name])
        reduce(segments, lanes)
        return pack(segments, lanes)

    def judged(self, place: int = -1) -> set[tuple[str, str]]:
        """Who is at fault by the transcript, and of what: the product's verdict, which the second implementation shares."""
        records = self.book.files[place]
        report = verify(b"".join(write_records(records)), trust=self.fleet.trust)
        found = {(fault.principal, fault.code) for fault in report.faults}
        assert {(who, code) for who, code in self.oracle("judge").judge(self.book.trust, records)} == found
        return found

    def proven(self, role: str) -> set[tuple[str, str]]:
        """(culprit, code) of the evidence that a role keeps, each held against the trust bundle by a stranger."""
        found = set()
        for _, row in self.actors[role].store.scan("evidence/sum/"):
            _, first, second, join = self.oracle("cbor").decode(row)
            report = verify_evidence(write_evidence(self.fleet.trust, first, second, join), trust=self.fleet.trust)
            found |= {(fault.principal, fault.code) for fault in report.faults}
        return found

    def happened(self, name: str, role: str) -> list[Event]:
        return [event for who, event in self.events if (who, event.name) == (role, name)]

    def votes(self, decides: str) -> dict[bytes, set[int]]:
        """Who voted for what, of all that reached the coordinator."""
        return {digest: set(given) for (asked, digest), given in self.book.votes.items() if asked == decides}

    # -- machinery --------------------------------------------------------------------------------------------------------

    def _enter(self, name: str, behaviour: Behaviour) -> None:
        def make(store: DictStore, life: int) -> Any:
            draw = Entropy(self.seed, f"{name}/{life}")
            return make_machine(
                self.fleet,
                name,
                store,
                random=draw,
                behaviour=behaviour,
                willing=lambda _view: "",
                tasks=frozenset({"sum"}),
            )

        store = DictStore()
        self.actors[name] = Actor(name, make, behaviour, store, make(store, 1))

    def _shown(self, actor: Actor, kind: str, body: bytes, targets: list[str]) -> list[tuple[str, bytes]]:
        shown = [(target, actor.behaviour.send(self, target, kind, body)) for target in targets]  # type: ignore[arg-type]
        return [(target, raw) for target, raw in shown if raw is not None]

    def _happened(self, actor: Actor, event: Event) -> None:
        self.events.append((actor.name, event))
        machine = actor.machine
        if event.name != "train" or not isinstance(machine, DeviceMachine) or machine.phase("sum") != "training":
            return
        view, name = machine.view("sum"), actor.name.removeprefix("device/")
        assert view is not None
        dice = np.random.default_rng([view.number, self.devices.index(name)])
        update = dice.normal(0, 0.1, view.base.segments[0].length).astype(np.float32)
        rotation, key = view.manifest.rotation, Entropy(6, f"rounding/{name}/{view.number}")(32)
        lanes = encode_update(view.base, update, weight=2, statistics=[7], rotation=rotation, key=key)
        self.views[view.number] = view
        self.truth[view.number, name] = pack(view.base.segments, lanes)
        self.apply(actor, machine.upload("sum", view.number, lanes, self.now))


def body_of(raw: bytes) -> Any:
    return open_envelope(raw).payload


def step_of(outs: list[tuple[str, bytes]]) -> Step:
    """What a role of the second implementation says to the coordinator, as a step of the product's worlds."""
    writes, messages = [], list[Outgoing]()
    for kind, raw in outs:
        if kind == "chunk":
            blob, index, data = decode_chunk(raw)
            writes.append(Write(chunk_key(blob, index), data))
            messages.append(ChunkOut("coordinator", blob, index))
        else:
            messages.append(Message(kind, "coordinator", raw))
    return Step(tuple(writes), tuple(messages))
