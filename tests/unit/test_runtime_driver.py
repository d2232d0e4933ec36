"""The driver's order of things, against a link whose every event the test decides. Over real brokers: tests/broker."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from blindsum.protocol.codec import decode_chunk
from blindsum.protocol.envelope import Head, seal_envelope
from blindsum.protocol.errors import BlindsumError, Refused
from blindsum.protocol.machines.allowance import FRUITLESS_BURST, FRUITLESS_PER_S
from blindsum.protocol.machines.step import ChunkOut, Event, Listen, Message, Step, Store, Write
from blindsum.protocol.messages import MESSAGE_SIZE_MAX, chunk_key
from blindsum.runtime.courier import CHUNK_WINDOW_MAX
from blindsum.runtime.driver import CALLS_MAX, GROUP_MAX, INBOX_MAX, PRESENCE_BURST, Driver
from blindsum.runtime.ports import Inbound, LinkState, Outcome, Token
from blindsum.runtime.sqlite import SqliteStore
from blindsum.runtime.topics import Principal, Topics

BLOB = bytes(range(32))
TOPICS = Topics("f1", Principal("party", "1"))
UP, DOWN = LinkState(connected=True), LinkState(connected=False, code="broker-unreachable", detail="gone")
WAIT_S = 20.0


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.002)


@dataclass
class ScriptedLink:
    """A link that publishes into a list. The test says what becomes of each and what arrives."""

    journal: list[str]
    window: int = 20
    max_packet_size: int = 600_000
    published: list[tuple[str, bytes, bool]] = field(default_factory=list)
    flying: list[Callable[[Outcome], None]] = field(default_factory=list)
    filters: list[str] = field(default_factory=list)
    acked: list[int] = field(default_factory=list)
    resumed: int = 0
    closed: bool = False
    connected: bool = False
    named: bool = True
    arrivals: int = 0

    def open(
        self,
        subscriptions: Iterable[str],
        *,
        on_message: Callable[[Inbound], bool],
        on_state: Callable[[LinkState], None],
    ) -> None:
        self.filters += subscriptions
        self.on_message, self.on_state = on_message, on_state

    def ignore(self, unheard: Callable[[bytes], bool]) -> None:
        self.unheard = unheard

    def arrive(self, body: bytes, topic: str = "blindsum/1/f1/pt/1/x") -> bool:
        self.arrivals += 1
        return self.on_message(Inbound(topic, body, Token(1, self.arrivals, 1)))

    def connect(self) -> None:
        self.connected = True
        self.on_state(UP)

    def lose(self) -> None:
        self.connected = False
        self.on_state(DOWN)
        flying, self.flying = self.flying, []
        for done in flying:
            done(Outcome.LOST)

    def land(self, outcome: Outcome = Outcome.SENT) -> None:
        self.flying.pop(0)(outcome)

    @property
    def room(self) -> int:
        return self.window - len(self.flying) if self.connected else 0

    def publish(self, topic: str, body: bytes, *, retain: bool, done: Callable[[Outcome], None]) -> bool:
        if len(body) > self.max_packet_size:
            raise BlindsumError("packet-too-large", str(len(body)))
        if self.room <= 0:
            return False
        self.journal.append("publish")
        self.published.append((topic, body, retain))
        self.flying.append(done)
        return True

    def subscribe(self, topic_filter: str) -> None:
        self.filters.append(topic_filter)

    def unsubscribe(self, topic_filter: str) -> None:
        self.filters.remove(topic_filter)

    def ack(self, *tokens: Token) -> None:
        self.journal += ["ack"] * len(tokens)
        self.acked += [token.mid for token in tokens]

    def resume(self) -> None:
        self.resumed += 1

    def close(self, timeout_s: float = 2.0) -> None:
        self.closed = True
        self.lose()


class JournalStore(SqliteStore):
    def __init__(self, path: Path, journal: list[str]) -> None:
        super().__init__(path)
        self.journal = journal

    def commit(self, writes: Iterable[Write] = (), messages: Iterable[Message | ChunkOut | Listen] = ()) -> None:
        super().commit(writes, messages)
        self.journal.append("commit")


class Tally:
    """A machine that counts messages in memory and in the store, and does what the message's words say."""

    made = 0

    def __init__(self, store: Store) -> None:
        type(self).made += 1
        self.store = store
        self.count = int.from_bytes(store.get("count") or b"")
        self.deadline: int | None = None
        self.woken: list[int] = []
        self.hold: threading.Event | None = None

    def receive(self, body: bytes, now: int) -> Step:
        if self.hold is not None:
            self.hold.wait(WAIT_S)
        word, _, rest = body.decode().partition(" ")
        if word == "refuse":
            return Step(refused=Refused("message-oversized", culprit=rest))
        self.count += 1
        write = Write("count", self.count.to_bytes(4))
        assert word != "fault", "as asked"
        match word:
            case "say":
                return Step(
                    (write,), (Message("vote", "coordinator", rest.encode()),), (Event("counted", {"n": self.count}),)
                )
            case "nowhere":
                return Step((write,), (Message("vote", "device/x", b""),))
            case "chunks":
                rows = [Write(chunk_key(BLOB, index), index.to_bytes(2) * 5) for index in range(int(rest))]
                return Step((write, *rows), tuple(ChunkOut("coordinator", BLOB, index) for index in range(int(rest))))
            case "forget":
                return Step((write, Write(chunk_key(BLOB, int(rest)), None)))
            case "listen":
                return Step((write,), (Listen("t1", BLOB, on=rest == "on"),))
            case "at":
                self.deadline = int(rest)
        return Step((write,))

    def wake(self, now: int) -> Step:
        self.woken.append(now)
        if self.store.get("sick") is not None and type(self).made < 3:
            raise RuntimeError("as asked")
        if self.deadline is not None and self.deadline <= now:
            self.deadline = None
            return Step((), (Message("vote", "coordinator", b"late"),))
        return Step()


