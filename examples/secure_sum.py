"""One round of the protocol in a straight line: five devices, four parties, one dropout, and what each role sees.

Needs the base package only and takes a moment: `python examples/secure_sum.py`
"""

import os

import numpy as np

from blindsum.protocol.params import Committee
from blindsum.protocol.reference import run_round
from blindsum.protocol.ring import Segment, from_signed, to_signed, unpack

segments = [Segment("readings", 4, 24)]  # four numbers, added modulo 2^24
readings = {"anna": [3, 1, 4, 1], "ben": [5, 9, 2, 6], "cleo": [5, 3, 5, 8], "dan": [9, 7, 9, 3], "eva": [2, 3, 8, 4]}
names = list(readings)
survivors = [index for index, name in enumerate(names) if name != "dan"]  # dan vanishes after uploading

done = run_round(
    segments,
    [[from_signed(segments[0], np.array(values))] for values in readings.values()],
    survivors,
    committee=Committee.for_f(1),  # four parties, of which one may lie
    degree=4,  # here every two devices share a mask; large rounds make do with a few dozen neighbours
    manifest=os.urandom(32),  # stand-ins: in a real round these are digests of what the parties voted for
    roster=os.urandom(32),
    random=os.urandom,
)


def show(data: bytes) -> list[int]:
    return to_signed(segments[0], unpack(segments, data)[0]).tolist()


print("each device knows its own readings and nobody else's:")
for name, values in readings.items():
    print(f"  {name:5} {values}")
print("the coordinator sees uploads, each as good as random:")
for name, body in zip(names, done.bodies, strict=True):
    print(f"  {name:5} {show(body)}")
print("the parties give it sums of the four survivors' self masks, never one device's:")
for number, opening in enumerate(done.openings, 1):
    print(f"  every party but {number}: {show(opening)}")
print("and the secrets of the masks that survivors share with the dropout, whose other mask nobody opens:")
for mine, theirs, secret in done.edges:
    print(f"  {names[mine]}-{names[theirs]}: {secret.hex()[:16]}…")

total = show(done.total)
print(f"all of it together is the sum of the survivors and nothing else: {total}")
assert total == np.sum([readings[names[index]] for index in survivors], axis=0).tolist()
print(f"result: {' + '.join(names[index] for index in survivors)} = {total}, and dan's upload stays noise for ever")
