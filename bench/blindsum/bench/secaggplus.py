"""One round of Flower's SecAgg+ in this process: its own client mod and server workflow, unmodified, each message through its
protobuf both ways. Needs the package flwr."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any, Final

import numpy as np

__all__ = ["peer_name", "round_s"]

STAGES: Final = 4
COLLECT: Final = 2
"""The stage from which on dropped clients are silent: their keys have been shared."""
THRESHOLD: Final = 0.5
TRIES: Final = 4
"""Flower draws its graph at random, and some draws leave a client with too few neighbours."""


def peer_name() -> str:
    """Name and version, or "" where Flower is not installed."""
    try:
        import flwr  # noqa: F401
    except ImportError:
        return ""
    return f"flwr {version('flwr')}"


def round_s(devices: int, length: int, neighbours: int, dropped: float) -> float | None:
    """Seconds of one round of clients that train nothing; None where the workflow gave up `TRIES` times."""
    for seed in range(TRIES):
        took = _round_s(devices, length, neighbours, dropped, seed)
        if took is not None:
            return took
    return None


def _round_s(devices: int, length: int, neighbours: int, dropped: float, seed: int) -> float | None:
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    from flwr.app import ConfigRecord
    from flwr.common import FitIns, ndarrays_to_parameters
    from flwr.compat.common import recorddict_compat
    from flwr.server.compat.legacy_context import LegacyContext
    from flwr.server.server_config import ServerConfig
    from flwr.server.strategy import FedAvg
    from flwr.server.workflow import SecAggPlusWorkflow
    from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD
    from flwr.server.workflow.constant import Key as Name
    from flwr.server.workflow.secure_aggregation.secaggplus_workflow import WorkflowState
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    dice = np.random.default_rng(seed)
    numbers = sorted(int(each) for each in dice.integers(1 << 20, 1 << 62, devices))
    dead = set(dice.choice(numbers, round(dropped * devices), replace=False).tolist())
    vector = dice.standard_normal(length).astype(np.float32)
    grid, manager = _grid(numbers, dead, vector), _manager(numbers)

    class Everybody(FedAvg):  # type: ignore[misc]
        def configure_fit(self, server_round: int, parameters: Any, client_manager: Any) -> list[Any]:
            return [(client, FitIns(parameters, {})) for client in client_manager.all().values()]

        def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> tuple[None, dict[str, Any]]:
            return None, {}

    context = LegacyContext(_context(0), ServerConfig(1), Everybody(), manager)
    settings = ConfigRecord()
    settings[Name.CURRENT_ROUND] = 1
    context.state.config_records[MAIN_CONFIGS_RECORD] = settings
    zeros = ndarrays_to_parameters([np.zeros(length, np.float32)])
    context.state.array_records[MAIN_PARAMS_RECORD] = recorddict_compat.parameters_to_arrayrecord(zeros, True)
    shares = min(neighbours + 1 | 1, devices)  # each client is one of its own holders; Flower's ring takes odd numbers
    workflow = SecAggPlusWorkflow(shares if shares < devices else 1.0, THRESHOLD)
    state = WorkflowState()
    began = time.perf_counter()
    stages = (
        workflow.setup_stage,
        workflow.share_keys_stage,
        workflow.collect_masked_vectors_stage,
        workflow.unmask_stage,
    )
    if not all(stage(grid, context, state) for stage in stages):
        return None
    return time.perf_counter() - began


def _context(node: int) -> Any:
    from flwr.app import Context, RecordDict

    return Context(run_id=1, node_id=node, node_config={}, state=RecordDict(), run_config={}, series_id=None)


def _manager(numbers: Sequence[int]) -> Any:
    from flwr.server.client_manager import SimpleClientManager
    from flwr.server.client_proxy import ClientProxy

    class Proxy(ClientProxy):  # type: ignore[misc]
        def __init__(self, number: int) -> None:
            super().__init__(str(number))
            self.node_id = number

        def _never(self, *_: object) -> Any:
            raise AssertionError("the workflow speaks to nodes, not to proxies")

        get_properties = get_parameters = fit = evaluate = reconnect = _never

    manager = SimpleClientManager()
    for number in numbers:
        manager.register(Proxy(number))
    return manager


def _grid(numbers: Sequence[int], dead: set[int], vector: np.ndarray) -> Any:
    from flwr.app import Message
    from flwr.client.mod import secaggplus_mod
    from flwr.common import Code, FitRes, Status, ndarrays_to_parameters
    from flwr.common.serde import message_from_proto, message_to_proto
    from flwr.compat.common import recorddict_compat
    from flwr.proto.message_pb2 import Message as Wire
    from flwr.serverapp.grid import Grid

    def over_the_wire(message: Any, sender: int) -> Any:
        message.metadata.__dict__.update(_run_id=1, _src_node_id=sender, _message_id=os.urandom(16).hex())
        return message_from_proto(Wire.FromString(message_to_proto(message).SerializeToString()))

    def train(message: Any, _context: Any) -> Any:
        result = FitRes(Status(Code.OK, ""), ndarrays_to_parameters([vector]), 1, {})
        return Message(recorddict_compat.fitres_to_recorddict(result, keep_input=False), reply_to=message)

    class InProcess(Grid):  # type: ignore[misc]
        def __init__(self) -> None:
            self.stage = 0
            self.contexts = {number: _context(number) for number in numbers}

        def send_and_receive(self, messages: Iterable[Any], *, timeout: float | None = None) -> list[Any]:
            stage, self.stage = self.stage, self.stage + 1
            answers = []
            for message in messages:
                node = message.metadata.dst_node_id
                if stage >= COLLECT and node in dead:
                    continue
                answer = secaggplus_mod(over_the_wire(message, 1), self.contexts[node], train)
                answers.append(over_the_wire(answer, node))
            return answers

        def _never(self, *_: object, **__: object) -> Any:
            raise AssertionError("the workflow only sends and receives")

        set_run = create_message = get_node_ids = get_nodes = push_messages = pull_messages = _never
        run = property(_never)

    return InProcess()
