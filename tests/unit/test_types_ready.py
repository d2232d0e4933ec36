"""msgspec has described every type that is converted by the time its module is imported."""

from __future__ import annotations

import json
import subprocess
import sys

NEVER_CONVERTED = {"PartyFloor"}

CONVERTED = """
import json
import sys
import msgspec
import blindsum.protocol.machines.coordinator, blindsum.protocol.machines.device, blindsum.protocol.machines.party
import blindsum.protocol.transcript, blindsum.training

described = []
def watch(frame, event, _argument):
    if event == "call" and frame.f_code.co_name == "get_class_annotations":
        described.append(kind.__name__)

def leaves(kind):
    for inner in kind.__subclasses__():
        if inner.__module__.startswith("blindsum."):
            yield inner
            yield from leaves(inner)

kinds = [kind for kind in leaves(msgspec.Struct) if kind.__struct_fields__]
sys.setprofile(watch)
for kind in kinds:
    try:
        msgspec.convert({}, kind)
    except msgspec.ValidationError:
        pass
sys.setprofile(None)
print(json.dumps([len(kinds), sorted(described)]))
"""


def test_types_of_messages_and_states_are_described_before_threads_meet_them() -> None:
    """msgspec describes a type at its first use; two threads at once crashed a process that hosts several devices."""
    done = subprocess.run([sys.executable, "-c", CONVERTED], capture_output=True, text=True, timeout=60, check=True)
    count, described = json.loads(done.stdout)
    assert count > 25
    assert set(described) <= NEVER_CONVERTED
