"""The MQTT link: a paho-mqtt connection that comes back by itself, MQTT 5 first, 3.1.1 where the broker has no more.

paho 2.2's own loops are not used: they end at file descriptor 1024 (select), reconnect without jitter and resend a message
that the broker refuses for its size for ever. Here one thread with a selector owns one paho client per connection. A publish
that a lost connection leaves unacknowledged is handed back as LOST and goes again as a new one: receivers are idempotent.
"""

from __future__ import annotations

import logging
import secrets
import selectors
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from paho.mqtt import client as paho
from paho.mqtt.enums import MQTTErrorCode, MQTTProtocolVersion

from blindsum.protocol.errors import BlindsumError
from blindsum.runtime.endpoint import Credentials, Endpoint, Tls, Will, failure_of, failure_said
from blindsum.runtime.logs import fields
from blindsum.runtime.packet_limit import PacketLimit
from blindsum.runtime.paho_client import PACKET_OVERHEAD_SIZE, PACKET_SIZE_MAX, RECEIVE_MAX, PahoClient, error_logger
from blindsum.runtime.ports import Inbound, LinkState, Outcome, Token
from blindsum.runtime.proxy import Proxy
from blindsum.runtime.subscriptions import Subscriptions, subscribe
from blindsum.runtime.wake import Bell

if TYPE_CHECKING:
    from paho.mqtt.reasoncodes import ReasonCode

__all__ = ["PACKET_OVERHEAD_SIZE", "RECEIVE_MAX", "WINDOW_MAX", "Credentials", "MqttLink", "Tls", "Will"]

log = logging.getLogger("blindsum.runtime.mqtt")

WINDOW_MAX: Final = 20
"""Publishes in flight on one link; fewer where CONNACK says so."""
CONNECT_TIMEOUT_S: Final = 10.0
GOODBYE_TIMEOUT_S: Final = 1.0
BACKOFF_MIN_S: Final = 0.25
BACKOFF_MAX_S: Final = 30.0
IDLE_MAX_S: Final = 5.0
"""Look at keep-alives this often when nothing comes or goes: a device at rest must let its machine sleep."""
STABLE_S: Final = 5.0
"""After a connection that lasted this long the back-off starts anew."""
SILENT_CLOSES_MAX: Final = 2
"""Connections that end without a CONNACK before the other MQTT version is tried."""


@dataclass(frozen=True, slots=True)
class _Publish:
    topic: str
    body: bytes
    size: int
    retain: bool
    done: Callable[[Outcome], None]


