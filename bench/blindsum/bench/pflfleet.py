"""A round of Apple's pfl: users who hand over a vector, added up in one process. It has no devices, messages, masks or dropouts,
and is the measure of what a simulation costs at least. Needs the package pfl."""

from __future__ import annotations

import time
from typing import Any, Final

import numpy as np

__all__ = ["round_ms"]

ROUNDS: Final = 3


def round_ms(users: int, length: int) -> float | None:
    """ms a user of a round of no-op users, the best of a few; None where pfl is not installed."""
    try:
        from pfl.aggregate.simulate import SimulatedBackend
        from pfl.algorithm.base import FederatedAlgorithm
        from pfl.common_types import Population
        from pfl.context import CentralContext
        from pfl.data.dataset import Dataset
        from pfl.data.federated_dataset import FederatedDataset
        from pfl.metrics import Metrics
        from pfl.stats import MappedVectorStatistics
    except ImportError:
        return None
    update = np.full(length, 0.001, np.float32)

    class Constant(FederatedAlgorithm):  # type: ignore[misc]
        def simulate_one_user(self, model: Any, user_dataset: Any, central_context: Any) -> tuple[Any, Any]:
            return MappedVectorStatistics({"update": update.copy()}, weight=1.0), Metrics()

        def get_next_central_contexts(self, *_: Any) -> Any:
            raise AssertionError("one round is asked for at a time")

        process_aggregated_statistics = get_next_central_contexts

    order = iter(range(users * (ROUNDS + 1)))
    data = FederatedDataset(lambda user: Dataset((np.zeros(1),), user_id=str(user)), lambda: next(order))
    backend = SimulatedBackend(data, data)
    times = []
    for number in range(ROUNDS):
        context = CentralContext(
            current_central_iteration=number,
            do_evaluation=False,
            cohort_size=users,
            population=Population.TRAIN,
            algorithm_params=None,
            model_train_params=None,
        )
        began = time.perf_counter()
        total, _ = backend.gather_results(None, Constant(), central_context=context)
        times.append(time.perf_counter() - began)
        assert total.weight == users
    return 1000 * min(times) / users
