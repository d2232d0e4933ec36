"""What a device tells the app: states with reasons for people, and events, for callbacks, loops and asyncio."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    import asyncio

__all__ = ["EVENTS_MAX", "DeviceEvent", "Events", "State", "call_back"]

log = logging.getLogger("blindsum.sdk")

EVENTS_MAX: Final = 1024
"""Events that wait for a slow listener; older ones are dropped."""


class State(StrEnum):
    """What a device is doing; `Device.reason` says more, for people."""

    STOPPED = "stopped"
    PAUSED = "paused"
    CONNECTING = "connecting"
    WAITING = "waiting"
    JOINED = "joined"
    TRAINING = "training"
    UPLOADING = "uploading"
    UPLOADED = "uploaded"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class DeviceEvent:
    """Something that happened: `name` is stable, `data` never secret."""

    name: str
    data: dict[str, object]


class Events:
    """The events from now on, for `for` and for `async for`. Ends when the device is stopped, after those that wait, or by
    `close`. A listener that is slow loses the oldest. One thread or task may iterate."""

    def __init__(self) -> None:
        self._waiting: deque[DeviceEvent] = deque(maxlen=EVENTS_MAX)
        self._changed = threading.Condition()
        self._closed = False
        self._sleeper: tuple[asyncio.AbstractEventLoop, asyncio.Future[None]] | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> DeviceEvent:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if not self._waiting:
                raise StopIteration
            return self._waiting.popleft()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> DeviceEvent:
        import asyncio

        loop = asyncio.get_running_loop()
        while True:
            with self._changed:
                if self._waiting:
                    return self._waiting.popleft()
                if self._closed:
                    raise StopAsyncIteration
                woken = loop.create_future()
                self._sleeper = loop, woken
            await woken

    def put(self, event: DeviceEvent) -> None:
        """Hand over an event; never waits."""
        with self._changed:
            if not self._closed:
                self._waiting.append(event)
            self._wake()

    def close(self) -> None:
        """No more events."""
        with self._changed:
            self._closed = True
            self._wake()

    def _wake(self) -> None:
        self._changed.notify_all()
        if self._sleeper is not None:
            (loop, woken), self._sleeper = self._sleeper, None
            with suppress(RuntimeError):  # that loop is closed
                loop.call_soon_threadsafe(_resolve, woken)


def call_back(on_event: Callable[[DeviceEvent], None], events: Events) -> None:
    """Call the app with each event; what it raises is logged."""
    for event in events:
        try:
            on_event(event)
        except Exception:
            log.exception("the app's event callback failed")


def _resolve(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)
