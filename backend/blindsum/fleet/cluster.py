"""Islands of a simulated fleet on a Ray cluster: many machines for one fleet, and the same bytes."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Final

from blindsum.fleet.pairs import paired
from blindsum.fleet.remote import Remote, answer_of, collect_seldom
from blindsum.fleet.setup import Setup
from blindsum.protocol.errors import BlindsumError
from blindsum.protocol.memo import sharing

__all__ = ["LOCAL", "Cluster", "knock"]

LOCAL: Final = "local"
"""The address that means a cluster of this machine alone, started for one simulation."""
KNOCK_S: Final = 10.0
AHEAD: Final = 8
"""How many devices an island trains for before their time between two questions."""


class Cluster:
    """A connection to the Ray cluster at `address`, `LOCAL` for one of `processes` processes here; one that the script has already
    made is used and left as it is. Raises BlindsumError "fleet-package-missing", or "simulation-impossible" where there is none."""

    def __init__(self, address: str, processes: int) -> None:
        try:
            import ray
        except ModuleNotFoundError:
            raise BlindsumError("fleet-package-missing", "a cluster needs ray: pip install 'blindsum[ray]'") from None
        self._ray: Any = ray
        self._ours = not ray.is_initialized()
        if self._ours:
            knock(address)
            here = {"num_cpus": processes, "include_dashboard": False}
            try:
                ray.init(**(here if address == LOCAL else {"address": address}), log_to_driver=False)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise BlindsumError("simulation-impossible", f"no Ray cluster at {address}: {error}") from None

    def island(self, setup: Setup, devices: Sequence[int]) -> Remote:
        """An island of `devices` somewhere in the cluster."""
        return _Actor(self._ray, setup, devices)

    def stop(self) -> None:
        if self._ours:
            self._ray.shutdown()


def knock(address: str) -> None:
    """Raises BlindsumError "simulation-impossible" where an address with a port does not answer: Ray would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host, int(port)), KNOCK_S).close()
        except OSError as error:
            raise BlindsumError("simulation-impossible", f"no Ray cluster at {address}: {error}") from None


class _Actor(Remote):
    def __init__(self, ray: Any, setup: Setup, devices: Sequence[int]) -> None:
        super().__init__(devices)
        self._ray = ray
        try:
            self._actor = ray.remote(num_cpus=1, max_restarts=0)(_Served).remote(setup, list(devices))
        except TypeError:
            told = "what this fleet is made of (learner, update, behaviours) cannot be pickled for other machines"
            raise BlindsumError("simulation-impossible", told) from None
        self._asked: deque[Any] = deque()  # one question at a time, but for what the engine asks of all islands at once

    def ask(self, *what: object) -> None:
        self._asked.append(self._actor.answer.remote(*what))
        self._actor.work.remote()

    def answer(self) -> Any:
        try:
            good, value = self._ray.get(self._asked.popleft())
        except self._ray.exceptions.RayError as error:
            raise BlindsumError("simulation-worker-died", str(error).strip().splitlines()[0]) from None
        if not good:
            raise value
        return value

    def stop(self) -> None:
        self._ray.kill(self._actor)


class _Served:
    """An island in a process of the cluster."""

    def __init__(self, setup: Setup, devices: Sequence[int]) -> None:
        collect_seldom()
        self._stack = ExitStack()
        self._stack.enter_context(sharing())
        self._stack.enter_context(paired(setup.pairs))
        self._island = setup.island(devices, backends=False)
        self._failed: Exception | None = None

    def answer(self, what: str, *arguments: Any) -> tuple[bool, object]:
        try:
            if self._failed is not None:
                raise self._failed
            return True, answer_of(self._island, what, arguments)
        except Exception as error:
            return False, error

    def work(self) -> None:
        """Train before its time; what fails is told with the next answer."""
        try:
            for _ in range(AHEAD):
                if self._failed is not None or not self._island.work():
                    return
        except Exception as error:
            self._failed = error
