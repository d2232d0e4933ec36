"""A round of Flower's simulation: clients that train nothing and hand over a vector in plain, through its own engine on Ray, with
as many workers as there are cores. It has no masks and no dropouts. Needs the package flwr[simulation]."""

from __future__ import annotations

import logging
import os
import time
from typing import Any, Final

import numpy as np

__all__ = ["round_ms"]

ROUNDS: Final = 2
"""The first starts Ray's workers and is not counted."""


def round_ms(clients: int, length: int) -> float | None:
    """ms a client of a round, from where its clients are chosen to where their sum is there; None where Flower's simulation is not
    installed."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray  # noqa: F401
        from flwr.client import ClientApp, NumPyClient
        from flwr.common import ndarrays_to_parameters
        from flwr.server import ServerApp, ServerAppComponents, ServerConfig
        from flwr.server.strategy import FedAvg
        from flwr.simulation import run_simulation
    except ImportError:
        return None
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    began: list[float] = []
    ended: list[float] = []

    class Timed(FedAvg):  # type: ignore[misc]
        def configure_fit(self, *given: Any, **named: Any) -> Any:
            began.append(time.perf_counter())
            return super().configure_fit(*given, **named)

        def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
            total = super().aggregate_fit(server_round, results, failures)
            ended.append(time.perf_counter())
            assert len(results) == clients
            return total

    class Constant(NumPyClient):  # type: ignore[misc]
        def fit(self, parameters: Any, config: Any) -> Any:
            return [np.full(length, 0.001, np.float32)], 1, {}

    def server(_: Any) -> Any:
        strategy = Timed(
            fraction_evaluate=0.0,
            min_fit_clients=clients,
            min_available_clients=clients,
            initial_parameters=ndarrays_to_parameters([np.zeros(length, np.float32)]),
        )
        return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=ROUNDS))

    run_simulation(
        ServerApp(server_fn=server),
        ClientApp(client_fn=lambda _: Constant().to_client()),
        num_supernodes=clients,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
    return 1000 * (ended[-1] - began[-1]) / clients
