"""Events reach loops, asyncio and slow listeners, and end when they should."""

from __future__ import annotations

import asyncio
import threading

import pytest

from blindsum.sdk import DeviceEvent, Events
from blindsum.sdk.events import EVENTS_MAX


def event(number: int) -> DeviceEvent:
    return DeviceEvent("e", {"number": number})


def test_loop_gets_all_events_and_ends_with_close() -> None:
    events = Events()

    def feed() -> None:
        for number in range(100):
            events.put(event(number))
        events.close()

    threading.Thread(target=feed).start()
    assert [found.data["number"] for found in events] == list(range(100))
    events.put(event(1))
    assert list(events) == []


def test_slow_listener_loses_the_oldest() -> None:
    events = Events()
    for number in range(EVENTS_MAX + 10):
        events.put(event(number))
    events.close()
    found = [one.data["number"] for one in events]
    assert found == list(range(10, EVENTS_MAX + 10))


def test_task_is_woken_from_another_thread() -> None:
    async def listen() -> list[object]:
        events = Events()

        def feed() -> None:
            for number in range(20):
                events.put(event(number))
            events.close()

        threading.Timer(0.05, feed).start()
        return [found.data["number"] async for found in events]

    assert asyncio.run(listen()) == list(range(20))


def test_listener_whose_task_was_cancelled_does_not_disturb() -> None:
    events = Events()

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(events), 0.02)

    asyncio.run(give_up())
    events.put(event(1))  # its loop is closed
    events.close()
    assert list(events) == [event(1)]
