"""Parameters, the codec and the optimiser: SPEC.md sections 9 and 11."""

from __future__ import annotations

import struct
from itertools import product
from typing import Any, Final

from scenarios.case import File, secret
from scenarios.scene import Scene

__all__ = ["files"]

_UNSAFE: Final = "parameters-unsafe"


def files(scene: Scene) -> list[File]:
    return [_committee(), _degree(), _bits(), _quantise(), _rotate(), _advance(scene)]


def _committee() -> File:
    file = File("committee.json", "parties, threshold, quorum and liars that are safe together", "11", "committee")
    for numbers in ((4, 2, 3, 1), (7, 3, 5, 2), (10, 4, 7, 3), (3, 2, 3, 1), (5, 2, 4, 1), (6, 3, 5, 2)):
        file.ok("{}, {}, {}, {}".format(*numbers), committee=list(numbers))
    for name, numbers in (
        ("two of three without a larger quorum", (3, 2, 2, 1)),
        ("two quorums may share liars only", (4, 2, 2, 1)),
        ("the same with two liars", (6, 3, 4, 2)),
        ("liars hold every seed", (4, 1, 3, 1)),
        ("nobody may lie", (3, 2, 3, 0)),
        ("threshold above quorum", (4, 3, 2, 1)),
        ("quorum above parties", (4, 2, 5, 1)),
        ("sums that nobody can vouch for", (4, 3, 4, 2)),
        ("no threshold", (4, 0, 3, 1)),
        ("more than ten parties", (13, 5, 9, 4)),
    ):
        file.bad(_UNSAFE, name, committee=list(numbers))
    return file


def _degree() -> File:
    file = File("degree.json", "least neighbours and least survivors from a threat model", "11", "degree")
    for (corrupt, dropped), devices in product(
        ((50, 50), (100, 100), (100, 300), (330, 330)), (2, 3, 10, 100, 1000, 10_000)
    ):
        file.ok(
            f"{devices} devices, {corrupt} corrupt, {dropped} dropped",
            devices=devices,
            corrupt_permille=corrupt,
            dropped_permille=dropped,
            cohort_min=2,
        )
    given = {"devices": 50, "corrupt_permille": 100, "dropped_permille": 300}
    file.ok("a cohort that asks for more survivors than dropouts leave", cohort_min=40, **given)
    file.bad(_UNSAFE, "a cohort of one", cohort_min=1, **given)
    file.bad(_UNSAFE, "nobody left", cohort_min=2, **{**given, "dropped_permille": 900})
    return file


def _bits() -> File:
    file = File("bits.json", "bits a value that no sum can wrap", "11", "bits")
    for width, devices_max, weight_max in (
        (16, 100, 1),
        (16, 1000, 1),
        (24, 1000, 1),
        (24, 1000, 100),
        (32, 100_000, 10),
        (64, 100_000, 2**24),
        (64, 2, 1),
    ):
        name = f"{width} bits, {devices_max} devices, weights to {weight_max}"
        file.ok(name, width=width, devices_max=devices_max, weight_max=weight_max)
    file.bad(_UNSAFE, "5000 devices in 16 bits", width=16, devices_max=5000, weight_max=1)
    file.bad(_UNSAFE, "heavy examples in 24 bits", width=24, devices_max=1000, weight_max=10_000)
    return file


