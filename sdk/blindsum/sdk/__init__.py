"""Embed blindsum in an app: a device that takes part in tasks and never sends anything but masked updates.

from blindsum.sdk import Device, Policy

device = Device.open("kit/", policy=Policy(min_cohort=50))

@device.task("fraud-detector")
def examples(context):
    yield features, labels          # numpy arrays, one batch or many

with device:
    app.run()
"""

from __future__ import annotations

from blindsum.runtime.checkup import Finding
from blindsum.sdk.device import Device
from blindsum.sdk.events import DeviceEvent, Events, State
from blindsum.sdk.ledger import Use
from blindsum.sdk.model import Model, Version
from blindsum.sdk.own import Answer, Context, Update, answer, update
from blindsum.sdk.policy import Policy
from blindsum.sdk.rehearsal import DryRun
from blindsum.sdk.worker import Inspection

__all__ = [
    "Answer",
    "Context",
    "Device",
    "DeviceEvent",
    "DryRun",
    "Events",
    "Finding",
    "Inspection",
    "Model",
    "Policy",
    "State",
    "Update",
    "Use",
    "Version",
    "answer",
    "update",
]