@dataclass
class Rig:
    driver: Driver
    store: JournalStore
    link: ScriptedLink
    journal: list[str]
    events: list[Event]
    refused: list[Refused]
    time: list[int]

    def machine(self) -> Tally:
        machine = self.driver.call(lambda machine, _now: machine).result(WAIT_S)
        assert isinstance(machine, Tally)
        return machine

    def settle(self) -> None:
        """Return when everything that arrived has been dealt with."""
        until(lambda: len(self.link.acked) == self.link.arrivals)
        self.machine()
        self.machine()

    @property
    def names(self) -> list[str]:
        return [event.name for event in self.events]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    Tally.made = 0
    journal: list[str] = []
    store = JournalStore(tmp_path / "r.sqlite", journal)
    link = ScriptedLink(journal)
    events: list[Event] = []
    refused: list[Refused] = []
    clock = [1_000_000]
    driver = Driver(
        lambda: Tally(store),
        store,
        link,
        TOPICS,
        clock=lambda: clock[0],
        on_event=events.append,
        on_refused=refused.append,
    )
    yield Rig(driver, store, link, journal, events, refused, clock)
    driver.stop()
    store.close()


def started(rig: Rig) -> Rig:
    rig.driver.start()
    rig.link.connect()
    rig.machine()
    rig.journal.clear()
    return rig


def test_nothing_leaves_before_it_is_stored_and_nothing_is_acknowledged_before(rig: Rig) -> None:
    started(rig).link.arrive(b"say hello")
    rig.settle()
    assert rig.journal == ["commit", "ack", "publish"]
    assert rig.link.published == [("blindsum/1/f1/px/1/coordinator/vote", b"hello", False)]
    assert rig.store.get("count") == (1).to_bytes(4)


def test_events_come_after_the_commit(rig: Rig) -> None:
    seen: list[list[str]] = []
    rig.driver._on_event = lambda event: seen.append([*rig.journal]) if event.name == "counted" else None
    started(rig).link.arrive(b"say x")
    rig.settle()
    assert seen == [["commit"]]


def test_waiting_messages_share_a_commit(rig: Rig) -> None:
    machine = started(rig).machine()
    machine.hold = threading.Event()
    rig.link.arrive(b"say 0")
    until(lambda: not rig.driver._inbox)
    for number in range(GROUP_MAX):
        rig.link.arrive(b"say %d" % number)
    machine.hold.set()
    rig.settle()
    assert rig.journal.count("commit") == 2
    assert rig.link.acked == list(range(1, 2 + GROUP_MAX))


def test_full_inbox_holds_the_link_back_and_then_lets_it_go_on(rig: Rig) -> None:
    machine = started(rig).machine()
    machine.hold = threading.Event()
    assert rig.link.arrive(b"say first")
    until(lambda: not rig.driver._inbox)
    for _ in range(INBOX_MAX):
        assert rig.link.arrive(b"say x")
    assert not rig.link.arrive(b"say too much")
    rig.link.arrivals -= 1
    assert rig.link.resumed == 0
    machine.hold.set()
    rig.settle()
    assert rig.link.resumed > 0
    assert machine.count == 1 + INBOX_MAX