def _floats(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def _quantise() -> File:
    given: dict[str, Any] = {
        "clip_micros": 1_000_000,
        "range_micros": 1_000_000,
        "bits": 14,
        "weight_max": 100,
        "rotation": b"",
        "segment": {"name": "parameters", "length": 8, "width": 24},
        "key": secret("rounding"),
        "weight": 1,
    }
    file = File("quantise.json", "from an update to integers, with a fixed rounding key", "9.1", "quantise", given)
    small = _floats(0.0, 0.1, -0.1, 0.25, -0.5, 1e-6, -1e-6, 0.3)
    large = _floats(3, -4, 12, 0, 0.5, -0.25, 84, 1)
    file.ok("within the clip norm", update=small)
    file.ok("clipped", update=large)
    file.ok("weighted", update=small, weight=100)
    file.ok("narrow range: clamped", update=small, range_micros=250_000)
    file.ok("zero", update=bytes(32))
    file.ok("rotated", update=small, rotation=secret("seed", 16), weight=7)
    five = {"name": "p", "length": 5, "width": 16}
    file.ok("rotated, no power of two, 16 bits", update=large[:20], rotation=secret("seed", 16), bits=6, segment=five)
    file.bad("update-wrong-shape", "one value too few", update=small[:-4])
    file.bad("update-not-finite", "NaN", update=small[:-4] + bytes.fromhex("0000c07f"))
    file.bad("update-not-finite", "infinity", update=small[:-4] + bytes.fromhex("000080ff"))
    file.bad("weight-out-of-range", "weight 0", update=small, weight=0)
    file.bad("weight-out-of-range", "weight 101", update=small, weight=101)
    return file


def _rotate() -> File:
    file = File("rotate.json", "the rotation and its inverse, every operation rounded to float32", "9.2", "rotate")
    for length in (1, 2, 3, 4, 7, 8, 16, 33):
        raw = secret(f"vector of {length}", 2 * length)
        values = [(int.from_bytes(raw[i : i + 2], "little") - 32_768) / 1000 for i in range(0, len(raw), 2)]
        file.ok(f"{length} values", vector=_floats(*values), seed=secret("rotation", 16))
    return file


def _advance(scene: Scene) -> File:
    segments = [
        {"name": s.name, "length": s.length, "width": s.width, "codec": s.codec} for s in scene.base.task.segments
    ]
    spec = scene.base.task.codec
    given: dict[str, Any] = {
        "segments": segments,
        "clip_micros": spec.clip_micros,
        "range_micros": spec.range_micros,
        "bits": spec.bits,
        "weight_max": spec.weight_max,
        "algorithm": "fedavg",
        "rate_micros": 500_000,
        "rotation": b"",
        "model": scene.model,
        "state": b"",
        "total": scene.total,
    }
    file = File("advance.json", "the next model and state from the last ones and a sum", "9.3", "advance", given)
    file.ok("of the round in `messages`", rotation=scene.view.manifest.rotation)
    file.ok("without rotation")
    file.ok("rate 0 leaves the model", rate_micros=0)
    file.ok("rate 1.25", rate_micros=1_250_000)
    one = _floats(*(0.25 * (-1) ** i * (i % 3) for i in range(len(scene.model) // 4)))
    # Yogi's sign has three values: below, at and above the square
    squares = _floats(*(10.0 ** (i % 5 - 4) for i in range(len(scene.model) // 4)))
    adaptive = {"rate_micros": 20_000, "beta1_micros": 900_000, "beta2_micros": 990_000, "tau_micros": 1_000}
    file.ok("FedAvgM, first round", algorithm="fedavgm", beta1_micros=900_000)
    file.ok("FedAvgM", algorithm="fedavgm", beta1_micros=900_000, state=one)
    for name, algorithm in (("FedAdam", "fedadam"), ("FedYogi", "fedyogi")):
        file.ok(f"{name}, first round", algorithm=algorithm, **adaptive)
        file.ok(name, algorithm=algorithm, state=one + squares, **adaptive)
        file.ok(f"{name} of a sum of nothing", algorithm=algorithm, total=bytes(24) + scene.total[24:], **adaptive)
    half, rest = {**segments[0], "length": 4}, {**segments[0], "length": 4, "name": "controls"}
    file.ok(
        "SCAFFOLD",
        algorithm="scaffold",
        population=1_000,
        segments=[half, rest, *segments[1:]],
        total=scene.total[:8] + scene.total[16:20] + scene.total[8:16] + scene.total[20:],
    )
    file.ok("an evaluation leaves the model", algorithm="evaluate", segments=segments[1:], total=scene.total[24:])
    file.bad("sum-malformed", "a state of another length", algorithm="fedavgm", beta1_micros=900_000, state=one[:-4])
    infinite = _floats(float("inf")) + scene.model[4:]
    file.bad("sum-malformed", "an infinite model", model=infinite)
    weightless = scene.total[:24] + bytes(8) + scene.total[32:]
    negative = scene.total[:24] + b"\xff" * 8 + scene.total[32:]
    file.bad("sum-malformed", "weights that sum to zero", total=weightless)
    file.bad("sum-malformed", "weights that sum to -1", total=negative)
    file.bad("update-wrong-shape", "a sum of another size", total=scene.total[:-1])
    return file
