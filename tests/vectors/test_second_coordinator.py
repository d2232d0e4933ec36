"""A coordinator written from the specification alone in rounds of the product's parties and devices: honest, then not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from blindsum.testing.behaviours import GarbageBox, WithheldSums
from tests.vectors.meeting import Meeting


def test_coordinator_in_another_implementation_plays_whole_rounds_that_verify(oracle: Callable[[str], Any]) -> None:
    """With a bad device, a party that withholds sums, a device that vanishes, rotation and an optimiser with a state."""
    behaviours = {"party/2": WithheldSums(), "device/d-0003": GarbageBox(4)}
    meeting = Meeting(oracle, behaviours=behaviours, rotate=True, algorithm="fedavgm", quick=False)
    meeting.begin()
    meeting.until("upload")
    meeting.stop("device/d-0000")
    meeting.settle(500)
    meeting.late()
    meeting.until("done")
    meeting.settle()
    assert meeting.book.sum == meeting.plain(1, ["d-0001", "d-0002", "d-0004"])
    meeting.crash("device/d-0000")
    meeting.run()
    assert meeting.book.sum == meeting.plain(2, ["d-0000", "d-0001", "d-0002", "d-0004"])
    assert meeting.said["want"]
    assert all(len(meeting.happened("followed", f"party/{number}")) == 2 for number in (1, 2, 3, 4))
    for place in (0, 1):
        assert meeting.judged(place) <= {("party/2", "opening-malformed")}
    assert len(meeting.happened("round-finished", "device/d-0002")) == 2