def test_inbox_is_full_of_bytes_too(rig: Rig) -> None:
    rig.driver._inbox_size_max = 1000
    machine = started(rig).machine()
    machine.hold = threading.Event()
    assert rig.link.arrive(b"say first")
    until(lambda: not rig.driver._inbox)
    assert [rig.link.arrive(b"say " + bytes(400)) for _ in range(4)] == [True, True, True, False]
    rig.link.arrivals -= 1
    machine.hold.set()
    rig.settle()
    assert rig.link.resumed > 0
    assert rig.link.arrive(b"say more")
    rig.settle()


def test_refusals_are_counted_told_and_stop_nothing(rig: Rig) -> None:
    started(rig)
    for body in (b"refuse device/a", b"say x", b"refuse device/b"):
        rig.link.arrive(body)
    rig.settle()
    assert rig.driver.refusals == {"message-oversized": 2}
    assert [refused.culprit for refused in rig.refused] == ["device/a", "device/b"]
    assert rig.machine().count == 1


def test_oversized_message_never_reaches_the_machine(rig: Rig) -> None:
    started(rig).link.arrive(b"say " + bytes(MESSAGE_SIZE_MAX))
    rig.settle()
    assert rig.driver.refusals == {"message-oversized": 1}
    assert rig.machine().count == 0


def test_fault_of_the_machine_undoes_its_step_alone_and_restores_it(rig: Rig) -> None:
    machine = started(rig).machine()
    machine.hold = threading.Event()
    rig.link.arrive(b"say first")
    until(lambda: not rig.driver._inbox)
    for body in (b"say 2", b"say 3", b"fault", b"say 4"):
        rig.link.arrive(body)
    machine.hold.set()
    rig.settle()
    assert rig.driver.refusals == {"internal-error": 1}
    assert rig.machine() is not machine
    assert rig.machine().count == 4
    assert rig.store.get("count") == (4).to_bytes(4)
    assert [body for _, body, _ in rig.link.published] == [b"first", b"2", b"3", b"4"]


def test_step_whose_message_has_no_topic_is_a_fault_and_not_stored(rig: Rig) -> None:
    started(rig).link.arrive(b"nowhere")
    rig.settle()
    assert rig.driver.refusals == {"internal-error": 1}
    assert rig.store.get("count") is None
    assert rig.store.outbox() == []


def test_machine_that_fails_to_wake_is_restored_and_woken_after_a_pause(rig: Rig) -> None:
    rig.store.commit([Write("sick", b"")])
    rig.driver.start()
    until(lambda: Tally.made == 2)
    rig.machine()
    assert Tally.made == 2, "not before the pause is over"
    rig.time[0] += 1000
    rig.machine()
    until(lambda: Tally.made == 3)
    rig.time[0] += 1000
    rig.machine()
    until(lambda: rig.machine().woken)
    assert rig.driver.refusals == {"internal-error": 2}
    assert rig.driver.running


def test_machine_is_woken_at_the_start_and_at_its_deadline(rig: Rig) -> None:
    started(rig)
    assert rig.machine().woken == [1_000_000]
    rig.link.arrive(b"at 1000500")
    rig.settle()
    assert rig.machine().woken == [1_000_000]
    rig.time[0] = 1_000_500
    rig.machine()
    until(lambda: rig.link.published)
    assert rig.machine().woken == [1_000_000, 1_000_500]
    assert rig.link.published[0][1] == b"late"


def test_machine_is_woken_when_the_clock_was_far_ahead_and_is_set_back(rig: Rig) -> None:
    started(rig)
    rig.link.arrive(b"at 1000000")
    rig.settle()
    rig.time[0] += 10**10
    rig.machine()
    until(lambda: len(rig.machine().woken) == 2)
    rig.time[0] -= 10**10
    rig.link.arrive(b"at 1000500")
    rig.settle()
    rig.time[0] += 2000
    rig.machine()
    until(lambda: rig.machine().woken[2:] == [1_002_000])


def test_call_commits_its_step_before_it_answers(rig: Rig) -> None:
    started(rig)
    step = rig.driver.call(
        lambda _machine, _now: Step((Write("k", b"v"),), (Message("vote", "coordinator", b"m"),))
    ).result(WAIT_S)
    assert rig.store.get("k") == b"v"
    assert len(step.messages) == 1
    assert rig.driver.call(lambda _machine, now: now).result(WAIT_S) == 1_000_000


