"""A bad line between a device and its broker: a TCP proxy that loses segments, and whose connections do not last."""

from __future__ import annotations

import random
import socket
import threading
import time
from contextlib import suppress
from typing import Final

__all__ = ["BadLine"]

SEGMENT_SIZE: Final = 1400
TIMEOUT_S: Final = 0.2
TIMEOUT_MAX_S: Final = 3.2
CONNECT_TIMEOUT_S: Final = 5.0


class BadLine:
    """Forwards 127.0.0.1:`port` to `target`, and back. A context manager.

    A segment is lost with probability `loss`; as TCP has it, it and all behind it then come a retransmission timeout later, which
    doubles while it is lost again. Each connection ends after `lifetime_s`, with everything on its way; 0 for never. The same seed
    loses the same segments of a connection.
    """

    def __init__(self, target: tuple[str, int], *, loss: float = 0.0, lifetime_s: float = 0.0, seed: int = 0) -> None:
        self._target, self._loss, self._lifetime_s, self._seed = target, loss, lifetime_s, seed
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self.connections = 0
        self.lost = 0
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()

    def __enter__(self) -> BadLine:
        threading.Thread(target=self._accept, name="bad-line", daemon=True).start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._end(self._server)
        self.cut()

    def cut(self) -> None:
        """End all connections now."""
        with self._lock:
            ends = list(self._open)
        self._end(*ends)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
                far = socket.create_connection(self._target, CONNECT_TIMEOUT_S)
            except OSError:
                if self._server.fileno() < 0:
                    return
                continue
            far.settimeout(None)
            self.connections += 1
            with self._lock:
                self._open |= {near, far}
            for number, (source, sink) in enumerate(((near, far), (far, near))):
                dice = random.Random(f"{self._seed} {self.connections} {number}")
                threading.Thread(target=self._forward, args=(source, sink, dice), daemon=True).start()
            if self._lifetime_s:
                end = threading.Timer(self._lifetime_s, self._end, (near, far))
                end.daemon = True
                end.start()

    def _forward(self, source: socket.socket, sink: socket.socket, dice: random.Random) -> None:
        with suppress(OSError):
            while segment := source.recv(SEGMENT_SIZE):
                timeout_s = TIMEOUT_S
                while dice.random() < self._loss:
                    self.lost += 1
                    time.sleep(timeout_s)
                    timeout_s = min(2 * timeout_s, TIMEOUT_MAX_S)
                sink.sendall(segment)
        self._end(source, sink)

    def _end(self, *ends: socket.socket) -> None:
        for one in ends:
            with self._lock:
                self._open.discard(one)
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
