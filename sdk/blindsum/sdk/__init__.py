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

from blindsum.sdk.device import Context, Device, DeviceEvent, Inspection, State
from blindsum.sdk.policy import Policy

__all__ = ["Context", "Device", "DeviceEvent", "Inspection", "Policy", "State"]
