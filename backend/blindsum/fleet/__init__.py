"""Device-fleet simulation from scripts: populations, conditions, runs, reports; and the demo."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .conditions import Availability, Conditions, DeviceClass, Dropout
    from .data import Dataset
    from .learner import Learned, Local
    from .results import FleetReport, compare
    from .simulation import Fleet, plan_for

__all__ = [
    "Availability",
    "Conditions",
    "Dataset",
    "DeviceClass",
    "Dropout",
    "Fleet",
    "FleetReport",
    "Learned",
    "Local",
    "compare",
    "plan_for",
]

_HOMES = {
    "Availability": ".conditions",
    "Conditions": ".conditions",
    "DeviceClass": ".conditions",
    "Dropout": ".conditions",
    "Dataset": ".data",
    "Learned": ".learner",
    "Local": ".learner",
    "FleetReport": ".results",
    "compare": ".results",
    "Fleet": ".simulation",
    "plan_for": ".simulation",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)