def test_call_hands_back_what_the_machine_raised(rig: Rig) -> None:
    started(rig)
    machine = rig.machine()

    def misuse(_machine: object, _now: int) -> None:
        raise BlindsumError("update-wrong-shape", "3 values")

    with pytest.raises(BlindsumError, match="update-wrong-shape"):
        rig.driver.call(misuse).result(WAIT_S)
    assert rig.machine() is machine, "a misuse is no fault"
    with pytest.raises(ZeroDivisionError):
        rig.driver.call(lambda _machine, _now: 1 // 0).result(WAIT_S)
    assert rig.machine() is not machine
    with pytest.raises(BlindsumError, match="internal-error"):
        rig.driver.call(lambda _machine, _now: Step((), (Message("vote", "device/x", b""),))).result(WAIT_S)


def test_call_on_a_stopped_or_overfull_driver_is_refused(rig: Rig) -> None:
    with pytest.raises(BlindsumError, match="driver-stopped"):
        rig.driver.call(lambda _machine, _now: None)
    started(rig)
    gate = threading.Event()
    first = rig.driver.call(lambda _machine, _now: gate.wait(WAIT_S))
    until(first.running)
    waiting = [rig.driver.call(lambda _machine, _now: None) for _ in range(CALLS_MAX)]
    with pytest.raises(BlindsumError, match="driver-busy"):
        rig.driver.call(lambda _machine, _now: None)
    threading.Timer(0.1, gate.set).start()
    rig.driver.stop()
    for future in waiting:
        with pytest.raises(BlindsumError, match="driver-stopped"):
            future.result(WAIT_S)
    with pytest.raises(BlindsumError, match="driver-stopped"):
        rig.driver.call(lambda _machine, _now: None)


def test_row_is_deleted_only_when_the_broker_has_the_message(rig: Rig) -> None:
    started(rig).link.arrive(b"say x")
    rig.settle()
    assert len(rig.store.outbox()) == 1
    rig.link.land()
    until(lambda: not rig.store.outbox())


def test_lost_publish_goes_again_in_order_after_the_reconnect(rig: Rig) -> None:
    started(rig)
    for number in range(3):
        rig.link.arrive(b"say %d" % number)
    rig.settle()
    rig.link.lose()
    rig.link.arrive(b"say 3")
    rig.settle()
    assert len(rig.link.published) == 3
    rig.link.connect()
    until(lambda: len(rig.link.published) == 7)
    assert [body for _, body, _ in rig.link.published] == [b"0", b"1", b"2", b"0", b"1", b"2", b"3"]
    for _ in range(4):
        rig.link.land()
    until(lambda: not rig.store.outbox())
    assert rig.names[:3] == ["connected", "counted", "counted"]
    assert rig.events[4] == Event("disconnected", {"code": "broker-unreachable", "detail": "gone"})


def test_publish_that_the_broker_refuses_is_told_and_not_repeated(rig: Rig) -> None:
    started(rig).link.arrive(b"say x")
    rig.settle()
    rig.link.land(Outcome.REFUSED)
    until(lambda: not rig.store.outbox())
    assert rig.driver.refusals == {"publish-refused": 1}
    assert rig.names[-1] == "undeliverable"
    assert len(rig.link.published) == 1


def test_message_too_large_for_the_broker_is_told_and_does_not_block_others(rig: Rig) -> None:
    rig.link.max_packet_size = 1000
    started(rig).link.arrive(b"say " + bytes(2000))
    rig.link.arrive(b"say small")
    rig.settle()
    until(lambda: len(rig.store.outbox()) == 1)
    assert [body for _, body, _ in rig.link.published] == [b"small"]
    undeliverable = Event("undeliverable", {"code": "packet-too-large", "kind": "vote", "to": "coordinator"})
    assert undeliverable in rig.events


def test_outbox_of_an_earlier_life_is_sent_at_the_start(rig: Rig) -> None:
    rig.store.commit([], [Message("vote", "coordinator", b"%d" % number) for number in range(100)])
    rig.driver.start()
    rig.link.connect()
    for done in range(100):
        until(lambda: rig.link.flying)
        assert len(rig.link.flying) <= rig.link.window
        rig.link.land()
        until(lambda done=done: len(rig.link.published) >= min(100, done + rig.link.window))
    until(lambda: not rig.store.outbox())
    assert [int(body) for _, body, _ in rig.link.published] == list(range(100))


def test_few_chunks_are_in_flight_and_messages_overtake_them(rig: Rig) -> None:
    started(rig).link.arrive(b"chunks 10")
    rig.settle()
    assert len(rig.link.published) == CHUNK_WINDOW_MAX
    rig.link.arrive(b"say urgent")
    rig.settle()
    assert rig.link.published[-1][1] == b"urgent"
    for _ in range(11):
        until(lambda: rig.link.flying)
        rig.link.land()
    until(lambda: not rig.store.outbox())
    chunks = [decode_chunk(body) for topic, body, _ in rig.link.published if topic.endswith("/chunk")]
    assert chunks == [(BLOB, index, index.to_bytes(2) * 5) for index in range(10)]


def test_chunk_whose_blob_is_gone_is_dropped(rig: Rig) -> None:
    started(rig)
    rig.link.lose()
    rig.link.arrive(b"chunks 3")
    rig.link.arrive(b"forget 1")
    rig.settle()
    rig.link.connect()
    until(lambda: len(rig.link.published) == 2)
    assert [decode_chunk(body)[1] for _, body, _ in rig.link.published] == [0, 2]
    until(lambda: len(rig.store.outbox()) == 2)


def test_retained_chunk_whose_blob_is_gone_is_taken_from_the_broker(rig: Rig) -> None:
    started(rig)
    step = Step((), (ChunkOut("coordinator", BLOB, 7, retain=True),))
    rig.driver.call(lambda _machine, _now: step).result(WAIT_S)
    until(lambda: rig.link.published)
    assert rig.link.published == [("blindsum/1/f1/px/1/coordinator/chunk", b"", True)]


def test_empty_message_is_no_message(rig: Rig) -> None:
    started(rig).link.arrive(b"", TOPICS.chunks("t1", BLOB).replace("+", "0"))
    rig.settle()
    assert rig.machine().count == 0
    assert not rig.driver.refusals


def test_listen_subscribes_and_leaves(rig: Rig) -> None:
    chunks = TOPICS.chunks("t1", BLOB)
    started(rig).link.arrive(b"listen on")
    rig.settle()
    assert rig.link.filters == [*TOPICS.subscriptions, chunks]
    rig.link.arrive(b"listen off")
    rig.settle()
    assert rig.link.filters == [*TOPICS.subscriptions]
    assert rig.store.outbox() == []


def test_presence_does_not_reach_the_machine(rig: Rig) -> None:
    started(rig).link.arrive(b"online", "blindsum/1/f1/st/device/d1")
    rig.link.arrive(b"", "blindsum/1/f1/st/device/d1")
    rig.settle()
    assert rig.machine().count == 0
    assert [event.data for event in rig.events if event.name == "presence"] == [
        {"who": "d1", "kind": "device", "online": True},
        {"who": "d1", "kind": "device", "online": False},
    ]


def test_signed_message_on_a_topic_of_another_sender_or_type_does_not_reach_the_machine(rig: Rig) -> None:
    key = Ed25519PrivateKey.generate()
    head = Head(type="header", fleet="f1", task="t1", round=1, sender="device/d1", to="all")
    body = seal_envelope(key, head, {})
    started(rig)
    for topic in ("up/00/d2/header", "up/00/d1/join", "px/2/coordinator/header"):
        rig.link.arrive(body, f"blindsum/1/f1/{topic}")
    rig.settle()
    assert [refused.code for refused in rig.refused] == ["message-misplaced"] * 3
    assert rig.machine().count == 0


def test_sender_over_its_share_is_refused_and_then_not_heard_and_nobody_else_pays(rig: Rig) -> None:
    started(rig)
    mine, other = "blindsum/1/f1/up/00/d1/join", "blindsum/1/f1/up/00/d2/join"

    def refusals(count: int) -> list[str]:
        del rig.refused[:]
        for _ in range(count):
            rig.link.arrive(b"refuse", mine)
        rig.settle()
        return [refused.code for refused in rig.refused]

    over = ["sender-over-share"]
    assert refusals(FRUITLESS_BURST) == ["message-oversized"] * FRUITLESS_BURST
    assert not rig.link.unheard(mine.encode())
    assert refusals(50) == over * 50
    assert rig.link.unheard(mine.encode()) and not rig.link.unheard(other.encode())
    rig.link.arrive(b"count", other)
    rig.link.arrive(b"refuse", other)
    rig.settle()
    assert rig.machine().count == 1 and rig.refused[-1].code == "message-oversized"
    rig.time[0] += 1000
    assert refusals(FRUITLESS_PER_S + 50) == ["message-oversized"] * FRUITLESS_PER_S + over * 50


def test_nobody_is_silenced_by_his_name_where_the_broker_lets_anybody_use_it(rig: Rig) -> None:
    started(rig).link.named = False
    topic = "blindsum/1/f1/up/00/d1/join"
    for _ in range(2 * FRUITLESS_BURST):
        rig.link.arrive(b"refuse", topic)
    rig.settle()
    assert {refused.code for refused in rig.refused} == {"message-oversized"}
    assert not rig.link.unheard(topic.encode())


def test_messages_that_come_to_something_use_up_no_share(rig: Rig) -> None:
    started(rig)
    for _ in range(2 * FRUITLESS_BURST):
        rig.link.arrive(b"count", "blindsum/1/f1/up/00/d1/join")
    rig.settle()
    assert rig.machine().count == 2 * FRUITLESS_BURST and not rig.refused


def test_what_is_dropped_unread_is_counted_and_told(rig: Rig) -> None:
    started(rig)
    topic = "blindsum/1/f1/up/00/d1/join"
    for _ in range(FRUITLESS_BURST + 1):
        rig.link.arrive(b"refuse", topic)
    rig.settle()
    assert all(rig.link.unheard(topic.encode()) for _ in range(3))
    rig.machine()
    flood = Event("flood", {"unread": 3, "senders": 1, "worst": "device/d1", "of_worst": 3})
    assert [event for event in rig.events if event.name == "flood"] == [flood]
    assert rig.driver.refusals["sender-over-share"] == 1 + 3


def test_who_comes_and_goes_without_end_is_told_so_often(rig: Rig) -> None:
    started(rig)
    for number in range(3 * PRESENCE_BURST):
        rig.link.arrive(b"offline" if number % 2 else b"online", "blindsum/1/f1/st/device/d1")
    rig.link.arrive(b"online", "blindsum/1/f1/st/device/d2")
    rig.settle()
    told = [event.data["who"] for event in rig.events if event.name == "presence"]
    assert told == ["d1"] * PRESENCE_BURST + ["d2"]
    assert [refused.code for refused in rig.refused] == ["sender-over-share"] * 2 * PRESENCE_BURST


def test_failing_disk_ends_the_driver_before_anything_is_acknowledged_or_sent(rig: Rig) -> None:
    started(rig)
    rig.store._db.execute("PRAGMA max_page_count = 20")
    rig.link.arrive(b"chunks 9999")
    until(lambda: not rig.driver.running)
    assert rig.driver.failure is not None
    assert rig.driver.failure.code == "disk-full"
    assert rig.events[-1] == Event("stopped", {"code": "disk-full"})
    assert rig.link.acked == []
    assert rig.link.published == []
    assert rig.link.closed
    with pytest.raises(BlindsumError, match="driver-stopped"):
        rig.driver.call(lambda _machine, _now: None)


def test_host_whose_callbacks_raise_does_not_stop_the_driver(rig: Rig) -> None:
    def fail(_what: object) -> None:
        raise RuntimeError("the host's")

    rig.driver._on_event = rig.driver._on_refused = fail
    started(rig).link.arrive(b"say x")
    rig.link.arrive(b"refuse y")
    rig.settle()
    assert rig.driver.running
    assert rig.machine().count == 1


def test_machine_that_cannot_be_made_is_told_to_the_starter(rig: Rig) -> None:
    def broken() -> Tally:
        raise BlindsumError("parameters-unsafe", "f = 9")

    driver = Driver(broken, rig.store, rig.link, TOPICS)
    with pytest.raises(BlindsumError, match="parameters-unsafe"):
        driver.start()
    assert not driver.running
    started(rig)


def test_rows_that_do_not_fit_together_are_a_damaged_database(rig: Rig) -> None:
    driver = Driver(lambda: {}["task"], rig.store, rig.link, TOPICS)  # type: ignore[arg-type, return-value]
    with pytest.raises(BlindsumError, match="database-corrupted"):
        driver.start()
    assert not driver.running
    started(rig)


def test_stop_ends_the_thread_and_keeps_the_outbox(rig: Rig) -> None:
    started(rig).link.arrive(b"say x")
    rig.settle()
    assert rig.driver.stop()
    assert not rig.driver.running
    assert rig.driver.failure is None
    assert len(rig.store.outbox()) == 1