class MqttLink:
    """A link to the broker at `url`: mqtt://, mqtts://, ws:// or wss:// host[:port][/path].

    Two processes must not share `client_id`: each would throw the other out, for ever. Any thread may call any method.
    Raises BlindsumError "broker-url-invalid" or "tls-files-unusable" here; a broker that is away is no error, see
    `wait_connected`.
    """

    def __init__(
        self,
        url: str,
        client_id: str,
        *,
        will: Will | None = None,
        credentials: Credentials | None = None,
        tls: Tls | None = None,
        proxy: Proxy | None = None,
    ) -> None:
        self.url, self.client_id = url, client_id
        self._endpoint = Endpoint.parse(url)
        if self._endpoint.secure != (tls is not None):
            raise BlindsumError(
                "broker-url-invalid", f"{url}: mqtts and wss take TLS files, mqtt and ws cannot use them"
            )
        self._will, self._credentials, self._proxy = will, credentials, proxy
        self._context = tls.context() if tls else None
        self.named = credentials is not None or (tls is not None and tls.certificate is not None)
        self._changed = threading.Condition()  # guards what the next block names
        self._state = LinkState(connected=False)
        self._subscriptions = Subscriptions()
        self._commands: deque[_Publish | Callable[[paho.Client], object]] = deque()  # as many as the windows allow
        self._connection = 0  # tokens of another number are void
        self._acknowledged: list[int] = []  # packet ids; as many as the broker leaves unacknowledged
        self._latest = 0  # the last that was handed over, until it is acknowledged
        self._behind: dict[int, list[int]] = {}  # dropped after it, and acknowledged after it: MQTT asks for that order
        self._reserved = 0  # publishes taken and not done
        self._window = WINDOW_MAX
        self._limit = PacketLimit()
        self._bell = Bell()
        self._closing = False
        self._thread: threading.Thread | None = None
        self._unheard: Callable[[bytes], bool] = lambda _topic: False
        # what follows belongs to the network thread
        self._version = MQTTProtocolVersion.MQTTv5
        self._version_known = False
        self._retains = True
        self._silent_closes = 0
        self._asked = False  # CONNECT is on its way
        self._flying: dict[int, tuple[int, Callable[[Outcome], None]]] = {}
        self._awaited: set[int] = set()
        self._reason = LinkState(connected=False)

    @property
    def protocol(self) -> Literal["5", "3.1.1"]:
        """The MQTT version in use, or to be tried next."""
        return "5" if self._version == MQTTProtocolVersion.MQTTv5 else "3.1.1"

    @property
    def state(self) -> LinkState:
        return self._state

    @property
    def max_packet_size(self) -> int:
        """Bytes one packet may have: what the broker announced, or less where it cut the connection three times for more."""
        return self._limit.size

    @property
    def room(self) -> int:
        with self._changed:
            return max(0, self._window - self._reserved) if self._state.connected else 0

    def open(
        self,
        subscriptions: Iterable[str],
        *,
        on_message: Callable[[Inbound], bool],
        on_state: Callable[[LinkState], None],
    ) -> None:
        assert self._thread is None, "a link opens once"
        self._subscriptions.add(subscriptions)
        self._on_message, self._on_state = on_message, on_state
        self._thread = threading.Thread(target=self._run, name=f"mqtt-{self.client_id}", daemon=True)
        self._thread.start()

    def wait_connected(self, timeout_s: float) -> None:
        """Return once connected and subscribed. Raises BlindsumError with the link's code, at least "broker-unreachable"."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._state.connected, timeout_s):
                detail = self._state.detail or "no answer yet"
                raise BlindsumError(self._state.code or "broker-unreachable", f"{self.url}: {detail}")

    def ignore(self, unheard: Callable[[bytes], bool]) -> None:
        assert self._thread is None, "before it opens"
        self._unheard = unheard

    def publish(self, topic: str, body: bytes, *, retain: bool, done: Callable[[Outcome], None]) -> bool:
        size = len(topic) + len(body) + 16  # fixed header, two lengths, packet id, no properties
        if size > self.max_packet_size:
            raise BlindsumError("packet-too-large", f"{size} bytes, the broker takes {self.max_packet_size}")
        with self._changed:
            if not self._state.connected or self._reserved >= self._window:
                return False
            self._reserved += 1
            self._commands.append(_Publish(topic, body, size, retain, done))
        self._bell.ring()
        return True

    def subscribe(self, topic_filter: str) -> None:
        with self._changed:
            if new := self._subscriptions.add([topic_filter]):
                self._commands.append(lambda client: subscribe(client, new))
        self._bell.ring()

    def unsubscribe(self, topic_filter: str) -> None:
        with self._changed:
            if self._subscriptions.remove(topic_filter):
                self._commands.append(lambda client: client.unsubscribe(topic_filter))
        self._bell.ring()

    def ack(self, *tokens: Token) -> None:
        with self._changed:  # what came over an earlier connection the broker delivers again
            mids = [token.mid for token in tokens if token.qos and token.connection == self._connection]
            for mid in mids:
                self._acknowledged += (mid, *self._behind.pop(mid, ()))
            if self._latest in mids:
                self._latest = 0
        if mids:
            self._bell.ring()

    def resume(self) -> None:
        self._bell.ring()

    def close(self, timeout_s: float = 2.0) -> None:
        """Say goodbye where there is a connection and end the thread. What is in flight comes back as LOST."""
        self._closing = True
        self._bell.ring()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)  # a connect under way may take longer; it then finds `_closing` and ends

    # -- the network thread ---------------------------------------------------------------------------------------------

    def _run(self) -> None:
        failures = 0
        while not self._closing:
            started = time.monotonic()
            self._reason = LinkState(
                connected=False, code="broker-unreachable", detail="the broker closed the connection"
            )
            self._asked = False
            try:
                self._serve()
            except (OSError, ValueError) as error:  # ValueError: a host name that is none
                self._reason = failure_of(error)
            except Exception as error:  # a hostile broker must not end the link by what it makes paho raise
                log.exception("broker made the client fail", extra=fields(client=self.client_id, url=self.url))
                self._reason = failure_of(error)
            if self._closing:
                self._reason = LinkState(connected=False, detail="closed")
            self._lost()
            failures = 0 if time.monotonic() - started >= STABLE_S else failures + 1
            backoff_s = min(BACKOFF_MAX_S, BACKOFF_MIN_S * 2 ** min(max(failures - 1, 0), 16))
            self._bell.rest(backoff_s * secrets.SystemRandom().uniform(0.5, 1.0), lambda: self._closing)
        self._bell.close()

    def _serve(self) -> None:
        """One connection from CONNECT to its end."""
        client = self._client()
        patience = time.monotonic() + CONNECT_TIMEOUT_S
        try:
            client.begin(self._endpoint, CONNECT_TIMEOUT_S)
            self._asked = True
            sock: Any = client.socket()
            with selectors.DefaultSelector() as selector:
                selector.register(self._bell.socket, selectors.EVENT_READ)
                while self._turn(client, selector, sock):
                    if not self._state.connected and time.monotonic() > patience:
                        self._reason = LinkState(
                            connected=False, code="broker-unreachable", detail="no CONNACK or SUBACK"
                        )
                        return
            if self._closing and self._state.connected:
                self._goodbye(client)
        finally:
            if (left := client.socket()) is not None:
                left.close()

    def _turn(self, client: PahoClient, selector: selectors.BaseSelector, sock: Any) -> bool:
        """Wait for something to do and do it. False: the connection is over."""
        self._do_commands(client)
        reading = client.drain()  # not while the owner is full: the rest waits in TCP and in the broker
        if client.want_write() and client.loop_write() != MQTTErrorCode.MQTT_ERR_SUCCESS:
            return False
        if client.socket() is None:
            return False
        pending = reading and getattr(sock, "pending", int)() > 0
        interest = (selectors.EVENT_READ if reading else 0) | (selectors.EVENT_WRITE if client.want_write() else 0)
        known = selector.get_map().get(sock)
        if known is not None and known.events != interest:
            selector.unregister(sock)
            known = None
        if known is None and interest:
            selector.register(sock, interest)
        due = self._commands or self._acknowledged
        idle_s = IDLE_MAX_S if self._state.connected else 1.0  # before that somebody waits for what may not come
        ready = {key.fileobj: mask for key, mask in selector.select(0 if pending or due else idle_s)}
        if self._bell.socket in ready:
            self._bell.hush()
        if (pending or ready.get(sock, 0) & selectors.EVENT_READ) and not client.fill():
            return False
        client.loop_misc()
        return client.socket() is not None and not self._closing

    def _do_commands(self, client: PahoClient) -> None:
        with self._changed:
            acknowledged, self._acknowledged = self._acknowledged, []
        if acknowledged:
            client.acknowledge(acknowledged)
        for _ in range(len(self._commands)):
            command = self._commands.popleft()
            if isinstance(command, _Publish):
                info = client.publish(command.topic, command.body, qos=1, retain=command.retain and self._retains)
                if info.rc == MQTTErrorCode.MQTT_ERR_SUCCESS:
                    self._flying[info.mid] = (command.size, command.done)
                else:
                    self._finish(command.done, Outcome.LOST)
            elif client.is_connected():  # CONNACK subscribes to all filters
                command(client)

    def _client(self) -> PahoClient:
        client = PahoClient.make(self._endpoint, self.client_id, self._version)
        if self._context is not None:
            client.tls_set_context(self._context)
        if self._credentials is not None:
            client.username_pw_set(self._credentials.user, self._credentials.password)
        if self._proxy is not None:
            client.proxy_set(**self._proxy.arguments())
        if self._will is not None:
            client.will_set(self._will.topic, self._will.gone, qos=1, retain=self._retains)
        client.max_inflight_messages_set(WINDOW_MAX)
        client.enable_logger(error_logger(self._explain))
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_publish = self._on_publish
        client.deliver, client.unheard, client.skip = self._deliver, self._unheard, self._skip
        return client

    def _on_connect(
        self, client: paho.Client, _data: Any, flags: paho.ConnectFlags, reason: ReasonCode, props: Any
    ) -> None:
        if reason.is_failure:
            self._reason = LinkState(connected=False, code="broker-refused", detail=str(reason))
            if reason == "Unsupported protocol version":
                self._try_other_version()
            self._retains = self._retains and reason != "Retain not supported"
            return
        self._version_known, self._silent_closes = True, 0
        # nothing depends on what a broker keeps
        self._retains = self._retains and bool(getattr(props, "RetainAvailable", 1))
        self._limit.announced = getattr(props, "MaximumPacketSize", PACKET_SIZE_MAX)
        with self._changed:
            self._window = min(WINDOW_MAX, getattr(props, "ReceiveMaximum", WINDOW_MAX))
            self._awaited = self._subscriptions.renew(client, session_present=flags.session_present)
        self._settle(client)

    def _on_subscribe(self, client: paho.Client, _data: Any, mid: int, reasons: list[ReasonCode], _props: Any) -> None:
        if any(reason.is_failure for reason in reasons):
            log.warning(
                "subscription refused",
                extra=fields(client=self.client_id, url=self.url, reasons=list(map(str, reasons))),
            )
        self._awaited.discard(mid)
        self._settle(client)

    def _settle(self, client: paho.Client) -> None:
        """Connected, once every subscription has its answer: what is asked from now on cannot miss its reply."""
        if self._awaited or self._state.connected:
            return
        self._subscriptions.settled()
        if self._will is not None:
            with self._changed:
                self._reserved += 1
            info = client.publish(self._will.topic, self._will.here, qos=1, retain=self._retains)
            self._flying[info.mid] = (0, lambda _outcome: None)
        self._tell(LinkState(connected=True))

    def _on_publish(self, _client: paho.Client, _data: Any, mid: int, reason: ReasonCode, _props: Any) -> None:
        if (flight := self._flying.pop(mid, None)) is not None:
            self._limit.passed(flight[0])
            self._finish(flight[1], Outcome.REFUSED if reason.is_failure else Outcome.SENT)

    def _deliver(self, topic: str, body: bytes, mid: int) -> bool:
        if mid:
            with self._changed:
                self._latest = mid
        return self._on_message(Inbound(topic, body, Token(self._connection, mid, 1 if mid else 0)))

    def _skip(self, mid: int) -> None:
        with self._changed:
            (self._behind.setdefault(self._latest, []) if self._latest else self._acknowledged).append(mid)

    def _on_disconnect(self, _client: paho.Client, _data: Any, flags: Any, reason: ReasonCode, _props: Any) -> None:
        if flags.is_disconnect_packet_from_server:
            codes = {"Packet too large": "packet-too-large", "Session taken over": "session-taken-over"}
            self._reason = LinkState(
                connected=False, code=codes.get(str(reason), "broker-unreachable"), detail=str(reason)
            )

    def _explain(self, text: str) -> None:
        self._reason = failure_said(text, otherwise=self._reason.code)

    def _lost(self) -> None:
        """Say so, learn from how it ended, and leave nothing of the connection behind."""
        unanswered = self._asked and self._reason.code == "broker-unreachable" and not self._version_known
        if unanswered and not self._closing:
            self._silent_closes += 1
            if self._silent_closes >= SILENT_CLOSES_MAX:
                self._try_other_version()
        if not self._closing:
            largest = max((size for size, _ in self._flying.values()), default=0)
            self._limit.lost(largest, certain=self._reason.code == "packet-too-large")
        with self._changed:
            self._connection += 1
            self._acknowledged.clear()
            self._behind.clear()
            self._latest = 0
        self._tell(self._reason)
        for _, done in self._flying.values():
            self._finish(done, Outcome.LOST)
        while self._commands:  # without a connection only filters come in, and CONNACK repeats those
            command = self._commands.popleft()
            if isinstance(command, _Publish):
                self._finish(command.done, Outcome.LOST)
        self._flying.clear()
        self._awaited.clear()

    def _try_other_version(self) -> None:
        v5, v311 = MQTTProtocolVersion.MQTTv5, MQTTProtocolVersion.MQTTv311
        self._version = v311 if self._version == v5 else v5
        self._silent_closes = 0

    def _goodbye(self, client: PahoClient) -> None:
        if self._will is not None:
            client.publish(self._will.topic, self._will.gone, qos=1, retain=self._retains)
        client.leave(GOODBYE_TIMEOUT_S)

    def _tell(self, state: LinkState) -> None:
        with self._changed:
            if state == self._state:
                return
            self._state = state
            self._changed.notify_all()
        about = fields(client=self.client_id, url=self.url, mqtt=self.protocol, code=state.code, detail=state.detail)
        log.log(
            logging.INFO if state.connected or self._closing else logging.WARNING,
            "link up" if state.connected else "link down",
            extra=about,
        )
        self._on_state(state)

    def _finish(self, done: Callable[[Outcome], None], outcome: Outcome) -> None:
        with self._changed:
            self._reserved -= 1
        done(outcome)
