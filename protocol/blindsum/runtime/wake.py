"""A bell that ends another thread's wait in a selector."""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Callable
from contextlib import suppress

__all__ = ["Bell"]


class Bell:
    """Rung by any thread, heard by the one that waits on `socket`. Rings that nobody heard yet count as one."""

    def __init__(self) -> None:
        self.socket, self._far = socket.socketpair()
        for end in (self.socket, self._far):
            end.setblocking(False)
        self._rung = False

    def ring(self) -> None:
        if self._rung:
            return
        self._rung = True
        with suppress(OSError):  # full: it rings already; closed: nobody waits any more
            self._far.send(b"\0")

    def hush(self) -> None:
        """Whoever waited looks at what there is to do after this: who rings meanwhile has put it there before."""
        with suppress(BlockingIOError):
            self.socket.recv(4096)
        self._rung = False

    def rest(self, delay_s: float, until: Callable[[], bool]) -> None:
        """Wait for `delay_s` seconds; a ring ends it early if `until` then says so."""
        end = time.monotonic() + delay_s
        with selectors.DefaultSelector() as selector:
            selector.register(self.socket, selectors.EVENT_READ)
            while not until() and (left := end - time.monotonic()) > 0:
                if selector.select(left):
                    self.hush()

    def close(self) -> None:
        self.socket.close()
        self._far.close()
